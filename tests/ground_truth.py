"""`python -m tests.ground_truth runs/NAME` writes ground_truth.csv from an ended sweep of configs/schedules.yaml.

The file has a row for each epoch of each trial: its validation scores, and the test error of the trial's best epoch.
"""

import csv
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import optuna
import torch

from model.data.batches import Data
from model.data.pools import ensure_pools
from model.training import checkpoints
from model.training.evaluation import evaluate
from model.training.loop import make_network
from sweep.config import load, read_trial
from sweep.tensorboard.event_file import scalars

FILE = Path(__file__).with_name("ground_truth.csv")
SCORES = ("loss", "error_rate", "cer")
AVERAGED = "averaged_loss"  # of the averaged weights, which is what early stopping compares


@dataclass(frozen=True)
class Recorded:
    """A trial that ran to its end: scores by epoch, and the test error of its best epoch."""

    rate: float
    schedule: str
    seed: int
    test_error_rate: float
    epochs: list[dict[str, float]]


class GroundTruth:
    """Every schedule at every rate with every seed."""

    def __init__(self, file: Path = FILE) -> None:
        self.trials: dict[tuple[str, float, int], Recorded] = {}
        with file.open() as stream:
            for row in csv.DictReader(stream):
                key = (row["schedule"], float(row["rate"]), int(row["seed"]))
                new = Recorded(key[1], key[0], key[2], float(row["test_error_rate"]), [])
                trial = self.trials.setdefault(key, new)
                trial.epochs.append({name: float(row[name] or "nan") for name in (*SCORES, AVERAGED)})

    @cached_property
    def rates(self) -> list[float]:
        return sorted({rate for _, rate, _ in self.trials})

    @cached_property
    def schedules(self) -> list[str]:
        return sorted({schedule for schedule, _, _ in self.trials})

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({seed for _, _, seed in self.trials})

    @cached_property
    def epochs(self) -> int:
        return max(len(trial.epochs) for trial in self.trials.values())

    @cached_property
    def errors(self) -> dict[tuple[str, float], np.ndarray]:
        """Test errors (S,) of each config."""
        return {
            (schedule, rate): np.array([self.trials[schedule, rate, seed].test_error_rate for seed in self.seeds])
            for schedule in self.schedules
            for rate in self.rates
        }


def main(root: Path) -> None:
    config = load(root / "sweep.yaml")
    pools = Path(str(config.data.cache))
    ensure_pools(config, pools, workers=2, test=True)
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{root / 'study.db'}")
    with FILE.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["schedule", "rate", "seed", "epoch", *SCORES, AVERAGED, "test_error_rate"])
        writer.writeheader()
        for recorded in study.trials:
            folder = root / "trials" / recorded.user_attrs["record"]["name"]
            writer.writerows(rows(folder, pools, recorded.intermediate_values))


def rows(folder: Path, pools: Path, averaged: Mapping[int, float]) -> Iterator[dict[str, str | float]]:
    """`averaged`: what early stopping compared, by epoch; it does not look at the last one."""
    trial = read_trial(folder / "config.yaml")
    data = Data(trial, pools, torch.device("cpu"))
    network = make_network(trial, data.device)
    network.load_state_dict(checkpoints.load(folder / "best.pt")["network"])
    tested, _ = evaluate(network, data.batches(data.open("test")), "bfloat16")
    curves = scalars(folder.parent.parent / "tensorboard" / folder.name)
    for epoch in range(trial.training.epochs):
        yield {
            "schedule": trial.schedule.name,
            "rate": trial.optimizer.lr,
            "seed": trial.training.seed,
            "epoch": epoch + 1,
            **{name: f"{curves[f'epoch/{name}'][epoch][1]:.6g}" for name in SCORES},
            AVERAGED: f"{averaged[epoch + 1]:.6g}" if epoch + 1 in averaged else "",
            "test_error_rate": f"{tested.error_rate:.6g}",
        }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
