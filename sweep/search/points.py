"""The search space as Optuna asks for it: define-by-run, a choice's own parameters after the choice. A space without
intervals of real numbers is finite: its points are counted and numbered without being made."""

import math
import random
from collections.abc import Hashable, Iterable, Set

import optuna

from sweep.config import Parameter, Space, Value, plain

Point = dict[str, Value]  # one trial's values by dotted path


def suggest(trial: optuna.Trial, space: Space) -> Point:
    """One trial's values."""
    values: Point = {}
    for path, parameter in space.items():
        values[path] = _suggest(trial, path, parameter)
        values |= suggest(trial, (parameter.choice or {}).get(values[path], {}))
    return values


def _suggest(trial: optuna.Trial, path: str, parameter: Parameter) -> Value:
    if parameter.integer is not None:
        return trial.suggest_int(path, *parameter.integer)
    if parameter.bounds is not None:
        return trial.suggest_float(path, *parameter.bounds, log=parameter.loguniform is not None)
    options = {plain(value): value for value in parameter.options}
    return options[trial.suggest_categorical(path, list(options))]  # type: ignore[index]


def size(space: Space) -> float:
    """How many points a space has: a whole number, or infinity."""
    return math.prod(map(_count, space.values()))


def _count(parameter: Parameter) -> float:
    if parameter.bounds is None:
        return sum(size(_below(parameter, value)) for value in parameter.options)
    low, high = parameter.bounds
    return high - low + 1 if parameter.integer or low == high else math.inf


def _below(parameter: Parameter, value: Value) -> Space:
    """What is searched only with a value."""
    return (parameter.choice or {}).get(value, {})


def point(space: Space, index: int) -> Point:
    """The point of a finite space that has this number; the last parameter changes fastest."""
    values: Point = {}
    for path, parameter in reversed(space.items()):
        index, place = divmod(index, int(_count(parameter)))
        if parameter.bounds is not None:
            values = {path: parameter.bounds[0] + place, **values}
            continue
        for value in parameter.options:
            below = _below(parameter, value)
            if place < (count := int(size(below))):
                values = {path: value, **point(below, place), **values}
                break
            place -= count
    return values


def identity(values: Point) -> Hashable:
    return frozenset(values.items())


def untried(space: Space, tried: Set[Hashable], order: Iterable[int]) -> Point:
    """The first point of a finite space, in an order of their numbers, whose identity is not among those tried."""
    return next(found for index in order if identity(found := point(space, index)) not in tried)


def at_random(space: Space, seed: int) -> Iterable[int]:
    """Numbers of a finite space's points, for ever."""
    draw, count = random.Random(seed), int(size(space))
    return iter(lambda: draw.randrange(count), None)
