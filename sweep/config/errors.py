"""Turns validation errors of a config into sentences: `training.epochs must be at least 1, got 0`."""

import difflib
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from model.config import shown, tagged_sections

_MOST_SENTENCES, _LONGEST_SENTENCE = 20, 300


class ConfigError(ValueError):
    """Bad input, described by one sentence per mistake. As text each is one line of at most 300 characters, and no more
    than 20 are shown."""

    def __init__(self, sentences: Sequence[str]) -> None:
        self.sentences = list(sentences)
        lines = [_line(sentence) for sentence in sentences[:_MOST_SENTENCES]]
        if (more := len(sentences) - len(lines)) > 0:
            lines.append(f"… and {more} more")
        super().__init__("\n".join(lines))


def _line(sentence: str) -> str:
    """The sentence as one printable line: escapes control characters, and cuts a long one in the middle, because the
    offending value is at its end."""
    line, half = "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence), _LONGEST_SENTENCE // 2
    return line if len(line) <= _LONGEST_SENTENCE else f"{line[:half]} … {line[3 - half :]}"


# pydantic's type of error → what the value must do. The context of the error fills in the braces.
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
    "string_pattern_mismatch": "match {pattern}",
    "string_type": "be text",
    "string_unicode": "be text in UTF-8",
    "too_long": "hold at most {max_length}",
    "too_short": "hold at least {min_length}",
    "tuple_type": "be a list",
    "union_tag_invalid": "be one of {expected_tags}",
}


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """pydantic's errors as sentences, `path must be at least 1, got 0`, with all alternatives of one path in one
    sentence."""
    names_its_path = re.compile(rf"({'|'.join(model.model_fields)})(\.[^ ]+)? ")
    names_of_tags = {path: members for path, _, members in tagged_sections(model)}
    told: dict[str, None] = {}  # whole sentences; a dict, because it keeps the order without repeats
    needs: dict[str, list[str]] = {}  # path → what its value must be: each member of a union adds one
    got: dict[str, Any] = {}
    for item in error.errors(include_url=False):
        kind, path = item["type"], _path(item["loc"], names_of_tags)
        context = {key: f"{of:g}" if isinstance(of, float) else of for key, of in item.get("ctx", {}).items()}
        message = item["msg"].removeprefix("Value error, ")
        if kind == "value_error":
            lines = message.splitlines()
            told.update(dict.fromkeys(lines if names_its_path.match(message) else [f"{path} {message}"]))
        elif kind == "missing":
            told[f"{path} is missing"] = None
        elif kind == "extra_forbidden":
            key = str(item["loc"][-1])
            path = ".".join(filter(None, (_path(item["loc"][:-1], names_of_tags), key)))
            known = keys_of(section_of(model, item["loc"]))
            close = difflib.get_close_matches(key, known, 1) if len(told) < _MOST_SENTENCES else []
            hint = f"did you mean {close[0]}? " if close else ""
            told[f"{path} is an unknown key; {hint}allowed here: {', '.join(known)}"] = None
        else:
            value, need = item["input"], _MUST.get(kind, message[:1].lower() + message[1:]).format(**context)
            if kind == "model_type":
                need = f"be a mapping with the keys {', '.join(keys_of(section_of(model, (*item['loc'], ''))))}"
            elif kind == "union_tag_invalid":
                path, value = f"{path}.name", context["tag"]
            needs.setdefault(path, []).append(need)
            got[path] = value
    # If an entry of a list is invalid, the other members of a union complain about the list itself: skip those.
    inner = {path.rpartition(".")[0] for path in needs}
    for path, wanted in needs.items():
        if path not in inner or not isinstance(got[path], list | tuple):
            first, *others = dict.fromkeys(wanted)
            must = " or ".join([first, *(other.removeprefix("be ") for other in others)])
            told[f"{path} must {must}, got {shown(got[path])}"] = None
    return list(told)


_UNION_MEMBER = re.compile(r"int|float|str|bool|constrained-.*|.*[\[(].*")


def _path(loc: tuple[int | str, ...], names_of_tags: Mapping[str, Container[str]]) -> str:
    """The dotted path of a pydantic location, without the names that pydantic gives to the members of a union."""
    keys: list[str] = []
    for part in map(str, loc):
        is_tag = part in names_of_tags.get(".".join(keys), ())
        if not is_tag and not (keys and _UNION_MEMBER.fullmatch(part)):
            keys.append(part)
    return ".".join(keys)


def section_of(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The section of `model` that holds the last key of the location."""
    candidates = [model]
    for part in map(str, loc[:-1]):
        tagged = [c for c in candidates if "name" in c.model_fields and c.model_fields["name"].default == part]
        fields = [c.model_fields[part] for c in candidates if part in c.model_fields]
        candidates = tagged or (_sections(fields[0].annotation) if fields else []) or candidates
    return candidates[0]


def keys_of(section: type[BaseModel]) -> list[str]:
    """The section's keys as they are written in YAML."""
    return [field.alias or name for name, field in section.model_fields.items()]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for member in get_args(annotation) for section in _sections(member)]
