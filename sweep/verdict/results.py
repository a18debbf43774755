"""Writes the results of a sweep: leaderboard.csv, best.yaml, best.pt, top/, report.html and the `_sweep` run."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.system.files import replace_file
from sweep.config import SweepConfig
from sweep.config.workplace import Workplace
from sweep.search.records import TrialRecord
from sweep.search.search import Search
from sweep.tensorboard.sweep_writer import SweepWriter
from sweep.verdict import pictures
from sweep.verdict.leaderboard import SHOWN, as_csv, as_markdown, table
from sweep.verdict.page import write_page
from sweep.verdict.verdict import Verdict
from sweep.wording import faults
from sweep.wording.faults import Fault

_TOP = 5  # trials linked in top/


@dataclass
class Results:
    """Writes the results of a search into the sweep's folder. `_ended`, the number of ended trials, is the TensorBoard
    step."""

    _config: SweepConfig
    _workplace: Workplace
    _search: Search
    _writer: SweepWriter
    _ended: int

    def write(self) -> tuple[TrialRecord | None, list[str], list[Fault]]:
        """Writes all results, also of an interrupted sweep, from the trials so far. Returns the winner, the sentences
        of the verdict, and the faults of parts that could not be made; the other parts are made all the same."""
        root, lacking = self._workplace.root, list[Fault]()
        ranked = self._search.ranked()
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
            verdict = Verdict(self._config, self._workplace, self._search)
            sentences = verdict.sentences
        with _alone("the worst images in TensorBoard", lacking, extra=True):
            if verdict is not None and (picture := pictures.worst_across(verdict)) is not None:
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
            # Leaves out wide columns, because TensorBoard breaks wide tables inside words.
            hidden = {"trial", "seconds", "loss", "error", "replicate_of"}
            shown = [index for index, column in enumerate(columns) if column not in hidden]
            narrow = [[row[index] for index in shown] for row in (columns, *rows)]
            self._writer.leaderboard(as_markdown(narrow[0], narrow[1:]), self._ended)
        if any("optimizer.lr" in record.values and record.error_rate is not None for record in ranked[:SHOWN]):
            picture = pictures.error_over_learning_rate(ranked[:SHOWN], self._config)
            self._writer.image("sweep/error_over_learning_rate", picture, self._ended)

    def _link_top(self, ranked: Iterable[TrialRecord]) -> None:
        """Links the best trials in `top/`, a second log directory for sweeps with too many trials for TensorBoard's
        list of runs."""
        top = self._workplace.root / "top"
        top.mkdir(exist_ok=True)
        for link in top.iterdir():
            if link.is_symlink():
                link.unlink()
        best = [record for record in ranked if record.best_epoch is not None][:_TOP]
        for rank, record in enumerate(best, start=1):
            (top / f"{rank}_{record.name}").symlink_to(Path("..", "tensorboard", record.name))

    def _copy_winner(self, ranked: Iterable[TrialRecord]) -> TrialRecord | None:
        """Copies the config and weights of the best trial whose `best.pt` still exists to best.yaml and best.pt."""
        for record in ranked:
            weights = self._workplace.files(record.name) / "best.pt"
            if record.best_epoch is not None and weights.exists():
                replace_file(self._workplace.root / "best.yaml", self._config.with_values(record.values).yaml.encode())
                replace_file(self._workplace.root / "best.pt", weights.read_bytes())
                return record
        return None


@contextmanager
def _alone(what: str, lacking: list[Fault], extra: bool = False) -> Iterator[None]:
    """Wraps one part of the results: an error is logged and appended to `lacking`, so that the other parts are still
    made. The fault of an `extra` part has exit code 0 if its cause is outside of this program, such as a full disk."""
    try:
        yield
    except Exception as error:
        logging.getLogger("sweep").error("%s could not be made:", what, exc_info=error)
        fault = Fault.of(error)
        code = 0 if extra and fault.code == faults.INTERRUPTED else fault.code
        lacking.append(Fault(f"{what} could not be made: {fault.sentence}", code))
