"""Counts the CPUs that this process may use, and checks a config against them. Does not import torch, which takes
seconds."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from sweep.config import ConfigError, SweepConfig


def usable_cpus(system: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """The number of CPUs this process may use, at least 1: the minimum of its CPU affinity, its cgroups' quotas (as
    containers set them, rounded up) and Slurm's allotment. `system` is the root of the file system."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slurm = [environment.get(key, "") for key in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")]
    allotted = [int(count) for count in slurm if count.isdecimal()]
    quotas = [math.ceil(quota) for quota in _cgroup_quotas(system)]
    return max(1, min([affinity, *allotted, *quotas]))


def _cgroup_quotas(system: Path) -> Iterator[float]:
    """Yields the CPU quota, in CPUs, of this process's cgroup and of each of its ancestors that has one, for cgroups v1
    and v2. A container may see only the lower part of the hierarchy."""
    try:
        mounts = [line.split() for line in (system / "proc/self/mountinfo").read_text().splitlines()]
        memberships = [line.split(":", 2) for line in (system / "proc/self/cgroup").read_text().splitlines()]
    except OSError:  # not Linux
        return
    for fields in mounts:
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        for _, controllers, path in memberships:
            if kind == "cgroup2":
                limit, mine = "cpu.max", not controllers
            else:
                limit, mine = "cpu.cfs_quota_us", "cpu" in options.split(",") and "cpu" in controllers.split(",")
            if not (mine and kind in ("cgroup", "cgroup2")):
                continue
            # `shown` is the cgroup at the root of the mount: a container's mount leaves out those above.
            shown, top = Path(fields[3]), system / fields[4].lstrip("/")
            below = Path(path).relative_to(shown) if Path(path).is_relative_to(shown) else Path()
            for folder in (top / below, *(top / parent for parent in below.parents)):
                with suppress(OSError, ValueError, ZeroDivisionError):
                    quota, *period = (folder / limit).read_text().split()
                    if not period:
                        period = (folder / "cpu.cfs_period_us").read_text().split()
                    if quota != "max" and int(quota) > 0:
                        yield int(quota) / int(period[0])


def check_shares(config: SweepConfig, **there: int) -> None:
    """Raises ConfigError if a trial asks for more `cpus` or `gpus` than `there` says the machine has."""
    asked = {key: getattr(config.resources, key) for key in there}
    problems = [
        f"resources.{key} must be at most {most}, which this machine has, got {asked[key]:g}"
        for key, most in there.items()
        if asked[key] != "auto" and asked[key] > most
    ]
    if problems:
        raise ConfigError(problems)
