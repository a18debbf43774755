"""The leaderboard as a table: CSV for programs, Markdown for TensorBoard."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from model.training.scores import columns
from sweep.config import Space, plain, walk
from sweep.search.records import TrialRecord
from sweep.wording.formatting import formatted

SHOWN = 1000  # trials that the report and TensorBoard show, the best; leaderboard.csv has all


def left_out(trials: int) -> str:
    """A sentence on how many of these trials are not shown; empty if all are."""
    return f"The best {SHOWN:,} of {trials:,} trials; leaderboard.csv has all." if trials > SHOWN else ""


def table(records: Iterable[TrialRecord], space: Space) -> tuple[list[str], list[list[Any]]]:
    """The columns and the rows of the leaderboard, one row per record in the given order."""
    records, scores = list(records), columns()
    paths = list(dict.fromkeys(path for path, _, _ in walk(space)))
    confirming = ("replicate_of", "test_error_rate") if any(record.replicate_of for record in records) else ()
    rows = [
        [
            rank,
            record.name,
            record.state,
            *(plain(record.values[path]) if path in record.values else None for path in paths),
            record.epochs,
            *(record.scores.get(name) for name in scores),
            record.best_epoch,
            record.seconds,
            record.error,
            *(getattr(record, key) for key in confirming),
        ]
        for rank, record in enumerate(records, start=1)
    ]
    return ["rank", "trial", "state", *paths, "epochs", *scores, "best_epoch", "seconds", "error", *confirming], rows


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def as_markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The first `SHOWN` rows, and a sentence if there are more."""
    shown = (columns, ["---"] * len(columns), *rows[:SHOWN])
    lines = ["| " + " | ".join(map(formatted, row)) + " |" for row in shown]
    rest = left_out(len(rows))
    return "\n".join([*lines, "", rest] if rest else lines)
