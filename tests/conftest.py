import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# One thread for each test process and what it starts: with more, threads wait for each other on a busy machine. Torch
# reads this when it is imported; trials set their own number.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from model.config import TrialConfig, override
from model.data.batches import Data
from model.data.pools import ensure_pools
from tests.processes import PATIENCE, SETTINGS, TINY, UNCONFIRMED, LocalSweep, Sweep, sets

REPOSITORY = Path(__file__).resolve().parent.parent
SLOW = ("slow", "soak", "namespaces", "browser", "cluster")
QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first: those with the most slow tests, then those with the most that need
    images. With two processes, each takes the next file, and one should not begin the longest when the other
    has no more to do."""
    cost = Counter[Path]()
    for item in items:
        slow = any(item.get_closest_marker(marker) for marker in SLOW)
        cost[item.path] += 10 if slow else int("cache" in getattr(item, "fixturenames", ()))
    items.sort(key=lambda item: -cost[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test with the marker `own_process` in a process of its own, which has nothing left of other tests."""
    if pyfuncitem.get_closest_marker("own_process") is None or "OWN_PROCESS" in os.environ:
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-m", "", pyfuncitem.nodeid]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**environment, "OWN_PROCESS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    return True


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny() -> Callable[..., TrialConfig]:
    return lambda values=None: TrialConfig.model_validate(override({}, {**TINY, **(values or {})}))


@pytest.fixture
def tiny_data(cache: Path) -> Callable[[TrialConfig], Data]:
    def make(config: TrialConfig) -> Data:
        ensure_pools(config, cache, workers=1)
        return Data(config, cache, torch.device("cpu"))

    return make


@pytest.fixture(scope="session")
def sweep(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m sweep.run` on the quickstart, shrunk."""

    def run(outputs: Path, *options: str, settings: dict[str, Any] | None = None) -> Any:
        values = {**TINY, **UNCONFIRMED, "search.trials": 3, "search.early_stopping": "none", **(settings or {})}
        arguments = ["--output-dir", str(outputs), "--cache-dir", str(cache), *sets(values), *options]
        if "--local" not in options:
            command = [sys.executable, "-m", "sweep.run", *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 240, check=False)
        printed = tmp_path_factory.mktemp("printed")
        code, output = LocalSweep(printed / "output", *arguments, errors=printed / "errors").wait()
        return subprocess.CompletedProcess(
            arguments, -1 if code is None else code, output, (printed / "errors").read_text()
        )

    return run


@pytest.fixture(scope="session")
def arguments_in(cache: Path) -> Callable[..., list[str]]:
    def make(outputs: Path, name: str, **settings: Any) -> list[str]:
        values = {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}}
        return ["--name", name, "--output-dir", str(outputs), "--cache-dir", str(cache), *sets(values)]

    return make


@pytest.fixture
def arguments(arguments_in: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:
    return lambda name, **settings: arguments_in(tmp_path, name, **settings)


@pytest.fixture
def start(arguments: Callable[..., list[str]]) -> Iterator[Callable[..., Sweep]]:
    started: list[Sweep] = []

    def make(name: str, *options: str, **settings: Any) -> Sweep:
        started.append(Sweep(*arguments(name, **settings), *options))
        return started[-1]

    yield make
    for sweep in started:
        if sweep.process.poll() is None:
            sweep.kill()


@pytest.fixture
def local(arguments: Callable[..., list[str]], tmp_path: Path) -> Iterator[Callable[..., LocalSweep]]:
    started: list[LocalSweep] = []

    def make(name: str, *options: str, **settings: Any) -> LocalSweep:
        started.append(LocalSweep(tmp_path / f"{name}.txt", *arguments(name, **settings), *options))
        return started[-1]

    yield make
    for sweep in started:
        sweep.kill()
