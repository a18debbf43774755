"""Finds the CPUs and GPUs of this machine, and shares them out among the trials."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from model.system import device
from model.system.files import replace_file
from sweep.config import SweepConfig
from sweep.machine.cpus import check_shares, usable_cpus

_TRIALS_PER_GPU = 4  # unless `sweep.bench` has measured the best number


@dataclass(frozen=True)
class Machine:
    """What this machine has. `mps`: whether NVIDIA's Multi-Process Service runs, which lets several processes' kernels
    run on a GPU at once instead of in turns."""

    cpus: int
    gpus: int
    gpu_name: str = ""
    mps: bool = False


@dataclass(frozen=True)
class Allotment:
    """What each trial gets, `cpus` and `gpus` (a fraction is a share of one), and how many trials run at once."""

    cpus: float
    gpus: float
    at_once: int
    total_cpus: int

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))


def this_machine() -> Machine:
    return Machine(usable_cpus(), device.count(), device.name(), mps_runs())


def mps_runs() -> bool:
    """Whether the control daemon of NVIDIA's MPS runs, by its PID file in the folder where CUDA looks for it:
    `$CUDA_MPS_PIPE_DIRECTORY` or `/tmp/nvidia-mps`."""
    folder = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")
    try:
        os.kill(int((folder / "nvidia-cuda-mps-control.pid").read_text()), 0)
    except PermissionError:
        return True  # the daemon of another user
    except (OSError, ValueError, OverflowError):
        return False
    return True


def recommend(config: SweepConfig, gpu_name: str, trials: int) -> None:
    """Stores how many trials of this config to put on a GPU of this name, for `resources.gpus: auto`."""
    path = _recommendation(config, gpu_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps({"gpu": gpu_name, "trials": trials}).encode())


def trials_per_gpu(config: SweepConfig, gpu_name: str) -> int:
    try:
        return max(1, int(json.loads(_recommendation(config, gpu_name).read_bytes())["trials"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _TRIALS_PER_GPU


def _recommendation(config: SweepConfig, gpu_name: str) -> Path:
    """The file of a recommendation: beside the image pools, named by a hash of all that decides a trial's speed and
    memory."""
    training = config.training.model_dump(mode="json", include={"batch_size", "precision", "cuda_graph", "compile"})
    described = [
        gpu_name,
        config.image.model_dump(mode="json", exclude={"path", "digest"}),
        config.network.model_dump(mode="json"),
        training,
    ]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return Path(str(config.data.cache)) / f"trials-per-gpu-{digest[:16]}.json"


def allot(config: SweepConfig, machine: Machine, trials: int, local: bool) -> Allotment:
    """Shares the machine out among `trials` trials; with `local` trials take turns in one process. Raises ConfigError
    if a trial asks for more than the machine has."""
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
