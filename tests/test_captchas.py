import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.captchas import main
from model.config import CaptchaConfig
from model.data.captchas import render
from tests.conftest import QUICKSTART

CONFIG = CaptchaConfig(width=96, height=32, render_scale=2)


def test_an_image_depends_on_seed_split_and_index_alone() -> None:
    first, text = render(CONFIG, 7, "train", 3)
    render(CONFIG, 7, "train", 4)
    again, same_text = render(CONFIG, 7, "train", 3)
    assert first.shape == (3, 32, 96)
    assert text == same_text
    assert np.array_equal(first, again)
    for other in ((8, "train", 3), (7, "valid", 3), (7, "train", 4)):
        assert not np.array_equal(first, render(CONFIG, *other)[0])  # type: ignore[arg-type]


def test_another_process_draws_the_same() -> None:
    code = "from tests.test_captchas import *; print(render(CONFIG, 7, 'test', 0)[0].tobytes().hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == render(CONFIG, 7, "test", 0)[0].tobytes().hex()


def test_the_librarys_own_randomness_is_back_after_drawing() -> None:
    import secrets

    import captcha.image

    render(CONFIG, 0, "train", 0)
    assert captcha.image.secrets is secrets


def test_lengths_and_characters_are_those_asked_for() -> None:
    config = CaptchaConfig(characters="XYZ", length=(2, 5), color="grey")
    texts = [render(config, 0, "train", index)[1] for index in range(60)]
    assert {len(text) for text in texts} == {2, 3, 4, 5}
    assert set("".join(texts)) == set("XYZ")
    assert render(config, 0, "train", 0)[0].shape == (1, 64, 192)


def test_command_writes_images_named_by_text_and_index(tmp_path: Path) -> None:
    assert main([str(tmp_path / "out"), "--count", "5", "--config", str(QUICKSTART)]) == 0
    files = sorted((tmp_path / "out").iterdir(), key=lambda file: int(file.stem.rpartition("_")[2]))
    assert [file.stem.rpartition("_")[2] for file in files] == ["0", "1", "2", "3", "4"]
    assert all(len(file.stem.rpartition("_")[0]) == 4 and file.stem[0].isdigit() for file in files)
    with Image.open(files[0]) as image:
        assert image.size == (96, 32)


@pytest.mark.parametrize("out", ["file", "file/below", "n" * 300])
def test_command_refuses_a_place_that_is_no_folder_in_a_sentence(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("precious")
    assert main([str(tmp_path / out), "--count", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("OUT ")
    assert str(tmp_path / out) in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_command_refuses_images_for_which_there_is_no_memory_in_a_sentence(tmp_path: Path) -> None:
    large = "captcha: {width: 4096, height: 4096, render_scale: 8}\nsearch: {space: {optimizer.lr: {grid: [1]}}}\n"
    (tmp_path / "large.yaml").write_text(large)
    command = [sys.executable, "-m", "model.captchas", "out", "--config", "large.yaml"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))  # noqa: E731
    result = subprocess.run(
        command, cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True, timeout=180, check=False
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "render_scale" in result.stderr
    assert not (tmp_path / "out").exists()


def test_command_refuses_a_broken_config_in_a_sentence(tmp_path: Path, capsys: object) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("captcha: {length: 0}\nsearch: {space: {optimizer.lr: {grid: [1]}}}\n")
    assert main([str(tmp_path / "out"), "--config", str(broken)]) == 2
    assert not (tmp_path / "out").exists()
