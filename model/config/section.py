"""The base class of config sections, and helpers for error messages about their values and paths."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# The bounds are far beyond any use. A larger value is a typo or an attack, and would otherwise fail only hours
# or gigabytes later.
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of the config sections: frozen; refuses unknown keys, NaN and infinity; reports all errors at once."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def shown(value: Any) -> str:
    """Formats a value for an error message, in at most 80 characters."""
    text = _written(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def shown_path(path: object) -> str:
    """Formats a path for an error message, whole, because a user must be able to find it."""
    return repr(str(path))


def _written(value: Any) -> str:
    """Formats a value as in YAML, but with quotes around every string."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    return repr(value)


def is_no_unicode(text: str) -> bool:
    """Whether a string holds lone surrogates, which UTF-8 can't encode.

    Python decodes bytes that are not UTF-8 to them (`surrogateescape`), and YAML's "\\ud800" is one.
    """
    return any("\ud800" <= character <= "\udfff" for character in text)


def unusable_path(path: str) -> str | None:
    """Says what a path must be, or returns None if the path can be used.

    The bounds leave room for the names of the files that a sweep creates below the path.
    """
    if "\0" in path or is_no_unicode(path):
        return "must be text in UTF-8 without NUL"
    encoded = path.encode()
    if len(encoded) > 3500 or any(len(name) > 255 for name in encoded.split(b"/")):
        return "must be at most 3,500 bytes long, and each name in it at most 255"
    return None


def _absolute(path: str) -> str:
    if (problem := unusable_path(path)) is None and not path:
        problem = "must be the path of a file"
    if problem is None:
        try:
            return str(Path(path).expanduser().absolute())
        except RuntimeError:
            problem = "must begin with the name of a user after ~"
    raise ValueError(f"{problem}, got {shown(path)}")


# A file that a config names. A relative path is relative to the working directory in which the config is read first.
FileName = Annotated[str, AfterValidator(_absolute)]
# The contents that such a file must have. A sweep writes it, so that nobody goes on with other contents unnoticed.
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
