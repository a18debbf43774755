"""What a sweep leaves to read: leaderboard.csv, best.yaml, best.pt, report.html, and the pictures of the `_sweep` run.

`python -m sweep.report runs/NAME` writes report.html of a sweep that ended, was cut or still runs, and
`python -m sweep.report A B` compares two.
"""

import argparse
import csv
import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model.alphabet import Alphabet
from model.files import replace_file
from model.memory import collector_paused
from model.streams import forgiving_streams
from sweep import badcases, faults, layout
from sweep.config import ConfigError, Space, SweepConfig, load, plain, walk
from sweep.faults import Fault
from sweep.formatting import formatted
from sweep.searcher import Search, TrialRecord
from sweep.tensorboard import SweepWriter, end_session
from sweep.trial import Workplace, last_picture

if TYPE_CHECKING:
    from sweep.verdict import Verdict

_TOP = 5  # trials linked in top/
_WORST = 16  # images of the `_sweep` run
_SCORES = ("epochs", "error_rate", "cer", "loss", "best_epoch", "seconds")


def table(records: Iterable[TrialRecord], space: Space) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the leaderboard, in the order of `records`."""
    records = list(records)
    paths = list(dict.fromkeys(path for path, _, _ in walk(space)))
    confirming = ("replicate_of", "test_error_rate") if any(record.replicate_of for record in records) else ()
    rows = [
        [
            rank,
            record.name,
            record.state,
            *(plain(record.values[path]) if path in record.values else None for path in paths),
            *(getattr(record, key) for key in _SCORES),
            record.error,
            *(getattr(record, key) for key in confirming),
        ]
        for rank, record in enumerate(records, start=1)
    ]
    return ["rank", "trial", "state", *paths, *_SCORES, "error", *confirming], rows


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def as_markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(formatted, row)) + " |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(lines)


class Reporter:
    """Keeps the sweep's files and its TensorBoard run true while trials end."""

    def __init__(self, config: SweepConfig, workplace: Workplace) -> None:
        self._config, self._workplace = config, workplace
        self._writer = SweepWriter(workplace.logs("_sweep"), config.search.space)
        self._ended = 0
        self._best: float | None = None

    def started(self, record: TrialRecord) -> None:
        pass

    def reported(self, record: TrialRecord) -> None:
        pass

    def released(self, record: TrialRecord) -> None:
        pass

    def ended(self, record: TrialRecord) -> None:
        """May be told again of a trial that ended in an earlier run, and then completes what that run left undone."""
        logs = self._workplace.logs(record.name)
        if logs.exists():
            picture = last_picture(self._config, self._workplace, record)
            end_session(logs, record.state in ("completed", "stopped"), picture)
        for checkpoint in self._workplace.files(record.name).glob("epoch_*.pt"):
            checkpoint.unlink()
        self._ended += 1
        if record.error_rate is not None:
            self._best = min(record.error_rate, 1.0 if self._best is None else self._best)
        if self._best is not None:
            self._writer.best(self._ended, self._best)

    @collector_paused()  # SciPy, Matplotlib and Plotly are imported in it
    def finish(self, search: Search) -> tuple[TrialRecord | None, list[str], list[Fault]]:
        """Writes the leaderboard and copies the winner, then makes what shows them; also after an interruption, with
        what there is. Returns the winner, the verdict, and what could not be made: each fails alone."""
        # SciPy takes half a second to import, which a sweep's start need not wait for.
        from sweep.verdict import Verdict

        root, lacking = self._workplace.root, list[Fault]()
        ranked = search.ranked()
        columns, rows = table(ranked, self._config.search.space)
        winner: TrialRecord | None = None
        verdict: Verdict | None = None
        sentences: list[str] = []
        with _alone("leaderboard.csv", lacking):
            replace_file(root / "leaderboard.csv", as_csv(columns, rows).encode())
        with _alone("best.yaml and best.pt", lacking):
            winner = self._copy_winner(ranked)
        with _alone("top/", lacking, extra=True):
            self._link_top(ranked)
        with _alone("the leaderboard in TensorBoard", lacking, extra=True):
            self._log_leaderboard(ranked, columns, rows)
        with _alone("the verdict", lacking):
            verdict = Verdict(self._config, self._workplace, search)
            sentences = verdict.sentences
        with _alone("the worst images in TensorBoard", lacking, extra=True):
            if verdict is not None and (picture := worst_across(verdict)) is not None:
                self._writer.image("sweep/badcase", picture, self._ended)
        self._writer.close()
        with _alone("report.html", lacking):
            if verdict is not None:
                write_page(verdict)
        return winner, sentences, lacking

    def _log_leaderboard(
        self, ranked: Sequence[TrialRecord], columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        if ranked:
            # TensorBoard breaks wide tables inside words.
            hidden = {"trial", "seconds", "loss", "error", "replicate_of"}
            shown = [index for index, column in enumerate(columns) if column not in hidden]
            narrow = [[row[index] for index in shown] for row in (columns, *rows)]
            self._writer.leaderboard(as_markdown(narrow[0], narrow[1:]), self._ended)
        if any("optimizer.lr" in record.values and record.error_rate is not None for record in ranked):
            self._writer.image("sweep/error_over_learning_rate", error_over_learning_rate(ranked), self._ended)

    def _link_top(self, ranked: Iterable[TrialRecord]) -> None:
        """`top/`: a second log directory, for sweeps whose trials are too many for TensorBoard's list of runs."""
        top = self._workplace.root / "top"
        top.mkdir(exist_ok=True)
        for link in top.iterdir():
            if link.is_symlink():
                link.unlink()
        best = [record for record in ranked if record.best_epoch is not None][:_TOP]
        for rank, record in enumerate(best, start=1):
            (top / f"{rank}_{record.name}").symlink_to(Path("..", "tensorboard", record.name))

    def _copy_winner(self, ranked: Iterable[TrialRecord]) -> TrialRecord | None:
        """The best whose weights are still there."""
        for record in ranked:
            weights = self._workplace.files(record.name) / "best.pt"
            if record.best_epoch is not None and weights.exists():
                replace_file(self._workplace.root / "best.yaml", self._config.with_values(record.values).yaml.encode())
                replace_file(self._workplace.root / "best.pt", weights.read_bytes())
                return record
        return None


@contextmanager
def _alone(what: str, lacking: list[Fault], extra: bool = False) -> Iterator[None]:
    """Makes one part of what a sweep leaves: an error is told in `lacking`, and the other parts are made all the same.
    What the surroundings withhold can be had by a resume, or is done without if it is an `extra`."""
    try:
        yield
    except Exception as error:
        logging.getLogger("sweep").error("%s could not be made:", what, exc_info=error)
        fault = Fault.of(error)
        code = 0 if extra and fault.code == faults.INTERRUPTED else fault.code
        lacking.append(Fault(f"{what} could not be made: {fault.sentence}", code))


def write_page(verdict: "Verdict") -> Path:
    """Into the sweep's folder; where that can't be written, as one of a colleague's, into the working directory."""
    from sweep.page import Page  # Plotly takes a second to import, which a sweep's start need not wait for

    root = verdict.workplace.root
    page = Page(verdict.config, verdict.workplace, verdict)
    return page.write(root / "report.html" if _is_writable(root) else Path.cwd() / f"report-of-{root.name}.html")


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def worst_across(verdict: "Verdict") -> np.ndarray | None:
    """uint8 (H, W, 3): the images that most trials misread, as the best ones read them. None if there are none."""
    from sweep.verdict import COMPARED

    misread = verdict.misread(_WORST)
    if verdict.pool is None or not misread:
        return None
    rows = [row for row, _ in misread]
    images, labels = (torch.from_numpy(array[rows]) for array in (verdict.pool.images, verdict.pool.labels))
    readings = {r.record.name[:4]: torch.from_numpy(r.decoded[rows]) for r in verdict.readings[:COMPARED]}
    alphabet = Alphabet(verdict.config.captcha.characters)
    return badcases.draw_across(images, labels, [count for _, count in misread], readings, alphabet)


def error_over_learning_rate(records: Iterable[TrialRecord]) -> np.ndarray:
    """uint8 (H, W, 3): each trial's best error rate over its learning rate, coloured by schedule."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="learning rate", ylabel="best validation error rate")
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        if "optimizer.lr" in record.values and record.error_rate is not None:
            groups.setdefault(str(record.values.get("schedule.name", "all trials")), []).append(record)
    for name, group in sorted(groups.items()):
        rates = [float(record.values["optimizer.lr"]) for record in group]
        errors = [max(record.score("error_rate"), 1e-4) for record in group]
        sizes = [60 if record.state == "completed" else 20 for record in group]
        axes.scatter(rates, errors, sizes, label=name, alpha=0.8)
    axes.legend(title="small: stopped early", fontsize=8, title_fontsize=8)
    axes.grid(True, which="both", alpha=0.2)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@forgiving_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sweep.report", description="Write a sweep's report.html, or a page that compares two sweeps."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a sweep's folder, runs/NAME")
    parser.add_argument("other", type=Path, metavar="OTHER", nargs="?", help="another one, to compare with")
    options = parser.parse_args(arguments)
    try:
        verdict = _verdict("FOLDER", options.folder)
        if options.other is None:
            page = write_page(verdict)
        else:
            from sweep.comparison import Comparison

            comparison = Comparison(verdict, _verdict("OTHER", options.other))
            print(*comparison.sentences, sep="\n")
            root = verdict.workplace.root
            page = comparison.write(root if _is_writable(root) else Path.cwd())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        # Somebody else's folder may hold anything: what these files are is told, not where it was noticed.
        outside = faults.surroundings(error)
        print(f"no report could be made: {outside or faults.one_line(error)}", file=sys.stderr)
        return faults.INTERNAL if outside is None else 2
    print(os.path.relpath(page))
    return 0


def _verdict(argument: str, root: Path) -> "Verdict":
    """Raises ConfigError."""
    from sweep.verdict import Verdict

    layout.require(argument, root)
    missing = [name for name in ("sweep.yaml", "study.db") if not (root / name).is_file()]
    if missing:
        raise ConfigError([f"{argument}: '{root}' is not allowed: there is no {missing[0]} in it"])
    config = load(root / "sweep.yaml")
    workplace = Workplace(root.absolute(), Path(str(config.data.path)), threads=1, gpus=0)
    return Verdict(config, workplace, Search(config, root / "study.db", read_only=True))


if __name__ == "__main__":
    sys.exit(main())
