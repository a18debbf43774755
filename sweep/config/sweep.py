"""The sections of a sweep's config: the base config of all trials, the search, confirmation and resources."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from model.config import Positive, Section, Seed, Tagged, TrialConfig, override, shown
from model.config.format import FORMAT
from model.config.renamed import current
from model.training.scores import SCORES
from sweep.config import yaml_text
from sweep.config.errors import sentences
from sweep.config.space import AnyValue, Parameter, Space, Value, completed, walk
from sweep.config.yaml_text import NotYaml


def _known_score(name: str) -> str:
    if name not in SCORES:
        raise ValueError(f"must be one of {', '.join(SCORES)}, got {shown(name)}")
    return name


Scored = Annotated[str, AfterValidator(_known_score), Field(json_schema_extra={"enum": [*SCORES]})]


class NoStopping(Section):
    name: Literal["none"] = "none"


class Stopping(Section):
    """Common keys of early stopping: the validation score by which trials are compared, computed with the averaged
    weights (EMA) or with the last weights."""

    metric: Scored = "loss"
    weights: Literal["averaged", "last"] = "averaged"


class Asha(Stopping):
    """Asynchronous successive halving (ASHA). Rungs are at grace_epochs · reduction_factor^k; a trial continues if it
    is in the best 1/reduction_factor of those seen at the rung so far.

    `grace_epochs` must outlast CTC's all-blank plateau, where all trials score alike, and should outlast the warm-up of
    a schedule that starts at a low rate: a third of the epochs.
    """

    name: Literal["asha"] = "asha"
    grace_epochs: Positive = 2
    reduction_factor: Annotated[int, Field(ge=2)] = 2


class Median(Stopping):
    """Median stopping rule: stops a trial that is worse than the median of the earlier ones at the same epoch. Golovin
    et al. 2017, section 3.2.1."""

    name: Literal["median"] = "median"
    grace_epochs: Positive = 2
    startup_trials: Positive = 4


def _renamed_keys(tree: Any) -> Any:
    return {current(path): value for path, value in tree.items()} if isinstance(tree, Mapping) else tree


def _renamed_space(space: Any) -> Any:
    """Replaces renamed paths in a search space, also below the values of a choice."""
    if not isinstance(space, Mapping):
        return space
    result = dict(_renamed_keys(space))
    for path, parameter in result.items():
        choice = parameter.get("choice") if isinstance(parameter, Mapping) else None
        if isinstance(choice, Mapping):
            below = {value: _renamed_space(inner) for value, inner in choice.items()}
            result[path] = {**parameter, "choice": below}
    return result


class SearchConfig(Section):
    """How to search. `trials`: without it 20, or all points of a grid. `points`: trials to run first; values that a
    point leaves out are sampled."""

    space: Space = Field(min_length=1)
    searcher: Literal["tpe", "random", "grid", "qmc", "cmaes"] = "tpe"
    early_stopping: Annotated[NoStopping | Asha | Median, Tagged("asha")] = Asha()
    trials: Positive | None = None
    metric: Scored = "error_rate"
    max_concurrent: Positive | Literal["auto"] = "auto"
    max_failures: Annotated[int, Field(ge=0, le=1000)] = 1
    max_node_losses: Annotated[int, Field(ge=0, le=1000)] = 10
    seed: Seed = 0
    points: tuple[dict[str, AnyValue], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        points = value.get("points")
        return {
            **value,
            **({"space": _renamed_space(value["space"])} if "space" in value else {}),
            **({"points": [_renamed_keys(point) for point in points]} if isinstance(points, list | tuple) else {}),
        }

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
    """CPUs and GPUs of one trial. `auto` shares the cores among the trials that run at once, and gives each the share
    of a GPU, if there is one, that `sweep.bench` has recommended for this network on this GPU, or else a quarter."""

    cpus: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, value: Any) -> Any:
        if value != "auto" and value > 1 and value != int(value):
            raise ValueError(f"must be a fraction of one GPU or a whole number of them, got {value}")
        return value


class ConfirmConfig(Section):
    """Confirmation after the search: trains the best `top` configs again to the end, each with `seeds` new seeds, and
    tests them on the test set, which neither training nor selection has seen."""

    top: Positive = 3
    seeds: Positive = 3


def _readable_format(number: int) -> int:
    """Accepts older formats, which reading converts, and returns the present one. Raises ValueError for newer ones."""
    if not 1 <= number <= FORMAT:
        raise ValueError(f"must be at most {FORMAT}, which this version reads, got {number}")
    return FORMAT


_FIXED = ("training.epochs", "network.init", "network.init_sha256")


class SweepConfig(TrialConfig):
    """The base config of every trial, and the search around it."""

    format: Annotated[int, AfterValidator(_readable_format)] = FORMAT
    search: SearchConfig
    confirm: ConfirmConfig | None = None
    resources: ResourcesConfig = ResourcesConfig()

    def with_values(self, values: Mapping[str, Value]) -> Self:
        """The config with a trial's values in place of the base's. Only the trial's sections are validated: the search
        space was checked around the base."""
        trial = TrialConfig.model_validate(override(self._base, values))
        return self.model_copy(update={name: getattr(trial, name) for name in TrialConfig.model_fields})

    @property
    def averages(self) -> bool:
        """Whether early stopping compares the averaged weights (EMA) of trials."""
        return getattr(self.search.early_stopping, "weights", None) == "averaged"

    def trial(self) -> TrialConfig:
        return TrialConfig.model_validate(self._base)

    @property
    def _base(self) -> dict[str, Any]:
        return self.model_dump(include=set(TrialConfig.model_fields))

    @property
    def yaml(self) -> str:
        return yaml_text.written(override(self.model_dump(), {}))

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Inverse of `yaml`. Raises ValueError."""
        try:
            return cls.model_validate(yaml_text.parsed(text))
        except NotYaml as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        """Checks that each end of an interval and each listed value gives a valid trial, and that listed values give
        different trials."""
        problems: dict[str, None] = {}
        base = self._base
        for path, parameter, given in walk(self.search.space):
            if path.partition(".")[0] not in ("network", "optimizer", "schedule", "training") or path in _FIXED:
                same = "initial weights" if path.startswith("network.init") else "images and epochs"
                problems[f"search.space.{path} is not searchable: all trials have the same {same}"] = None
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
        """Checks that the library's font has all characters. Not done in `CaptchaConfig`, because that would import
        Pillow for every use of the trial's config. Fonts of one's own are checked when a sweep starts."""
        drawn = self.captcha
        if drawn is not None and drawn.fonts is None and not drawn.characters.isascii():  # the font has all of ASCII
            from model.data.captchas import check_characters

            check_characters(drawn.characters)
        return self
