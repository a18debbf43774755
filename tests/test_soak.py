"""A small real sweep under a killer. SOAK_KILLS=50 pytest -m soak makes it long."""

import os
import random
import signal
import subprocess
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.processes import Start, Sweep, wait_for
from tests.results import assert_curves_without_scars, assert_nothing_left_over, leaderboard

KILLS = int(os.environ.get("SOAK_KILLS", "6"))


def strike(sweep: Sweep, draw: random.Random) -> str:
    """Sends SIGKILL or SIGTERM to the driver or to one of its workers."""
    number = draw.choice([signal.SIGKILL, signal.SIGTERM])
    workers = sweep.workers()
    if workers and draw.random() < 0.4:
        draw.choice(workers).send_signal(number)
        return f"{number.name} to a worker"
    sweep.process.send_signal(number)
    return f"{number.name} to the driver"


@pytest.mark.soak
def test_a_sweep_under_a_killer_loses_and_repeats_nothing(start: Start, tmp_path: Path, cache: Path) -> None:
    root, draw = tmp_path / "r", random.Random(KILLS)
    trials, struck, seen = 8, list[str](), set[psutil.Process]()
    sweep = start("r", search__trials=trials, training__epochs=12, search__max_failures=1000)
    wait_for((root / "sweep.yaml").exists)
    while True:
        try:
            code, printed = sweep.wait(seconds=draw.uniform(1.0, 14.0))
        except subprocess.TimeoutExpired:
            seen |= set(sweep.family())
            if len(struck) < KILLS:
                struck.append(strike(sweep, draw))
            continue
        # SIGTERM ends a program that has not begun to listen.
        assert code in (0, 130, -signal.SIGKILL, -signal.SIGTERM), printed
        if code == 0 and len(struck) == KILLS:
            break
        trials += 4 if code == 0 else 0  # it was faster than the killer
        sweep = Sweep("--resume", str(root), "--trials", str(trials))
    print(Counter(struck), f"{trials} trials, {len(seen)} processes")
    rows = leaderboard(root)
    assert len(rows) == trials
    assert {row["state"] for row in rows} <= {"completed", "stopped"}
    assert_curves_without_scars(root)
    assert_nothing_left_over(root)
    assert not list(cache.glob(".*"))
    # Ray's agents try for a minute to tell a killed driver that they end.
    wait_for(lambda: not [process for process in seen if process.is_running()], seconds=90)
    code, printed = Sweep("--resume", str(root)).wait()
    assert code == 0
    assert "nothing is left to do" in printed
