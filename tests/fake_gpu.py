"""Stand-ins for a GPU on a machine without one.

`fake_tensors` gives tensors on `cuda:0` that have a shape and a device, but no values. `cpu_graphs` gives CUDA graphs
that record what runs on the CPU: a replay repeats the same operations on the same tensors, as a GPU's does, and none of
the Python around them.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

GPU = torch.device("cuda")


@contextmanager
def fake_tensors(monkeypatch: pytest.MonkeyPatch, free_bytes: int = 1 << 40) -> Iterator[FakeTensorMode]:
    """A GPU with so much free memory. Its tensors can't be trained: torch's backward pass asks for a real device."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes, free_bytes))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: GPU)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)  # it would be asked whether it takes this LSTM
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()) as mode:
        yield mode


class _Recording(TorchDispatchMode):
    """Runs operations and keeps them, with their inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        output = operation(*arguments, **(options or {}))
        self.operations.append((operation, arguments, options or {}, output))
        return output


class CpuGraph:
    """What `torch.cuda.CUDAGraph` is to a GPU."""

    def __init__(self) -> None:
        self.recording = _Recording()
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        # In the same mode as when they were recorded, for what an operation keeps for its backward pass depends on it.
        with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
            for operation, arguments, options, output in self.recording.operations:
                again = operation(*arguments, **options)
                for old, new in zip(tree_flatten(output)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class _Stream:
    def wait_stream(self, other: Any) -> None:
        pass


def cpu_graphs(monkeypatch: pytest.MonkeyPatch) -> list[CpuGraph]:
    """From here on graphs are recorded on the CPU; returns those that will be."""
    graphs: list[CpuGraph] = []

    def graph() -> CpuGraph:
        graphs.append(CpuGraph())
        return graphs[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, capture_error_mode: graph.recording)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return graphs
