"""Sweeps as processes of their own, to be interrupted, killed and resumed, and what must be true of them after."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

# Small enough for a test, and still the real thing: real captchas, the whole network's shape.
TINY = {
    "captcha.characters": "0123",
    "captcha.length": 2,
    "captcha.width": 64,
    "captcha.height": 32,
    "captcha.render_scale": 2,
    "data.train_images": 96,
    "data.valid_images": 40,
    "network.channels": [8, 8],
    "network.pools": [4, [4, 2]],
    "network.encoder.size": 16,
    "training.epochs": 3,
    "training.batch_size": 16,
}

UNCONFIRMED: dict[str, Any] = {"confirm": None}  # the quickstart without the trials that confirm
SPACE = "{optimizer.lr: {loguniform: [1e-3, 3e-2]}, schedule.name: {choice: [constant, cosine, onecycle]}}"
SETTINGS = {
    **TINY,
    **UNCONFIRMED,
    "search.space": SPACE,
    "search.trials": 5,
    "search.early_stopping": "{name: asha, grace_epochs: 1}",
    "training.epochs": 4,
    "data.train_images": 480,
    "network.dropout": 0.1,
}


# Ray names a trial's process by the method that runs, and between two by the class.
WORKER_TITLES = ("ray::SweepsTrial", "ray::ResourceTrainable")

# Limits of time in tests only tell a process that hangs from one that is slow, as all are on a busy machine.
PATIENCE = 3


def sets(values: Mapping[str, Any]) -> list[str]:
    """As options of the command line."""
    return [f"--set={key}={'null' if value is None else value}" for key, value in values.items()]


class Sweep:
    """A running `python -m sweep.run`, in a process group of its own, as under a terminal."""

    def __init__(self, *arguments: str, program: Sequence[str] = ("-m", "sweep.run")) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def press_ctrl_c(self) -> None:
        """A terminal sends it to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, seconds: float = 120) -> tuple[int, str]:
        """Exit code and all that was printed."""
        printed, _ = self.process.communicate(timeout=PATIENCE * seconds)
        return self.process.returncode, printed

    def family(self) -> list[psutil.Process]:
        """The driver's processes, Ray's own and the trials'."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """Ray's processes that train a trial."""
        return [process for process in self.family() if title(process).startswith(WORKER_TITLES)]


def title(process: psutil.Process) -> str:
    """The command line, by which some processes of Ray name themselves; nothing of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


# What a sweep imports, most of it late: imported once here, it costs no forked process ten seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "sweep.run",
        "sweep.execution.sweep",
        "sweep.verdict.page",
        "sweep.verdict.results",
        "torch._dynamo",
        "alembic.command",
        "optuna.storages._rdb.storage",
        "optuna.visualization._parallel_coordinate",
        "plotly.graph_objects",
        "sqlalchemy.dialects.sqlite",
        "matplotlib.backends.backend_agg",
    ]
)


def _run_local(arguments: list[str], output: Path, errors: Path) -> None:
    from sweep.run import main

    with output.open("a") as file, errors.open("a") as other:
        os.dup2(file.fileno(), 1)
        os.dup2(other.fileno(), 2)
        sys.exit(main([*arguments, "--local"]))


class LocalSweep:
    """The same with --local, forked from a process that has imported torch: it starts in an instant."""

    def __init__(self, output: Path, *arguments: str, errors: Path | None = None) -> None:
        self.output = output
        self.process = FORKS.Process(target=_run_local, args=(list(arguments), output, errors or output))
        self.process.start()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def wait(self, seconds: float = 120) -> tuple[int | None, str]:
        """Exit code, None if it still runs, and all that was printed."""
        self.process.join(PATIENCE * seconds)
        return self.process.exitcode, self.output.read_text()


def resume_local(root: Path, *arguments: str) -> LocalSweep:
    return LocalSweep(root.parent / f"{root.name}.txt", "--resume", str(root), *arguments)


def resume(root: Path, *arguments: str) -> tuple[int, str]:
    return Sweep("--resume", str(root), *arguments).wait(180)


def saved(root: Path, epoch: int, trials: str = "*") -> list[Path]:
    """Checkpoints of trials that have reached an epoch. Each is there for two epochs, and none when its trial ends."""
    found = root.glob(f"trials/{trials}/epoch_*.pt")
    return [path for path in found if int(path.stem.removeprefix("epoch_")) >= epoch]


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + PATIENCE * seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


Start = Callable[..., Sweep]  # the fixtures of conftest.py
StartLocal = Callable[..., LocalSweep]
