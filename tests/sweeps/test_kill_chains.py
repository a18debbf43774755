"""Sweeps that are killed again and again, anywhere, end as sweeps that nothing happened to.

`SOAK_KILLS=100 pytest -m soak` makes it long, SOAK_SEED=1 draws other instants, and SOAK_TARGETS=raylet,gcs_server
strikes nothing else.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import sets
from tests.results import curves, decided, pictures
from tests.sweeps.chains import CONFIRMED, PLAIN, Chain

KILLS = int(os.environ.get("SOAK_KILLS", "12"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
TARGETS = frozenset(filter(None, os.environ.get("SOAK_TARGETS", "").split(",")))
LONGEST = max(4, KILLS // 12)  # kills of one sweep

KINDS = {
    "Ray": (PLAIN, []),
    "Ray and TensorBoard": (CONFIRMED, ["--tensorboard"]),
    "local and TensorBoard": (CONFIRMED, ["--local", "--tensorboard"]),
}

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A local sweep that nothing happened to, and how many seconds it lived; one on Ray lives about as long."""
    chain, begin = Chain(tmp_path_factory.mktemp("whole") / "0", sets(CONFIRMED), ["--local"], SEED), time.monotonic()
    chain.run(kills=0, life=0)
    return chain.root, time.monotonic() - begin


@pytest.fixture(scope="module")
def chains() -> Iterator[list[Chain]]:
    """All of them, whose processes are looked for in the end."""
    all_of_them: list[Chain] = []
    yield all_of_them
    for chain in all_of_them:
        chain.check_processes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_under_a_killer_loses_repeats_and_leaves_nothing(
    kind: str, whole: tuple[Path, float], chains: list[Chain], tmp_path: Path
) -> None:
    settings, options = KINDS[kind]
    undisturbed, life = whole
    kills = KILLS // len(KINDS)
    for _ in range(kills):  # a sweep may end before it is struck as often as it should
        number = len(chains)
        chain = Chain(tmp_path / str(number), sets(settings), options, SEED + number, TARGETS)
        chains.append(chain)
        chain.run(min(kills, LONGEST), life)
        chain.check()
        print(chain.story, dict(chain.struck), flush=True)
        if "--local" in options:
            assert decided(chain.root) == decided(undisturbed), chain.story
            assert curves(chain.root) == curves(undisturbed), chain.story
            assert pictures(chain.root) == pictures(undisturbed), chain.story
        if (kills := kills - chain.struck.total()) <= LONGEST // 2:
            break
