"""What this machine has, and what of it each trial gets. Torch is imported where it is used: it takes seconds, in which
Ray starts."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model.config import TrialConfig
from model.files import replace_file
from model.memory import collector_paused
from sweep.config import ConfigError, SweepConfig

_TRIALS_PER_GPU = 4  # where `sweep.bench` has not measured what is best


@dataclass(frozen=True)
class Machine:
    """`mps`: whether NVIDIA's Multi-Process Service runs, through which several processes' kernels run on a GPU at once
    instead of in turns."""

    cpus: int
    gpus: int
    gpu_name: str = ""
    mps: bool = False


@dataclass(frozen=True)
class Allotment:
    """Per trial `cpus` and `gpus` (fractions are shares of one); `at_once` trials fit."""

    cpus: float
    gpus: float
    at_once: int
    total_cpus: int

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))


def best_bytes(config: TrialConfig) -> int:
    """Of a trial's best.pt: the network's weights."""
    import torch

    from model.crnn import CRNN

    with torch.device("meta"):
        network = CRNN(config)
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def resume_bytes(config: SweepConfig) -> int:
    """Of the two checkpoints that a running trial keeps: weights, the optimiser's moments of each, and their average if
    early stopping compares it."""
    moments = {"adam": 2, "adamw": 2, "sgd": 1 if config.optimizer.momentum else 0}
    return 2 * best_bytes(config) * (1 + moments[config.optimizer.name] + config.averages)


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


@collector_paused()
def this_machine() -> Machine:
    from model import device

    return Machine(usable_cpus(), device.count(), device.name(), mps_runs())


def mps_runs() -> bool:
    """Whether the control daemon of NVIDIA's MPS lives, where CUDA programs of this environment look for it."""
    folder = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")
    try:
        os.kill(int((folder / "nvidia-cuda-mps-control.pid").read_text()), 0)
    except PermissionError:
        return True  # another user's
    except (OSError, ValueError, OverflowError):
        return False
    return True


def recommend(config: SweepConfig, gpu_name: str, trials: int) -> None:
    """Has `resources.gpus: auto` put so many such trials on such a GPU from now on."""
    path = _recommendation(config, gpu_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps({"gpu": gpu_name, "trials": trials}).encode())


def trials_per_gpu(config: SweepConfig, gpu_name: str) -> int:
    try:
        return max(1, int(json.loads(_recommendation(config, gpu_name).read_bytes())["trials"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _TRIALS_PER_GPU


def _recommendation(config: SweepConfig, gpu_name: str) -> Path:
    """Beside the image pools, named by all that a trial's speed and memory hang on."""
    training = config.training.model_dump(mode="json", include={"batch_size", "precision", "cuda_graph", "compile"})
    described = [gpu_name, config.captcha.model_dump(mode="json"), config.network.model_dump(mode="json"), training]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return Path(str(config.data.path)) / f"trials-per-gpu-{digest[:16]}.json"


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


def allot(config: SweepConfig, machine: Machine, trials: int, local: bool) -> Allotment:
    """Raises ConfigError if a trial asks for more than the machine has."""
    check_shares(config, cpus=machine.cpus, gpus=machine.gpus)
    wanted, most = config.resources, config.search.max_concurrent
    shared = 1 / trials_per_gpu(config, machine.gpu_name) if machine.gpus else 0.0
    gpus = wanted.gpus if wanted.gpus != "auto" else shared
    fitting = int(machine.gpus / gpus + 1e-9) if gpus else trials if most != "auto" else machine.cpus
    slots = min(trials, fitting, trials if most == "auto" else most)
    if wanted.cpus != "auto":
        cpus = wanted.cpus
    elif gpus and slots <= machine.cpus:
        cpus = float(machine.cpus // slots)
    else:
        cpus = min(1.0, machine.cpus / slots)
    at_once = min(slots, int(machine.cpus / cpus + 1e-9))
    if local:
        at_once = 1 if most == "auto" else min(most, trials)
    return Allotment(cpus, gpus, at_once, machine.cpus)
