"""Loads a config file, applies `--set` and `--trial`, and validates the result."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.config import TrialConfig, is_no_unicode, override, shown, split_at_dots
from model.config.format import FORMAT
from model.config.renamed import RENAMED, current, old_names, renamed
from sweep.config.errors import ConfigError, section_of, sentences
from sweep.config.space import Value
from sweep.config.sweep import SweepConfig
from sweep.config.yaml_text import NotYaml, parsed, read_mapping

_SPACE = "search.space."
# The configs that come with the program: the same path in a checkout and in an installed wheel.
CONFIGS = Path(str(files("sweep") / "configs")).resolve()
QUICKSTART = CONFIGS / "quickstart.yaml"
OWN_IMAGES = CONFIGS / "own_images.yaml"


def load(
    path: Path,
    settings: Mapping[str, Any] | None = None,
    trial: Mapping[str, Value] | None = None,
    *,
    to_resume: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> SweepConfig:
    """Reads a config file and overrides `settings` (dotted path → value). With `trial` (path → value) the search is
    replaced by that one trial.

    `tell` gets a line for each renamed key that is used. Raises ConfigError with all mistakes at once, and with
    `to_resume` if the file's format is not the present one.
    """
    path = supplied(path)
    tree = read_mapping(path, SweepConfig.model_fields)
    if to_resume and (found := tree.get("format", 1)) != FORMAT:
        raise ConfigError(
            [
                f"{path}: format must be {FORMAT} to be resumed, got {shown(found)}: another version of this program "
                "wrote it, whose trials can't be compared with those to come; --config with this file starts it anew"
            ]
        )
    settings, given = settings or {}, trial or {}
    paths = [path.removeprefix(_SPACE) for path in (*settings, *given)]
    for old in dict.fromkeys([*old_names(tree), *_old_paths(tree.get("search")), *filter(RENAMED.get, paths)]):
        tell(f"{old} is now {RENAMED[old]}")
    settings = {_current(path): value for path, value in settings.items()}
    trial = None if trial is None else {current(path): value for path, value in trial.items()}
    if "images.path" in settings:  # own images instead of those that the file draws
        tree = {key: value for key, value in tree.items() if key != "captcha"}
    tree = override(renamed(tree), settings, SweepConfig, _keys)
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


def supplied(path: Path) -> Path:
    """Resolves `--config`: an existing file, else a config that comes with the program. From any working directory,
    quickstart, quickstart.yaml and configs/quickstart.yaml all mean the same one."""
    own = {file.stem: file for file in CONFIGS.glob("*.yaml")}
    meant = str(path.parent) in (".", "configs") and path.suffix in ("", ".yaml") and path.stem in own
    return own[path.stem] if meant and not os.path.lexists(path) else path


def _old_paths(search: Any) -> Iterator[str]:
    """Yields the renamed paths that the search space and the points of a file still use."""
    if isinstance(search, Mapping):
        for key, value in search.items():
            if key in RENAMED:
                yield key
            yield from _old_paths(value)
    elif isinstance(search, list):
        for item in search:
            yield from _old_paths(item)


def _current(path: str) -> str:
    """The present name of a path, also if it starts with `search.space.`."""
    return _SPACE + current(path.removeprefix(_SPACE)) if path.startswith(_SPACE) else current(path)


def _keys(path: str) -> list[str]:
    """Splits a path into keys. A key of the search space contains dots: search, space, optimizer.lr."""
    searched = path.removeprefix(_SPACE)
    return split_at_dots(path) if searched == path else ["search", "space", searched]


@contextlib.contextmanager
def blaming(path: Path, settings: Mapping[str, Any], trial: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Prefixes each sentence of a ConfigError with the source of the value: the file, `--set` or `--trial`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([_with_source(sentence, path, settings, trial) for sentence in error.sentences]) from None


def _with_source(sentence: str, path: Path, settings: Mapping[str, Any], trial: Mapping[str, Any] | None) -> str:
    if trial is not None and sentence.startswith("search.space."):
        return f"--trial: {sentence.removeprefix('search.space.')}"
    if sentence.startswith("--"):
        return sentence
    about = sentence.partition(" ")[0]
    set_here = (f"{key}.".startswith(f"{about}.") or f"{about}.".startswith(f"{key}.") for key in settings)
    mentioned = ("." in key and f" {key} " in sentence for key in settings)  # in a sentence about another key
    return f"{'--set' if any(set_here) or any(mentioned) else path}: {sentence}"


def read_trial(path: Path) -> TrialConfig:
    """The trial config of a file, for the commands of `model` that take `--config`. Raises ConfigError."""
    return load(path).trial()


def parse_settings(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """Parses `optimizer.lr=3e-4` into path and value. The value is read as YAML, unless the field is text. Raises
    ConfigError."""
    settings: dict[str, Any] = {}
    for text in texts:
        path, equals, value = (part.strip() for part in text.partition("="))
        if is_no_unicode(text):
            raise ConfigError([f"{option} must be text in UTF-8, got {shown(text)}"])
        if not equals or not all(path.split(".")):
            example = "optimizer.lr=3e-4"
            raise ConfigError([f"{option} must be PATH=VALUE, for example {example}, got {shown(text)}"])
        keys = _keys(_current(path))
        field = section_of(SweepConfig, tuple(keys)).model_fields.get(keys[-1])
        if field is not None and field.annotation in (str, str | None):
            settings[path] = value  # as typed: for a text, YAML must not turn 0123 into a number
            continue
        try:
            settings[path] = parsed(value)
        except NotYaml as error:
            raise ConfigError([f"{option}: {path} must be YAML, got {shown(value)}: {error.problem}"]) from None
    return settings


def split_at_commas(text: str) -> list[str]:
    """Splits `a=1,b=[2,3]` into `a=1` and `b=[2,3]`: not at commas inside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
