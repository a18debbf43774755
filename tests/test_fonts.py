"""Fonts of one's own for drawn captchas, `captcha.fonts`."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captcha.image
import matplotlib
import numpy as np
import pytest

from model import captchas
from model.config import CaptchaConfig, TrialConfig
from model.data.captchas import render
from model.data.pool_file import PoolSpec, open_pool
from model.data.pools import ensure_pools
from model.data.source import source_of
from sweep.config import load
from sweep.run import main
from tests.processes import TINY, StartLocal, resume_local, sets

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SIZE = {"width": 96, "height": 32, "render_scale": 2}


@pytest.fixture
def font(tmp_path: Path) -> Path:
    return Path(shutil.copy(DEJAVU / "DejaVuSerif-Bold.ttf", tmp_path / "my font.ttf"))


def drawn(*fonts: Path | str, count: int = 4, **values: Any) -> list[np.ndarray]:
    config = CaptchaConfig(fonts=tuple(map(str, fonts)), **{**SIZE, **values})
    return [render(config, 0, "train", index)[0] for index in range(count)]


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_captchas_are_drawn_in_the_given_fonts_and_without_any_in_the_librarys(font: Path, tmp_path: Path) -> None:
    library = [shutil.copy(file, tmp_path / f"{index}.ttf") for index, file in enumerate(captcha.image.DEFAULT_FONTS)]
    assert same(drawn(), [render(CaptchaConfig(**SIZE), 0, "train", index)[0] for index in range(4)])
    assert same(drawn(*library), drawn())
    assert not same(drawn(font), drawn())
    assert not same(drawn(font, *library), drawn(*library, font))


def pool_of(config: TrialConfig) -> PoolSpec:
    (spec,) = source_of(config).specs("train")
    return spec


def name(*fonts: Path | str, **values: Any) -> str:
    return pool_of(TrialConfig(captcha=CaptchaConfig(fonts=tuple(map(str, fonts)), **values))).name


def test_a_pool_is_found_by_the_contents_of_its_fonts_and_not_by_their_paths(font: Path, tmp_path: Path) -> None:
    moved = shutil.copy(font, tmp_path / "moved.ttf")
    other = DEJAVU / "DejaVuSans.ttf"
    assert name(font) == name(moved)
    assert name(font) == name(font, fonts_sha256=[hashlib.sha256(font.read_bytes()).hexdigest()])
    assert len({name(), name(font), name(other), name(font, other), name(other, font)}) == 5
    before = name(font)
    shutil.copy(DEJAVU / "DejaVuSans-Bold.ttf", font)
    assert name(font) != before


def test_pools_from_before_there_were_fonts_are_found_still() -> None:
    assert json.loads(pool_of(TrialConfig()).contents)["config"].keys() == {
        "characters", "length", "width", "height", "font_sizes", "color", "render_scale",
    }  # fmt: skip


def test_a_pool_holds_what_its_fonts_draw_and_its_header_has_room_for_many(
    font: Path, tmp_path: Path, tiny: Callable[..., TrialConfig]
) -> None:
    config = tiny({"captcha.fonts": [str(font)] * 64, "data.train_images": 16, "data.valid_images": 4})
    ensure_pools(config, tmp_path, workers=1)
    pool = open_pool(pool_of(config), tmp_path)
    assert pool is not None
    assert np.array_equal(pool.images[3], render(config.captcha, 0, "train", 3)[0])


def test_a_relative_path_is_relative_to_the_working_directory(font: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(font.parent)
    assert CaptchaConfig(fonts=("my font.ttf", str(font), "./my font.ttf")).fonts == (str(font),) * 3
    assert CaptchaConfig(fonts=()).fonts is None
    monkeypatch.setenv("HOME", str(font.parent))
    assert CaptchaConfig(fonts=("~/my font.ttf",)).fonts == (str(font),)


def folder(font: Path) -> None:
    font.unlink()
    font.mkdir()


def cut(font: Path) -> None:
    font.write_bytes(font.read_bytes()[:1000])


BROKEN: list[tuple[Callable[[Path], object], str, str]] = [
    (Path.unlink, "0123", "captcha.fonts must be files that can be read, got '{font}': No such file"),
    (folder, "0123", "captcha.fonts must be files that can be read, got '{font}': not a regular file"),
    (lambda font: font.write_text("no font"), "0123", "captcha.fonts must be TrueType or OpenType fonts, got '{font}'"),
    (lambda font: font.write_bytes(b""), "0123", "captcha.fonts must be TrueType or OpenType fonts, got '{font}'"),
    (cut, "0123", "captcha.fonts must be TrueType or OpenType fonts, got '{font}'"),
    (str, "01中文", "captcha.characters must be in the font, got '中文': my font.ttf has no glyph for them"),
    (lambda font: shutil.copy(DEJAVU / "cmex10.ttf", font), "ab01中", "my font.ttf has no glyph for"),
    (lambda font: shutil.copy(DEJAVU / "cmr10.ttf", font), "01€", "my font.ttf has no glyph for it"),
    (str, "AΑ", "captcha.characters must look different, got 'A' (U+0041) and 'Α' (U+0391): my font.ttf"),
]


@pytest.mark.parametrize(("damage", "characters", "said"), BROKEN, ids=[said for *_, said in BROKEN])
def test_a_font_that_cannot_draw_is_answered_in_a_sentence_before_anything_is_written(
    font: Path,
    damage: Callable[[Path], object],
    characters: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = DEJAVU / "DejaVuSans.ttf"
    damage(font)
    values = {**TINY, "captcha.characters": characters, "captcha.fonts": f"['{font}']"}
    assert main([*sets(values), "--output-dir", str(tmp_path / "runs"), "--local"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (sentence,) = printed.err.splitlines()
    assert said.replace("{font}", str(font)) in sentence
    assert not (tmp_path / "runs").exists()
    if characters == "0123":  # also as the second of two, and for the other command that draws
        (tmp_path / "two.yaml").write_text(
            f"captcha: {{fonts: ['{good}', '{font}']}}\nsearch: {{space: {{optimizer.lr: {{grid: [1]}}}}}}"
        )
        assert captchas.main([str(tmp_path / "out"), "--config", str(tmp_path / "two.yaml")]) == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert said.replace("{font}", str(font)) in sentence
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_sweep_refuses_fonts_that_have_changed_since_it_began_unless_it_needs_them_no_more(
    font: Path, local: StartLocal, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    small = {"training.epochs": 1, "data.train_images": 32, "search.trials": 1}
    code, printed = local("serif", "--cache-dir", str(cache), **small, **{"captcha.fonts": f"['{font}']"}).wait()
    assert code == 0, printed
    root, contents = tmp_path / "serif", font.read_bytes()
    config = load(root / "sweep.yaml")
    assert config.captcha.fonts == (str(font),)
    assert config.captcha.fonts_sha256 == (hashlib.sha256(contents).hexdigest(),)
    shutil.copy(DEJAVU / "DejaVuSans.ttf", font)
    code, printed = resume_local(root, "--trials", "2").wait()  # all images are rendered already
    assert code == 0, printed
    shutil.rmtree(cache)
    code, printed = resume_local(root, "--trials", "3").wait()
    assert code == 2
    assert f"captcha.fonts must have the contents of captcha.fonts_sha256, got others: '{font}'" in printed
    assert not cache.exists()
    font.write_bytes(contents)
    code, printed = resume_local(root, "--trials", "3").wait()
    assert code == 0, printed
    other = f"captcha.fonts=['{DEJAVU / 'DejaVuSans.ttf'}']"  # a new sweep with another font forgets the digest
    assert main(["--config", str(root / "sweep.yaml"), "--set", other, "--dry-run", "--local"]) == 0
