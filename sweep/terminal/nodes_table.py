"""Prints the nodes of a joined Ray cluster as a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sweep.execution.nodes import Node  # imports Ray


def show(nodes: "Sequence[Node]") -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("node", "CPUs", "GPUs", "GPU", "Python", "torch", "Ray", "free for images", "folder"):
        table.add_column(column, justify="right" if column in ("CPUs", "GPUs", "free for images") else "left")
    for node in nodes:
        cells = ["–", "–", "–", "–", node.silence]
        if (answer := node.answer) is not None:
            folder = "ready" if answer.shares_outputs and answer.problem is None else "missing"
            versions = [answer.versions[key] for key in ("python", "torch", "ray")]
            cells = [*versions, f"{answer.free / 1e9:,.1f} GB", folder]
        table.add_row(node.address, str(node.cpus), str(node.gpus), node.machine.gpu_name, *cells)
    console = Console(highlight=False, markup=False, emoji=False)
    Console(highlight=False, markup=False, emoji=False, width=None if console.is_terminal else 160).print(table)
