import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sweep.config import SweepConfig, load
from sweep.progress import Terminal
from sweep.resources import Machine, allot, mps_runs, recommend, trials_per_gpu
from sweep.run import QUICKSTART

MACHINE = Machine(cpus=16, gpus=2, gpu_name="a card")


def config(cache: Path, batch_size: int = 32) -> SweepConfig:
    return load(QUICKSTART, {"data.path": str(cache), "training.batch_size": batch_size})


def test_a_gpu_is_shared_as_the_benchmark_recommended_for_this_network_on_this_card(tmp_path: Path) -> None:
    ours, other = config(tmp_path, batch_size=32), config(tmp_path, batch_size=64)
    assert allot(ours, MACHINE, trials=100, local=False).gpus == 1 / 4
    recommend(ours, "a card", trials=8)
    allotment = allot(ours, MACHINE, trials=100, local=False)
    assert (allotment.gpus, allotment.at_once, allotment.cpus) == (1 / 8, 16, 1.0)
    assert trials_per_gpu(other, "a card") == 4
    assert trials_per_gpu(ours, "another card") == 4


@pytest.mark.parametrize("content", ["", "[]", '{"trials": "many"}', "\0"])
def test_a_damaged_recommendation_counts_as_none(tmp_path: Path, content: str) -> None:
    recommend(config(tmp_path), "a card", trials=8)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert trials_per_gpu(config(tmp_path), "a card") == 4


def test_the_header_tells_whether_trials_share_a_gpu_through_mps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweep.progress.pick", lambda gpus: torch.device("cpu"))
    settings = config(tmp_path)
    shared = allot(settings, MACHINE, trials=100, local=False)
    for machine, told in ((MACHINE, "no MPS runs"), (replace(MACHINE, mps=True), "through MPS")):
        Terminal(settings, tmp_path, "resume").header(QUICKSTART, machine, shared)
        assert told in capsys.readouterr().out
    alone = replace(shared, at_once=2, gpus=1.0)
    Terminal(settings, tmp_path, "resume").header(QUICKSTART, MACHINE, alone)
    assert "MPS" not in capsys.readouterr().out


def test_mps_runs_while_its_daemon_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    file = tmp_path / "nvidia-cuda-mps-control.pid"
    assert not mps_runs()
    daemon = subprocess.Popen(["sleep", "60"])
    file.write_text(f"{daemon.pid}\n")
    assert mps_runs()
    daemon.kill()
    daemon.wait()
    assert not mps_runs()
    file.write_text("no number")
    assert not mps_runs()
