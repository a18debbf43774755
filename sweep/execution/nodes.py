"""Looks at nodes of a joined Ray cluster before trials run there: what each has, and what a trial would miss."""

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.table import Table

from model.data.pools import pool_sizes
from sweep.config import ConfigError, SweepConfig
from sweep.execution import node, ray_compat
from sweep.execution.storage import Storage
from sweep.machine.resources import Machine
from sweep.machine.versions import source_digest, versions
from sweep.wording.faults import last_error

_PATIENCE = 30.0  # seconds that the slowest node gets to start a process and answer
_AGAIN = 60.0  # seconds after which a node that lacked something is looked at again


@dataclass(frozen=True)
class Node:
    """A node of the cluster: its resources as Ray counts them, and its answer, or the reason why there is none."""

    id: str
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


@dataclass(frozen=True)
class Needs:
    """What trials need on every node: the folder of the sweep or its storage, and a folder for images."""

    config: SweepConfig
    outputs: Path
    images: Path
    storage: Storage | None

    def look(self, found: Sequence[dict[str, Any]] | None = None) -> "Look":
        """Asks these nodes, or all that have CPUs for trials."""
        return Look(self, alive() if found is None else found)

    def lacking(self, found: Node) -> list[str]:
        """One sentence for each thing that is missing on a node that has been looked at."""
        name, here, storage = f"node {found.address}", versions(), self.storage
        if storage is None:
            place = f"the folder {self.outputs} (--output-dir)"
        else:
            place = f"the storage {storage.shown} (--storage)"
        if (answer := found.answer) is None:
            return [f"{name} {found.silence}"]
        others = [key for key, theirs in answer.versions.items() if theirs != here[key]]
        problems = [f"{name} has {key} {answer.versions[key]}, but this machine has {here[key]}" for key in others]
        if not others and answer.code != source_digest():
            problems.append(f"{name} has other source files of crnn-sweep {here['crnn-sweep']} than this machine")
        if not answer.shares:
            otherwise = ", or use --storage" if storage is None else ""
            problems.append(f"{name} does not have {place}, which all nodes must share{otherwise}")
        if answer.problem is not None:
            problems.append(f"{name} cannot write to {place}: {answer.problem}")
        if answer.images_problem is not None:
            problems.append(f"{name} cannot write images to {self.images} (--cache-dir): {answer.images_problem}")
        if answer.needed > answer.free:
            problems.append(
                f"{name} has {answer.free:,} bytes free for images in {self.images} (--cache-dir), which need "
                f"{answer.needed:,}"
            )
        return problems


class Look:
    """Nodes that have been asked, all at once. Each writes a file into the folder that all share, or into the storage
    if there is one, and `nodes` removes it."""

    def __init__(self, needs: Needs, found: Sequence[dict[str, Any]]) -> None:
        self._found, self._until = found, time.monotonic() + _PATIENCE
        self._there = next(path for path in (needs.outputs, *needs.outputs.parents) if path.exists())
        self._names = [f".crnn-sweep-{secrets.token_hex(8)}" for _ in found]
        self._mark = f".crnn-sweep-{secrets.token_hex(8)}"
        self._shared = needs.storage is None
        sizes = pool_sizes(needs.config, test=needs.config.confirm is not None)
        uri = None if needs.storage is None else needs.storage.uri
        folders = node.Folders(self._there, needs.images, self._mark, uri, needs.config.yaml.encode(), sizes)
        (self._there / self._mark).touch()
        self._asked = [_ask(each["NodeID"], folders, name) for each, name in zip(found, self._names, strict=True)]

    def is_over(self, wait: bool = False) -> bool:
        """Whether all have answered, or the slowest has had its time."""
        left = max(0.0, self._until - time.monotonic())
        _, silent = ray.wait(self._asked, num_returns=len(self._asked), timeout=left if wait else 0)
        return not silent or not left

    def nodes(self) -> list[Node]:
        """The nodes with the answers they have given. Waits for them."""
        self.is_over(wait=True)
        try:
            files = [self._there / name if self._shared else None for name in self._names]
            answers = [_answer(asked, file) for asked, file in zip(self._asked, files, strict=True)]
            return [_node(found, answer) for found, answer in zip(self._found, answers, strict=True)]
        finally:
            for name in (self._mark, *self._names):
                with suppress(OSError):
                    (self._there / name).unlink()


class Members:
    """The nodes of a joined cluster on which trials may run. Each that joins is looked at first, without waiting for
    its answer. A node that lacks something gets no trials, and is looked at again after a minute."""

    def __init__(self, needs: Needs, ready: Sequence[Node], tell: Callable[[str], None]) -> None:
        self._needs, self._tell = needs, tell
        self._ready = {found.id for found in ready}
        self._looks: list[Look] = []
        self._again: dict[str, float] = {}  # a node's ID → when it may be looked at again
        self._told: set[str] = set()

    def usable(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The nodes for trials, as Ray describes them, and the IDs of the others."""
        there = alive()
        now = time.monotonic()
        if joined := [found for found in there if self._is_due(found["NodeID"], now)]:
            self._again |= {found["NodeID"]: now + _AGAIN for found in joined}
            with suppress(OSError):  # as on a full disk
                self._looks.append(self._needs.look(joined))
        for look in [look for look in self._looks if look.is_over()]:
            self._looks.remove(look)
            for found in look.nodes():
                self._judge(found)
        draining = ray_compat.draining_nodes()
        usable = [found for found in there if found["NodeID"] in self._ready - draining]
        return usable, sorted(found["NodeID"] for found in there if found["NodeID"] not in self._ready)

    def _is_due(self, node_id: str, now: float) -> bool:
        return node_id not in self._ready and now >= self._again.get(node_id, now)

    def _judge(self, found: Node) -> None:
        lacking = self._needs.lacking(found)
        if not lacking:
            self._ready.add(found.id)
            gpus = f", {found.gpus} × {found.machine.gpu_name or 'GPU'}" * bool(found.gpus)
            sentences = [f"node {found.address} has joined: {found.cpus} CPUs{gpus}"]
        else:
            sentences = [f"{sentence}; until that is mended it gets no trials" for sentence in lacking]
        for sentence in sentences:
            if sentence not in self._told:
                self._told.add(sentence)
                self._tell(sentence)


def alive() -> list[dict[str, Any]]:
    """The nodes of the cluster that have CPUs for trials, as Ray describes them."""
    return [found for found in ray.nodes() if found["Alive"] and found["Resources"].get("CPU")]


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
        found["NodeID"],
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


def require_ready(needs: Needs, nodes: Sequence[Node]) -> None:
    """Raises ConfigError with one sentence for each thing that is missing on a node."""
    if not nodes:
        raise ConfigError(["--address: no node of this cluster has CPUs for trials"])
    if problems := [f"--address: {sentence}" for found in nodes for sentence in needs.lacking(found)]:
        raise ConfigError(problems)
