"""The search space as data, `search.space`: a dotted path → one of these distributions:

optimizer.lr: {loguniform: [1e-4, 3e-2]}      # also uniform; both ends included
network.encoder.layers: {int: [1, 3]}
training.batch_size: {choice: [32, 64]}       # grid: the same, for the grid searcher
schedule.name:
  choice:                                     # parameters below a value are searched only with that value
    constant:
    step: {schedule.gamma: {loguniform: [0.03, 0.5]}}
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator, field_validator, model_serializer, model_validator

from model.config import Section, shown

# Any value that YAML can give, so that all can be choices: a bool, a number, a text, None or a (nested) tuple of these.
Value = Any


def tupled(value: Any) -> Value:
    """Converts the lists of YAML and JSON to hashable tuples. Raises ValueError if the value can't be a choice."""
    if isinstance(value, list | tuple):
        return tuple(map(tupled, value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"must be true, a number, a text, null or a list of these, got {shown(value)}")


AnyValue = Annotated[Value, PlainValidator(tupled)]


def plain(value: Value) -> bool | int | float | str:
    """The value as a scalar, None and tuples as JSON text: the study, table cells and trial names hold only scalars."""
    return json.dumps(value) if value is None or isinstance(value, tuple) else value


class Parameter(Section):
    """The distribution of one searched value; exactly one of the five fields is given."""

    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = Field(None, alias="int")
    choice: dict[AnyValue, dict[str, "Parameter"]] | None = None
    grid: Annotated[tuple[AnyValue, ...], Field(min_length=1)] | None = None

    @field_validator("choice", mode="before")
    @classmethod
    def _list_or_mapping(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: {} if below is None else below for key, below in value.items()}
        if not isinstance(value, list | tuple):
            raise ValueError(f"must be a list of values or a mapping from values, got {shown(value)}")
        values = [tupled(item) for item in value]
        _check_different(values)
        return {item: {} for item in values}

    @field_validator("grid")
    @classmethod
    def _different(cls, value: tuple[Value, ...] | None) -> tuple[Value, ...] | None:
        _check_different(value or ())
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join(field.alias or name for name, field in type(self).model_fields.items())
            raise ValueError(f"must be exactly one of {names}, got {' and '.join(given) or 'none'}")
        if self.choice is not None and not self.choice:
            raise ValueError("must give at least one value, got an empty choice")
        if (bounds := self.bounds) is not None:
            low, high = bounds
            if low > high:
                raise ValueError(f"must not have its low end above its high end, got [{low}, {high}]")
            if self.loguniform is not None and low <= 0:
                raise ValueError(f"must have a low end above 0 for loguniform, got [{low}, {high}]")
        return self

    @model_serializer
    def _dump(self) -> dict[str, Any]:
        """The parameter as it is written in YAML."""
        if self.choice is not None:
            if any(self.choice.values()):
                return {"choice": {value: {p: q._dump() for p, q in b.items()} for value, b in self.choice.items()}}
            return {"choice": list(self.choice)}
        names = {"uniform": self.uniform, "loguniform": self.loguniform, "int": self.integer, "grid": self.grid}
        return {name: list(value) for name, value in names.items() if value is not None}

    def __str__(self) -> str:
        (kind,) = self._dump()
        ends = " … ".join(f"{end:g}" for end in self.bounds or ())
        return f"{kind} {ends}" if ends else " | ".join(str(plain(option)) for option in self.options)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The ends of an interval, both included; None for listed values."""
        return self.uniform or self.loguniform or self.integer

    def place(self, value: Value) -> float:
        """The position of a value in the interval, from 0 at the low end to 1 at the high end; logarithmic for
        loguniform."""
        assert self.bounds is not None
        low, high, at = (math.log(x) if self.loguniform else x for x in (*self.bounds, float(value)))
        return (at - low) / (high - low) if high > low else 0.5

    @property
    def options(self) -> list[Value]:
        """The listed values; empty for an interval."""
        return list(self.choice or self.grid or ())

    def contains(self, value: Value) -> bool:
        if self.bounds is None:
            return value in self.options
        low, high = self.bounds
        kind = int if self.integer is not None else (int, float)
        return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


def _check_different(values: Sequence[Value]) -> None:
    """Raises ValueError if two values are equal, as 1, 1.0 and true are: the search could not tell them apart."""
    seen: dict[Value, Value] = {}
    for value in values:
        if value in seen:
            raise ValueError(f"must be different values, got {shown(seen[value])} and {shown(value)}")
        seen[value] = value


Space = dict[str, Parameter]


def walk(space: Space, given: Mapping[str, Value] | None = None) -> Iterator[tuple[str, Parameter, dict[str, Value]]]:
    """Yields every parameter as (path, parameter, the choices it depends on: path → value)."""
    for path, parameter in space.items():
        yield path, parameter, dict(given or {})
        for value, below in (parameter.choice or {}).items():
            yield from walk(below, {**(given or {}), path: value})


def completed(space: Space, point: Mapping[str, Value]) -> dict[str, Value]:
    """Adds to a point the choices that its values depend on. Raises ValueError if the point sets such a choice to
    another value, or if several values are possible and the point sets none."""
    result = dict(point)
    for attempt, path in enumerate([*point, *point]):  # twice: a later value may decide for an earlier one
        value, places = point[path], [(p, given) for there, p, given in walk(space) if there == path]
        if not places:
            raise ValueError(f"search.points must have paths of search.space, got {shown(path)}")
        fitting = [(p, given) for p, given in places if p.contains(value)]
        if not fitting:
            raise ValueError(f"search.points must have {path} within {places[0][0]}, got {shown(value)}")
        possible = [given for _, given in fitting if all(result.get(key, of) == of for key, of in given.items())]
        if len(possible) == 1:
            result |= possible[0]
        elif attempt >= len(point) and not any(given.items() <= result.items() for given in possible):
            needed = " or ".join(" and ".join(f"{k}: {plain(v)}" for k, v in given.items()) for _, given in fitting)
            parents = {key: shown(result[key]) for _, given in fitting for key in given if key in result}
            got = ", ".join(f"{key}: {value}" for key, value in parents.items()) or "neither"
            raise ValueError(f"search.points must have {path} together with {needed}, got {got}")
    return result
