"""`schedule:`: how the learning rate changes over a run. Adding a schedule is adding a class here and to `AnySchedule`.

Each class gives the factor on the learning rate as a pure function of the step. Where torch has the schedule, the
factors equal torch's.
"""

import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from model.config.section import Fraction, Section


class Schedule(Section):
    """`warmup`: the fraction of all steps over which the rate first climbs linearly."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @abstractmethod
    def shape(self, step: int, steps: int) -> float:
        """The factor at `step` (0 … steps − 1) of a run without warm-up."""

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by at `step` (0 … steps − 1).

        The first `warmup` of the steps climbs linearly to the schedule's first value; its shape takes the rest.
        """
        warmup = int(self.warmup * steps)
        if step < warmup:
            return (step + 1) / (warmup + 1) * self.shape(0, steps - warmup)
        return self.shape(step - warmup, steps - warmup)


class ConstantSchedule(Schedule):
    name: Literal["constant"] = "constant"

    def shape(self, step: int, steps: int) -> float:
        return 1.0


class StepSchedule(Schedule):
    """The rate is multiplied by `gamma` at each of `milestones` (fractions of the run)."""

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
    """Loshchilov & Hutter 2017 (SGDR), equation 5, without restarts."""

    name: Literal["cosine"] = "cosine"
    final: Fraction = 0.0

    def shape(self, step: int, steps: int) -> float:
        return _half_cosine(1, self.final, step / steps)


class OneCycleSchedule(Schedule):
    """From `initial` to 1 at `peak` (a fraction of the run), then down to `final`, both along half cosines.

    Smith & Topin 2018, in torch's form: the last step has the final factor.
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
    """Constant, then linear to `final` over the last `decay` of the run. Hu et al. 2024 (MiniCPM), section 4.2."""

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
    """From start to end along half a cosine as progress goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
