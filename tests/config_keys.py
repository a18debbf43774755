"""Every key of a config with its type and default, read from the schema, in the words of configs/README.md.

`python -m tests.config_keys` prints the rows, to be pasted where a key is new or has changed.
"""

import json
from collections.abc import Iterator
from typing import Any

from sweep.config import SweepConfig

Json = dict[str, Any]

SCHEMA: Json = SweepConfig.model_json_schema()
_LARGEST = 2**31  # a bound from here on only keeps numbers from being absurd
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
_NAMES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}


def rows() -> dict[str, tuple[str, str]]:
    """The key, for which choices it is there if not for all, → its type and its default."""
    tagged: dict[tuple[str, str, str], list[str]] = {}
    tags: dict[str, dict[str, None]] = {}
    for path, tag, kind, default in _keys(SCHEMA, "", ""):
        tagged.setdefault((path, kind, default), []).append(tag)
        tags.setdefault(path.rpartition(".")[0], {})[tag] = None
    found = {}
    for (path, kind, default), owners in tagged.items():
        everywhere = len(owners) == len(tags[path.rpartition(".")[0]])
        owned = "" if everywhere else f" ({', '.join(f'`{owner}`' for owner in owners)})"
        found[f"`{path}`{owned}"] = (kind, default)
    return found


def _keys(section: Json, above: str, tag: str) -> Iterator[tuple[str, str, str, str]]:
    """Path, the choice it belongs to, type and default."""
    for name, field in section["properties"].items():
        path, default = (
            f"{above}{name}",
            field.get("default", "required" if name in section.get("required", ()) else "computed"),
        )
        below = [_resolved(member) for member in field.get("oneOf", field.get("anyOf", [field]))]
        sections = [member for member in below if "properties" in member]
        if len(sections) > 1:
            names = [member["properties"]["name"]["const"] for member in sections]
            for member, choice in zip(sections, names, strict=True):
                others = {key: value for key, value in member["properties"].items() if key != "name"}
                yield f"{path}.name", choice, _one_of(names), f"`{default['name']}`"
                yield from _keys({"properties": others}, f"{path}.", choice)
        elif sections:
            if len(below) > 1:
                yield path, tag, " or ".join(map(_kind, below)), _written(default)
            yield from _keys(sections[0], f"{path}.", tag)
        else:
            yield path, tag, _kind(field), _written(default)


def _resolved(schema: Json) -> Json:
    reference = schema.get("$ref")
    return SCHEMA["$defs"][reference.rpartition("/")[2]] if reference else schema


def _kind(schema: Json) -> str:
    schema = _resolved(schema)
    if members := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(map(_kind, members)))
    if "const" in schema or "enum" in schema:
        return _one_of(schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}"
        case "array":
            return f"list ({_kind(schema['items'])})"
        case "object":
            return "section" if "properties" in schema else "mapping"
        case "null":
            return "`null`"
        case kind:
            bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if schema.get(key, _LARGEST) < _LARGEST]
            return ", ".join([_NAMES[kind], *bounds])


def _one_of(values: list[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _written(default: Any) -> str:
    if default in ("required", "computed"):
        return default
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def main() -> None:
    for key, (kind, default) in rows().items():
        print(f"| {key} | {kind} | {default} | |")


if __name__ == "__main__":
    main()
