"""What this machine has, and what of it each trial gets. Torch is imported where it is used: it takes seconds, in which
Ray starts."""

import os
from dataclasses import dataclass

from model.config import TrialConfig
from sweep.config import ConfigError, SweepConfig

_TRIALS_PER_GPU = 4


@dataclass(frozen=True)
class Machine:
    cpus: int
    gpus: int
    gpu_name: str = ""


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


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_machine() -> Machine:
    import torch

    gpus = torch.cuda.device_count()
    return Machine(usable_cpus(), gpus, torch.cuda.get_device_name(0) if gpus else "")


def allot(config: SweepConfig, machine: Machine, trials: int, local: bool) -> Allotment:
    """Raises ConfigError if a trial asks for more than the machine has."""
    wanted, most = config.resources, config.search.max_concurrent
    problems = [
        f"resources.{key}: {asked} is not allowed: this machine has {there}"
        for key, asked, there in (("cpus", wanted.cpus, machine.cpus), ("gpus", wanted.gpus, machine.gpus))
        if asked != "auto" and asked > there
    ]
    if problems:
        raise ConfigError(problems)
    gpus = wanted.gpus if wanted.gpus != "auto" else 1 / _TRIALS_PER_GPU if machine.gpus else 0.0
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
