"""The command `model.predict`: many files of which some are bad, and how sure it is of each text."""

import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from model.config import TrialConfig, override
from model.data.captchas import draw
from model.network.crnn import CRNN
from model.predict import main
from model.reading.recognizer import Recognizer
from model.training import checkpoints
from tests.conftest import REPOSITORY
from tests.processes import TINY
from tests.test_image_files import announce

CONFIG = TrialConfig.model_validate(override({}, TINY))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network that reads some text in each image."""
    torch.manual_seed(0)
    network = CRNN(CONFIG)
    with torch.no_grad():
        network.fc.weight.mul_(8)
        network.fc.bias[0] -= 3
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    checkpoints.save(path, {"config": CONFIG.model_dump(mode="json"), "network": network.state_dict()})
    return path


def images(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index:03}.png" for index in range(count)]
    for index, path in enumerate(paths):
        draw(CONFIG.captcha, 0, "test", index)[0].save(path)
    return paths


def spoil(folder: Path) -> dict[str, str]:
    """Puts bad files among the images of a folder: file → part of the sentence that tells."""
    whole = (folder / "000.png").read_bytes()
    draw(CONFIG.captcha, 0, "test", 0)[0].save(folder / "whole.jpg")
    photo = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    (folder / "000-truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "001-flipped.png").write_bytes(flipped)
    (folder / "002-truncated.jpg").write_bytes(photo[: len(photo) // 2])
    (folder / "003-empty.png").touch()
    (folder / "004-page.png").write_text("<html></html>")
    announce(folder / "005-bomb.png", (20_000, 20_000))
    announce(folder / "006-large.png", (10_000, 10_000))
    (folder / "007-nowhere.png").symlink_to("nothing")
    os.mkfifo(folder / "008-fifo.png")
    (folder / "009-device.png").symlink_to("/dev/zero")
    (folder / "010-text.tiff").write_bytes(b"II*\0\xff\xff\xff\xff")
    (folder / "011-colours.gif").write_bytes(b"GIF89a\1\0\1\0\xff\0\0,")
    (folder / "012-folder.png").mkdir()  # no image, and none that was meant to be one
    (folder / "013-notes.txt").write_text("nothing that is read")
    return {
        "000-truncated.png": "truncated",
        "001-flipped.png": "",
        "002-truncated.jpg": "truncated",
        "003-empty.png": "the file is empty",
        "004-page.png": "not an image of a known format",
        "005-bomb.png": "at most 50 million pixels",
        "006-large.png": "at most 50 million pixels",
        "007-nowhere.png": "No such file",
        "008-fifo.png": "not a regular file",
        "009-device.png": "not a regular file",
        "010-text.tiff": "",
        "011-colours.gif": "",
    }


def test_bad_files_are_named_one_by_one_and_all_others_are_read_in_order(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = images(tmp_path / "images", 70)  # more than a batch
    assert main([str(checkpoint), str(tmp_path / "images")]) == 0
    expected = capsys.readouterr().out
    bad = spoil(tmp_path / "images")
    assert main([str(checkpoint), str(tmp_path / "images")]) == 1
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in expected.splitlines()] == [str(path) for path in good]
    assert [line.split("\t")[:2] for line in printed.out.splitlines()] == [
        line.split("\t")[:2] for line in expected.splitlines()
    ]
    lines = printed.err.splitlines()
    assert len(lines) == len(bad)
    for line, (name, problem) in zip(lines, bad.items(), strict=True):
        assert line.startswith(f"{tmp_path / 'images' / name}: ")
        assert problem in line


def test_a_missing_file_and_an_empty_folder_do_not_keep_others_from_being_read(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image,) = images(tmp_path, 1)
    (tmp_path / "empty").mkdir()
    assert main([str(checkpoint), str(tmp_path / "nothing.png"), str(tmp_path / "empty"), str(image)]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{image}\t")
    assert f"{tmp_path / 'nothing.png'}: No such file" in printed.err
    assert f"{tmp_path / 'empty'}: no images in this folder" in printed.err


@pytest.mark.parametrize("name", ["nothing.png", "empty", "n" * 300])
def test_without_any_image_nothing_is_started(
    name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(checkpoint), str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(str(tmp_path / name))
    assert len(printed.err.splitlines()) == 1


def test_any_number_of_images_is_read_in_batches_of_a_bounded_size(checkpoint: Path, tmp_path: Path) -> None:
    recognizer = Recognizer.from_checkpoint(checkpoint)
    sizes = []
    recognizer.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    files = images(tmp_path, 2) * 75
    read = recognizer.read_files(iter(files), failed=pytest.fail)
    next(read)
    assert sizes == [64]  # the first line comes before the last file has been opened
    assert len(list(read)) == 149
    assert sizes == [64, 64, 22]


def test_batches_are_smaller_where_images_are_large() -> None:
    large = {"captcha.width": 2048, "captcha.height": 1024}
    config = TrialConfig.model_validate(override(CONFIG.model_dump(), large))
    with torch.device("meta"):
        recognizer = Recognizer(config, CRNN(config))
    assert recognizer.batch_size == 2**28 // (4 * 8 * 2048 * 1024)


def test_the_command_uses_one_thread(checkpoint: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        main([str(checkpoint), str(tmp_path / "nothing")])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_reader_that_has_seen_enough_ends_the_command_without_noise(checkpoint: Path, tmp_path: Path) -> None:
    files = images(tmp_path, 1) * 500
    command = [sys.executable, "-m", "model.predict", str(checkpoint), *map(str, files)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0
    process.stderr.close()


def reading(logits: torch.Tensor) -> tuple[str, float]:
    """What a recogniser says whose network gives these logits (T, K)."""
    recognizer = Recognizer(CONFIG, CRNN(CONFIG))
    recognizer.network.forward = lambda images, widths=None: logits[:, None]  # type: ignore[method-assign]
    (result,) = recognizer.read(torch.zeros(1, 3, 32, 64, dtype=torch.uint8))
    return result


def test_the_confidence_is_the_probability_of_the_text_over_all_paths_that_read_it() -> None:
    torch.manual_seed(1)
    logits = torch.randn(4, 5)
    logits[1, 3] += 3
    text, confidence = reading(logits)
    probabilities = logits.softmax(1)
    alphabet = Recognizer(CONFIG, CRNN(CONFIG)).alphabet
    total = 0.0
    for path in product(range(5), repeat=4):
        merged = [index for place, index in enumerate(path) if place == 0 or index != path[place - 1]]
        if alphabet.decode(merged) == text:
            total += math.prod(float(probabilities[step, index]) for step, index in enumerate(path))
    assert text
    assert confidence == pytest.approx(total, rel=1e-5)


def test_nobody_is_sure_of_nothing() -> None:
    blank = torch.zeros(4, 5)
    blank[:, 0] = 20
    assert reading(blank) == ("", 0.0)


def test_a_text_that_is_certain_has_the_confidence_1() -> None:
    certain = torch.full((4, 5), -50.0)
    certain[[0, 1, 2, 3], [1, 0, 2, 0]] = 50
    text, confidence = reading(certain)
    assert text == "01"
    assert confidence == 1
