"""Reads every file of a finished sweep as a stranger would, and says what is wrong with it.

TensorBoard's own reader passes over damaged and repeated records in silence, so the event files are read by a second
reader, which checks every byte.
"""

import itertools
import json
import re
import shutil
import sqlite3
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
import torch
from crc32c import crc32c
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from model.data.batches import Data
from model.data.captchas import Split
from model.data.pools import open_pool, pool_specs
from model.training import checkpoints, precision
from model.training.evaluation import Samples, evaluate
from model.training.scores import Scores
from sweep.config import Asha, load, read_trial
from sweep.search.early_stopping import decides
from sweep.tensorboard.trial_pictures import picture_epochs
from tests.results import assert_curves_without_scars, curves, leaderboard

Row = dict[str, str]
Kind = str | None  # of a value in an event: simple_value, image, tensor, or None for what HParams keeps

_STATES = {"completed": "COMPLETE", "stopped": "PRUNED", "diverged": "FAIL"}  # the leaderboard's and Optuna's
_SCORES = ("loss", "acc", "error_rate", "cer")
_FILES = {
    "best.pt",
    "best.yaml",
    "leaderboard.csv",
    "machine.json",
    "report.html",
    "study.db",
    "sweep.log",
    "sweep.yaml",
}


def problems(root: Path, cache: Path) -> Iterator[str]:
    """Yields a sentence for each thing that is not as it must be in the folder of a finished sweep, whose cache nobody
    else has used. Nothing for a good sweep."""
    sweep = _Sweep(root, cache)
    for check in (  # those that take longest come last
        _check_names,
        _check_table,
        _check_ranks,
        _check_texts,
        _check_cache,
        _check_winner,
        _check_events,
        _check_scores_in_events,
        _check_hparams,
        _check_sweeps_own_run,
        _check_study,
        _check_curves,
        _check_weights,
    ):
        try:
            yield from check(sweep)
        except Exception as error:  # a file that is missing or can't be read
            yield f"{check.__name__.removeprefix('_check_')}: {type(error).__name__}: {error}"


def read_records(path: Path) -> list[bytes]:
    """An event file's records. Raises ValueError unless both checksums of each fit and the last is whole."""
    data, position, found = path.read_bytes(), 0, list[bytes]()
    while position < len(data):
        head, checksum = data[position : position + 8], data[position + 8 : position + 12]
        if masked_checksum(head) != checksum:
            raise ValueError(f"{path}: the record at byte {position} has a damaged or cut length")
        (length,) = struct.unpack("<Q", head)
        end = position + 12 + length
        if masked_checksum(data[position + 12 : end]) != data[end : end + 4]:
            raise ValueError(f"{path}: the record at byte {position} is damaged or cut")
        found.append(data[position + 12 : end])
        position = end + 4
    return found


def masked_checksum(data: bytes) -> bytes:
    """As TensorFlow's record format has it: CRC-32C, rotated right by 15 bits, plus a constant."""
    checksum = crc32c(data)
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) % 2**32)


class _Run:
    """The one event file of a run."""

    def __init__(self, path: Path) -> None:
        self.events = [Event.FromString(record) for record in read_records(path)]
        self.values: dict[tuple[Kind, str], list[tuple[int, Any]]] = {}
        for event in self.events:
            for value in event.summary.value:
                self.values.setdefault((value.WhichOneof("value"), value.tag), []).append((event.step, value))

    def scalars(self, tag: str) -> list[tuple[int, float]]:
        return [(step, value.simple_value) for step, value in self.values.get(("simple_value", tag), [])]

    def steps(self, kind: Kind, tag: str) -> list[int]:
        return [step for step, _ in self.values.get((kind, tag), [])]

    def hparams(self, tag: str) -> list[HParamsPluginData]:
        found = self.values.get((None, f"_hparams_/{tag}"), [])
        return [HParamsPluginData.FromString(value.metadata.plugin_data.content) for _, value in found]


class _Sweep:
    """A sweep's folder, each file read once."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache

    @cached_property
    def config(self) -> Any:
        return load(self.root / "sweep.yaml")

    @cached_property
    def rows(self) -> list[Row]:
        return leaderboard(self.root)

    @cached_property
    def columns(self) -> list[str]:
        """The searched settings."""
        names = list(self.rows[0])
        return names[names.index("state") + 1 : names.index("epochs")]

    @property
    def replicates(self) -> list[Row]:
        return [row for row in self.rows if row.get("replicate_of")]

    @cached_property
    def runs(self) -> dict[str, _Run]:
        logs = self.root / "tensorboard"
        return {str(path.parent.relative_to(logs)): _Run(path) for path in sorted(logs.rglob("events.out.tfevents.*"))}

    def folder(self, row: Row) -> Path:
        return self.root / "trials" / row["trial"]

    def scores(self, row: Row) -> list[tuple[float, float]]:
        """Error rate and loss after each epoch, as the trial's run has them."""
        run = self.runs[row["trial"]]
        errors, losses = (run.scalars(f"epoch/{name}") for name in ("error_rate", "loss"))
        return [(error, loss) for (_, error), (_, loss) in zip(errors, losses, strict=True)]


def _check_names(sweep: _Sweep) -> Iterator[str]:
    """All that lies in the folder, Ray's own state aside, and nothing else."""
    expected = Counter({*_FILES})
    for row in sweep.rows:
        name = row["trial"]
        expected.update([f"trials/{name}/config.yaml", f"trials/{name}/best.pt"])
        expected.update([f"tensorboard/{name}/events", f"tensorboard/{name}/train/events"])
    expected.update(["tensorboard/_sweep/events"])
    expected.update(f"top/{row['rank']}_{row['trial']}" for row in sweep.rows[:5])
    found = Counter[str]()
    for path in sweep.root.rglob("*"):
        name = path.relative_to(sweep.root)
        if name.parts[0] != "ray" and (path.is_symlink() or not path.is_dir()):
            found[re.sub(r"/events\.out\.tfevents\.\d+\.[^/]+$", "/events", str(name))] += 1
    yield from (f"{name}: is missing" for name in (expected - found).elements())
    yield from (f"{name}: should not be there" for name in (found - expected).elements())
    for link in (sweep.root / "top").iterdir():
        if link.resolve() != (sweep.root / "tensorboard" / link.name.partition("_")[2]).resolve():
            yield f"top/{link.name}: leads to {link.resolve()}"


def _check_table(sweep: _Sweep) -> Iterator[str]:
    """Each row of leaderboard.csv by itself."""
    config = sweep.config
    count = config.search.trials + (config.confirm.top * config.confirm.seeds if config.confirm else 0)
    numbers = sorted(row["trial"][:4] for row in sweep.rows)
    if numbers != [f"{number:04d}" for number in range(count)]:
        yield f"leaderboard.csv: has the trials {numbers}, must have {count}"
    for row in sweep.rows:
        name, epochs, whole = row["trial"], int(row["epochs"]), config.training.epochs
        if row["state"] not in _STATES:
            yield f"leaderboard.csv: {name} is {row['state']}"
        if (row["state"] == "completed") != (epochs == whole):
            yield f"leaderboard.csv: {name} is {row['state']} after {epochs} of {whole} epochs"
        if not 1 <= int(row["best_epoch"]) <= epochs or not float(row["seconds"]) > 0:
            yield f"leaderboard.csv: {name} has best_epoch {row['best_epoch']} and took {row['seconds']} seconds"
        if bool(row.get("replicate_of")) != bool(row.get("test_error_rate")):
            yield f"leaderboard.csv: {name} has replicate_of or test_error_rate, but not both"
        trial = read_trial(sweep.folder(row) / "config.yaml").model_dump(mode="json")
        for path in sweep.columns:
            section, _, key = path.partition(".")
            if row[path] and row[path] != str(trial[section][key]):
                yield f"trials/{name}/config.yaml: {path} is {trial[section][key]}, in leaderboard.csv {row[path]}"


def _check_ranks(sweep: _Sweep) -> Iterator[str]:
    """By validation error, but first the run that validates best, of the config with the least mean test error."""

    def order(row: Row) -> tuple[float, str]:
        return float(row["error_rate"]), row["trial"]

    expected = sorted(sweep.rows, key=order)
    if sweep.replicates:
        names = {row["trial"]: row for row in sweep.rows}
        families: dict[str, list[Row]] = {}
        for row in sweep.replicates:
            families.setdefault(row["replicate_of"], []).append(row)

        def judged(name: str) -> tuple[float, tuple[float, str]]:
            return fmean(float(row["test_error_rate"]) for row in families[name]), order(names[name])

        best = min(families, key=judged)
        first = min([names[best], *families[best]], key=order)
        expected.sort(key=lambda row: row is not first)
    if [row["trial"] for row in sweep.rows] != [row["trial"] for row in expected]:
        yield f"leaderboard.csv: the order must be {[row['trial'][:4] for row in expected]}"
    if [row["rank"] for row in sweep.rows] != [str(rank) for rank in range(1, len(sweep.rows) + 1)]:
        yield "leaderboard.csv: ranks must count from 1"


def _check_events(sweep: _Sweep) -> Iterator[str]:
    """Every record whole, one version, one graph, exactly the tags that a run has, and the pictures' steps."""
    for name, run in sweep.runs.items():
        versions = [index for index, event in enumerate(run.events) if event.file_version]
        if versions != [0] or run.events[0].file_version != "brain.Event:2":
            yield f"{name}: must begin with the one file version, has it in the records {versions}"
        graphs, must = sum(bool(event.graph_def) for event in run.events), "/" not in name and name != "_sweep"
        if graphs != must:
            yield f"{name}: has {graphs} graphs, must have {int(must)}"
    for row in sweep.rows:
        name = row["trial"]
        scores = [f"epoch/{score}" for score in _SCORES]
        batches = [f"train/{score}" for score in ("loss", "acc", "error_rate", "lr")]
        points = [*batches, *scores, "best/error_rate", *["test/error_rate"] * bool(row.get("replicate_of"))]
        expected: set[tuple[Kind, str]] = {("simple_value", tag) for tag in points}
        expected |= {("image", "valid/badcase"), ("image", "train/badcase"), ("tensor", "config/text_summary")}
        expected |= {(None, f"_hparams_/session_{which}_info") for which in ("start", "end")}
        for run, tags in ((name, expected), (f"{name}/train", {("simple_value", tag) for tag in scores})):
            for kind, tag in tags ^ sweep.runs[run].values.keys():
                yield f"{run}: {'lacks' if (kind, tag) in tags else 'has an unknown'} {tag} ({kind or 'hparams'})"
        for tag, steps in _picture_steps(sweep.scores(row), sweep.config.training.epochs).items():
            if (found := sweep.runs[name].steps("image", tag)) != steps:
                yield f"{name}: {tag} is there at the steps {found}, must be at {steps}"


def _picture_steps(scores: list[tuple[float, float]], epochs: int) -> dict[str, list[int]]:
    """At the first, every quarter's and the last epoch; valid/badcase also at the best epoch since the last picture."""
    best, pending, fixed, valid = (np.inf, np.inf), None, list[int](), list[int]()
    for epoch, score in enumerate(scores, start=1):
        if score < best:
            best, pending = score, epoch
        if epoch in picture_epochs(epochs):
            valid += [*([] if pending in (None, epoch) else [pending]), epoch]
            fixed, pending = [*fixed, epoch], None
    return {"train/badcase": fixed, "valid/badcase": [*valid, *([] if pending is None else [pending])]}


def _check_curves(sweep: _Sweep) -> Iterator[str]:
    """Each step once and in order, and TensorBoard shows all that is in the files."""
    try:
        assert_curves_without_scars(sweep.root)
    except AssertionError as error:
        yield f"the steps of a curve are not those that must be there: {error}"
    shown = curves(sweep.root)
    for name, run in sweep.runs.items():
        for kind, tag in run.values:
            if kind == "simple_value" and name != "_sweep" and shown.get((name, tag)) != run.scalars(tag):
                yield f"{name}: TensorBoard shows other points of {tag} than the file has"


def _check_scores_in_events(sweep: _Sweep) -> Iterator[str]:
    """best/ is the running minimum of epoch/, and the leaderboard has what the curves have at the best epoch."""
    for row in sweep.rows:
        name, run, scores = row["trial"], sweep.runs[row["trial"]], sweep.scores(row)
        minima = list(itertools.accumulate((error for error, _ in scores), min))
        if [value for _, value in run.scalars("best/error_rate")] != minima:
            yield f"{name}: best/error_rate is not the running minimum of epoch/error_rate"
        best = min(range(len(scores)), key=scores.__getitem__)
        if int(row["best_epoch"]) != best + 1:
            yield f"leaderboard.csv: {name} has best_epoch {row['best_epoch']}, its curves have {best + 1}"
        for score in ("error_rate", "cer", "loss"):
            value = run.scalars(f"epoch/{score}")[best][1]
            if np.float32(row[score]) != value:
                yield f"leaderboard.csv: {name} has {score} {row[score]}, its curve has {value}"
        tested = [value for _, value in run.scalars("test/error_rate")]
        if tested != [np.float32(row["test_error_rate"]) for _ in range(1) if row.get("test_error_rate")]:
            yield f"{name}: test/error_rate is {tested}, in leaderboard.csv {row.get('test_error_rate')}"


def _check_hparams(sweep: _Sweep) -> Iterator[str]:
    """One session with one start and one end for each trial; replicates in the row of what they repeat."""
    for row in sweep.rows:
        name, run = row["trial"], sweep.runs[row["trial"]]
        starts, ends = run.hparams("session_start_info"), run.hparams("session_end_info")
        if (len(starts), len(ends)) != (1, 1):
            yield f"{name}: HParams has {len(starts)} starts and {len(ends)} ends, must have one of each"
            continue
        start, end = starts[0].session_start_info, ends[0].session_end_info
        success = 1 if row["state"] in ("completed", "stopped") else 2
        if end.status != success:
            yield f"{name}: HParams has the status {end.status}, must have {success}"
        if start.group_name != (group := row.get("replicate_of") or name):
            yield f"{name}: HParams has the group {start.group_name}, must have {group}"
        given = {path: str(_plain(value)) for path, value in start.hparams.items()}
        if given != (searched := {path: row[path] for path in sweep.columns if row[path]}):
            yield f"{name}: HParams has the values {given}, leaderboard.csv {searched}"


def _plain(value: Any) -> Any:
    return getattr(value, value.WhichOneof("kind"))


def _check_sweeps_own_run(sweep: _Sweep) -> Iterator[str]:
    run, count = sweep.runs["_sweep"], len(sweep.rows)
    experiments = run.hparams("experiment")
    columns = [[info.name for info in one.experiment.hparam_infos] for one in experiments]
    if columns != [sweep.columns]:
        yield f"_sweep: HParams has the columns {columns}, must have {sweep.columns} once"
    curve = run.scalars("sweep/best_error_rate")
    values = [value for _, value in curve]
    if [step for step, _ in curve] != list(range(1, count + 1)) or values != sorted(values, reverse=True):
        yield f"_sweep: sweep/best_error_rate must fall over the steps 1 to {count}, has {curve}"
    elif values[-1] != min(np.float32(row["error_rate"]) for row in sweep.rows):
        yield f"_sweep: sweep/best_error_rate ends at {values[-1]}, which is not the leaderboard's least"
    # An interrupted sweep has told these before, after fewer trials.
    for kind, tag in (
        ("tensor", "leaderboard/text_summary"),
        ("image", "sweep/error_over_learning_rate"),
        ("image", "sweep/badcase"),
    ):
        steps = run.steps(kind, tag)
        if steps != sorted(set(steps)) or steps[-1:] != [count]:
            yield f"_sweep: {tag} is there at the steps {steps}, must be at {count}"
    known = {"sweep/best_error_rate", "leaderboard/text_summary", "sweep/error_over_learning_rate", "sweep/badcase"}
    for _, tag in run.values:
        if tag not in {*known, "_hparams_/experiment"}:
            yield f"_sweep: has an unknown {tag}"


def _check_weights(sweep: _Sweep) -> Iterator[str]:
    """Each best.pt is its trial's, and reads the images anew as well as the leaderboard says."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the trials: other counts add in another order
    try:
        for row in sweep.rows:
            file = f"trials/{row['trial']}/best.pt"
            state = checkpoints.load(sweep.folder(row) / "best.pt")
            if state["config"] != read_trial(sweep.folder(row) / "config.yaml").model_dump(mode="json"):
                yield f"{file}: is of another config than the config.yaml beside it"
            if state["epoch"] != int(row["best_epoch"]):
                yield f"{file}: is of epoch {state['epoch']}, the best is {row['best_epoch']}"
            scores, samples = _evaluated(sweep, row, "valid")
            for score in ("error_rate", "cer", "loss"):
                value = scores[score]
                if not np.isclose(value, float(row[score]), rtol=1e-4 if score == "loss" else 0, atol=0):
                    yield f"{file}: its {score} is {value}, in leaderboard.csv {row[score]}"
            if any(state["scores"][score] != float(row[score]) for score in ("error_rate", "cer", "loss")):
                yield f"{file}: has other scores than leaderboard.csv"
            if not torch.equal(state["readings"], samples.in_order().decoded):
                yield f"{file}: has other readings of the validation images than its network"
            if row.get("replicate_of"):
                scores, samples = _evaluated(sweep, row, "test")
                if scores.error_rate != float(row["test_error_rate"]):
                    yield f"{file}: its test_error_rate is {scores.error_rate}, not {row['test_error_rate']}"
                if not torch.equal(state["test_readings"], samples.in_order().decoded):
                    yield f"{file}: has other readings of the test images than its network"
    finally:
        torch.set_num_threads(threads)


def _evaluated(sweep: _Sweep, row: Row, split: Split) -> tuple[Scores, Samples]:
    cpu = torch.device("cpu")
    config, network = checkpoints.load_network(sweep.folder(row) / "best.pt")
    network = network.to(memory_format=torch.channels_last)
    data = Data(config, sweep.cache, cpu)
    return evaluate(network, data.batches(data.open(split)), precision.resolve(config.training.precision, cpu))


def _check_winner(sweep: _Sweep) -> Iterator[str]:
    winner = sweep.folder(sweep.rows[0])
    if (sweep.root / "best.pt").read_bytes() != (winner / "best.pt").read_bytes():
        yield f"best.pt: is not that of {winner.name}, which has rank 1"
    if load(sweep.root / "best.yaml") != load(winner / "config.yaml"):
        yield f"best.yaml: is not the config of {winner.name}, which has rank 1"


def _check_study(sweep: _Sweep) -> Iterator[str]:
    """study.db is whole, and has of each trial what the leaderboard has."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(sweep.root / "study.db", folder))
        with closing(sqlite3.connect(copy)) as connection:
            answer = [row[0] for row in connection.execute("PRAGMA integrity_check")]
        if answer != ["ok"]:
            yield f"study.db: is damaged: {answer}"
        study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{copy}")
        trials = {trial.user_attrs["record"]["name"]: trial for trial in study.trials}
    rows = {row["trial"]: row for row in sweep.rows}
    if trials.keys() != rows.keys():
        yield f"study.db: has the trials {sorted(trials)}, leaderboard.csv {sorted(rows)}"
    for name in trials.keys() & rows.keys():
        row, trial = rows[name], trials[name]
        if f"{trial.number:04d}" != name[:4] or trial.state.name != _STATES.get(row["state"]):
            yield f"study.db: {name} is trial {trial.number} and {trial.state.name}, in leaderboard.csv {row['state']}"
        if trial.state.name == "COMPLETE" and trial.value != float(row[sweep.config.search.metric]):
            yield f"study.db: {name} has the value {trial.value}, in leaderboard.csv {row[sweep.config.search.metric]}"
        if (rungs := sorted(trial.intermediate_values)) != (must := _rungs(sweep, row)):
            yield f"study.db: {name} has intermediate values after the epochs {rungs}, must have them after {must}"
        kept = trial.user_attrs["record"]
        record = {**kept, **kept["values"], **kept["scores"], "trial": name}
        for key in row.keys() - {"rank"}:
            if ("" if record.get(key) is None else str(record[key])) != row[key]:
                yield f"study.db: {name} has {key} {record.get(key)}, in leaderboard.csv {row[key]!r}"


def _rungs(sweep: _Sweep, row: Row) -> list[int]:
    """After which epochs early stopping has compared a trial with others."""
    stopping, epochs = sweep.config.search.early_stopping, sweep.config.training.epochs
    if row.get("replicate_of") or not isinstance(stopping, Asha):
        return []
    return [epoch for epoch in range(1, int(row["epochs"]) + 1) if epoch < epochs and decides(stopping, epoch)]


def _check_texts(sweep: _Sweep) -> Iterator[str]:
    """machine.json, sweep.log and report.html."""
    if json.loads((sweep.root / "machine.json").read_text()).keys() != {"hardware", "versions"}:
        yield "machine.json: must have hardware and versions"
    log = (sweep.root / "sweep.log").read_text()
    if "an error of this program" in log:
        yield "sweep.log: tells of an error of this program"
    winner = sweep.rows[0]["trial"]
    if f"best {winner}" not in log:
        yield f"sweep.log: does not name {winner}, which has rank 1"
    page = (sweep.root / "report.html").read_text()
    if not page.rstrip().endswith("</html>"):
        yield "report.html: is cut"
    yield from (f"report.html: does not name {row['trial']}" for row in sweep.rows if row["trial"] not in page)


def _check_cache(sweep: _Sweep) -> Iterator[str]:
    specs = pool_specs(sweep.config, test=sweep.config.confirm is not None)
    names = {"render.lock", *(spec.name for spec in specs)}
    for name in {path.name for path in sweep.cache.iterdir()} ^ names:
        yield f"the cache: {name} {'is missing' if name in names else 'should not be there'}"
    yield from (
        f"the cache: {spec.name} is damaged" for spec in specs if open_pool(spec, sweep.cache, whole=True) is None
    )
