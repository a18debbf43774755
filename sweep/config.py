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

import contextlib
import difflib
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import Node, ScalarNode

from model.config import Positive, Section, Seed, TrialConfig, is_no_unicode, override, shown, split_at_dots

# As YAML gives it, so that all of it can be a choice: true, a number, a text, null (None) or a list (a tuple) of these.
Value = Any

# The folder of the configs that come with the program, in a checkout and in an installed wheel alike.
CONFIGS = Path(str(files("sweep") / "configs")).resolve()
QUICKSTART = CONFIGS / "quickstart.yaml"

_MOST_BYTES = 100_000  # of a config: YAML's reader takes seconds for more
_DEEPEST = 20  # of a config's nesting
_MOST_SENTENCES, _LONGEST_SENTENCE = 20, 300


class ConfigError(ValueError):
    """Bad input: one sentence per mistake, each on one line of bounded length, and no more of them than can be read."""

    def __init__(self, sentences: Sequence[str]) -> None:
        self.sentences = list(sentences)
        lines = [_line(sentence) for sentence in sentences[:_MOST_SENTENCES]]
        if (more := len(sentences) - len(lines)) > 0:
            lines.append(f"… and {more} more")
        super().__init__("\n".join(lines))


def _line(sentence: str) -> str:
    """Without what would break the line or colour the terminal, and cut in the middle: the value stands at the end."""
    line, half = "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence), _LONGEST_SENTENCE // 2
    return line if len(line) <= _LONGEST_SENTENCE else f"{line[:half]} … {line[3 - half :]}"


def tupled(value: Any) -> Value:
    """With tuples for the lists of YAML and JSON. Raises ValueError for what can be no choice."""
    if isinstance(value, list | tuple):
        return tuple(map(tupled, value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"must be true, a number, a text, null or a list of these, got {shown(value)}")


AnyValue = Annotated[Value, PlainValidator(tupled)]


def plain(value: Value) -> bool | int | float | str:
    """A value for what holds no null and no lists: the study, a table's cell, a trial's name."""
    return json.dumps(value) if value is None or isinstance(value, tuple) else value


class Parameter(Section):
    """One searched value's distribution; exactly one of the five is given."""

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
            names = ", ".join(_keys_of(type(self)))
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
        """As it is written in YAML."""
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

    def contains(self, value: Value) -> bool:
        if self.bounds is None:
            return value in self.options
        low, high = self.bounds
        kind = int if self.integer is not None else (int, float)
        return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


def _check_different(values: Sequence[Value]) -> None:
    """Values that are equal (1, 1.0 and true are) would be tried as one."""
    seen: dict[Value, Value] = {}
    for value in values:
        if value in seen:
            raise ValueError(f"must be different values, got {shown(seen[value])} and {shown(value)}")
        seen[value] = value


Space = dict[str, Parameter]


def walk(space: Space, given: Mapping[str, Value] | None = None) -> Iterator[tuple[str, Parameter, dict[str, Value]]]:
    """Every parameter with its path and the choices above it that it depends on."""
    for path, parameter in space.items():
        yield path, parameter, dict(given or {})
        for value, below in (parameter.choice or {}).items():
            yield from walk(below, {**(given or {}), path: value})


def completed(space: Space, point: Mapping[str, Value]) -> dict[str, Value]:
    """A point with the choices set that its values stand below. Raises ValueError if they are set otherwise, or if
    several are possible and none is set."""
    result = dict(point)
    for attempt, path in enumerate([*point, *point]):  # a later value may decide what an earlier one stands below
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
    max_failures: Annotated[int, Field(ge=0, le=1000)] = 1
    seed: Seed = 0
    points: tuple[dict[str, AnyValue], ...] = ()

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
                problems.append(f"search.space.{path} must have one kind of distribution wherever it stands")
            if self.searcher == "grid" and parameter.bounds is not None:
                problems.append(f"search.space.{path} must list its values (grid or choice) for the grid searcher")
        if self.searcher == "cmaes" and (len(self.space) < 2 or any(p.options for _, p, _ in parameters)):
            problems.append("search.searcher must have two or more numbers and no choices to search with cmaes")
        for point in self.points:
            try:
                completed(self.space, point)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))
        return self


class ResourcesConfig(Section):
    """What one trial gets. `auto`: the cores, shared by the trials at once, and of a GPU, if there is one, the share
    that `sweep.bench` recommended for this network on this card, or a quarter."""

    cpus: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, value: Any) -> Any:
        if value != "auto" and value > 1 and value != int(value):
            raise ValueError(f"must be a fraction of one GPU or a whole number of them, got {value}")
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
            return cls.model_validate(_parsed(text))
        except _NotYaml as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        """Each end of an interval and each listed value must give a valid trial, and each of these another one."""
        problems: dict[str, None] = {}
        base = self._base
        for path, parameter, given in walk(self.search.space):
            if path.partition(".")[0] not in ("network", "optimizer", "schedule", "training") or path in _FIXED:
                problems[f"search.space.{path} is not searchable: all trials see the same images and epochs"] = None
                continue
            trials: dict[TrialConfig, Value] = {}
            for value in parameter.options or parameter.bounds or ():
                try:
                    trial = TrialConfig.model_validate(override(base, {**given, path: value}))
                except ValidationError as error:
                    for sentence in sentences(error, TrialConfig):
                        about = "" if sentence.startswith(f"{path} ") else f"{path} with {shown(value)}: "
                        problems[f"search.space.{about}{sentence}"] = None
                    continue
                if trial in trials and parameter.options:
                    same = f"{shown(trials[trial])} and {shown(value)}"
                    problems[f"search.space.{path} must be different values, got {same}"] = None
                trials[trial] = value
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @model_validator(mode="after")
    def _check_font(self) -> Self:
        """Here, not in the trial's own sections, which stay cheap to import: fonts take Pillow."""
        if not self.captcha.characters.isascii():  # all of ASCII is in the font
            from model.captchas import check_characters

            check_characters(self.captcha.characters)
        return self


def load(
    path: Path, settings: Mapping[str, Any] | None = None, trial: Mapping[str, Value] | None = None
) -> SweepConfig:
    """The config of a file, with `settings` (dotted path → value) over it. With `trial`, a search of that one trial.

    Raises ConfigError with all mistakes.
    """
    settings = settings or {}
    tree = override(_read(path), settings, _keys)
    if trial is not None:
        space = {key: {"grid": [value]} for key, value in trial.items()}
        one = {"space": space, "searcher": "grid", "early_stopping": "none", "trials": 1, "points": []}
        searched = tree.get("search")
        tree = {**tree, "search": {**searched, **one} if isinstance(searched, Mapping) else one, "confirm": None}
    with blaming(path, settings, trial):
        try:
            return SweepConfig.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(sentences(error, SweepConfig)) from None


def _keys(path: str) -> list[str]:
    """A path's keys; those of the search space are dotted themselves: search, space, optimizer.lr."""
    space, dot, searched = path.partition("search.space.")
    return ["search", "space", searched] if dot and not space else split_at_dots(path)


@contextlib.contextmanager
def blaming(path: Path, settings: Mapping[str, Any], trial: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Has each sentence about a key of the config begin with the file or the option that its value came from."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([_with_source(sentence, path, settings, trial) for sentence in error.sentences]) from None


def _with_source(sentence: str, path: Path, settings: Mapping[str, Any], trial: Mapping[str, Any] | None) -> str:
    if trial is not None and sentence.startswith("search.space."):
        return f"--trial: {sentence.removeprefix('search.space.')}"
    about = sentence.partition(" ")[0]
    set_here = (f"{key}.".startswith(f"{about}.") or f"{about}.".startswith(f"{key}.") for key in settings)
    mentioned = ("." in key and f" {key} " in sentence for key in settings)  # by a sentence about another key
    return f"{'--set' if any(set_here) or any(mentioned) else path}: {sentence}"


def read_trial(path: Path) -> TrialConfig:
    """For commands of `model` that take `--config`. Raises ConfigError."""
    return load(path).trial()


def parse_settings(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """`optimizer.lr=3e-4` → path and value, the value read as YAML. Raises ConfigError."""
    settings: dict[str, Any] = {}
    for text in texts:
        path, equals, value = (part.strip() for part in text.partition("="))
        if is_no_unicode(text):
            raise ConfigError([f"{option} must be text in UTF-8, got {shown(text)}"])
        if not equals or not all(path.split(".")):
            example = "optimizer.lr=3e-4"
            raise ConfigError([f"{option} must be PATH=VALUE, for example {example}, got {shown(text)}"])
        keys = _keys(path)
        field = _section(SweepConfig, tuple(keys)).model_fields.get(keys[-1])
        if field is not None and field.annotation in (str, str | None):
            settings[path] = value  # as typed: 0123 is no number here
            continue
        try:
            settings[path] = _parsed(value)
        except _NotYaml as error:
            raise ConfigError([f"{option}: {path} must be YAML, got {shown(value)}: {error.problem}"]) from None
    return settings


def split_at_commas(text: str) -> list[str]:
    """`a=1,b=[2,3]` → `a=1` and `b=[2,3]`: commas inside of brackets do not count."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


class _NotYaml(Exception):
    def __init__(self, error: Exception) -> None:
        mark = getattr(error, "problem_mark", None)
        self.place = f" in line {mark.line + 1}" if mark else ""
        self.problem = (str(getattr(error, "problem", None) or error).splitlines() or [""])[0]


class _Composer(Composer):
    """Refuses what no config needs and what makes a small file a large tree, or a tag's own reader fail."""

    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.parser.peek_event()
        refused = {
            "anchors and aliases (& and *) are not taken": isinstance(event, AliasEvent) or event.anchor is not None,
            "tags (!) are not taken": getattr(event, "tag", None) is not None,
            "half a surrogate pair is no text": is_no_unicode(getattr(event, "value", "")),
            f"more than {_DEEPEST} levels of nesting are not taken": self.depth == _DEEPEST,
        }
        for problem, applies in refused.items():
            if applies:
                raise ComposerError(None, None, problem, event.start_mark)
        self.depth += 1
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Constructor(SafeConstructor):
    """YAML 1.2's own types alone: a date is a text. So is a number that Python would not write out again, which then
    is refused by its key."""

    def construct_yaml_int(self, node: ScalarNode) -> Any:
        return super().construct_yaml_int(node) if len(node.value) <= 1000 else node.value


for _kind in ("timestamp", "value", "merge"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", SafeConstructor.construct_yaml_str)
_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)


def _yaml() -> YAML:
    """YAML 1.2 (in which 1e-4 is a number and `no` is not false), the safe loader, repeated keys refused."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.Constructor = _Composer, _Constructor
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    return yaml


def _parsed(text: str) -> Any:
    """Raises _NotYaml."""
    try:
        return _yaml().load(text)
    except Exception as error:  # on hostile text the parser fails in ways of its own, which all mean the same
        raise _NotYaml(error) from None


def _supplied(path: Path) -> Path:
    """The file that `--config` names: one that is there, else the config that comes with the program and is meant by
    quickstart, quickstart.yaml or configs/quickstart.yaml, in whatever folder that is typed."""
    supplied = CONFIGS / path.with_suffix(".yaml").name if path.name else path
    meant = str(path.parent) in (".", "configs") and path.suffix in ("", ".yaml") and supplied.is_file()
    return supplied if meant and not os.path.lexists(path) else path


def _read(path: Path) -> dict[str, Any]:
    try:
        path = _supplied(path)
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may never end
            raise ConfigError([f"{path}: cannot be read: it is no regular file"])
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError([f"{path}: must be at most {_MOST_BYTES:,} bytes, got more"])
        tree = _parsed(content.decode())
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: this is no YAML: it is not text in UTF-8"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None  # NUL in its name
    except _NotYaml as error:
        raise ConfigError([f"{path}: this is no YAML{error.place}: {error.problem}"]) from None
    if not isinstance(tree, dict):
        found = "it is empty" if tree is None else f"it holds a {type(tree).__name__}"
        keys = ", ".join(SweepConfig.model_fields)
        raise ConfigError([f"{path}: {found}; a config is a mapping with the keys {keys}"])
    return tree


_NAMES_ITS_PATH = re.compile(rf"({'|'.join(SweepConfig.model_fields)})(\.[^ ]+)? ")

# What a value must be, by pydantic's type of error, whose context fills in the braces.
_MUST = {
    "bool_parsing": "be true or false",
    "bool_type": "be true or false",
    "dict_type": "be a mapping",
    "finite_number": "be a finite number",
    "float_parsing": "be a number",
    "float_type": "be a number",
    "greater_than": "be above {gt}",
    "greater_than_equal": "be at least {ge}",
    "int_from_float": "be a whole number",
    "int_parsing": "be a whole number",
    "int_parsing_size": "be a whole number",
    "int_type": "be a whole number",
    "less_than": "be below {lt}",
    "less_than_equal": "be at most {le}",
    "list_type": "be a list",
    "literal_error": "be {expected}",
    "model_attributes_type": "be a mapping",
    "string_type": "be text",
    "string_unicode": "be text in UTF-8",
    "too_long": "hold at most {max_length}",
    "too_short": "hold at least {min_length}",
    "tuple_type": "be a list",
    "union_tag_invalid": "be one of {expected_tags}",
}


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """pydantic's errors as `path must be at least 1, got 0`, one for each path."""
    told: dict[str, None] = {}  # whole sentences
    needs: dict[str, list[str]] = {}  # what a path's value must be: of a union each member says it
    got: dict[str, Any] = {}
    for item in error.errors(include_url=False):
        kind, path = item["type"], _path(item["loc"])
        context = {key: f"{of:g}" if isinstance(of, float) else of for key, of in item.get("ctx", {}).items()}
        message = item["msg"].removeprefix("Value error, ")
        if kind == "value_error":
            lines = message.splitlines()
            told.update(dict.fromkeys(lines if _NAMES_ITS_PATH.match(message) else [f"{path} {message}"]))
        elif kind == "missing":
            told[f"{path} is missing"] = None
        elif kind == "extra_forbidden":
            key = str(item["loc"][-1])
            path = ".".join(filter(None, (_path(item["loc"][:-1]), key)))
            known = _keys_of(_section(model, item["loc"]))
            close = difflib.get_close_matches(key, known, 1) if len(told) < _MOST_SENTENCES else []
            hint = f"did you mean {close[0]}? " if close else ""
            told[f"{path} is an unknown key; {hint}allowed here: {', '.join(known)}"] = None
        else:
            value, need = item["input"], _MUST.get(kind, message[:1].lower() + message[1:]).format(**context)
            if kind == "model_type":
                need = f"be a mapping with the keys {', '.join(_keys_of(_section(model, (*item['loc'], ''))))}"
            elif kind == "union_tag_invalid":
                path, value = f"{path}.name", context["tag"]
            needs.setdefault(path, []).append(need)
            got[path] = value
    # Where an entry of a list is wrong, the other members of a union say that there should be no list.
    inner = {path.rpartition(".")[0] for path in needs}
    for path, wanted in needs.items():
        if path not in inner or not isinstance(got[path], list | tuple):
            first, *others = dict.fromkeys(wanted)
            must = " or ".join([first, *(other.removeprefix("be ") for other in others)])
            told[f"{path} must {must}, got {shown(got[path])}"] = None
    return list(told)


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


def _keys_of(section: type[BaseModel]) -> list[str]:
    """As they are written in YAML."""
    return [field.alias or name for name, field in section.model_fields.items()]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for member in get_args(annotation) for section in _sections(member)]
