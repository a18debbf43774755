"""Terminal output of a sweep: a live progress bar on a terminal, plain lines elsewhere."""

import logging
import math
import os
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from model.system.device import pick
from model.training import precision
from model.training.scores import columns
from sweep.config import NoStopping, SweepConfig, walk
from sweep.machine.resources import Allotment, Machine
from sweep.search.early_stopping import decides, plateau_sentence
from sweep.search.records import TrialRecord, trial_name
from sweep.search.samplers import limit, trial_count
from sweep.search.search import Search
from sweep.tensorboard.sweep_writer import comparison_link
from sweep.wording.formatting import percent, scored

log = logging.getLogger("sweep")

_COLORS = {"completed": "green", "stopped": "yellow", "diverged": "red", "failed": "bold red", "interrupted": "magenta"}


class Terminal:
    """Listener of the search that prints what happens. `verbosity`: 0 the result only, 1 a line per trial, 2 a line per
    epoch. `resume` is the command that resumes an interrupted sweep."""

    def __init__(self, config: SweepConfig, root: Path, resume: str, verbosity: int = 1) -> None:
        self._config, self._root, self.resume = config, root, resume
        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.verbosity = verbosity
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._states: Counter[str] = Counter()
        self._best = math.inf
        self._epochs: dict[int, int] = {}  # of each trial, an ended one's counted as all of them
        self._epochs_done = 0  # the sum of these
        self._noted: set[int] = set()
        self._on_plateau: set[int] = set()  # trials of which that has been said
        self._trials, self._epochs_each, self._start = 0, 1, time.monotonic()
        self._epochs_before = 0  # trained by an earlier run of the sweep

    def say(self, *parts: str | tuple[str, str], at: int = 1) -> None:
        """Prints a line of plain texts and (text, style) pairs if `verbosity` is at least `at`. Logs it in any case.

        No part is parsed as Rich markup, so paths, values and error messages may contain brackets."""
        line = Text.assemble(*parts)
        log.info(line.plain)
        if self.verbosity >= at:
            self.console.print(line)

    def header(self, source: Path, machine: Machine, allotment: Allotment, notes: Sequence[str] = ()) -> None:
        """Prints what is about to run: the search, the device and the folders. `notes` are lines in between."""
        config, root = self._config, self._root
        search, device = config.search, pick(allotment.gpus)
        stopping = search.early_stopping
        stopped = (
            f"{stopping.name} on the {stopping.weights} weights' {stopping.metric} from epoch {stopping.grace_epochs}"
            if not isinstance(stopping, NoStopping)
            else "no early stopping"
        )
        place = f"{machine.gpu_name} × {machine.gpus}" if allotment.gpus else f"CPU, {machine.cpus} cores"
        numeric = precision.resolve(config.training.precision, device)
        self.say(("crnn-sweep", "bold"), f" {shown(source)}")
        for path, parameter, given in walk(search.space):
            condition = "".join(f"  ({value})" for value in given.values())
            self.say(f"  searched     {'  ' * len(given)}{path}: {parameter}{condition}")
        trials, epochs = trial_count(search), config.training.epochs
        self.say(f"  trials       {trials} of {epochs} epochs, {search.searcher}, {stopped}")
        if (limited := limit(search)) is not None:
            self.say(f"               {limited}")
        if (confirm := config.confirm) is not None:
            self.say(f"  confirmed    the best {confirm.top}, each with {confirm.seeds} fresh seeds on the test set")
        self.say(f"  at once      {allotment.at_once}, each on {allotment.cpus:g} CPU and {allotment.gpus:g} GPU")
        if allotment.gpus and allotment.at_once > machine.gpus:
            place += ", shared by its trials through MPS" if machine.mps else ", whose trials take turns (no MPS runs)"
        self.say(f"  device       {place}, {numeric}")
        for note in notes:
            self.say(note)
        self.say(f"  writes to    {shown(root)}")
        self.say(f"  look at it   {logdir_command(root)}\n")

    def live(self, text: str, total: int) -> None:
        """Shows a progress bar on a terminal until `stop`."""
        self.stop()
        if self.console.is_terminal and self.verbosity:
            columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=16), TimeElapsedColumn()]
            self._progress = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=self.console)
            self._progress.speed_estimate_period = 300
            self._task = self._progress.add_task(text, total=total)
            self._progress.start()

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def rendered(self, done: int, total: int) -> None:
        """Shows the progress of preparing the image pools."""
        if done == 0:
            self.say(f"preparing {total:,} images; the next sweep with this config finds them")
            self.live("images", total)
        if self._progress is not None:
            self._progress.update(self._task, completed=done, description=f"{done:,} of {total:,} images")

    def serves(self, address: str) -> None:
        self.say(f"TensorBoard is on {address}", at=0)

    def serves_no_more(self, reason: str) -> None:
        self.say(f"TensorBoard has ended ({reason}); to start it again: {logdir_command(self._root)}", at=0)

    def stays(self, address: str) -> None:
        self.say(f"TensorBoard stays until Ctrl-C on {self._link(address)}", at=0)

    def _link(self, address: str) -> str:
        color_by = "schedule" if "schedule.name" in self._config.search.space else None
        return comparison_link(address, color_by)

    def search_begins(self, search: Search) -> None:
        self._trials, self._epochs_each, self._start = search.most, search.epochs, time.monotonic()
        for record in search.finished:
            self._states[record.state] += 1
            self._count(record.number, self._epochs_each)
            self._best = min(self._best, record.score("error_rate"))
        self._epochs_before = self._epochs_done
        self.live(self._status(), search.most * search.epochs)

    def resized(self, search: Search, line: str) -> None:
        """Prints the line, and counts on the search's new number of trials."""
        self.say(line, at=0)
        self._trials = search.most
        if self._progress is not None:
            self._progress.update(self._task, total=search.most * search.epochs, description=self._status())

    def _count(self, trial: int, epochs: int) -> None:
        self._epochs_done += epochs - self._epochs.get(trial, 0)
        self._epochs[trial] = epochs

    def started(self, record: TrialRecord) -> None:
        self._states["running"] += 1
        if record.epochs:
            self.say(f"  {record.number:04d} goes on after epoch {record.epochs}")
        self._refresh()

    def released(self, record: TrialRecord) -> None:
        self._states["running"] -= 1
        if record.error is not None:
            later = "" if record.state == "interrupted" else "; will be tried again"
            self.say(f"  {record.number:04d} ", (record.error, "red"), later)
        elif record.state == "running":
            self.say(f"  {record.number:04d} pauses after epoch {record.epochs}")
        self._refresh()

    def reported(self, record: TrialRecord) -> None:
        if record.note and record.number not in self._noted:
            self._noted.add(record.number)
            self.say(f"  {record.number:04d} ", (record.note, "yellow"), at=0)
        stopping = self._config.search.early_stopping
        if decides(stopping, record.epochs) and record.on_plateau and record.number not in self._on_plateau:
            self._on_plateau.add(record.number)
            self.say(f"  {record.number:04d} ", (plateau_sentence(record), "yellow"))
        self._count(record.number, record.epochs)
        self._best = min(self._best, record.score("error_rate"))
        best = f"best error {percent(record.error_rate)}"
        self.say(f"  {record.number:04d} epoch {record.epochs}/{self._epochs_each}  {best}", at=2)
        self._refresh()

    def ended(self, record: TrialRecord) -> None:
        self._states["running"] -= 1
        self._states[record.state] += 1
        self._count(record.number, self._epochs_each)
        values = trial_name(record.number, record.values).partition("_")[2].replace("_", " ")
        scores = (
            f"  error {percent(record.error_rate):>7}  {record.epochs:>2}/{self._epochs_each} epochs"
            f"  {record.seconds:4.0f} s  {values}"
        )
        error = f"  {record.error}" if record.error else "  on the all-blank plateau" if record.on_plateau else ""
        self.say(f"  {record.number:04d} ", (f"{record.state:<9}", _COLORS[record.state]), scores, (error, "red"))
        if self._progress is None and self._states["running"]:
            self.say("       ", (f"{self._status()}, about {self._minutes_left()} left", "dim"))
        self._refresh()

    def _refresh(self) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=self._epochs_done, description=self._status())

    def _minutes_left(self) -> str:
        done, total = self._epochs_done, self._trials * self._epochs_each
        seconds_each = (time.monotonic() - self._start) / max(done - self._epochs_before, 1)
        minutes, seconds = divmod(int(seconds_each * (total - done)), 60)
        return f"{minutes}:{seconds:02d} min"

    def _status(self) -> str:
        done = self._states.total() - self._states["running"]
        parts = [f"{done}/{self._trials} done", f"{self._states['running']} running"]
        parts += [f"{self._states[key]} {key}" for key in ("stopped", "diverged", "failed") if self._states[key]]
        return " · ".join([*parts, f"best error {percent(self._best)}"])

    def cut(self, why: str) -> None:
        """Prints why the sweep ended and how to resume it, in place of a summary."""
        self.stop()
        self.say(("\ninterrupted", "magenta"), f": {why}\nto go on: {self.resume}", at=0)

    def summary(self, search: Search, best: TrialRecord | None, verdict: Sequence[str]) -> None:
        """Prints the leaderboard, the winner with the verdict, the paths of the results, and for an interrupted sweep
        the command that resumes it."""
        root = self._root
        if search.interrupted:
            ended = sum(record.state not in ("running", "interrupted") for record in search.records.values())
            why = f" ({search.halted})" if search.halted else ""
            self.say(("\ninterrupted", "magenta"), f"{why}: {ended} of {search.most} trials ended", at=0)
        self.say("")
        self._leaderboard(search.ranked())
        if best is None:
            self.say(("\nno trial reached the end of an epoch", "red"), at=0)
        else:
            if search.best is not None and search.best != best:
                gone = ("\nthe best trial's weights are gone", "red")
                self.say(gone, f": {search.best.name}; of those that are left:", at=0)
            self.say(("\nbest", "bold"), f" {best.name}: {percent(best.error_rate)} of texts wrong", at=0)
            for sentence in verdict:
                self.say(f"  {sentence}")
            self.say(f"  the report   {shown(root / 'report.html')}")
            self.say(f"  its config   {shown(root / 'best.yaml')}")
            self.say(f"  its weights  {shown(root / 'best.pt')}")
            self.say(f"  try it       python -m model.predict {as_argument(root / 'best.pt')} IMAGE…")
        if search.interrupted:
            self.say(f"\nto go on: {self.resume}", at=0)
        self.say(f"\n{logdir_command(root)}\n  then open {self._link('http://127.0.0.1:6006')}", at=0)

    def _leaderboard(self, records: list[TrialRecord], most: int = 20) -> None:
        """Prints the best `most` trials. There are no columns for searched values, because a trial's name has them."""
        if not self.verbosity:
            return
        board = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("rank", "state", *(score.title for score in columns().values()), "epochs", "s"):
            board.add_column(column, justify="left" if column == "state" else "right", no_wrap=True)
        board.add_column("trial", overflow="fold")
        for rank, record in enumerate(records[:most], start=1):
            scores = [scored(score, record.scores.get(name)) for name, score in columns().items()]
            cost = (str(record.epochs), f"{record.seconds:.0f}")
            board.add_row(str(rank), Text(record.state, _COLORS[record.state]), *scores, *cost, record.name)
        width = None if self.console.is_terminal else 160
        Console(highlight=False, markup=False, emoji=False, width=width).print(board)
        if len(records) > most:
            self.say(f"… and {len(records) - most} more in leaderboard.csv")


def shown(path: Path) -> str:
    """The path relative to the working directory if it is inside of it, else as it is."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def logdir_command(root: Path) -> str:
    return f"tensorboard --logdir {as_argument(root / 'tensorboard')}"


def as_argument(path: Path) -> str:
    """The path as a shell argument: `shown`, quoted, and with `./` before a leading `-` or `~`."""
    text = shown(path)
    return shlex.quote(f"./{text}" if text.startswith(("-", "~")) else text)
