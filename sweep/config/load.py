"""A config file and `--set` → one validated config."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.config import TrialConfig, is_no_unicode, override, shown, split_at_dots
from sweep.config.errors import ConfigError, section_of, sentences
from sweep.config.space import Value
from sweep.config.sweep import SweepConfig
from sweep.config.yaml_text import NotYaml, parsed, read_mapping

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


def load(
    path: Path, settings: Mapping[str, Any] | None = None, trial: Mapping[str, Value] | None = None
) -> SweepConfig:
    """The config of a file, with `settings` (dotted path → value) over it. With `trial`, a search of that one trial.

    Raises ConfigError with all mistakes.
    """
    settings = settings or {}
    tree = override(read_mapping(path, SweepConfig.model_fields), settings, SweepConfig, _keys)
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
        field = section_of(SweepConfig, tuple(keys)).model_fields.get(keys[-1])
        if field is not None and field.annotation in (str, str | None):
            settings[path] = value  # as typed: 0123 is no number here
            continue
        try:
            settings[path] = parsed(value)
        except NotYaml as error:
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
