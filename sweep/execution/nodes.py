"""Looks at every node of a joined Ray cluster before a sweep starts: what it has, and what a trial would miss there."""

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.table import Table

from model.data.pools import pool_sizes
from sweep.config import ConfigError, SweepConfig
from sweep.execution import node
from sweep.execution.storage import Storage
from sweep.machine.resources import Machine
from sweep.machine.versions import source_digest, versions
from sweep.wording.faults import last_error

_PATIENCE = 30.0  # seconds that the slowest node gets to start a process and answer


@dataclass(frozen=True)
class Node:
    """A node of the cluster: its resources as Ray counts them, and its answer, or the reason why there is none."""

    address: str
    cpus: int
    gpus: int
    kind: str  # Ray's own name of its accelerators, such as H100
    answer: node.Answer | None
    silence: str = ""

    @property
    def machine(self) -> Machine:
        names = self.answer.gpu_names if self.answer else []
        return Machine(self.cpus, self.gpus, " and ".join(dict.fromkeys(names)) or self.kind)


def look(config: SweepConfig, outputs: Path, images: Path, storage: Storage | None) -> list[Node]:
    """Asks all nodes at once that have CPUs for trials. Writes a file for each into `outputs`, or into the storage if
    there is one, and removes it."""
    alive = [found for found in ray.nodes() if found["Alive"] and found["Resources"].get("CPU")]
    there = next(path for path in (outputs, *outputs.parents) if path.exists())
    names = [f".crnn-sweep-{secrets.token_hex(8)}" for _ in range(len(alive) + 1)]
    sizes = pool_sizes(config, test=config.confirm is not None)
    uri = None if storage is None else storage.uri
    folders = node.Folders(there, images, names[-1], uri, config.yaml.encode(), sizes)
    with ExitStack() as closing:
        for name in names:
            closing.callback((there / name).unlink, missing_ok=True)
        (there / names[-1]).touch()
        asked = [_ask(found["NodeID"], folders, name) for found, name in zip(alive, names, strict=False)]
        ray.wait(asked, num_returns=len(asked), timeout=_PATIENCE)
        files = [None if storage else there / name for name in names]
        return [_node(found, _answer(ref, file)) for found, ref, file in zip(alive, asked, files, strict=False)]


def _ask(node_id: str, folders: node.Folders, name: str) -> Any:
    pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=pinned)(node.answer).remote(folders, name)


def _answer(asked: Any, file: Path | None) -> node.Answer | str:
    """The node's answer, or the reason why there is none. Its file, if it was to write one into the folder that all
    share, must be in the driver's folder too."""
    try:
        found: node.Answer = ray.get(asked, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return f"did not answer within {_PATIENCE:g} seconds"
    except Exception as error:
        return f"cannot run this program: {last_error(str(error))}"
    if file is not None and found.shares and found.problem is None and not file.exists():
        return f"does not share the folder {file.parent}"
    return found


def _node(found: dict[str, Any], answer: node.Answer | str) -> Node:
    resources = found["Resources"]
    kinds = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")]
    return Node(
        found["NodeManagerAddress"],
        int(resources["CPU"]),
        int(resources.get("GPU", 0)),
        " and ".join(kinds),
        None if isinstance(answer, str) else answer,
        answer if isinstance(answer, str) else "",
    )


def show(nodes: Sequence[Node], shared: str) -> None:
    """Prints the nodes as a table. `shared` names what all of them must reach, the folder or the storage."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("node", "CPUs", "GPUs", "GPU", "Python", "torch", "Ray", "free for images", shared):
        table.add_column(column, justify="right" if column in ("CPUs", "GPUs", "free for images") else "left")
    for found in nodes:
        cells = ["–", "–", "–", "–", found.silence]
        if (answer := found.answer) is not None:
            reached = "ready" if answer.shares and answer.problem is None else "missing"
            versions = [answer.versions[key] for key in ("python", "torch", "ray")]
            cells = [*versions, f"{answer.free / 1e9:,.1f} GB", reached]
        table.add_row(found.address, str(found.cpus), str(found.gpus), found.machine.gpu_name, *cells)
    console = Console(highlight=False, markup=False, emoji=False)
    Console(highlight=False, markup=False, emoji=False, width=None if console.is_terminal else 160).print(table)


def require_ready(nodes: Sequence[Node], outputs: Path, images: Path, storage: Storage | None) -> None:
    """Raises ConfigError with one sentence for each thing that is missing on a node."""
    place = f"the folder {outputs} (--output-dir)" if storage is None else f"the storage {storage.shown} (--storage)"
    if not nodes:
        raise ConfigError(["--address: no node of this cluster has CPUs for trials"])
    here = versions()
    problems = []
    for found in nodes:
        name = f"--address: node {found.address}"
        if (answer := found.answer) is None:
            problems.append(f"{name} {found.silence}")
            continue
        others = [key for key, theirs in answer.versions.items() if theirs != here[key]]
        problems += [f"{name} has {key} {answer.versions[key]}, but this machine has {here[key]}" for key in others]
        if not others and answer.code != source_digest():
            problems.append(f"{name} has other source files of crnn-sweep {here['crnn-sweep']} than this machine")
        if not answer.shares:
            otherwise = ", or use --storage" if storage is None else ""
            problems.append(f"{name} does not have {place}, which all nodes must share{otherwise}")
        if answer.problem is not None:
            problems.append(f"{name} cannot write to {place}: {answer.problem}")
        if answer.images_problem is not None:
            problems.append(f"{name} cannot write images to {images} (--cache-dir): {answer.images_problem}")
        if answer.needed > answer.free:
            problems.append(
                f"{name} has {answer.free:,} bytes free for images in {images} (--cache-dir), which need "
                f"{answer.needed:,}"
            )
    if problems:
        raise ConfigError(problems)
