"""Overrides values of a nested config by dotted path, for `--set`, sampled trials and tests."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from model.config.tagged import tagged_sections
from model.config.trial import TrialConfig


def split_at_dots(path: str) -> list[str]:
    return path.split(".")


def override(
    tree: Mapping[str, Any],
    values: Mapping[str, Any],
    model: type[BaseModel] = TrialConfig,
    split: Callable[[str], list[str]] = split_at_dots,
) -> dict[str, Any]:
    """Returns a copy of the nested `tree` with the values at dotted paths set; `split` splits a path into keys.

    If `values` sets the name of one of `model`'s tagged sections (`schedule.name`), parameters that only the old choice
    has are dropped. So are those at the old choice's default, because the new choice has defaults of its own.
    """
    result: dict[str, Any] = _copy(tree)
    for path, value in values.items():
        *sections, key = split(path)
        node = result
        for section in sections:
            if not isinstance(node.get(section), dict):
                node[section] = {}
            node = node[section]
        node[key] = value
    for path, tag, members in tagged_sections(model):
        new = members.get(str(values.get(f"{path}.name")))
        if new is not None:
            *sections, key = path.split(".")
            before, after = tree, result
            for section in sections:
                before, after = before.get(section) or {}, after[section]
            named = before.get(key)
            old = members.get(named.get("name", tag.default) if isinstance(named, Mapping) else str(named))
            defaults = {} if old is None else {name: field.default for name, field in old.model_fields.items()}
            after[key] = {
                name: value
                for name, value in after[key].items()
                if f"{path}.{name}" in values or (name in new.model_fields and value != defaults.get(name))
            }
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_copy(item) for item in value]
    return value
