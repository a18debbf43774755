"""Finds the CPUs and GPUs of this machine, and shares them out among the trials."""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.system import device
from model.system.files import replace_file
from sweep.config import ConfigError, SweepConfig
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


def together(nodes: Sequence[Machine]) -> Machine:
    """All nodes of a cluster as one machine, to be shown and kept."""
    names = dict.fromkeys(node.gpu_name for node in nodes if node.gpus)
    return Machine(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes), " and ".join(names))


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


def allot(config: SweepConfig, machine: Machine, trials: int, local: bool, nodes: Sequence[Machine] = ()) -> Allotment:
    """Shares the machine, or the nodes of a cluster, out among `trials` trials; with `local` trials take turns in one
    process. Raises ConfigError if a trial asks for more than the machine, or any of the nodes, has."""
    wanted, most = config.resources, config.search.max_concurrent
    places = _that_fit(config, nodes) if nodes else [machine]
    check_shares(config, cpus=places[0].cpus, gpus=places[0].gpus)
    shared = max(1 / trials_per_gpu(config, place.gpu_name) if place.gpus else 0.0 for place in places)
    gpus = wanted.gpus if wanted.gpus != "auto" else shared
    if gpus:
        places = [place for place in places if place.gpus]
    rooms = [_times(place.gpus, gpus) if gpus else place.cpus for place in places]
    fitting = sum(rooms) if gpus or most == "auto" else trials
    slots = min(trials, fitting, trials if most == "auto" else most)
    if wanted.cpus != "auto":
        cpus = wanted.cpus
    else:
        # Each place gets its part of the trials; the one with the fewest CPUs for each of its trials decides.
        parts = [math.ceil(slots * room / sum(rooms)) for room in rooms]
        cpus = min(_cpus_each(place.cpus, part, gpus) for place, part in zip(places, parts, strict=True))
    at_once = min(slots, sum(min(_times(place.cpus, cpus), _times(place.gpus, gpus)) for place in places))
    if local:
        at_once = 1 if most == "auto" else min(most, trials)
    return Allotment(cpus, gpus, at_once, machine.cpus)


def room(allotment: Allotment, places: Iterable[tuple[float, float]]) -> int:
    """How many trials fit on places with these CPUs and GPUs."""
    fits = (min(_times(cpus, allotment.cpus), _times(gpus, allotment.gpus)) for cpus, gpus in places)
    return sum(fits)


def _that_fit(config: SweepConfig, nodes: Sequence[Machine]) -> list[Machine]:
    """The nodes that have what one trial asks for. Raises ConfigError if there is none."""
    asked = {key: share for key in ("cpus", "gpus") if (share := getattr(config.resources, key)) != "auto"}
    fit = [node for node in nodes if all(getattr(node, key) >= share for key, share in asked.items())]
    if not fit:
        shares = " and ".join(f"resources.{key} {share:g}" for key, share in asked.items())
        there = ", ".join(dict.fromkeys(f"{node.cpus} CPUs and {node.gpus} GPUs" for node in nodes))
        raise ConfigError([f"{shares} must be on one node of the cluster, whose nodes have {there}"])
    return fit


def _times(there: float, each: float) -> int:
    """How often a share fits; without limit if it is 0."""
    return int(there / each + 1e-9) if each else sys.maxsize


def _cpus_each(cpus: int, trials: int, gpus: float) -> float:
    """The CPUs of each of `trials` trials on one machine: with a GPU as many as there are, else at most one."""
    return float(cpus // trials) if gpus and trials <= cpus else min(1.0, cpus / trials)
