"""Compares two configs of one sweep: which settings a resume may change, and which of the others differ."""

from collections.abc import Mapping
from typing import Any

from sweep.config.sweep import SweepConfig

# Settings that a resume may change: how many trials, how many at once and on what, and where the images are kept.
CHANGEABLE = (
    "search.trials",
    "search.max_concurrent",
    "search.max_failures",
    "search.max_node_losses",
    "confirm",
    "resources",
    "data.cache",
)


def fixed_changes(before: SweepConfig, after: SweepConfig) -> list[str]:
    """The paths of the settings that differ, apart from those that a resume may change."""
    return [path for path in changes(before, after) if not path.startswith(CHANGEABLE)]


def changes(before: SweepConfig, after: SweepConfig) -> list[str]:
    """The paths of the settings that differ, such as `data.seed`; of the search section two keys deep."""
    first, second = (_settings(config.model_dump(), "") for config in (before, after))
    return [path for path in {**first, **second} if first.get(path) != second.get(path)]


def _settings(tree: Mapping[str, Any], above: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{above}{key}"
        found |= _settings(value, f"{path}.") if isinstance(value, dict) and above != "search." else {path: value}
    return found
