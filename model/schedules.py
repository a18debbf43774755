"""Name → pure function (parameters, step, steps) → factor on the learning rate; step counts from 0.

Where torch has the schedule, the factors equal torch's. `warmup` precedes any of them.
"""

import math
from collections.abc import Callable
from typing import Any

from model.config import Schedule


def _cosine(start: float, end: float, progress: float) -> float:
    """From start to end along half a cosine as progress goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _step(c: Any, step: int, steps: int) -> float:
    return float(c.gamma ** sum(step >= int(milestone * steps) for milestone in c.milestones))


def _one_cycle(c: Any, step: int, steps: int) -> float:
    """Smith & Topin 2018, in torch's form: the last step has the final factor."""
    top, last = c.peak * steps - 1, steps - 1
    if step < top:
        return _cosine(c.initial, 1, step / top)
    return _cosine(1, c.final, (step - top) / (last - top)) if last > top else 1.0


def _warmup_stable_decay(c: Any, step: int, steps: int) -> float:
    """Hu et al. 2024 (MiniCPM), section 4.2."""
    progress = (step / steps - (1 - c.decay)) / c.decay
    return float(1 + (c.final - 1) * max(0.0, progress))


SCHEDULES: dict[str, Callable[[Any, int, int], float]] = {
    "constant": lambda c, step, steps: 1.0,
    "step": _step,
    "exponential": lambda c, step, steps: float(c.final ** (step / steps)),
    "linear": lambda c, step, steps: 1 + (c.final - 1) * step / steps,
    "cosine": lambda c, step, steps: _cosine(1, c.final, step / steps),
    "onecycle": _one_cycle,
    "wsd": _warmup_stable_decay,
}


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at `step` (0 … steps − 1).

    The first `warmup` of the steps climbs linearly to where the schedule begins; the schedule has the rest.
    """
    shape = SCHEDULES[schedule.name]  # type: ignore[attr-defined]
    warmup = int(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1) * shape(schedule, 0, steps - warmup)
    return shape(schedule, step - warmup, steps - warmup)
