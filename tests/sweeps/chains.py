"""Chains of kills: a sweep is started, struck at a random instant, resumed at once and struck again, then let end."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from tests.processes import SETTINGS, WORKER_TITLES, title, wait_for
from tests.sweeps.checker import problems

PLAIN = {
    **SETTINGS,
    "search.trials": 4,
    "search.max_failures": 1000,  # killed workers fail no trial
    "training.epochs": 6,  # not all of which have a picture
    "data.test_images": 40,
    "resources.cpus": 1,
}
CONFIRMED = {**PLAIN, "confirm": "{top: 1, seeds: 2}"}

_MARK = "CRNN_SWEEP_TEST"  # environment variable, by which a chain finds its own processes and nobody else's
_PATIENCE = 600.0  # seconds that a sweep has to end, also on a busy machine
_CPP = ("raylet)", "core_worker", "rpc_client", "***")  # words of Ray's C++, which a user should not see

# Exit codes with which a struck sweep may end; 0 is always one, for the sweep may be ending or need not care.
_ENDS = {
    ("driver", signal.SIGKILL): {-signal.SIGKILL},
    ("driver", signal.SIGTERM): {-signal.SIGTERM, 130},  # the first until the program listens
    ("all", signal.SIGKILL): {-signal.SIGKILL, 130},
    ("all", signal.SIGTERM): {-signal.SIGTERM, 130},
    **{
        (target, number): {130}
        for target in ("raylet", "gcs_server", "rendering", "another of Ray's")
        for number in (signal.SIGKILL, signal.SIGTERM)
    },
}


class Chain:
    """One sweep in a folder with a cache and a temporary folder of its own. `options` are those of each start, as
    `--local`. What is struck when is drawn with `seed`. With `targets` nothing else is struck, and only while a trial
    runs."""

    def __init__(
        self, folder: Path, arguments: list[str], options: list[str], seed: int, targets: frozenset[str] = frozenset()
    ) -> None:
        folder.mkdir(parents=True)
        self.root, self.cache = folder / "r", folder / "cache"
        self.temporary = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # short enough for Ray's sockets
        self.mark = f"{_MARK}={uuid.uuid4()}"
        self.struck = Counter[str]()
        self._first = ["--name", "r", "--output-dir", str(folder), "--cache-dir", str(self.cache), *arguments]
        self._options, self._targets = options, targets
        self._draw, self._story = random.Random(seed), [f"seed {seed}, {' '.join(options) or 'Ray'}:"]
        self._printed = folder / "printed.txt"
        self._starts = 0

    def run(self, kills: int, life: float) -> None:
        """Strikes up to `kills` times, at instants drawn evenly from what is left of a `life` of so many seconds; fewer
        times if the sweep was faster. Raises AssertionError, with all that was done, unless each start ends as it must.
        """
        left, start = life, life / 3  # a third of such a small sweep's life passes, about, until it trains again
        while True:
            process, begin, struck = self._start(), time.monotonic(), list[tuple[str, signal.Signals]]()
            while (code := process.poll()) is None:
                if self.struck.total() < kills and self._is_due():
                    still = max(left - (time.monotonic() - begin), start)
                    code = self._wait(process, self._draw.uniform(0, still))
                    if code is None and (strike := self._strike(process)) is not None:
                        struck.append(strike)
                        self._tell(f"  {time.monotonic() - begin:.1f} s: {strike[1].name} to {strike[0]}")
                elif self.struck.total() < kills:
                    time.sleep(0.05)
                elif (code := self._wait(process, _PATIENCE)) is None:
                    for one in self.processes():
                        one.kill()
                    raise AssertionError(self._told(f"it did not end in {_PATIENCE:.0f} s"))
            left -= max(time.monotonic() - begin - start, 0)
            self._judge(code, struck)
            if code == 0:
                return

    def processes(self) -> list[psutil.Process]:
        """Those of this chain that are alive."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                name, _, value = self.mark.partition("=")
                if process.environ().get(name) == value:
                    found.append(process)
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        """A sweep that was killed before it had a `sweep.yaml` can only be started again, under its own name."""
        begun = (self.root / "sweep.yaml").exists()
        self._starts += 1
        self._tell(f" {'resumed' if begun else 'started'} ({self._starts})")
        name, _, value = self.mark.partition("=")
        with self._printed.open("wb") as output:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "sweep.run"),
                    *(["--resume", str(self.root)] if begun else self._first),
                    *self._options,
                ],
                # With SPT_NOENV the environment stays where it is when Ray changes a process's title.
                env={**os.environ, name: value, "TMPDIR": str(self.temporary), "SPT_NOENV": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, process: subprocess.Popen[bytes], seconds: float) -> int | None:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _is_due(self) -> bool:
        return not self._targets or any(_kind(one) == "worker" for one in self.processes())

    def _strike(self, driver: subprocess.Popen[bytes]) -> tuple[str, signal.Signals] | None:
        there: dict[str, list[psutil.Process]] = {"all": self.processes()}
        for process in there["all"]:
            if (kind := "driver" if process.pid == driver.pid else _kind(process)) is not None:
                there.setdefault(kind, []).append(process)
        wanted = sorted(there.keys() & self._targets if self._targets else there)
        if not wanted:
            return None
        target = self._draw.choice(wanted)
        number = self._draw.choices([signal.SIGKILL, signal.SIGTERM], [3, 1])[0]
        for process in there["all"] if target == "all" else [self._draw.choice(there[target])]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        self.struck[target] += 1
        return target, number

    def _judge(self, code: int, struck: list[tuple[str, signal.Signals]]) -> None:
        printed = self._printed.read_text()
        self._tell(f"  exit code {code}")
        if code not in {0}.union(*(_ENDS.get(strike, set()) for strike in struck)):
            raise AssertionError(self._told(f"exit code {code}"))
        if code == 130 and "  writes to" in printed and "to go on: python -m sweep.run --resume" not in printed:
            raise AssertionError(self._told("it does not say how to go on"))
        if words := [word for word in ("Traceback", *(_CPP if code >= 0 else ())) if word in printed]:
            raise AssertionError(self._told(f"it prints {words}"))

    def check(self) -> None:
        """Raises AssertionError unless all files of the ended sweep are as they must be, and one more resume finds
        nothing to do and changes nothing."""
        if found := list(problems(self.root, self.cache)):
            raise AssertionError(self._told(*found))
        before = self._contents()
        process = self._start()
        code = self._wait(process, _PATIENCE)
        if code != 0 or "nothing is left to do" not in self._printed.read_text():
            raise AssertionError(self._told(f"a last resume ends with exit code {code}"))
        after = self._contents()
        if changed := [name for name in before | after if before.get(name) != after.get(name)]:
            raise AssertionError(self._told(f"a last resume changes {changed}"))
        # PyTorch keeps a folder for code that it compiles.
        if left := [path.name for path in self.temporary.iterdir() if not path.name.startswith("torchinductor_")]:
            raise AssertionError(self._told(f"in the temporary folder it leaves {left}"))
        shutil.rmtree(self.temporary)

    def _contents(self) -> dict[str, bytes]:
        """Each file but the log and Ray's own."""
        files = [path for path in self.root.rglob("*") if path.is_file() and path.name != "sweep.log"]
        return {str(path): path.read_bytes() for path in files if "ray" not in path.relative_to(self.root).parts}

    def check_processes(self) -> None:
        """Raises AssertionError unless all processes of the chain end: two of Ray's agents, which try for a minute to
        tell a killed driver that they end, have 90 seconds."""
        try:
            wait_for(lambda: not self.processes(), seconds=90)
        except AssertionError:
            raise AssertionError(self._told(*(f"lives on: {one} {title(one)}" for one in self.processes()))) from None

    def _tell(self, line: str) -> None:
        self._story.append(line)

    def _told(self, *wrong: str) -> str:
        """All that was done, what is wrong, and what was printed last."""
        printed = self._printed.read_text(errors="replace")
        return "\n".join([*wrong, *self._story, f"in {self.root}, printed last:", printed])

    @property
    def story(self) -> str:
        return "\n".join(self._story)


def _kind(process: psutil.Process) -> str | None:
    """What is struck as one of its kind; None for what is struck only with all others, as Python's resource tracker."""
    try:
        name, command = process.name(), title(process)
    except psutil.NoSuchProcess:
        return None
    if command.startswith(WORKER_TITLES):
        return "worker"
    if name in ("raylet", "gcs_server"):
        return name
    if "multiprocessing.spawn" in command:
        return "rendering"
    if "tensorboard/server.py" in command or "tensorboard_data_server" in command:
        return "TensorBoard"
    return "another of Ray's" if command.startswith("ray::") or "/ray/" in command.partition(" --")[0] else None
