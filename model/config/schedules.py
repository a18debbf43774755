"""Learning-rate schedules, the config section `schedule`. To add one, add a class here and list it in `AnySchedule`.

A schedule gives the factor on the learning rate as a pure function of the step. The factors equal torch's for schedules
that torch has.
"""

import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from model.config.section import Fraction, Section


class Schedule(Section):
    """Base of the schedules. `warmup` is the fraction of all steps during which the rate first rises linearly."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @abstractmethod
    def shape(self, step: int, steps: int) -> float:
        """The factor on the learning rate at `step` (0 … steps − 1) of a run without warm-up."""

    def factor(self, step: int, steps: int) -> float:
        """The factor on the learning rate at `step` (0 … steps − 1), including warm-up.

        During warm-up the factor rises linearly to the first value of `shape`, which then covers the remaining steps.
        """
        warmup = int(self.warmup * steps)
        if step < warmup:
            return (step + 1) / (warmup + 1) * self.shape(0, steps - warmup)
        return self.shape(step - warmup, steps - warmup)

    def progress_at_peak(self) -> float:
        """The fraction of all steps after which the learning rate has reached its highest value, to a thousandth."""
        return (max(range(1000), key=lambda step: self.factor(step, 1000)) + 1) / 1000


class ConstantSchedule(Schedule):
    name: Literal["constant"] = "constant"

    def shape(self, step: int, steps: int) -> float:
        return 1.0


class StepSchedule(Schedule):
    """Multiplies the learning rate by `gamma` at each of `milestones` (fractions of the steps after warm-up)."""

    name: Literal["step"] = "step"
    milestones: tuple[Fraction, ...] = (0.5, 0.8)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1

    def shape(self, step: int, steps: int) -> float:
        passed = sum(step >= int(milestone * steps) for milestone in self.milestones)
        return float(self.gamma**passed)


class ExponentialSchedule(Schedule):
    name: Literal["exponential"] = "exponential"
    final: Annotated[float, Field(gt=0, le=1)] = 0.01

    def shape(self, step: int, steps: int) -> float:
        return float(self.final ** (step / steps))


class LinearSchedule(Schedule):
    name: Literal["linear"] = "linear"
    final: Fraction = 0.0

    def shape(self, step: int, steps: int) -> float:
        return 1 + (self.final - 1) * step / steps


class CosineSchedule(Schedule):
    """Cosine annealing from 1 to `final`, without restarts: Loshchilov & Hutter 2017 (SGDR), equation 5."""

    name: Literal["cosine"] = "cosine"
    final: Fraction = 0.0

    def shape(self, step: int, steps: int) -> float:
        return _half_cosine(1, self.final, step / steps)


class OneCycleSchedule(Schedule):
    """One-cycle (Smith & Topin 2018): rises from `initial` to 1 at `peak`, then falls to `final`, along half cosines.

    `peak` is a fraction of the steps after warm-up. As in torch, the last step has the factor `final`.
    """

    name: Literal["onecycle"] = "onecycle"
    peak: Annotated[float, Field(gt=0, lt=1)] = 0.3
    initial: Annotated[float, Field(gt=0, le=1)] = 0.04
    final: Fraction = 1e-5

    def shape(self, step: int, steps: int) -> float:
        top, last = self.peak * steps - 1, steps - 1
        if step < top:
            return _half_cosine(self.initial, 1, step / top)
        return _half_cosine(1, self.final, (step - top) / (last - top)) if last > top else 1.0


class WarmupStableDecaySchedule(Schedule):
    """Warm-up, stable, decay (WSD): constant, then linear to `final` over the last fraction `decay` of the steps.

    Hu et al. 2024 (MiniCPM), section 4.2. The fraction is of the steps after warm-up.
    """

    name: Literal["wsd"] = "wsd"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    final: Fraction = 0.0

    def shape(self, step: int, steps: int) -> float:
        progress = (step / steps - (1 - self.decay)) / self.decay
        return float(1 + (self.final - 1) * max(0.0, progress))


AnySchedule = (
    ConstantSchedule
    | StepSchedule
    | ExponentialSchedule
    | LinearSchedule
    | CosineSchedule
    | OneCycleSchedule
    | WarmupStableDecaySchedule
)


def _half_cosine(start: float, end: float, progress: float) -> float:
    """Goes from `start` to `end` along half a cosine as `progress` goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
