"""A terminal, pipe or file that nobody reads, that is full, closed or speaks another encoding stops no command."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from model.config import TrialConfig
from model.network.crnn import CRNN
from model.training.checkpoints import save
from tests.conftest import REPOSITORY
from tests.processes import PATIENCE

COMMAND = """
import os, sys
from contextlib import suppress
from model.system.streams import forgiving_streams

@forgiving_streams()
def main():
    opened = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)  # gets 1 or 2 where these are missing
    for line in range(2000):
        print(f"{line} … é \\udcff", flush=line % 2 == 0)
        print(f"{line} … é \\udcff", file=sys.stderr)
    for descriptor in (1, 2):
        with suppress(OSError):
            os.write(descriptor, b"as a library in C writes\\n")
    return 7

if __name__ == "__main__":
    sys.exit(main())
"""


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of bash in which $COMMAND is the program above; the line's exit code is the program's."""
    (folder / "command.py").write_text(COMMAND)
    variables = {
        "PYTHONUNBUFFERED": "",  # what is left in a buffer is tried again when Python ends
        "PYTHONPATH": str(REPOSITORY),
        "COMMAND": f"{sys.executable} {folder / 'command.py'} {folder / 'opened'}",
    }
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env={**os.environ, **variables, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE * 240,
        check=False,
    )


MUTED = """
import os, sys
from model.system.streams import forgiving_streams, mute_libraries

@forgiving_streams()
def main():
    for loud in (mute_libraries(), lambda: None):
        print("Python", file=sys.stderr)
        os.write(2, b"C\\n")
        loud()

main()
"""


def test_libraries_are_muted_and_python_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", MUTED], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["Python", "Python", "C"]


@pytest.mark.parametrize(
    "line",
    [
        "$COMMAND 2>/dev/null | head -3 >/dev/null",
        "$COMMAND 2>&1 >/dev/null | head -3 >/dev/null",
        "$COMMAND 2>&1 | true",
        "$COMMAND >/dev/full",
        "$COMMAND >/dev/full 2>&1",
        "$COMMAND >&-",
        "$COMMAND 2>&-",
        "$COMMAND <&- >&- 2>&-",
        "(ulimit -f 1; $COMMAND >file 2>&1)",
        "$COMMAND <&- 1</dev/null 2>&1",  # open, but not for writing
    ],
)
def test_a_command_goes_on_and_exits_with_its_own_code_where_nothing_can_be_written(line: str, tmp_path: Path) -> None:
    done = shell(f"cd {tmp_path}; {line}", tmp_path)
    assert done.returncode == 7
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert (tmp_path / "opened").read_bytes() == b""


def test_one_stream_that_fails_does_not_silence_the_other(tmp_path: Path) -> None:
    assert shell("$COMMAND >/dev/full", tmp_path).stderr.count("…".encode()) == 2000
    assert shell("$COMMAND 2>&-", tmp_path).stdout.count("…".encode()) == 2000


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"0 ? ? \xff\n"),
        ({"PYTHONIOENCODING": "latin-1"}, b"0 ? \xe9 \xff\n"),
        ({"PYTHONIOENCODING": "utf-8"}, "0 … é ".encode() + b"\xff\n"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"0 ? ? \xff\n"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_characters_that_the_encoding_lacks_are_replaced(
    environment: dict[str, str], first: bytes, tmp_path: Path
) -> None:
    done = shell("$COMMAND", tmp_path, **environment)
    assert done.returncode == 7
    assert done.stdout.startswith(first)
    assert done.stderr.startswith(first)


def test_the_callers_own_streams_are_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    from model.captchas import main

    before = sys.stdout, sys.stdout.errors, sys.stderr
    with pytest.raises(SystemExit):
        main(["--help"])
    assert (sys.stdout, sys.stdout.errors, sys.stderr) == before
    assert "Write sample captcha images" in capsys.readouterr().out


def test_a_stream_that_is_closed_or_raises_is_no_error_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.captchas import main

    class Lost:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

        def isatty(self) -> bool:
            raise ValueError("I/O operation on closed file")

    closed = (tmp_path / "closed").open("w")
    closed.close()
    for stream in (closed, Lost(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([str(tmp_path / "images"), "--count", "1"]) == 0
        assert sys.stdout is stream


def python(module: str, *arguments: str) -> str:
    return " ".join([sys.executable, "-m", module, *(f"'{argument}'" for argument in arguments)])


@pytest.mark.slow
def test_predict_and_captchas_need_nobody_who_reads(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    config = tiny()
    state = {"config": config.model_dump(), "network": CRNN(config).state_dict()}
    save(tmp_path / "best.pt", state)
    images = str(tmp_path / "été [x]")
    write = python("model.captchas", images, "--count", "40")
    read = python("model.predict", str(tmp_path / "best.pt"), images)
    for line in (f"{write} >/dev/full", f"{read} >/dev/full", f"{read} | true", f"{read} >&- 2>&-"):
        done = shell(line, tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
    done = shell(read, tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout.count(b"?t? [x]/")) == (0, 40)


def command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "sweep.run", *arguments, "--local"]


def assert_complete(root: Path) -> None:
    assert (root / "report.html").is_file()
    assert (root / "best.pt").is_file()
    assert f"tensorboard --logdir {root / 'tensorboard'}" in (root / "sweep.log").read_text("utf-8").splitlines()[-2]


Arguments = Callable[..., list[str]]
SHORT = {"training__epochs": 2, "search__trials": 2}


@pytest.mark.slow
def test_a_sweep_whose_terminal_is_closed_goes_on_if_it_was_disowned(arguments: Arguments, tmp_path: Path) -> None:
    ours, its = pty.openpty()
    process = subprocess.Popen(
        ["bash", "-c", 'trap "" HUP; exec "$@"', "bash", *command(arguments("r", **SHORT))],
        preexec_fn=lambda: os.login_tty(its),
    )
    os.close(its)
    read_until(ours, b"0000")
    os.close(ours)
    assert process.wait(PATIENCE * 120) == 0
    assert_complete(tmp_path / "r")


@pytest.mark.slow
def test_a_sweep_whose_terminal_is_closed_stops_with_a_report_else(arguments: Arguments, tmp_path: Path) -> None:
    ours, its = pty.openpty()
    process = subprocess.Popen(
        command(arguments("r", training__epochs=3000, search__early_stopping="none")),
        preexec_fn=lambda: os.login_tty(its),
    )
    os.close(its)
    read_until(ours, b"best error 1")
    os.close(ours)
    assert process.wait(PATIENCE * 120) == 130
    assert (tmp_path / "r" / "report.html").is_file()
    assert "to go on: python -m sweep.run --resume" in (tmp_path / "r" / "sweep.log").read_text("utf-8")


def read_until(terminal: int, text: bytes) -> None:
    """As a terminal that shows what is printed."""
    shown = b""
    while text not in shown:
        shown += os.read(terminal, 1 << 16)


@pytest.mark.slow
def test_a_sweep_whose_reader_ends_goes_on(arguments: Arguments, tmp_path: Path) -> None:
    process = subprocess.Popen(command(arguments("r", **SHORT)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(PATIENCE * 120) == 0
    assert_complete(tmp_path / "r")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("--local", ">/dev/full 2>&1"),
        ("--local", ">&- 2>&-"),
        ("--verbose", ">/dev/full 2>&1"),  # on Ray
        ("--verbose", "<&- >&- 2>&-"),
    ],
)
def test_a_sweep_ends_well_without_a_place_to_print(arguments: Arguments, tmp_path: Path, mode: str, how: str) -> None:
    words = [f"'{word}'" for word in [sys.executable, "-m", "sweep.run", *arguments("r", **SHORT), mode]]
    done = shell(f"{' '.join(words)} {how}", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert_complete(tmp_path / "r")


@pytest.mark.slow
def test_a_sweep_in_a_locale_without_unicode_prints_and_logs_all_lines(arguments: Arguments, tmp_path: Path) -> None:
    words = [f"'{word}'" for word in command(arguments("r", **SHORT))]
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell(" ".join(words), tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"loguniform 0.001 ? 0.03" in done.stdout
    assert "loguniform 0.001 … 0.03" in (tmp_path / "r" / "sweep.log").read_text("utf-8")
    assert_complete(tmp_path / "r")
