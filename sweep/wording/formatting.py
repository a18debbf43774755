"""Formats figures for people, the same in the terminal and on report pages."""

import math
from collections.abc import Iterable
from typing import Any

from model.training.scores import Score


def percent(rate: float | None) -> str:
    return "–" if rate is None or rate == math.inf else f"{100 * rate:.2f} %"


def span(ends: Iterable[float]) -> str:
    return " to ".join(map(percent, ends))


def scored(score: Score, value: float | None) -> str:
    return percent(value) if score.share else formatted(value)


def formatted(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
