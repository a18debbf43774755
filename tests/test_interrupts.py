"""Ctrl-C, SIGTERM and SIGHUP, wherever they fall, and in which thread."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY
from tests.processes import FORKS, Start, StartLocal, saved, wait_for

FALLS_INTO_A_CALLBACK = """
import signal, sys, time, weakref
from sweep.execution import interrupts

class Anything:
    pass

interrupts.listen()
anything = Anything()
reference = weakref.ref(anything, lambda _: signal.raise_signal(int(sys.argv[1])))
try:
    del anything  # Python drops what is raised from here
    time.sleep(20)
    print("lost")
except KeyboardInterrupt:
    print("came")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_that_python_would_drop_comes_all_the_same(number: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FALLS_INTO_A_CALLBACK, str(int(number))], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("came\n", "")


FALLS_INTO_A_STRING = """
import sys
from model.system.interruption import interruptible

@interruptible
def main():
    try:
        exec("raise KeyboardInterrupt('told')")
    except KeyboardInterrupt:
        if sys.argv[1] == "caught":
            return 7
        raise

sys.exit(main())
"""


@pytest.mark.parametrize(("what", "code", "told"), [("caught", 7, ""), ("raised", 130, "told\n")])
def test_an_interrupt_in_code_that_is_run_from_a_string_leaves_the_commands_own_exit_code(
    tmp_path: Path, what: str, code: int, told: str
) -> None:
    (tmp_path / "program.py").write_text(FALLS_INTO_A_STRING)
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    done = subprocess.run(
        [sys.executable, "-m", "program", what], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (code, told)


def test_ctrl_c_ends_a_command_with_one_line(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "model.captchas", tmp_path / "out", "--count", "1000000"],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: list(tmp_path.glob("out/*.png")))
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "\ninterrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize("command", [["model.predict", "none.pt", "none.png"], ["sweep.report", "none"]])
def test_ctrl_c_while_a_command_imports_torch_prints_no_traceback(command: list[str]) -> None:
    process = subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "libc10.so" in Path(f"/proc/{process.pid}/maps").read_text())
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert "Traceback" not in said
    assert process.returncode in (130, 2)  # a library may catch what is raised while it is imported


WAITS = """
import os, signal, time
from sweep.execution import interrupts

interrupts.listen()
for part in (interrupts.held_back, interrupts.ignored, interrupts.passed_to_tune):
    with part():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_IGN:
                print(part.__name__, "ignores", number.name)
print("at the end", *(number.name for number in signal.Signals if signal.getsignal(number) is signal.SIG_IGN))
print("Tune without SIGINT:", os.environ["TUNE_DISABLE_SIGINT_HANDLER"])
"""


@pytest.mark.parametrize(("name", "disabled"), [("HUP", 0), ("INT", 1), ("TERM", 0)])
def test_what_was_ignored_at_the_start_stays_ignored(name: str, disabled: int) -> None:
    command = ["bash", "-c", f'trap "" {name}; exec "$@"', "bash", sys.executable, "-c", WAITS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"held_back ignores SIG{name}",
        *(f"ignored ignores {each}" for each in ("SIGINT", "SIGTERM", "SIGHUP")),
        f"passed_to_tune ignores SIG{name}",
        # Python itself ignores SIGPIPE and SIGXFSZ.
        f"at the end {' '.join(sorted({'SIGPIPE', 'SIGXFSZ', f'SIG{name}'}, key=lambda n: signal.Signals[n]))}",
        f"Tune without SIGINT: {disabled}",
    ]


def test_a_signal_before_tune_listens_ends_the_search_as_ctrl_c_does() -> None:
    code = """
import os, signal
from sweep.execution import interrupts
interrupts.listen()
try:
    with interrupts.passed_to_tune():
        os.kill(os.getpid(), signal.SIGHUP)
except KeyboardInterrupt:
    print("came")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("came\n", "")


def test_a_lost_connection_ends_a_local_sweep_with_its_report(local: StartLocal, tmp_path: Path) -> None:
    sweep = local("r", training__epochs=2000, search__early_stopping="none")
    wait_for(lambda: saved(tmp_path / "r", 2))
    os.kill(sweep.process.pid, signal.SIGHUP)
    code, printed = sweep.wait()
    assert code == 130, printed
    assert "to go on: python -m sweep.run --resume" in printed
    assert (tmp_path / "r" / "report.html").is_file()


@pytest.mark.slow
def test_a_lost_connection_ends_a_sweep_on_ray_with_its_report(start: Start, tmp_path: Path) -> None:
    sweep = start("r", training__epochs=2000, search__early_stopping="none")
    wait_for(lambda: saved(tmp_path / "r", 2))
    os.kill(sweep.process.pid, signal.SIGHUP)
    code, printed = sweep.wait(60)
    assert code == 130, printed
    assert "to go on: python -m sweep.run --resume" in printed
    assert (tmp_path / "r" / "report.html").is_file()


def _in_a_thread(arguments: list[str], output: Path) -> None:
    from sweep.run import main

    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    codes: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    thread = threading.Thread(target=lambda: codes.append(main(arguments)))
    thread.start()
    thread.join()
    assert before == {number: signal.getsignal(number) for number in before}
    os._exit(codes[0] if codes else 99)


@pytest.mark.parametrize("mode", ["--local", pytest.param("--verbose", marks=pytest.mark.slow)], ids=["local", "Ray"])
def test_a_sweep_runs_in_a_thread_and_leaves_signals_to_the_program(
    arguments: Callable[..., list[str]], tmp_path: Path, mode: str
) -> None:
    output = tmp_path / "printed.txt"
    words = [*arguments("r", training__epochs=2, search__trials=2), mode, "--tensorboard"]
    process = FORKS.Process(target=_in_a_thread, args=(words, output))
    process.start()
    process.join(180)
    assert process.exitcode == 0, output.read_text()
    assert (tmp_path / "r" / "report.html").is_file()


@pytest.mark.slow
def test_nohup_keeps_a_sweep_alive(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    words = ["nohup", sys.executable, "-m", "sweep.run", "--local", *arguments("r", training__epochs=2000)]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out)
    try:
        wait_for(lambda: saved(tmp_path / "r", 1))
        process.send_signal(signal.SIGHUP)
        known = set(tmp_path.glob("r/trials/*/epoch_*.pt"))
        wait_for(lambda: set(tmp_path.glob("r/trials/*/epoch_*.pt")) - known)
        assert psutil.Process(process.pid).is_running()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        process.kill()
