"""Measures what a sweep's own process does for each trial, by replaying a sweep of many trials without training.

The search, its SQLite study, its listeners, the files and the report are the real ones. Only the scores are made up,
and the event files, which a trial's own process writes, are small and not timed.
"""

import logging
import math
import multiprocessing
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.config import override
from model.data.workers import another_main_module, prepare_process
from sweep.config import SweepConfig
from sweep.config.workplace import Workplace
from sweep.machine.cpus import usable_cpus
from sweep.search.early_stopping import decides
from sweep.search.records import TrialRecord
from sweep.search.search import Search
from sweep.tensorboard.writer import Writer
from sweep.terminal.terminal import Terminal
from sweep.verdict.reporter import Reporter

SEARCHERS = ("random", "tpe")
EPOCHS = 4
AT_ONCE = 8
BLOCKS, BLOCK = 5, 20  # a figure is the median of blocks, each the mean of so many trials
MARKS = (80, 200, 400, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


def marks(trials: int) -> list[int]:
    """The numbers of finished trials after which the time of the latest ones is taken."""
    return [*(mark for mark in MARKS if mark < trials), trials]


class Driver:
    """Replays a sweep of `trials` trials with each searcher. `figures` are for bench.json, `rows` for the table."""

    def __init__(self, config: SweepConfig, trials: int, folder: Path) -> None:
        self._config, self._trials, self._folder = config, trials, folder
        self.figures: dict[str, Any] = {"device": f"CPU, {usable_cpus()} cores", "driver_trials": trials}
        self.rows: list[tuple[str, str, str]] = []

    def measure(self) -> None:
        """Each searcher in a process of its own, so that its peak memory is its own."""
        for searcher in SEARCHERS:
            with another_main_module(), multiprocessing.get_context("spawn").Pool(1, prepare_process) as pool:
                found = pool.apply(_replayed, (self._config, searcher, self._trials, self._folder / searcher))
            self.figures |= {f"driver_{searcher}_{key}": value for key, value in found.items()}
            for mark, (median, least, most) in found["cpu_ms_per_trial"].items():
                wall = found["ms_per_trial"][mark][0]
                spread = (
                    f"of CPU ({least:.1f} … {most:.1f}); {wall:.1f} ms with waiting for the disk and other programs"
                )
                self.rows.append((f"{searcher}: a trial, {mark:,} finished", f"{median:.1f} ms", spread))
            added = found["peak_mb"] - found["import_mb"]
            self.rows += [
                (
                    f"{searcher}: peak memory",
                    f"{found['peak_mb']:,.0f} MB",
                    f"{added:,.0f} more than after the imports, report included",
                ),
                (
                    f"{searcher}: results and report",
                    f"{found['report_seconds']:.1f} s",
                    f"report.html has {found['report_mb']:.1f} MB, study.db {found['study_mb']:.1f} MB",
                ),
                (f"{searcher}: resume", f"{found['resume_seconds']:.1f} s", ""),
            ]


def _replayed(config: SweepConfig, searcher: str, trials: int, root: Path) -> dict[str, Any]:
    root.mkdir()
    logging.basicConfig(filename=root / "sweep.log", format="%(asctime)s %(message)s", level=logging.INFO, force=True)
    imported = _peak_mb()
    replay = Replay(_many(config, searcher, trials), root)
    replay.run()
    replay.search.interrupt()  # does nothing, as at the end of each sweep
    report = _seconds(lambda: replay.reporter.finish(replay.search))
    peak = _peak_mb()
    resume = _seconds(lambda: Replay(replay.config, root))
    return {
        "ms_per_trial": {mark: _per_trial(replay.seconds[:mark]) for mark in marks(trials)},
        "cpu_ms_per_trial": {mark: _per_trial(replay.cpu_seconds[:mark]) for mark in marks(trials)},
        "import_mb": imported,
        "peak_mb": peak,
        "report_seconds": report,
        "report_mb": (root / "report.html").stat().st_size / 1e6,
        "study_mb": (root / "study.db").stat().st_size / 1e6,
        "resume_seconds": resume,
        "resume_peak_mb": _peak_mb(),
    }


def _many(config: SweepConfig, searcher: str, trials: int) -> SweepConfig:
    """The config as a sweep of many short trials with early stopping, without confirmation."""
    few = {
        "training.epochs": EPOCHS,
        "search.searcher": searcher,
        "search.trials": trials,
        "search.early_stopping": {"name": "asha", "grace_epochs": 1, "reduction_factor": 2},
        "confirm": None,
    }
    return SweepConfig.model_validate(override(config.model_dump(), few))


class Replay:
    """A sweep in `root` without training: `run` gives each trial made-up scores. What the sweep's own process does for
    the trials that had ended when it began is done by the constructor, as at a resume. `seconds` and `cpu_seconds`: the
    time that the process took between the ends of two trials."""

    def __init__(self, config: SweepConfig, root: Path) -> None:
        self.config, self.root = config, root
        self._workplace = Workplace(root, root / "pools", threads=1, gpus=0)
        terminal = Terminal(config, root, resume="", verbosity=0)
        self.search = Search(config, root / "study.db")
        self.reporter = Reporter(config, self._workplace)
        self.search.listeners = (terminal, self.reporter)
        terminal.search_begins(self.search)
        for record in self.search.finished:
            self.reporter.ended(record)
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._since = self._cpu_since = 0.0

    def run(self) -> None:
        live: dict[int, int] = {}  # a trial's number → its epochs
        while not self.search.exhausted:
            with self._timed():
                asked = self._asked(AT_ONCE - len(live))
            for record in asked:
                self._begin(record)
                live[record.number] = 0
            number = min(live, key=lambda number: (live[number], number))
            live[number] += 1
            record = self.search.records[number]
            result = self._result(record, live[number])
            self._train(record, live[number], result)
            with self._timed():
                goes_on = self.search.report(number, result)
            if not goes_on:
                del live[number]
                self.seconds.append(self._since)
                self.cpu_seconds.append(self._cpu_since)
                self._since = self._cpu_since = 0.0

    def _asked(self, most: int) -> list[TrialRecord]:
        return [record for _ in range(most) if (record := self.search.ask()) is not None]

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin, cpu = time.perf_counter(), time.process_time()
        yield
        self._since += time.perf_counter() - begin
        self._cpu_since += time.process_time() - cpu

    def _begin(self, record: TrialRecord) -> None:
        Writer(self._workplace.logs(record.name)).close()
        self._workplace.files(record.name).mkdir(parents=True)

    def _train(self, record: TrialRecord, epoch: int, result: dict[str, Any]) -> None:
        writer = Writer(self._workplace.logs(record.name))
        writer.points({f"epoch/{name}": value for name, value in result["scores"].items()}, epoch)
        writer.close()

    def _result(self, record: TrialRecord, epoch: int) -> dict[str, Any]:
        draw = random.Random(f"{record.number} {epoch}")
        far = abs(math.log10(float(record.values.get("optimizer.lr", 1e-3))) + 2.5)  # the best rate is 3e-3
        error = min(1.0, (0.02 + 0.1 * far) * (1 + 2 / epoch) * draw.uniform(0.8, 1.25))
        ended = epoch == EPOCHS
        return {
            "state": "completed" if ended else "running",
            "epochs": epoch,
            "best_epoch": epoch,
            "scores": {"error_rate": error, "cer": error / 3, "loss": error},
            "seconds": 1.0 * epoch,
            "rung_score": error if decides(self.config.search.early_stopping, epoch) and not ended else None,
        }


def _per_trial(seconds: list[float]) -> tuple[float, float, float]:
    """Milliseconds for each of the latest trials: the median of the blocks, the least and the most."""
    latest = seconds[-BLOCKS * BLOCK :]
    blocks = [1000 * statistics.fmean(latest[start : start + BLOCK]) for start in range(0, len(latest), BLOCK)]
    return statistics.median(blocks), min(blocks), max(blocks)


def _seconds(do: Callable[[], object]) -> float:
    begin = time.perf_counter()
    do()
    return time.perf_counter() - begin


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
