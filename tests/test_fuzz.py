"""Generated nonsense: whatever stands in a config or on the command line, the answer is one or a few short sentences
that name the key, and exit code 2, soon and with nothing written.

FUZZ_EXAMPLES=200 tries 200 broken inputs for each test, --hypothesis-seed=N others than those that CI repeats.
"""

import io
import os
import time
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
from sweep.config import ConfigError, load, split_at_commas
from sweep.run import main
from tests.conftest import QUICKSTART, REPOSITORY

FILES = sorted((REPOSITORY / "configs").glob("*.yaml"))
BASES = [load(file).model_dump() for file in FILES]
SECONDS = 6  # of this process's own time, for other programs may use the machine

# Each example is one input that is really broken: those that turn out to be valid do not count.
BROKEN = {
    "max_examples": int(os.environ.get("FUZZ_EXAMPLES", "40")),
    "deadline": None,
    "derandomize": "FUZZ_EXAMPLES" not in os.environ,  # CI repeats what was tried here
    "database": None,
    "suppress_health_check": [HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


def paths(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{above}{key}"
        if isinstance(value, Mapping):
            yield from paths(value, f"{above}{key}.")


PATHS = sorted({path for base in BASES for path in paths(base) if "search.space." not in path})
ODD = ["1e-4", "../x", "cosine", "auto", ".nan", "~", "0x10", "${HOME}", "{{ 1 }}", "2001-99-99", "中文", "x" * 5000]
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
any_text = st.text(max_size=20)  # with lone surrogates, as the command line gives bytes that are not UTF-8
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.sampled_from([2**31, 2**32, 2**64, 10**100, -1, 0])
    | st.floats()
    | text
    | st.sampled_from(ODD)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3), max_leaves=6
)
kinds = st.sampled_from(["uniform", "loguniform", "int", "choice", "grid", "normal"])
parameters = st.dictionaries(kinds, values | st.lists(scalars, min_size=2, max_size=3), max_size=2)
spaces = st.dictionaries(st.sampled_from(PATHS) | text, parameters | values, max_size=3)


def answer(*arguments: str) -> str:
    """What stands on stderr; the answer must be exit code 2, with nothing on stdout."""
    stdout, stderr = io.StringIO(), io.StringIO()
    begin = time.process_time()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code: Any = main(arguments)
        except SystemExit as stop:  # argparse's way
            code = stop.code
    assert time.process_time() - begin < SECONDS
    assert code == 2
    assert stdout.getvalue() == ""
    message = stderr.getvalue()
    assert message.strip()
    assert "Traceback" not in message
    if not message.startswith("usage: "):
        assert len(message.splitlines()) <= 21
        assert max(map(len, message.splitlines())) <= 301
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


def asked(tmp_path: Path, file: Path) -> str:
    """The answer to a broken config, which names the file and leaves nothing behind."""
    message = answer("--config", str(file), "--output-dir", str(tmp_path / "runs"))
    assert all(file.name in line for line in message.splitlines() if not line.startswith("… and "))
    assert list(tmp_path.iterdir()) == [file]
    return message


@settings(**BROKEN)
@given(base=st.sampled_from(BASES), path=st.sampled_from(PATHS), value=values)
def test_any_broken_value_is_named_by_its_key(tmp_path: Path, base: dict[str, Any], path: str, value: Any) -> None:
    file = tmp_path / "mine.yaml"
    other = {"captcha": "images", "images": "captcha"}.get(path.split(".")[0])  # a config has only one of the two
    write(file, override({key: section for key, section in base.items() if key != other}, {path: value}))
    assume_broken(file)
    assert path.split(".")[-1] in asked(tmp_path, file)


@settings(**BROKEN)
@given(base=st.sampled_from(BASES), space=spaces)
def test_any_broken_search_space_is_named(tmp_path: Path, base: dict[str, Any], space: Any) -> None:
    file = tmp_path / "mine.yaml"
    write(file, override(base, {"search.space": space}))
    assume_broken(file)
    assert "search." in asked(tmp_path, file)


@settings(**BROKEN)
@given(section=st.sampled_from(["", "captcha.", "network.", "search.", "schedule."]), key=text, value=values)
def test_any_unknown_key_is_named(tmp_path: Path, section: str, key: str, value: Any) -> None:
    assume(key and "." not in key)
    file = tmp_path / "mine.yaml"
    write(file, override(BASES[-1], {f"{section}{key}": value}))
    assume_broken(file)
    message = asked(tmp_path, file)
    named = "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{section}{key}")
    assert f"{named} is an unknown key" in message or key in PATHS


snippets = st.binary(max_size=12) | st.sampled_from(
    [
        *(b"&a ", b"*a", b"!!bool 3", b"!!python/object:os.system x", b"<<: 1\n", b"%YAML 9", b"\n---\n", b"2001-1-99"),
        *(b"\0", b"\xff", b"\t", b"- ", b"? ", b": ", b"[" * 500, b"{a: " * 100, b"9" * 5000, b'"\\ud800"'),
        b"x" * 120_000,
    ]
)


@settings(**BROKEN)
@given(data=st.data(), source=st.sampled_from(FILES))
def test_any_damaged_file_is_named(tmp_path: Path, data: st.DataObject, source: Path) -> None:
    file = tmp_path / "mine.yaml"
    content = source.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        stop = data.draw(st.integers(start, min(len(content), start + 60)))
        content = content[:start] + data.draw(snippets) + content[stop:]
    file.write_bytes(content)
    assume_broken(file)
    asked(tmp_path, file)


keys = st.sampled_from([*PATHS, "search.space.optimizer.lr", "search.space.schedule.name"]) | any_text
odd_values = st.sampled_from(["[" * 3000, "9" * 5000, "!!bool 3", "&a [*a]", "null", "[16,16]"])
settings_texts = st.builds("{}={}".format, keys, any_text | values | odd_values)
no_paths = st.sampled_from(["x" * 300, "x/" * 3000, "a\0b", "\udcff", "~nosuchuser/x"])
command_lines = st.one_of(
    st.tuples(st.just("--set"), settings_texts | any_text),
    st.tuples(st.just("--trial"), st.lists(settings_texts, min_size=1, max_size=3).map(",".join) | any_text),
    st.tuples(st.just("--name"), any_text | no_paths),
    st.tuples(st.just("--trials"), any_text | (st.integers(max_value=0) | st.integers(min_value=2**31)).map(str)),
    st.tuples(st.just("--config"), any_text | no_paths),
    st.tuples(st.just("--resume"), any_text | no_paths),
    st.tuples(st.sampled_from(["--output-dir", "--cache-dir"]), no_paths | st.just("/dev/null/x")),
    st.tuples(any_text.map("--{}".format)),
)


@settings(**BROKEN)
@given(words=command_lines)
def test_any_broken_command_line_is_named_by_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    option = words[0].partition("=")[0]
    assume(not "--help".startswith(option))
    assume(not _is_valid(words))
    message = answer("--output-dir", str(tmp_path / "runs"), "--dry-run", *words)
    known = ("--set", "--trial", "--trials", "--name", "--config", "--resume", "--output-dir", "--cache-dir")
    assert option not in known or option in message or option == "--config"
    assert option != "--config" or "cannot be read" in message
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
            return number.strip().isdecimal() and number.isascii() and 0 < int(number) < 2**31
        case (option, *_):
            known = ("--local", "--quiet", "--verbose", "--tensorboard", "--dry-run")
            return any(flag.startswith(option) for flag in known)
    try:
        split = split_at_commas if "trial" in wanted else lambda value: [value]
        parsed = {key: parse_settings("x", split(value)) for key, value in wanted.items()}
        load(QUICKSTART, **parsed)
    except ConfigError:
        return False
    return True
