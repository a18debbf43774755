"""Draws, counts and numbers the points of a search space.

Optuna draws define-by-run: a choice first, then the parameters that depend on its value. A space without intervals of
real numbers is finite; its points are counted and numbered without enumerating them.
"""

import math
import random
from collections.abc import Hashable, Iterable, Set

import optuna

from sweep.config import Parameter, Space, Value, plain, walk

Point = dict[str, Value]  # one trial's values by dotted path


def suggest(trial: optuna.Trial, space: Space) -> Point:
    """Draws one trial's values from Optuna's sampler."""
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
    """The number of points of a space, infinite if it has an interval of real numbers."""
    return math.prod(map(_count, space.values()))


def _count(parameter: Parameter) -> float:
    if parameter.bounds is None:
        return sum(size(_below(parameter, value)) for value in parameter.options)
    low, high = parameter.bounds
    return high - low + 1 if parameter.integer or low == high else math.inf


def _below(parameter: Parameter, value: Value) -> Space:
    """The conditional part of the space: the parameters searched only if `parameter` has this value."""
    return (parameter.choice or {}).get(value, {})


def point(space: Space, index: int) -> Point:
    """Point number `index` of a finite space, in grid order: the last parameter changes fastest."""
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


def lies_in(space: Space, values: Point) -> bool:
    """Whether these are values of a trial drawn from the space, which are valid because its ends and lists are."""
    paths = set()
    for path, parameter, given in walk(space):
        if given.items() <= values.items():
            if path not in values or not parameter.contains(values[path]):
                return False
            paths.add(path)
    return values.keys() == paths


def identity(values: Point) -> Hashable:
    return frozenset(values.items())


def untried(space: Space, tried: Set[Hashable], order: Iterable[int]) -> Point:
    """The first point of a finite space, by the numbers in `order`, whose identity is not in `tried`."""
    return next(found for index in order if identity(found := point(space, index)) not in tried)


def at_random(space: Space, seed: int) -> Iterable[int]:
    """An endless iterator over random numbers of points of a finite space, with repetitions."""
    draw, count = random.Random(seed), int(size(space))
    return iter(lambda: draw.randrange(count), None)
