"""Formats figures for people, the same in the terminal and on report pages."""

import math
from collections.abc import Iterable
from typing import Any

from model.training.scores import Score


def percent(rate: float | None) -> str:
    return "–" if rate is None or rate == math.inf else f"{100 * rate:.2f} %"


def span(ends: Iterable[float]) -> str:
    return " to ".join(map(percent, ends))


def probability(p: float, relation: str = "") -> str:
    """A p-value with the relation before it, such as `= 0.03`. One that a float rounds to 0 is `< 1e-300`."""
    return f"{relation} {p:.2g}".lstrip() if p > 1e-300 else "< 1e-300"


def scored(score: Score, value: float | None) -> str:
    return percent(value) if score.share else formatted(value)


def formatted(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
