"""The checker of finished sweeps finds nothing in a good one, and names what is wrong with a damaged one."""

import re
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.compat.proto.event_pb2 import Event

from model.training import checkpoints
from tests.processes import LocalSweep, sets
from tests.sweeps.chains import CONFIRMED
from tests.sweeps.checker import masked_checksum, problems, read_records

Damage = Callable[[Path], Any]  # takes the sweep's folder, beside which the cache lies


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep, beside its cache."""
    folder = tmp_path_factory.mktemp("good")
    places = ["--name", "r", "--output-dir", str(folder), "--cache-dir", str(folder / "cache")]
    code, printed = LocalSweep(folder / "printed.txt", *places, *sets(CONFIRMED)).wait()
    assert code == 0, printed
    return folder / "r"


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good.parent / "cache", tmp_path / "cache")
    return Path(shutil.copytree(good, tmp_path / "r", symlinks=True))


def test_a_good_sweep_has_no_problems(good: Path) -> None:
    assert list(problems(good, good.parent / "cache")) == []


def one(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def swap(first: Path, second: Path) -> None:
    """Gives the first file the contents of the second."""
    assert first.read_bytes() != second.read_bytes()
    shutil.copyfile(second, first)


def records(pattern: str, change: Callable[[Event], list[Event]]) -> Damage:
    """Writes an event file again, with what `change` makes of each event."""

    def damage(root: Path) -> None:
        path = one(root, f"tensorboard/{pattern}")
        before = read_records(path)
        after = [event.SerializeToString() for data in before for event in change(Event.FromString(data))]
        assert before != after
        heads = [struct.pack("<Q", len(data)) for data in after]
        parts = [
            part
            for head, data in zip(heads, after, strict=True)
            for part in (head, masked_checksum(head), data, masked_checksum(data))
        ]
        path.write_bytes(b"".join(parts))

    return damage


def has(event: Event, tag: str, step: int = 0) -> bool:
    return event.step == step and any(value.tag == tag for value in event.summary.value)


def renamed(event: Event, tag: str) -> list[Event]:
    for value in event.summary.value:
        if value.tag == tag:
            value.tag = f"{tag}_"
    return [event]


def lowered(event: Event, tag: str, step: int) -> list[Event]:
    for value in event.summary.value:
        if value.tag == tag and event.step == step:
            value.simple_value -= 0.01
    return [event]


def in_study(statement: str) -> Damage:
    def damage(root: Path) -> None:
        with closing(sqlite3.connect(root / "study.db")) as connection, connection:
            assert connection.execute(statement).rowcount > 0

    return damage


def other_weights(root: Path) -> None:
    """Whole, with a checksum that fits, and a little different."""
    path = one(root, "trials/0000*/best.pt")
    state = checkpoints.load(path)
    weights = next(weight for name, weight in state["network"].items() if name.endswith("weight"))
    weights *= 1.5
    checkpoints.save(path, state)


def judged_again(root: Path) -> None:
    """A replicate's readings of the test images, in another order."""
    path = max(root.glob("trials/*seed=*/best.pt"))
    state = checkpoints.load(path)
    checkpoints.save(path, {**state, "test_readings": torch.flip(state["test_readings"], [0])})


def wrong_link(root: Path) -> None:
    link = one(root, "top/*")
    link.unlink()
    link.symlink_to(Path("..", "tensorboard", "_sweep"))


OWN, TRAIN = "0000*/events.*", "0000*/train/events.*"
START, END = "_hparams_/session_start_info", "_hparams_/session_end_info"


def of_another_group(event: Event) -> list[Event]:
    for value in event.summary.value:
        if value.tag == START:
            content = value.metadata.plugin_data.content
            value.metadata.plugin_data.content = content.replace(b"0000_lr", b"0009_lr")
    return [event]


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a byte of an event": (lambda root: flip(one(root, f"tensorboard/{OWN}"), 900), "is damaged or cut"),
    "a byte of an event's length": (lambda root: flip(one(root, f"tensorboard/{TRAIN}"), 0), "damaged or cut length"),
    "a cut event": (lambda root: cut(one(root, "tensorboard/_sweep/events.*"), 1), "is damaged or cut"),
    "a cut length": (
        lambda root: one(root, f"tensorboard/{OWN}").open("ab").write(b"\x09\0\0"),
        "damaged or cut length",
    ),
    "a missing step": (records(TRAIN, lambda e: [] if has(e, "epoch/loss", 3) else [e]), "steps of a curve"),
    "a missing batch step": (records(OWN, lambda e: [] if has(e, "train/loss", 60) else [e]), "steps of a curve"),
    "a doubled record": (records(TRAIN, lambda e: [e, e] if has(e, "epoch/loss", 3) else [e]), "steps of a curve"),
    "a step that goes back": (
        records(OWN, lambda e: [e, Event(step=1, summary=e.summary)] if has(e, "epoch/loss", 3) else [e]),
        "steps of a curve",
    ),
    "a missing curve": (records(OWN, lambda e: renamed(e, "epoch/cer")), "lacks epoch/cer"),
    "an unknown curve": (records(OWN, lambda e: renamed(e, "epoch/cer")), "has an unknown epoch/cer_"),
    "a missing picture": (records(OWN, lambda e: [] if has(e, "valid/badcase", 6) else [e]), "valid/badcase is there"),
    "a doubled picture": (
        records(OWN, lambda e: [e, e] if has(e, "train/badcase", 3) else [e]),
        "train/badcase is there",
    ),
    "no graph": (records(OWN, lambda e: [] if e.graph_def else [e]), "has 0 graphs"),
    "two graphs": (records(OWN, lambda e: [e, e] if e.graph_def else [e]), "has 2 graphs"),
    "two versions": (records(OWN, lambda e: [e, e] if e.file_version else [e]), "one file version"),
    "two event files": (
        lambda root: shutil.copy(file := one(root, f"tensorboard/{OWN}"), file.with_suffix(".x")),
        "events: should not be there",
    ),
    "another least error": (records(OWN, lambda e: lowered(e, "best/error_rate", 2)), "not the running minimum"),
    "another error": (records(OWN, lambda e: lowered(e, "epoch/error_rate", 6)), "0000.*has error_rate"),
    "no end in HParams": (records(OWN, lambda e: [] if has(e, END) else [e]), "1 starts and 0 ends"),
    "two starts in HParams": (records(OWN, lambda e: [e, e] if has(e, START) else [e]), "2 starts and 1 ends"),
    "another group in HParams": (records(OWN, of_another_group), "HParams has the group 0009"),
    "no columns in HParams": (
        records("_sweep/events.*", lambda e: [] if has(e, "_hparams_/experiment") else [e]),
        "HParams has the columns",
    ),
    "another best so far": (
        records("_sweep/events.*", lambda e: lowered(e, "sweep/best_error_rate", 6)),
        "_sweep: sweep/best_error_rate ends at",
    ),
    "best.pt of another trial": (
        lambda root: swap(one(root, "trials/0000*/best.pt"), one(root, "trials/0001*/best.pt")),
        "0000.*best.pt: is of another config",
    ),
    "other weights": (other_weights, "0000.*best.pt: its loss is"),
    "a byte of best.pt": (lambda root: flip(one(root, "trials/0000*/best.pt"), 5000), "checksum does not fit"),
    "other test readings": (judged_again, "other readings of the test images"),
    "another winner's best.pt": (
        lambda root: swap(root / "best.pt", one(root, "trials/0001*/best.pt")),
        "^best.pt: is not that of",
    ),
    "another winner's best.yaml": (
        lambda root: swap(root / "best.yaml", one(root, "trials/0001*/config.yaml")),
        "^best.yaml: is not the config of",
    ),
    "a value in the leaderboard": (lambda root: edit(root / "leaderboard.csv", ",1.0,", ",0.99,"), "has error_rate"),
    "a setting in the leaderboard": (
        lambda root: edit(root / "leaderboard.csv", ",onecycle,", ",cosine,"),
        "config.yaml: schedule.name is onecycle",
    ),
    "a rank in the leaderboard": (lambda root: edit(root / "leaderboard.csv", "\n2,", "\n3,"), "ranks must count"),
    "a row too few": (
        lambda root: edit(root / "leaderboard.csv", (root / "leaderboard.csv").read_text().splitlines()[-1], ""),
        "leaderboard.csv: has the trials",
    ),
    "a value in the study": (in_study("UPDATE trial_values SET value = value - 0.01"), "study.db: 0000.* the value"),
    "a state in the study": (
        in_study("UPDATE trials SET state = 'RUNNING' WHERE number = 1"),
        "study.db: 0001.* RUNNING",
    ),
    "a missing rung in the study": (in_study("DELETE FROM trial_intermediate_values"), "intermediate values after"),
    "a record in the study": (
        in_study(
            "UPDATE trial_user_attributes SET value_json = replace(value_json, '\"seconds\": ', '\"seconds\": 1')"
        ),
        "study.db: 0000.* seconds",
    ),
    "a cut study": (lambda root: cut(root / "study.db", 30_000), "study: |study.db: is damaged"),
    "a temporary file": (
        lambda root: one(root, "trials/*").joinpath(".best.pt.0123456789abcdef.tmp").touch(),
        r"\.tmp: should not be there",
    ),
    "a checkpoint": (lambda root: one(root, "trials/*").joinpath("epoch_0006.pt").touch(), "epoch_0006.pt: should not"),
    "a journal": (lambda root: (root / "study.db-journal").touch(), "study.db-journal: should not be there"),
    "a link elsewhere": (wrong_link, "top/1_.*: leads to"),
    "a cut report": (lambda root: cut(root / "report.html", 20), "report.html: is cut"),
    "a temporary file in the cache": (
        lambda root: (root.parent / "cache" / ".train.pool.0123").touch(),
        "the cache: .train.pool.0123 should not be there",
    ),
    "a byte of the images": (
        lambda root: flip(one(root.parent, "cache/train-*.pool"), 9000),
        "the cache: train-.* is damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_named(copy: Path, damage: str) -> None:
    apply, named = DAMAGES[damage]
    apply(copy)
    found = list[str]()
    for sentence in problems(copy, copy.parent / "cache"):
        found.append(sentence)
        if re.search(named, sentence):
            return  # what the checker looks at later takes seconds
    pytest.fail(f"not named among {found}")
