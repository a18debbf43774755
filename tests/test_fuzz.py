"""Generated nonsense: whatever stands in a config or on the command line, the answer is a sentence and exit code 2."""

import io
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from model.config import override
from sweep.config import ConfigError, load
from sweep.run import main
from tests.conftest import QUICKSTART

BASE = load(QUICKSTART).model_dump()

# Each example is one input that is really broken: those that turn out to be valid do not count.
BROKEN = {
    "deadline": None,
    "derandomize": True,  # CI repeats what was tried here; --hypothesis-seed and a larger number explore further
    "suppress_health_check": [HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


def paths(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{above}{key}"
        if isinstance(value, Mapping):
            yield from paths(value, f"{above}{key}.")


PATHS = [path for path in paths(BASE) if "search.space." not in path]
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | text
    | st.sampled_from(["1e-4", "../x", "cosine", "auto", ".nan", "~", "0x10", "${HOME}", "{{ 1 }}"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3), max_leaves=6
)
kinds = st.sampled_from(["uniform", "loguniform", "int", "choice", "grid", "normal"])
parameters = st.dictionaries(kinds, values | st.lists(st.floats(), min_size=2, max_size=2), max_size=2)
spaces = st.dictionaries(st.sampled_from(PATHS) | text, parameters | values, max_size=3)


def answer(*arguments: str) -> str:
    """What stands on stderr; the answer must be exit code 2, with nothing on stdout."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code: Any = main(arguments)
        except SystemExit as stop:  # argparse's way
            code = stop.code
    assert code == 2
    assert stdout.getvalue() == ""
    message = stderr.getvalue()
    assert message.strip()
    assert "Traceback" not in message
    return message


def assume_broken(file: Path) -> None:
    try:
        load(file)
    except ConfigError:
        return
    assume(False)


def write(file: Path, tree: Any) -> None:
    """What YAML's writer garbles is no example."""
    yaml = YAML(typ="safe", pure=True)
    with file.open("w", encoding="utf-8") as stream:
        yaml.dump(tree, stream)
    try:
        assume(set(paths(yaml.load(file))) == set(paths(tree)))
    except YAMLError:
        assume(False)


@settings(max_examples=300, **BROKEN)
@given(path=st.sampled_from(PATHS), value=values)
def test_any_broken_value_is_named_by_its_key(tmp_path: Path, path: str, value: Any) -> None:
    file = tmp_path / "mine.yaml"
    write(file, override(BASE, {path: value}))
    assume_broken(file)
    message = answer("--config", str(file), "--output-dir", str(tmp_path / "runs"))
    assert str(file) in message
    assert path.split(".")[-1] in message
    assert not (tmp_path / "runs").exists()


@settings(max_examples=150, **BROKEN)
@given(space=spaces)
def test_any_broken_search_space_is_named(tmp_path: Path, space: Any) -> None:
    file = tmp_path / "mine.yaml"
    write(file, override(BASE, {"search.space": space}))
    assume_broken(file)
    message = answer("--config", str(file), "--output-dir", str(tmp_path / "runs"))
    assert str(file) in message
    assert "search." in message


@settings(max_examples=150, **BROKEN)
@given(section=st.sampled_from(["", "captcha.", "network.", "search.", "schedule."]), key=text, value=values)
def test_any_unknown_key_is_named(tmp_path: Path, section: str, key: str, value: Any) -> None:
    assume(key and "." not in key)
    file = tmp_path / "mine.yaml"
    write(file, override(BASE, {f"{section}{key}": value}))
    assume_broken(file)
    message = answer("--config", str(file), "--output-dir", str(tmp_path / "runs"))
    assert f"{section}{key}: " in message or key in PATHS


@settings(max_examples=150, **BROKEN)
@given(data=st.data())
def test_any_damaged_file_is_named(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "mine.yaml"
    original = QUICKSTART.read_bytes()
    start = data.draw(st.integers(0, len(original)))
    stop = data.draw(st.integers(start, min(len(original), start + 60)))
    file.write_bytes(original[:start] + data.draw(st.binary(max_size=12)) + original[stop:])
    assume_broken(file)
    assert str(file) in answer("--config", str(file), "--output-dir", str(tmp_path / "runs"))


settings_texts = st.builds("{}={}".format, st.sampled_from(PATHS) | text, text | scalars)
command_lines = st.one_of(
    st.tuples(st.just("--set"), settings_texts | text),
    st.tuples(st.just("--trial"), settings_texts | text),
    st.tuples(st.just("--name"), text),
    st.tuples(st.just("--trials"), text | st.integers(max_value=0).map(str)),
    st.tuples(st.just("--config"), text),
    st.tuples(st.just("--resume"), text),
    st.tuples(st.just("--output-dir"), st.just("/dev/null/x")),
    st.tuples(text.map("--{}".format)),
)


@settings(max_examples=300, **BROKEN)
@given(words=command_lines)
def test_any_broken_command_line_is_named_by_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assume(all("\0" not in word for word in words))
    option = words[0].partition("=")[0]
    assume(not "--help".startswith(option))
    assume(not _is_valid(words))
    message = answer("--output-dir", str(tmp_path / "runs"), "--dry-run", *words)
    unknown = option not in ("--set", "--trial", "--trials", "--name", "--config", "--resume", "--output-dir")
    assert unknown or option in message or (option == "--config" and words[1] in message)
    assert list(tmp_path.iterdir()) == []


def _is_valid(words: tuple[str, ...]) -> bool:
    """Whether a dry run with these words would succeed, by the parts that it is made of."""
    from sweep.config import parse_settings

    match words:
        case ("--set", setting):
            wanted: dict[str, Any] = {"settings": setting}
        case ("--trial", setting):
            wanted = {"trial": setting}
        case ("--name", name):
            return bool(name) and all(c.isascii() and (c.isalnum() or c in "._=+-") for c in name) and name[0] != "."
        case ("--trials", number):
            return number.strip().isdecimal() and number.isascii() and int(number) > 0
        case (option, *_):
            known = ("--local", "--quiet", "--verbose", "--tensorboard", "--dry-run")
            return any(flag.startswith(option) for flag in known)
    try:
        parsed = {key: parse_settings("x", value.split(",")) for key, value in wanted.items()}
        load(QUICKSTART, **parsed)
    except ConfigError:
        return False
    return True
