"""The record of one trial, which the study keeps, and the trial's name."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from optuna.trial import FrozenTrial
from pydantic import AfterValidator, Field, TypeAdapter

from model.training.scores import SCORES
from sweep.config import Value, plain, tupled

State = Literal["running", "completed", "stopped", "diverged", "failed", "interrupted"]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

_BLANK, _WRONG = 0.5, 0.99  # least shares of blank and of misread texts on the all-blank plateau


def _in_range(scores: dict[str, float]) -> dict[str, float]:
    for name, value in scores.items():
        if name in SCORES and SCORES[name].share and not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return scores


@dataclass(frozen=True)
class TrialRecord:
    """The stored facts of one trial. `scores` are the validation scores of its best epoch, empty before the first."""

    number: int
    name: Annotated[str, Field(pattern=r"^\d{4}[A-Za-z0-9._=+-]*$", max_length=80)]
    values: dict[str, Value]
    state: State = "running"
    epochs: Count = 0
    scores: Annotated[dict[str, float], AfterValidator(_in_range)] = field(
        default_factory=dict
    )  # keys are those of `model.training.scores.SCORES`
    best_epoch: Count | None = None
    seconds: Annotated[float, Field(ge=0)] = 0.0
    error: str | None = None
    failures: Count = 0  # retries so far
    node_losses: Count = 0  # of these not counted: those for the loss of a node of a cluster
    note: str | None = None  # a warning for the terminal, such as a damaged checkpoint
    replicate_of: str | None = None  # name of the trial whose values this one trains again with another seed
    test_error_rate: Share | None = None  # of the best epoch; only replicates are tested
    blank_share: Share | None = None  # of the validation images, after the last epoch: those in which nothing is read

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", {path: tupled(value) for path, value in self.values.items()})

    def score(self, metric: str) -> float:
        """The metric as a cost, lower is better; infinite while there is no score."""
        value = self.scores.get(metric)
        return math.inf if value is None else SCORES[metric].cost(value)

    @property
    def on_plateau(self) -> bool:
        """Whether the trial is still on CTC's all-blank plateau, where early training begins: the most likely class at
        every time step of most images is the blank, so that all texts are wrong."""
        blank, wrong = self.blank_share, self.error_rate
        return blank is not None and blank >= _BLANK and wrong is not None and wrong >= _WRONG

    @property
    def error_rate(self) -> float | None:
        return self.scores.get("error_rate")


_RECORD = TypeAdapter(TrialRecord)  # drops unknown keys, which a newer version may have added


def record_of(trial: FrozenTrial) -> TrialRecord:
    """The record stored in an Optuna trial. Raises ValueError if the stored values are invalid."""
    tree = trial.user_attrs["record"]
    if isinstance(tree, Mapping) and "scores" not in tree:  # format 1
        scores = {name: tree[name] for name in ("error_rate", "cer", "loss") if tree.get(name) is not None}
        tree = {**tree, "scores": scores}
    return _RECORD.validate_python(tree)


def trial_name(number: int, values: dict[str, Value]) -> str:
    """`0007_lr=1.2e-03_schedule=cosine`: as many values as fit into 80 safe characters."""
    name = f"{number:04d}"
    for path, value in values.items():
        section, _, key = path.rpartition(".")
        label = section.rpartition(".")[2] if key == "name" else key
        text = f"{value:.1e}" if isinstance(value, float) else str(plain(value))
        if isinstance(value, tuple):
            text = re.sub(r"[\[\]]", "", text).replace(", ", "-")
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "._=+-") else "-" for c in f"{label}={text}")
        if len(name) + 1 + len(safe) > 80:
            break
        name += f"_{safe}"
    return name
