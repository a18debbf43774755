"""Sweeps on a user's own images, from the folder to the report."""

import csv
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from model.data.own_images import Look
from model.predict import main as predict
from sweep.config import derived, load
from sweep.report import main as report
from sweep.run import main
from tests.conftest import REPOSITORY
from tests.processes import Sweep, sets, title, wait_for
from tests.test_own_images import draw

OWN_IMAGES = REPOSITORY / "configs" / "own_images.yaml"
QUICK = {
    "network.channels": [8, 8],
    "network.encoder.size": 16,
    "training.batch_size": 16,
    "training.epochs": 2,
    "search.trials": 2,
    "search.early_stopping": "none",
    "confirm": "{top: 1, seeds: 1}",
}
TEXTS = [f"{(37 * number) % 97:02}/é 字"[: 2 + number % 5] for number in range(150)]


def images_in(folder: Path) -> Path:
    """150 images of three widths with a table, whose texts have a space, a slash and Chinese."""
    folder.mkdir(parents=True)
    with (folder / "labels.tsv").open("w", encoding="utf-8") as file:
        for number, text in enumerate(TEXTS):
            size = (40 + 30 * (number % 3), 32)
            draw(text.encode("ascii", "replace").decode(), size, number).save(folder / f"{number}.png")
            file.write(f"{number}.png\t{text}\n")
    return folder


def run(folder: Path, outputs: Path, *arguments: str) -> int:
    options = ["--local", "--quiet", "--output-dir", str(outputs), "--cache-dir", str(outputs / "cache")]
    return main(["--images", str(folder), *options, *sets(QUICK), *arguments])


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished sweep and its images."""
    base = tmp_path_factory.mktemp("own")
    folder = images_in(base / "images")
    assert run(folder, base / "runs", "--name", "r") == 0
    return base / "runs" / "r", folder


def test_what_follows_from_the_images_is_in_its_config(swept: tuple[Path, Path]) -> None:
    config = load(swept[0] / "sweep.yaml")
    assert config.captcha is None
    assert config.images is not None
    assert config.images.path == str(swept[1])
    assert set(" /é字") < set(config.images.characters)
    assert config.images.longest == 6
    assert config.data.train_images + config.data.valid_images + config.data.test_images == 150
    assert config.time_steps >= 5 * 6
    assert config.training.epochs == 2  # given, not chosen


def test_epochs_are_chosen_by_the_images_and_their_alphabet(swept: tuple[Path, Path]) -> None:
    config = load(OWN_IMAGES, {"images.path": str(swept[1])})
    found = Look(config, swept[0], 1, lambda done, total: None, keep=False).facts()

    def epochs(images: int, characters: int) -> int:
        settings = {**found.settings, "characters": "".join(chr(0x4E00 + number) for number in range(characters))}
        facts = replace(found, counts={**found.counts, "train": images}, settings=settings)
        return int(derived.values(config, facts)["training.epochs"])

    assert [epochs(4_800, characters) for characters in (10, 32, 128)] == [16, 16, 32]
    assert [epochs(24_000, characters) for characters in (32, 3_000)] == [4, 31]
    assert epochs(300, 62) == 100


def test_it_ends_with_a_confirmed_winner_pictures_and_a_report(swept: tuple[Path, Path]) -> None:
    root, _ = swept
    with (root / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["completed"] * 3
    assert any(row["test_error_rate"] for row in rows)
    page = (root / "report.html").read_text()
    assert "data:image/png" in page
    assert "字" in page


def test_its_winner_reads_images_of_any_size(swept: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    root, folder = swept
    assert predict([str(root / "best.pt"), str(folder)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 150


def test_its_config_repeats_it(swept: tuple[Path, Path]) -> None:
    root, _ = swept
    outputs = root.parent
    options = ["--local", "--quiet", "--output-dir", str(outputs), "--cache-dir", str(outputs / "cache")]
    assert main(["--config", str(root / "sweep.yaml"), "--name", "again", *options]) == 0
    errors = [
        [row["loss"] for row in csv.DictReader((outputs / name / "leaderboard.csv").open(newline=""))]
        for name in ("r", "again")
    ]
    assert errors[0] == errors[1]


@pytest.mark.slow
def test_it_goes_on_without_its_folder_until_the_cache_is_gone_too(
    swept: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(swept[0].parent, tmp_path / "runs")) / "r"
    away = swept[1].rename(swept[1].with_name("away"))
    options = ["--resume", str(root), "--local", "--cache-dir", str(tmp_path / "runs" / "cache")]
    try:
        assert main([*options, "--trials", "3"]) == 0
        shutil.rmtree(tmp_path / "runs" / "cache")
        assert main([*options, "--trials", "4"]) == 130
        assert "the images must be converted again, but images.path must be" in capsys.readouterr().out
        images_in(swept[1])
        draw("00", noise=77).save(swept[1] / "5.png")
        assert main([*options, "--trials", "4"]) == 130
        assert "have changed since" in capsys.readouterr().out
        draw("37"[:2], (40 + 30 * (1 % 3), 32), 1).save(swept[1] / "5.png")
    finally:
        shutil.rmtree(swept[1], ignore_errors=True)
        away.rename(swept[1])
    assert main([*options, "--trials", "4"]) == 0
    assert report([str(root)]) == 0


def test_images_that_cannot_be_used_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = images_in(tmp_path / "images")
    (folder / "labels.tsv").write_text((folder / "labels.tsv").read_text() + "gone.png\t12\n")
    assert run(folder, tmp_path / "runs", "--name", "r") == 2
    assert "images.bad must be skip to leave out 1 of 151 images" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "r").exists()
    assert "gone.png" in (tmp_path / "runs" / "bad_images.csv").read_text()
    assert run(folder, tmp_path / "runs", "--name", "r", "--set", "images.bad=skip") == 0
    assert "gone.png" in (tmp_path / "runs" / "r" / "bad_images.csv").read_text()
    assert "missing file" in (tmp_path / "runs" / "r" / "sweep.log").read_text()


def test_the_first_command_of_all_lists_what_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, outputs = images_in(tmp_path / "images"), tmp_path / "new" / "runs"
    (folder / "3.png").write_bytes(b"")
    options = ["--output-dir", str(outputs), "--cache-dir", str(tmp_path / "cache"), "--local"]
    assert main(["--images", str(folder), *options]) == 2
    errors = capsys.readouterr().err
    assert "read as: tab-separated" in errors
    assert "    3.png: the file is empty" in errors
    assert f"all that can't be used are in {outputs / 'bad_images.csv'}" in errors
    assert "3.png" in (outputs / "bad_images.csv").read_text()


def test_ctrl_c_while_the_workers_start_ends_in_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    folder, cache = images_in(tmp_path / "images"), tmp_path / "cache"
    options = ["--output-dir", str(tmp_path / "runs"), "--cache-dir", str(cache), "--local"]
    sweep = Sweep("--images", str(folder), *options)
    masks = wait_for(lambda: [_blocked(process) for process in sweep.family() if "spawn_main" in title(process)])
    sweep.press_ctrl_c()
    assert sweep.wait() == (130, "\ninterrupted\n")
    assert [path.name for path in cache.iterdir()] == ["render.lock"]
    # A worker that imports its modules can't handle Ctrl-C yet: it would print a traceback.
    assert all(signal.SIGINT in mask for mask in masks)


def _blocked(process: psutil.Process) -> set[int]:
    """The signals that wait until the process lets them in."""
    status = Path(f"/proc/{process.pid}/status").read_text().split()
    mask = int(status[status.index("SigBlk:") + 1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_a_folder_that_is_not_there_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "nowhere", tmp_path / "runs") == 2
    assert capsys.readouterr().err.startswith("--images must be a folder")
