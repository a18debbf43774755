"""The benchmark runs, tells what it promises, and its baseline is the same task."""

import json
import math
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from model.config import TrialConfig, override
from model.data.alphabet import Alphabet
from model.network import ctc
from sweep import bench
from sweep.benchmark import baseline, measure
from sweep.benchmark.worker import Memory
from sweep.config import QUICKSTART, load
from tests.processes import TINY, sets

KEYS = {
    "trial_share_of_limit", "logging_share", "checkpoint_share", "speedup_over_notebook", "two_trials_speedup",
    "evaluation_over_training", "rendering_two_process_speedup", "sweep_overhead", "speedup_over_plain_sweep",
    "seconds_per_trial_overhead", "host_mb_per_trial", "device",
}  # fmt: skip


@pytest.mark.slow
def test_the_benchmark_prints_a_table_and_writes_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "EPOCH_SECONDS", 0.2)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    monkeypatch.setattr(measure, "TRIAL_SECONDS", 1.0)
    monkeypatch.setattr(measure, "TRIALS", 2)
    monkeypatch.setattr(measure, "PLAIN_TRIALS", 2)
    monkeypatch.setattr(measure, "PLAIN_IMAGES", 320)
    output = tmp_path / "bench.json"
    assert bench.main([*sets(TINY), "--output", str(output), "--sweep"]) == 0
    figures = json.loads(output.read_text())
    assert set(figures) >= KEYS
    assert isinstance(figures["device"], str)
    for key in KEYS - {"device"}:
        assert math.isfinite(figures[key])
        assert figures[key] > 0
    printed = capsys.readouterr().out
    for part in ("rendering", "the limit", "the notebook's way", "at once", "resources: {cpus:", "a sweep of 2 trials"):
        assert part in printed
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.slow
def test_the_sweeps_own_process_is_measured_with_many_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bench.json"
    assert bench.main(["--driver", "12", "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    for searcher in ("random", "tpe"):
        assert 0 < figures[f"driver_{searcher}_ms_per_trial"]["12"][0] < math.inf
        for key in ("peak_mb", "report_seconds", "report_mb", "resume_seconds"):
            assert 0 < figures[f"driver_{searcher}_{key}"] < math.inf
    assert "tpe: a trial, 12 finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--set", "optimizer.lr=-1"], "optimizer.lr"),
        (["--driver", "0"], "--driver must be at least 1"),
        (["--output", "/nowhere/bench.json"], "--output"),
    ],
)
def test_bad_input_is_answered_before_anything_is_measured(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(arguments) == 2
    printed = capsys.readouterr()
    assert named in printed.err
    assert printed.out == ""


def test_the_notebooks_way_reads_and_weighs_as_ours_does() -> None:
    config = TrialConfig.model_validate(override({}, TINY))
    captchas = baseline.FreshCaptchas(config, 8)
    images, labels, time_steps, lengths = (list(parts) for parts in zip(*(captchas[i] for i in range(8)), strict=True))
    network = baseline.make_network(config, torch.device("cpu"))
    logits, truths = network(torch.stack(images)), torch.stack(labels)
    theirs = F.ctc_loss(logits.log_softmax(2), truths, torch.tensor(time_steps), torch.tensor(lengths))
    assert theirs.item() == pytest.approx(ctc.ctc_loss(logits, truths.to(torch.uint8)).item(), rel=1e-5)
    logits = torch.randn(8, 50, 5, generator=torch.Generator().manual_seed(0))
    readings = ctc.greedy_decode(logits)
    alphabet = Alphabet("0123")
    for path, reading in zip(logits.argmax(2).T, readings.tolist(), strict=True):
        assert baseline.decode(path, "0123") == alphabet.decode(reading)
    assert baseline.accuracy(logits, readings, "0123") == 1


def test_the_notebooks_way_trains_with_an_optimizer_and_validates_without_one() -> None:
    config, device = TrialConfig.model_validate(override({}, TINY)), torch.device("cpu")
    network = baseline.make_network(config, device)
    optimizer = baseline.make_optimizer(config, network)
    before = [parameter.clone() for parameter in network.parameters()]
    baseline.epoch(config, network, 16, device)
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    baseline.epoch(config, network, 16, device, optimizer)
    assert not all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


@pytest.mark.slow
def test_the_fastest_way_of_training_is_measured_told_and_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {"narrow": {"network.encoder.size": 8}, "wide": {"network.encoder.size": 512}, "broken": {"data.seed": 1}}
    monkeypatch.setattr(measure, "VARIANTS", ways)  # on a GPU: plain, recorded, compiled
    monkeypatch.setattr(measure, "EPOCH_SECONDS", 0.2)
    config = load(QUICKSTART, {**TINY, "data.cache": str(tmp_path), "confirm": None})
    measured = measure.Benchmark(config, tmp_path)
    with ExitStack() as closing:
        small = measured.trial
        lanes = [measured._lane(0, small, closing)]
        chosen = measured._fastest(lanes, small, closing)
        assert lanes[0].call("rate", "bare", 0) > 0
        lanes[0].close()
    assert chosen.network.encoder.size == measured.trial.network.encoder.size == 8
    told = "\n".join(" ".join(row) for row in measured.rows)
    assert "wide, bare step" in told
    assert "broken: it failed" in told
    assert "the fastest narrow" in told


def test_no_more_processes_are_measured_at_once_than_there_is_memory_for() -> None:
    assert Memory(host=500, device=0, host_left=1_400, device_left=0).fitting == 3
    assert Memory(host=500, device=3_000, host_left=90_000, device_left=10_000).fitting == 4
    assert Memory(host=500, device=3_000, host_left=400, device_left=10_000).fitting == 1
