"""Renamed config keys: configs that use an old name are still read."""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "data.path": "data.cache",
    "network.lstm_layers": "network.encoder.layers",
    "network.lstm_size": "network.encoder.size",
}


def current(path: str) -> str:
    """The current name of a dotted path."""
    return RENAMED.get(path, path)


def old_names(tree: Mapping[str, Any]) -> list[str]:
    """The old names that a nested config uses."""
    return [old for old in RENAMED if _holds(tree, old.split("."))]


def renamed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a nested config with current key names. Where it has both names, the old name's value wins."""
    result = dict(tree)
    for old in old_names(tree):
        section, key = old.split(".")
        _, *inner, new = RENAMED[old].split(".")
        node = result[section] = dict(result[section])
        value = node.pop(key)
        for name in inner:
            below = node.get(name, {})
            node[name] = dict(below) if isinstance(below, Mapping) else {"name": below}
            node = node[name]
        node[new] = value
    return result


def _holds(tree: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return False
        tree = tree[key]
    return True
