"""The Slurm recipe of sweep/README.md, run by Slurm on two nodes."""

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.processes import saved, wait_for
from tests.results import assert_curves_without_scars, leaderboard
from tests.slurm import Slurm

pytestmark = [pytest.mark.cluster, pytest.mark.namespaces]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    folder = tmp_path / "slurm"
    folder.mkdir()
    with closing(Slurm(folder)) as slurm:
        slurm.start()
        yield slurm


def test_a_job_that_is_requeued_goes_on_with_its_sweep_on_all_nodes(
    slurm: Slurm, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    document = (REPOSITORY / "sweep" / "README.md").read_text()
    (script,) = re.findall(r"^#!/bin/bash\n#SBATCH.*?(?=^```)", document, re.MULTILINE | re.DOTALL)
    home, root = tmp_path / "slurm", tmp_path / "NAME"
    few = arguments("NAME", training__epochs=10, search__trials=2, search__early_stopping="none")
    command = ["--output-dir", "/shared/runs", "--name", "NAME"]
    assert shlex.join(command) in script
    (home / "job").write_text(script.replace(shlex.join(command), shlex.join(few)))
    (home / "ray-token").write_text("0123456789abcdef" * 4)
    (home / "ray-token").chmod(0o600)

    def is_in(*states: str) -> bool:
        found = " ".join(re.findall(r"(?:JobState|Restarts)=(\S+)", slurm.run("scontrol show job 1")))
        assert "FAILED" not in found, slurm.logs()
        return found in states

    slurm.run(f"sbatch --chdir={REPOSITORY} --output={home}/job.out --open-mode=append job")
    wait_for(lambda: saved(root, 2) or not is_in("PENDING 0", "RUNNING 0"))
    slurm.run("scontrol requeue 1")
    wait_for(lambda: is_in("COMPLETED 1"), seconds=120)
    assert {row["state"] for row in leaderboard(root)} == {"completed"}
    assert_curves_without_scars(root)
