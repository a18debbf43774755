"""Checkpoints that are wrong, damaged or hostile are refused in a sentence, without taking time or memory."""

import io
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import TrialConfig, override
from model.network.crnn import CRNN
from model.predict import main
from model.reading.recognizer import Recognizer
from model.training import checkpoints
from tests.conftest import REPOSITORY
from tests.processes import TINY

CONFIG = TrialConfig.model_validate(override({}, TINY))


def best(**changed: Any) -> dict[str, Any]:
    """What a trial saves as best.pt, with dotted keys of its config changed."""
    return {
        "config": override(CONFIG.model_dump(mode="json"), changed),
        "network": CRNN(CONFIG).state_dict(),
    }


def weights(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    state = best()
    change(state["network"])
    return state


def resumable() -> dict[str, Any]:
    return {"epoch": 3, "network": best()["network"], "optimizer": {}, "average": None}


def nested(levels: int = 60) -> list[Any]:
    """A list of 2^levels entries, which a pickle holds in a few bytes for each level."""
    tree: list[Any] = [0]
    for _ in range(levels):
        tree = [tree, tree]
    return tree


def overlapping() -> Tensor:
    """10¹⁰ elements that share the memory of 200,000."""
    return torch.zeros(200_000).as_strided((100_000, 100_000), (1, 1))


LARGE = {"captcha.width": 4096, "captcha.height": 4096, "captcha.render_scale": 1, "network.channels": [8, 999]}

# What is saved, and a part of the sentence.
STATES: dict[str, tuple[Callable[[], Any], str]] = {
    "to resume from": (resumable, "this is a checkpoint to resume training from; give the best.pt beside it"),
    "no config": (lambda: {"network": {}}, "no config"),
    "config of a wrong type": (lambda: {**best(), "config": "captcha"}, "no config"),
    "config is a tensor": (lambda: {**best(), "config": torch.zeros(3)}, "no config"),
    "unknown key": (lambda: best(**{"network.depth": 3}), "network.depth"),
    "value out of range": (lambda: best(**{"training.epochs": 0}), "training.epochs: must be greater than"),
    "value of a wrong type": (lambda: best(**{"captcha.characters": 5}), "captcha.characters: must be a valid string"),
    "config without an end": (lambda: {**best(), "config": {"captcha": nested()}}, "too large"),
    "value without an end": (lambda: best(**{"network.channels": nested()}), "too large"),
    "long config": (lambda: best(**{"network.channels": [1] * 100_000}), "too large"),
    "config that holds itself": (lambda: {**best(), "config": looped()}, "too large"),
    "a list": (lambda: [1, 2], "no checkpoint of a recogniser"),
    "a tensor": (lambda: torch.zeros(3), "no checkpoint of a recogniser"),
    "another program's": (lambda: {"model": {}, "state_dict": {}}, "no checkpoint of a recogniser"),
    "network of a wrong type": (lambda: {**best(), "network": [torch.zeros(3)]}, "no table of tensors"),
    "network of numbers": (lambda: {**best(), "network": {"fc.bias": 3.0}}, "no table of tensors"),
    "network is empty": (lambda: {**best(), "network": {}}, "0 weights"),
    "wrong alphabet": (lambda: best(**{"captcha.characters": "01234567"}), "(5, 32), must be (9, 32)"),
    "wrong size": (lambda: best(**{"network.encoder.size": 32}), "encoder.weight_ih_l0"),
    "wrong colour": (lambda: best(**{"captcha.color": "grey"}), "cnn.conv11.weight"),
    "wrong height": (lambda: best(**{"captcha.height": 64}), "encoder.weight_ih_l0"),
    "a weight is missing": (lambda: weights(lambda w: w.pop("fc.bias")), "fc.bias is missing"),
    "a weight too many": (lambda: weights(lambda w: w.update(extra=torch.zeros(3))), "extra has the shape (3,)"),
    "a weight's name is a number": (lambda: weights(lambda w: w.update({7: torch.zeros(3)})), "7 has the shape (3,)"),
    "a weight of another shape": (lambda: weights(lambda w: w.update({"fc.bias": torch.zeros(5, 1)})), "fc.bias"),
    "weights not finite": (lambda: weights(lambda w: w["fc.bias"].fill_(torch.nan)), "not all finite"),
    "complex weights": (lambda: weights(lambda w: w.update(fc=torch.zeros(5, dtype=torch.cfloat))), "no table"),
    "sparse weights": (lambda: weights(lambda w: w.update({"fc.bias": torch.zeros(5).to_sparse()})), "no table"),
    "weights without values": (lambda: weights(lambda w: w.update(fc=torch.zeros(10**9, device="meta"))), "no table"),
    "repeated values": (lambda: weights(lambda w: w.update(fc=torch.zeros(1).expand(10**10))), "larger than the file"),
    "overlapping values": (lambda: weights(lambda w: w.update(fc=overlapping())), "larger than the file"),
    "a billion layers": (lambda: best(**{"network.layers": 10**9}), "network.layers"),
    "a billion recurrent layers": (lambda: best(**{"network.encoder.layers": 10**9}), "layers"),
    "lstm of 4,000": (lambda: best(**{"network.encoder.size": 4_000}), "encoder.weight_ih_l0"),
    "lstm of a billion": (lambda: best(**{"network.encoder.size": 10**9}), ""),
    "lstm beyond all integers": (lambda: best(**{"network.encoder.size": 10**30}), ""),
    "large kernels": (lambda: best(**{"network.kernels": 31}), "cnn.conv11.weight"),
    "channels of a billion": (lambda: best(**{"network.channels": [8, 10**9]}), ""),
    "memory for each image": (lambda: best(**LARGE), "memory"),
}  # fmt: skip


def looped() -> dict[str, Any]:
    tree: dict[str, Any] = {}
    tree["captcha"] = tree
    return tree


def compressed(path: Path) -> None:
    """A whole checkpoint, but a compressed one: such a file could unpack to a thousand times its size."""
    buffer = io.BytesIO()
    torch.save(best(), buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))


def sparse(path: Path, start: bytes = b"") -> None:
    """20 GB that take no room on the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(20 << 30)


def cut(path: Path, share: float) -> None:
    checkpoints.save(path, best())
    os.truncate(path, int(path.stat().st_size * share))


def flipped(path: Path) -> None:
    checkpoints.save(path, best())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("owned",))


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "empty": (lambda path: path.touch(), "this is no checkpoint"),
    "text": (lambda path: path.write_text("captcha: {}\n"), "this is no checkpoint"),
    "gigabytes": (sparse, "this is no checkpoint"),
    "gigabytes that begin as a zip": (lambda path: sparse(path, b"PK\x03\x04"), "this is no checkpoint"),
    "compressed": (compressed, "this is no checkpoint"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(best())), "this is no checkpoint"),
    "pickle that runs code": (lambda path: path.write_bytes(pickle.dumps(Touch())), "this is no checkpoint"),
    "code in a checkpoint": (lambda path: torch.save({**best(), "config": Touch()}, path), "this is no checkpoint"),
    "a whole module": (lambda path: torch.save(CRNN(CONFIG), path), "this is no checkpoint"),
    "other zip": (lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"), "this is no checkpoint"),
    "cut to a half": (lambda path: cut(path, 0.5), "this is no checkpoint"),
    "cut at the end": (lambda path: cut(path, 0.999), "this is no checkpoint"),
    "a bit flipped": (flipped, "checksum does not fit"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_wrong_checkpoint_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    make, sentence = STATES[name]
    torch.save(make(), tmp_path / "best.pt")
    refuses(tmp_path / "best.pt", sentence)


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_checkpoint_is_refused_in_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, sentence = FILES[name]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "best.pt")
    refuses(tmp_path / "best.pt", sentence)
    assert not (tmp_path / "owned").exists()


def refuses(path: Path, sentence: str) -> None:
    """With a gigabyte of memory more than is in use: the process fails if it takes what the file asks for."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), limits[1]))
    try:
        with pytest.raises((OSError, ValueError)) as refused:
            Recognizer.from_checkpoint(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    said = str(refused.value)
    assert str(path) in said
    assert sentence in said
    assert "\n" not in said
    assert len(said) < len(str(path)) + 300
    assert "pydantic" not in said


def test_the_command_ends_with_a_sentence_and_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(resumable(), tmp_path / "epoch_0003.pt")
    for checkpoint in (tmp_path / "epoch_0003.pt", tmp_path / "nothing.pt", Path("/dev/zero")):
        assert main([str(checkpoint), str(REPOSITORY)]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"{checkpoint}: ")
        assert len(printed.err.splitlines()) == 1
        assert printed.out == ""


def test_the_command_does_not_wait_for_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.pt")
    command = [sys.executable, "-m", "model.predict", "fifo.pt", "."]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "fifo.pt: not a regular file\n")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_right_checkpoint_gives_the_network_that_was_saved(
    tmp_path: Path, memory_format: torch.memory_format
) -> None:
    network = CRNN(CONFIG).to(memory_format=memory_format)
    checkpoints.save(tmp_path / "best.pt", {**best(), "network": network.state_dict()})
    before = torch.get_rng_state()
    config, loaded = checkpoints.load_network(tmp_path / "best.pt")
    assert config == CONFIG
    assert torch.equal(before, torch.get_rng_state())
    images = torch.rand(3, 3, 32, 64)
    assert torch.allclose(loaded.eval()(images), network.eval()(images), atol=1e-5)


def test_a_checkpoint_written_by_torch_itself_has_no_checksum_and_loads(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(best(), buffer)
    (tmp_path / "best.pt").write_bytes(buffer.getvalue())
    assert checkpoints.load(tmp_path / "best.pt").keys() == {"config", "network"}
