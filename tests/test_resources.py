import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sweep.config import QUICKSTART, ConfigError, SweepConfig, load
from sweep.machine.cpus import usable_cpus
from sweep.machine.resources import Machine, allot, mps_runs, recommend, trials_per_gpu
from sweep.terminal.terminal import Terminal

MACHINE = Machine(cpus=16, gpus=2, gpu_name="a card")


def config(cache: Path, batch_size: int = 32) -> SweepConfig:
    return load(QUICKSTART, {"data.cache": str(cache), "training.batch_size": batch_size})


def test_a_gpu_is_shared_as_the_benchmark_recommended_for_this_network_on_this_card(tmp_path: Path) -> None:
    ours, other = config(tmp_path, batch_size=32), config(tmp_path, batch_size=64)
    assert allot(ours, MACHINE, trials=100, local=False).gpus == 1 / 4
    recommend(ours, "a card", trials=8)
    allotment = allot(ours, MACHINE, trials=100, local=False)
    assert (allotment.gpus, allotment.at_once, allotment.cpus) == (1 / 8, 16, 1.0)
    assert trials_per_gpu(other, "a card") == 4
    assert trials_per_gpu(ours, "another card") == 4


@pytest.mark.parametrize("content", ["", "[]", '{"trials": "many"}', "\0"])
def test_a_damaged_recommendation_counts_as_none(tmp_path: Path, content: str) -> None:
    recommend(config(tmp_path), "a card", trials=8)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert trials_per_gpu(config(tmp_path), "a card") == 4


def test_the_header_tells_whether_trials_share_a_gpu_through_mps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweep.terminal.terminal.pick", lambda gpus: torch.device("cpu"))
    settings = config(tmp_path)
    shared = allot(settings, MACHINE, trials=100, local=False)
    for machine, told in ((MACHINE, "no MPS runs"), (replace(MACHINE, mps=True), "through MPS")):
        Terminal(settings, tmp_path, "resume").header(QUICKSTART, machine, shared)
        assert told in capsys.readouterr().out
    alone = replace(shared, at_once=2, gpus=1.0)
    Terminal(settings, tmp_path, "resume").header(QUICKSTART, MACHINE, alone)
    assert "MPS" not in capsys.readouterr().out


def test_mps_runs_while_its_daemon_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    file = tmp_path / "nvidia-cuda-mps-control.pid"
    assert not mps_runs()
    daemon = subprocess.Popen(["sleep", "60"])
    file.write_text(f"{daemon.pid}\n")
    assert mps_runs()
    daemon.kill()
    daemon.wait()
    assert not mps_runs()
    file.write_text("no number")
    assert not mps_runs()


V1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
V2 = "41 31 0:38 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V2_PART = V2.replace(" / ", " /pod/x ")


def system(folder: Path, mount: str, membership: str, limits: dict[str, str]) -> Path:
    """A system's files: one mount, this process's cgroup, and the limits below the mount point."""
    mounts = "23 1 0:21 / / rw - ext4 /dev/root rw\n22 23 0:20 / /proc rw - proc proc rw\n" + mount + "\n"
    files = {"proc/self/mountinfo": mounts, "proc/self/cgroup": membership + "\n"}
    for path, content in (files | {mount.split()[4][1:] + "/" + path: limit for path, limit in limits.items()}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("mount", "membership", "limits", "cpus"),
    [
        pytest.param(V2, "0::/a/b", {"a/cpu.max": "max 100000\n", "a/b/cpu.max": "max 1"}, 64, id="none"),
        pytest.param(V2, "0::/", {"cpu.max": "400000 100000\n"}, 4, id="container"),
        pytest.param(V2, "0::/a/b", {"a/b/cpu.max": "150000 100000"}, 2, id="rounded-up"),
        pytest.param(V2, "0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 1"}, 3, id="above"),
        pytest.param(V2, "0::/a", {"other/cpu.max": "100000 100000"}, 64, id="another's"),
        pytest.param(V2_PART, "0::/pod/x/y", {"y/cpu.max": "50000 100000"}, 1, id="mounted-in-part"),
        pytest.param(
            V1, "4:memory:/m\n3:cpu,cpuacct:/docker/x\n0::/",
            {"cpu.cfs_quota_us": "500000", "cpu.cfs_period_us": "100000"}, 5, id="version-1-container",
        ),
        pytest.param(
            V1, "3:cpu,cpuacct:/a", {"a/cpu.cfs_quota_us": "-1", "a/cpu.cfs_period_us": "100000"}, 64,
            id="version-1-none",
        ),
        pytest.param(V2, "0::/", {"cpu.max": "nonsense"}, 64, id="nonsense"),
    ],
)  # fmt: skip
def test_the_quota_of_a_containers_cgroup_limits_the_cpus(
    tmp_path: Path, mount: str, membership: str, limits: dict[str, str], cpus: int
) -> None:
    assert usable_cpus(system(tmp_path, mount, membership, limits), {}) == cpus


@pytest.mark.usefixtures("many")
def test_the_least_of_affinity_quota_and_what_slurm_allots_counts(tmp_path: Path) -> None:
    quota = system(tmp_path, V2, "0::/", {"cpu.max": "800000 100000"})
    assert usable_cpus(quota, {"SLURM_CPUS_PER_TASK": "6", "SLURM_CPUS_ON_NODE": "12"}) == 6
    assert usable_cpus(quota, {"SLURM_CPUS_ON_NODE": "12"}) == 8
    assert usable_cpus(quota, {"SLURM_CPUS_PER_TASK": "many", "SLURM_CPUS_ON_NODE": ""}) == 8
    assert usable_cpus(tmp_path / "not Linux", {"SLURM_CPUS_ON_NODE": "128"}) == 64


@pytest.mark.slow
def test_a_dry_run_plans_for_what_slurm_allots(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sweep.run", "--dry-run", "--cache-dir", str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "SLURM_CPUS_PER_TASK": "1"}, capture_output=True, text=True, check=True
    )
    assert "two for each of 1 trials at once" in done.stdout


IN_A_CGROUP = """
import os
from pathlib import Path
from sweep.machine.cpus import usable_cpus

cgroup = Path("/sys/fs/cgroup/cpu") if Path("/sys/fs/cgroup/cpu").exists() else Path("/sys/fs/cgroup")
outer = cgroup / f"crnn-sweep-test-{os.getpid()}"
inner, home = outer / "inner", outer.parent / "cgroup.procs"
inner.mkdir(parents=True)
try:
    if (outer / "cpu.max").exists():
        (outer / "cpu.max").write_text("100000 100000")
    else:
        (outer / "cpu.cfs_quota_us").write_text("100000")
    (inner / "cgroup.procs").write_text(str(os.getpid()))
    print(usable_cpus())
finally:
    home.write_text(str(os.getpid()))
    inner.rmdir()
    outer.rmdir()
"""


@pytest.mark.namespaces
def test_a_real_cgroups_quota_limits_the_cpus() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_CGROUP], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize(
    ("nodes", "settings", "share"),
    [
        # CPUs alone: as many trials at once as there are cores, on all nodes
        ([(8, 0), (8, 0), (4, 0)], {"search.trials": 100}, (1.0, 0.0, 20)),
        ([(8, 0), (4, 0)], {"search.trials": 4}, (1.0, 0.0, 4)),
        ([(8, 0), (4, 0)], {"resources.cpus": 3}, (3.0, 0.0, 3)),
        # one that is too small for a trial is left out
        ([(8, 0), (2, 0)], {"resources.cpus": 4}, (4.0, 0.0, 2)),
        # GPUs: never more on a card than its shares; a node without one trains nothing; the scarcest CPUs decide
        ([(16, 2), (16, 2)], {"resources.gpus": 0.5}, (4.0, 0.5, 8)),
        ([(16, 2), (8, 2), (64, 0)], {"resources.gpus": 0.5}, (2.0, 0.5, 8)),
        ([(16, 1), (16, 3)], {"resources.gpus": 2}, (16.0, 2.0, 1)),
        ([(2, 4), (16, 1)], {"resources.gpus": 1}, (0.5, 1.0, 5)),
    ],
)
def test_the_nodes_of_a_cluster_are_shared_out_each_as_far_as_it_goes(
    tmp_path: Path, nodes: list[tuple[int, int]], settings: dict[str, float], share: tuple[float, float, int]
) -> None:
    given = load(QUICKSTART, {"data.cache": str(tmp_path), **settings})
    machines = [Machine(cpus, gpus, "a card") for cpus, gpus in nodes]
    allotment = allot(given, Machine(2, 0), given.search.trials or 100, local=False, nodes=machines)
    assert (allotment.cpus, allotment.gpus, allotment.at_once) == share
    assert allotment.total_cpus == 2  # this machine's, which renders the images


def test_a_cluster_of_one_node_is_shared_out_as_a_machine_is(tmp_path: Path) -> None:
    for machine in (MACHINE, Machine(3, 0), Machine(2, 8, "a card")):
        for settings in ({}, {"search.max_concurrent": 3}, {"resources.gpus": 0}, {"resources.cpus": 1.5}):
            given = load(QUICKSTART, {"data.cache": str(tmp_path), **settings})
            shares = [allot(given, machine, trials=9, local=False, nodes=nodes) for nodes in ([], [machine])]
            assert shares[0] == shares[1]


def test_what_no_node_has_is_refused_with_what_there_is(tmp_path: Path) -> None:
    given = load(QUICKSTART, {"data.cache": str(tmp_path), "resources.cpus": 8, "resources.gpus": 1})
    with pytest.raises(ConfigError, match=r"resources.cpus 8 and resources.gpus 1 .*16 CPUs and 0 GPUs, 4 CPUs and 2"):
        allot(given, Machine(2, 0), 10, local=False, nodes=[Machine(16, 0), Machine(4, 2, "a card")])
