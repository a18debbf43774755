"""A score that is added to the one table is everywhere where the others are."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from model.training.scores import SCORES
from sweep.tensorboard.event_file import read_events
from tests.processes import SETTINGS, sets
from tests.results import runs

ADDS_A_SCORE = """
import sys
from model.training.scores import SCORES, Score

SCORES["half"] = Score("half of it", lambda readings: readings.error_rate / 2)

from sweep.run import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    (outputs / "script.py").write_text(ADDS_A_SCORE)
    stopping = {"search.early_stopping": "{name: asha, grace_epochs: 1, metric: half}", "search.metric": "half"}
    values = {**SETTINGS, "search.trials": 3, "training.epochs": 2, **stopping}
    options = ["--local", "--name", "r", "--output-dir", str(outputs), "--cache-dir", str(cache)]
    command = [sys.executable, str(outputs / "script.py"), *options, *sets(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "half of it" in done.stdout
    return outputs / "r"


def test_a_new_score_is_a_column_of_the_leaderboard_and_orders_it(root: Path) -> None:
    with (root / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    halves = [float(row["half"]) for row in rows]
    assert halves == [float(row["error_rate"]) / 2 for row in rows]
    assert halves == sorted(halves)


def test_a_new_score_is_a_curve_of_both_sets_and_a_column_of_hparams(root: Path) -> None:
    for run, events in runs(root).items():
        assert ("epoch/half" in events.Tags()["scalars"]) == (run != "_sweep")
    metrics = [
        metric.name.tag
        for event in read_events(root / "tensorboard" / "_sweep")
        for value in event.summary.value
        if value.tag == "_hparams_/experiment"
        for metric in _experiment(value.metadata.plugin_data.content).metric_infos
    ]
    assert metrics == ["epoch/error_rate", "best/error_rate", "epoch/cer", "epoch/loss", "epoch/half"]


def test_a_new_score_is_in_the_report(root: Path) -> None:
    assert "<th>half of it</th>" in (root / "report.html").read_text()


def _experiment(content: bytes):  # type: ignore[no-untyped-def]
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    return HParamsPluginData.FromString(content).experiment


def test_a_score_of_which_more_is_better_is_minimised_as_its_negative() -> None:
    assert [name for name, score in SCORES.items() if not score.lower_is_better] == ["acc"]
    assert SCORES["acc"].cost(0.9) < SCORES["acc"].cost(0.8)
