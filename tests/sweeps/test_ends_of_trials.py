"""A sweep that is killed at any step of a trial's end goes on without a trace of it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import FORKS, LocalSweep, resume_local, sets
from tests.results import curves, decided, pictures
from tests.sweeps.chains import PLAIN
from tests.sweeps.checker import problems

# The second trial learns slowly, so it is stopped after epoch 2, its best, which has no picture of its own.
SETTINGS = {
    **PLAIN,
    "search.space": "{optimizer.lr: {loguniform: [1e-3, 3e-2]}}",
    "search.points": "[{optimizer.lr: 1e-2}, {optimizer.lr: 1e-3}]",
    "search.trials": 2,
    "search.max_concurrent": 1,
    "search.early_stopping": "{name: asha, grace_epochs: 2}",
}


def arguments(folder: Path) -> list[str]:
    return ["--name", "r", "--output-dir", str(folder), "--cache-dir", str(folder / "cache"), *sets(SETTINGS)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    code, printed = LocalSweep(folder / "printed.txt", *arguments(folder)).wait()
    assert code == 0, printed
    return folder / "r"


def _run_until(place: str, words: list[str]) -> None:
    """Runs a sweep in this process, which is killed where it comes to the method `place` of the stopped trial."""
    from sweep import run
    from sweep.execution import trial
    from sweep.search import search
    from sweep.verdict import reporter

    owners: dict[str, Any] = {
        "Search._tell_end": search.Search,
        "Reporter.ended": reporter.Reporter,
        "end_session": reporter,
        "Trial.close": trial.Trial,
    }
    owner, name = owners[place], place.rpartition(".")[2]
    method: Callable[..., Any] = getattr(owner, name)

    def killed(*arguments: Any) -> Any:
        if "0001_" in str([vars(one) if isinstance(one, trial.Trial) else one for one in arguments]):
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments)

    setattr(owner, name, killed)
    run.main([*words, "--local"])


SLOW = [pytest.param(place, marks=pytest.mark.slow) for place in ("Search._tell_end", "Reporter.ended", "Trial.close")]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["end_session", *SLOW])
def test_a_sweep_killed_as_a_trial_is_stopped_lacks_nothing(whole: Path, tmp_path: Path, place: str) -> None:
    process = FORKS.Process(target=_run_until, args=(place, arguments(tmp_path)))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    root = tmp_path / "r"
    code, printed = resume_local(root).wait()
    assert code == 0, printed
    assert list(problems(root, tmp_path / "cache")) == []
    assert decided(root) == decided(whole)
    assert curves(root) == curves(whole)
    assert pictures(root) == pictures(whole)
    assert [step for step, _ in pictures(root)[decided(root)[1]["trial"], "valid/badcase"]] == [1, 2]
