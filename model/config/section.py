"""The base of every config section, and how error sentences show values and paths."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

# Bounds far beyond any use: a value above them is a typing error or an attack, and would fail hours or gigabytes later.
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen part of a config that refuses unknown keys; pydantic collects all errors of a config at once."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def shown(value: Any) -> str:
    """A value as an error sentence shows it: at most 80 characters."""
    text = _written(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _written(value: Any) -> str:
    """As in YAML, but with quotes around each text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    return repr(value)


def is_no_unicode(text: str) -> bool:
    """Whether it holds lone surrogates: what Python makes of bytes that are not UTF-8, and of YAML's "\\ud800"."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def unusable_path(path: str) -> str | None:
    """What a path must be, if no file system would take this one or what a sweep makes below it."""
    if "\0" in path or is_no_unicode(path):
        return "must be text in UTF-8 without NUL"
    encoded = path.encode()
    if len(encoded) > 3500 or any(len(name) > 255 for name in encoded.split(b"/")):
        return "must be at most 3,500 bytes long, and each name in it at most 255"
    return None
