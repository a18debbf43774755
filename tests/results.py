"""What a sweep has left on disk, read back, and what must be true of it."""

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.training.loop import is_logged
from sweep.config import read_trial


def leaderboard(root: Path) -> list[dict[str, str]]:
    with (root / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def printed_link(root: Path) -> str:
    """What the sweep said last of where TensorBoard compares its trials, without TensorBoard's own address."""
    return re.findall(r"http://[^/]+(/\?\S+)", (root / "sweep.log").read_text())[-1]


def runs(root: Path) -> dict[str, EventAccumulator]:
    """Every run as TensorBoard's own reader sees it."""
    logs = root / "tensorboard"
    folders = {file.parent for file in logs.rglob("events.out.tfevents.*")}
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return {str(folder.relative_to(logs)): EventAccumulator(str(folder), everything).Reload() for folder in folders}


def decided(root: Path) -> list[dict[str, str]]:
    """The leaderboard without what depends on the clock and on what went wrong meanwhile."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "error")} for row in leaderboard(root)]


def curves(root: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Every scalar point of every run; the sweep's own run aside, whose order is that of arrival."""
    return {
        (run, tag): [(event.step, event.value) for event in events.Scalars(tag)]
        for run, events in runs(root).items()
        for tag in events.Tags()["scalars"]
        if run != "_sweep"
    }


def pictures(root: Path) -> dict[tuple[str, str], list[tuple[int, bytes]]]:
    return {
        (run, tag): [(event.step, event.encoded_image_string) for event in events.Images(tag)]
        for run, events in runs(root).items()
        for tag in events.Tags()["images"]
        if run != "_sweep"
    }


def assert_curves_without_scars(root: Path) -> None:
    """In each curve every step follows the one before, from 1 to the epochs that the leaderboard names."""
    epochs = {row["trial"]: int(row["epochs"]) for row in leaderboard(root)}
    found = curves(root)
    configs = {name: read_trial(root / "trials" / name / "config.yaml") for name, count in epochs.items() if count}
    assert {run.removesuffix("/train") for run, _ in found} == configs.keys()
    for (run, tag), points in found.items():
        name = run.removesuffix("/train")
        config = configs[name]
        steps: Iterable[int] = range(1, epochs[name] + 1)
        if tag.startswith("train/"):
            per_epoch = math.ceil(config.data.train_images / config.training.batch_size)
            every_step = range(1, epochs[name] * per_epoch + 1)
            steps = (step for step in every_step if is_logged(step, per_epoch, config.training.epochs))
        elif tag.startswith("test/"):  # of a replicate, when it has ended
            steps = [config.training.epochs]
        assert [step for step, _ in points] == list(steps), (run, tag)


def assert_nothing_left_over(root: Path) -> None:
    """No temporary file, and no checkpoint of a trial that has ended."""
    names = [path.name for path in root.rglob("*") if "ray" not in path.relative_to(root).parts]
    assert [n for n in names if n.startswith(".") or n.startswith("epoch_") or n.endswith("-journal")] == []
