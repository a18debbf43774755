"""The table of scores by which a network is judged. To add a score, add a line to `SCORES`.

Each score is a curve `epoch/<name>` in TensorBoard, a value that `search.metric` and early stopping can compare, and,
unless hidden, a column of leaderboard.csv, HParams, the terminal's leaderboard and the report. This module doesn't
import torch, so that a config can name a score without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.training.evaluation import Readings


@dataclass(frozen=True)
class Score:
    """How a score is computed, compared and shown.

    `of` computes it from the readings of a set of images. A `share` is between 0 and 1 and shown in per cent.
    `by_window` scores are cheap enough for the training curves by step, `train/<name>`. `hidden` ones have a curve but
    no column.
    """

    title: str
    of: Callable[["Readings"], float]
    share: bool = True
    lower_is_better: bool = True
    by_window: bool = False
    hidden: bool = False

    def cost(self, value: float) -> float:
        """The score as a value to minimise."""
        return value if self.lower_is_better else -value


SCORES: dict[str, Score] = {
    "error_rate": Score("error", lambda readings: readings.error_rate, by_window=True),
    "cer": Score("CER", lambda readings: readings.character_error_rate),
    "loss": Score("loss", lambda readings: readings.loss, share=False, by_window=True),
    "acc": Score("exact match", lambda r: 1 - r.error_rate, lower_is_better=False, by_window=True, hidden=True),
}


def columns() -> dict[str, Score]:
    """The scores that have a column, i.e. are not hidden."""
    return {name: score for name, score in SCORES.items() if not score.hidden}


class Scores(dict[str, float]):
    """A network's scores, by the names of `SCORES`: means over images."""

    @property
    def loss(self) -> float:
        """Mean CTC loss per character."""
        return self["loss"]

    @property
    def error_rate(self) -> float:
        """The share of texts that are not read exactly."""
        return self["error_rate"]

    def tagged(self, prefix: str) -> Mapping[str, float]:
        """The scores by TensorBoard tag, `<prefix>/<name>`."""
        return {f"{prefix}/{name}": value for name, value in self.items()}


def scores_of(readings: "Readings", by_window: bool = False) -> Scores:
    """All scores, or only those that are computed for each window of training steps."""
    wanted = {name: score for name, score in SCORES.items() if score.by_window or not by_window}
    return Scores({name: score.of(readings) for name, score in wanted.items()})
