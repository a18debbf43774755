"""How many CPUs this process may use, and whether a config asks for more. Imports no torch, which takes seconds."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from sweep.config import ConfigError, SweepConfig


def usable_cpus(system: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """How many CPUs this process may use: the least of its affinity, the quotas of its cgroups (a container's, rounded
    up) and what Slurm has allotted. `system` is where the system's files lie."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slurm = [environment.get(key, "") for key in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")]
    allotted = [int(count) for count in slurm if count.isdecimal()]
    quotas = [math.ceil(quota) for quota in _cgroup_quotas(system)]
    return max(1, min([affinity, *allotted, *quotas]))


def _cgroup_quotas(system: Path) -> Iterator[float]:
    """CPUs' worth of time that this process's cgroup and each above it may use, where that is limited, in version 1
    and 2 of cgroups. In a container only the lower part of its path may be there."""
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
            # The mount shows the hierarchy from `shown` on.
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
    """Raises ConfigError if a trial asks for more `cpus` or `gpus` than there are."""
    asked = {key: getattr(config.resources, key) for key in there}
    problems = [
        f"resources.{key} must be at most {most}, which this machine has, got {asked[key]:g}"
        for key, most in there.items()
        if asked[key] != "auto" and asked[key] > most
    ]
    if problems:
        raise ConfigError(problems)
