"""YAML and `--set` → one validated config. The one file that knows YAML.

A search space is data: a dotted path, then one of

    optimizer.lr: {loguniform: [1e-4, 3e-2]}      # also uniform; both ends included
    network.lstm_layers: {int: [1, 3]}
    training.batch_size: {choice: [32, 64]}       # grid: the same, for the grid searcher
    schedule.name:
      choice:                                     # what stands below a value is searched only with it
        constant:
        step: {schedule.gamma: {loguniform: [0.03, 0.5]}}
"""

import difflib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_serializer, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from model.config import Positive, Section, TrialConfig, override

Value = bool | int | float | str


class ConfigError(ValueError):
    """Bad input: one sentence per mistake."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("\n".join(sentences))


class Parameter(Section):
    """One searched value's distribution; exactly one of the five is given."""

    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = Field(None, alias="int")
    choice: dict[Value, dict[str, "Parameter"]] | None = None
    grid: Annotated[tuple[Value, ...], Field(min_length=1)] | None = None

    @field_validator("choice", mode="before")
    @classmethod
    def _list_or_mapping(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: below or {} for key, below in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return {item: {} for item in value} if all(isinstance(v, Value) for v in value) else value
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("needs exactly one of uniform, loguniform, int, choice, grid")
        if self.choice is not None and not self.choice:
            raise ValueError("choice is empty: give at least one value")
        if (bounds := self.bounds) is not None:
            low, high = bounds
            if low > high:
                raise ValueError(f"[{low}, {high}] is not allowed: the low end must not exceed the high end")
            if self.loguniform is not None and low <= 0:
                raise ValueError(f"[{low}, {high}] is not allowed: loguniform needs a low end above 0")
        return self

    @model_serializer
    def _dump(self) -> dict[str, Any]:
        """As it is written in YAML."""
        if self.choice is not None:
            if any(self.choice.values()):
                return {"choice": {value: {p: q._dump() for p, q in b.items()} for value, b in self.choice.items()}}
            return {"choice": list(self.choice)}
        names = {"uniform": self.uniform, "loguniform": self.loguniform, "int": self.integer, "grid": self.grid}
        return {name: list(value) for name, value in names.items() if value is not None}

    def __str__(self) -> str:
        ((kind, value),) = self._dump().items()
        ends = " … ".join(f"{end:g}" for end in self.bounds or ())
        return f"{kind} {ends}" if ends else " | ".join(map(str, value))

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The ends of an interval; None for listed values."""
        return self.uniform or self.loguniform or self.integer

    def place(self, value: Value) -> float:
        """Where in an interval a value lies, on its own scale: 0 at the low end, 1 at the high end."""
        assert self.bounds is not None
        low, high, at = (math.log(x) if self.loguniform else x for x in (*self.bounds, float(value)))
        return (at - low) / (high - low) if high > low else 0.5

    @property
    def options(self) -> list[Value]:
        """The listed values; empty for an interval."""
        return list(self.choice or self.grid or ())


Space = dict[str, Parameter]


def walk(space: Space, given: Mapping[str, Value] | None = None) -> Iterator[tuple[str, Parameter, dict[str, Value]]]:
    """Every parameter with its path and the choices above it that it depends on."""
    for path, parameter in space.items():
        yield path, parameter, dict(given or {})
        for value, below in (parameter.choice or {}).items():
            yield from walk(below, {**(given or {}), path: value})


Scored = Literal["error_rate", "loss", "cer"]


class NoStopping(Section):
    name: Literal["none"] = "none"


class Stopping(Section):
    """Trials are compared by a validation score, of their weights' average or of the last ones."""

    metric: Scored = "loss"
    weights: Literal["averaged", "last"] = "averaged"


class Asha(Stopping):
    """Rungs at grace_epochs · reduction_factor^k; at each, a trial goes on if it is in the best 1/reduction_factor of
    those seen there so far. The grace must outlast CTC's all-blank plateau, where all look alike, and better also the
    warm-up of a schedule that starts low: a third of the epochs."""

    name: Literal["asha"] = "asha"
    grace_epochs: Positive = 2
    reduction_factor: Annotated[int, Field(ge=2)] = 2


class Median(Stopping):
    """A trial worse than the median of the earlier ones at the same epoch is stopped. Golovin et al. 2017, 3.2.1."""

    name: Literal["median"] = "median"
    grace_epochs: Positive = 2
    startup_trials: Positive = 4


class SearchConfig(Section):
    """`trials`: 20 if not given, or all points of a grid. `points`: (partial) trials to try first."""

    space: Space = Field(min_length=1)
    searcher: Literal["tpe", "random", "grid", "qmc", "cmaes"] = "tpe"
    early_stopping: Annotated[NoStopping | Asha | Median, Field(discriminator="name")] = Asha()
    trials: Positive | None = None
    metric: Scored = "error_rate"
    max_concurrent: Positive | Literal["auto"] = "auto"
    max_failures: Annotated[int, Field(ge=0)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    points: tuple[dict[str, Value], ...] = ()

    @field_validator("early_stopping", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {"name": "asha", **value}
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        parameters = list(walk(self.space))
        kinds: dict[str, Parameter] = {}
        for path, parameter, _ in parameters:
            other = kinds.setdefault(path, parameter)
            if other.options != parameter.options or other.model_fields_set != parameter.model_fields_set:
                problems.append(f"search.space.{path}: a path that stands twice must have one kind of distribution")
            if self.searcher == "grid" and parameter.bounds is not None:
                problems.append(f"search.space.{path}: the grid searcher needs listed values (grid or choice)")
        if self.searcher == "cmaes" and (len(self.space) < 2 or any(p.options for _, p, _ in parameters)):
            problems.append("search.searcher: 'cmaes' is not allowed: it needs two or more numbers and no choices")
        for point in self.points:
            problems += [
                f"search.points: {path}: {value!r} is not allowed: "
                + ("it is not in search.space" if path not in kinds else f"outside of {kinds[path]._dump()}")
                for path, value in point.items()
                if path not in kinds or not _contains(kinds[path], value)
            ]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _contains(parameter: Parameter, value: Value) -> bool:
    if parameter.bounds is None:
        return value in parameter.options
    low, high = parameter.bounds
    return isinstance(value, int | float) and low <= value <= high


class ResourcesConfig(Section):
    """What one trial gets. `auto`: the cores, shared by the trials at once, and of a GPU, if there is one, the share
    that `sweep.bench` recommended for this network on this card, or a quarter."""

    cpus: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, value: Any) -> Any:
        if value != "auto" and value > 1 and value != int(value):
            raise ValueError(f"{value} is not allowed: a trial gets a fraction of one GPU or a whole number of them")
        return value


class ConfirmConfig(Section):
    """After the search the best `top` configs are trained again to the end, with as many fresh `seeds` each, and judged
    on the test set, which neither training nor selection has seen."""

    top: Positive = 3
    seeds: Positive = 3


_FIXED = ("training.epochs",)


class SweepConfig(TrialConfig):
    """The base of every trial, and how to search around it."""

    search: SearchConfig
    confirm: ConfirmConfig | None = None
    resources: ResourcesConfig = ResourcesConfig()

    def with_values(self, values: Mapping[str, Value]) -> Self:
        """The config with a trial's values in place of the base's, around which the space was checked."""
        trial = TrialConfig.model_validate(override(self._base, values))
        return self.model_copy(update={name: getattr(trial, name) for name in TrialConfig.model_fields})

    @property
    def averages(self) -> bool:
        """Whether early stopping compares an average of a trial's weights."""
        return getattr(self.search.early_stopping, "weights", None) == "averaged"

    def trial(self) -> TrialConfig:
        return TrialConfig.model_validate(self._base)

    @property
    def _base(self) -> dict[str, Any]:
        return self.model_dump(include=set(TrialConfig.model_fields))

    @property
    def yaml(self) -> str:
        stream = io.StringIO()
        _yaml().dump(override(self.model_dump(), {}), stream)
        return stream.getvalue()

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """The config that `yaml` has written. Raises ValueError."""
        try:
            return cls.model_validate(_yaml().load(text))
        except YAMLError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        """Each end of an interval and each listed value must give a valid trial."""
        problems: dict[str, None] = {}
        base = self._base
        for path, parameter, given in walk(self.search.space):
            if path.partition(".")[0] not in ("network", "optimizer", "schedule", "training") or path in _FIXED:
                problems[f"search.space.{path}: is not searchable: all trials see the same images and epochs"] = None
            for value in parameter.options or parameter.bounds or ():
                try:
                    TrialConfig.model_validate(override(base, {**given, path: value}))
                except ValidationError as error:
                    for sentence in sentences(error, TrialConfig):
                        about = "" if sentence.startswith(f"{path}:") else f"{path}: with {value!r}, "
                        problems[f"search.space.{about}{sentence}"] = None
        if problems:
            raise ValueError("\n".join(problems))
        return self


def load(
    path: Path, settings: Mapping[str, Any] | None = None, trial: Mapping[str, Value] | None = None
) -> SweepConfig:
    """The config of a file, with `settings` (dotted path → value) over it. With `trial`, a search of that one trial.

    Raises ConfigError with all mistakes.
    """
    settings = settings or {}
    tree = override(_read(path), settings)
    if trial is not None:
        space = {key: {"grid": [value]} for key, value in trial.items()}
        one = {"space": space, "searcher": "grid", "early_stopping": "none", "trials": 1, "points": []}
        tree = {**tree, "search": {**(tree.get("search") or {}), **one}, "confirm": None}
    try:
        return SweepConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError([_with_source(s, path, settings, trial) for s in sentences(error, SweepConfig)]) from None


def _with_source(sentence: str, path: Path, settings: Mapping[str, Any], trial: Mapping[str, Any] | None) -> str:
    if trial is not None and sentence.startswith("search.space."):
        return f"--trial: {sentence.removeprefix('search.space.')}"
    about = sentence.partition(":")[0]
    if any(f"{key}.".startswith(f"{about}.") or about.startswith(f"{key}.") for key in settings):
        return f"--set: {sentence}"
    return f"{path}: {sentence}"


def read_trial(path: Path) -> TrialConfig:
    """For commands of `model` that take `--config`. Raises ConfigError."""
    return load(path).trial()


def parse_settings(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """`optimizer.lr=3e-4` → path and value, the value read as YAML. Raises ConfigError."""
    settings: dict[str, Any] = {}
    for text in texts:
        path, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not all(path.split(".")):
            raise ConfigError([f"{option}: {text!r} is not allowed: write PATH=VALUE, for example optimizer.lr=3e-4"])
        *sections, key = path.split(".")
        field = _section(SweepConfig, (*sections, key)).model_fields.get(key)
        if field is not None and field.annotation in (str, str | None):
            settings[path] = value  # as typed: 0123 is no number here
            continue
        try:
            settings[path] = _yaml().load(value)
        except YAMLError:
            raise ConfigError([f"{option}: {path}: {value!r} is not allowed: the value is no YAML"]) from None
    return settings


def _yaml() -> YAML:
    """YAML 1.2 (in which 1e-4 is a number and `no` is not false), the safe loader, repeated keys refused."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    return yaml


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = _yaml().load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except (YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = str(getattr(error, "problem", None) or "it is not text in UTF-8").splitlines()[0]
        place = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError([f"{path}: this is no YAML{place}: {problem}"]) from None
    if not isinstance(tree, dict):
        found = "it is empty" if tree is None else f"it holds a {type(tree).__name__}"
        keys = ", ".join(SweepConfig.model_fields)
        raise ConfigError([f"{path}: {found}; a config is a mapping with the keys {keys}"])
    return tree


_NAMES_ITS_PATH = re.compile(rf"({'|'.join(SweepConfig.model_fields)})\.[^ ]+: ")


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """pydantic's errors as `path: value is not allowed: what is`, one for each path."""
    found: dict[str, list[str]] = {}
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if item["type"] == "value_error" and _NAMES_ITS_PATH.match(message):
            found.update({line: [] for line in message.splitlines()})
            continue
        path, context = _path(item["loc"]), item.get("ctx", {})
        match item["type"]:
            case "extra_forbidden":
                path = ".".join(filter(None, (_path(item["loc"][:-1]), str(item["loc"][-1]))))
                known = [field.alias or name for name, field in _section(model, item["loc"]).model_fields.items()]
                close = difflib.get_close_matches(path.split(".")[-1], known, 1)
                hint = f"did you mean {close[0]}? " if close else ""
                message = f"unknown key; {hint}allowed here: {', '.join(known)}"
            case "union_tag_invalid":
                path += ".name"
                message = f"{context['tag']!r} is not allowed: should be one of {context['expected_tags']}"
            case "model_type":
                keys = ", ".join(_section(model, (*item["loc"], "")).model_fields)
                message = f"{item['input']!r:.80} is not allowed: should be a mapping with the keys {keys}"
            case "model_attributes_type" | "dict_type":
                message = f"{item['input']!r:.80} is not allowed: should be a mapping"
            case "missing":
                message = "is missing"
            case "too_short":
                message = f"{item['input']!r} is not allowed: needs at least {context['min_length']}"
            case kind if kind != "value_error":
                message = f"{item['input']!r:.80} is not allowed: {message}"
        found.setdefault(path, []).append(message)
    return [
        ": ".join(filter(None, [path, " or ".join([*messages[:1], *(m.split(": ")[-1] for m in messages[1:])])]))
        for path, messages in found.items()
    ]


_UNION_MEMBER = re.compile(r"int|float|str|bool|constrained-.*|.*[\[(].*")


def _path(loc: tuple[int | str, ...]) -> str:
    """pydantic's location without the names it gives to the members of a union."""
    keys: list[str] = []
    for part in map(str, loc):
        is_tag = bool(keys) and keys[-1] in ("schedule", "early_stopping") and part in _tags(keys[-1])
        if not is_tag and not (keys and _UNION_MEMBER.fullmatch(part)):
            keys.append(part)
    return ".".join(keys)


def _tags(key: str) -> list[str]:
    owner: type[BaseModel] = TrialConfig if key == "schedule" else SearchConfig
    return [member.model_fields["name"].default for member in _sections(owner.model_fields[key].annotation)]


def _section(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The section that the location's last key stands in."""
    candidates = [model]
    for part in map(str, loc[:-1]):
        tagged = [c for c in candidates if "name" in c.model_fields and c.model_fields["name"].default == part]
        fields = [c.model_fields[part] for c in candidates if part in c.model_fields]
        candidates = tagged or (_sections(fields[0].annotation) if fields else []) or candidates
    return candidates[0]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for member in get_args(annotation) for section in _sections(member)]
