"""Reads and writes YAML 1.2, and refuses hostile or ambiguous files. Only this file uses the YAML library."""

import io
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import Node, ScalarNode

from model.config import is_no_unicode
from sweep.config.errors import ConfigError

_MOST_BYTES = 100_000  # of a config file: the parser takes seconds for more
_DEEPEST = 20  # levels of nesting in a config


class NotYaml(Exception):
    def __init__(self, error: Exception) -> None:
        mark = getattr(error, "problem_mark", None)
        self.place = f" in line {mark.line + 1}" if mark else ""
        self.problem = (str(getattr(error, "problem", None) or error).splitlines() or [""])[0]


class _Composer(Composer):
    """Refuses YAML that no config needs: aliases and deep nesting, which can make a small file expand into a huge tree,
    tags, whose constructors may fail, and surrogates, which are not valid Unicode."""

    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.parser.peek_event()
        refused = {
            "anchors and aliases (& and *) are not taken": isinstance(event, AliasEvent) or event.anchor is not None,
            "tags (!) are not taken": getattr(event, "tag", None) is not None,
            "half a surrogate pair is no text": is_no_unicode(getattr(event, "value", "")),
            f"more than {_DEEPEST} levels of nesting are not taken": self.depth == _DEEPEST,
        }
        for problem, applies in refused.items():
            if applies:
                raise ComposerError(None, None, problem, event.start_mark)
        self.depth += 1
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Constructor(SafeConstructor):
    """Constructs only the types of YAML 1.2, so a date is text. An integer of more than 1000 characters stays text too,
    because Python refuses to print very long ones; the check of its key then refuses it."""

    def construct_yaml_int(self, node: ScalarNode) -> Any:
        return super().construct_yaml_int(node) if len(node.value) <= 1000 else node.value


for _kind in ("timestamp", "value", "merge"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", SafeConstructor.construct_yaml_str)
_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)


def _yaml() -> YAML:
    """A safe YAML 1.2 parser, in which 1e-4 is a number, `no` is not false, and repeated keys are refused."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.Constructor = _Composer, _Constructor
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    return yaml


def written(tree: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    _yaml().dump(tree, stream)
    return stream.getvalue()


def parsed(text: str) -> Any:
    """Parses a YAML text. Raises NotYaml."""
    try:
        return _yaml().load(text)
    except Exception as error:  # on hostile text the parser raises many kinds of errors
        raise NotYaml(error) from None


def read_mapping(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """Reads a YAML file that must hold a mapping; `keys` are named in the error if not. Raises ConfigError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device may never end
            raise ConfigError([f"{path}: cannot be read: it is no regular file"])
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError([f"{path}: must be at most {_MOST_BYTES:,} bytes, got more"])
        tree = parsed(content.decode())
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: this is no YAML: it is not text in UTF-8"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None  # a NUL character in its name
    except NotYaml as error:
        raise ConfigError([f"{path}: this is no YAML{error.place}: {error.problem}"]) from None
    if not isinstance(tree, dict):
        found = "it is empty" if tree is None else f"it holds a {type(tree).__name__}"
        raise ConfigError([f"{path}: {found}; a config is a mapping with the keys {', '.join(keys)}"])
    return tree
