"""Faster training steps on a GPU, with CUDA graphs or torch.compile.

A training step of a small network is hundreds of kernels that each take less time than their launch. A CUDA graph
launches them all at once; torch.compile fuses them, which also saves memory traffic with large batches.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.optim import Optimizer

from model.config import TrainingConfig
from model.training.precision import autocast

Step = Callable[..., tuple[Tensor, Tensor]]  # images, labels, widths → losses (N,) and best paths (N, T)

WARM_UPS = 3  # steps before a recording: libraries choose their kernels, and the optimiser creates its state
COMPILED_STEPS = 30_000  # a trial this long repays the compiler's 20 seconds many times over

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Acceleration:
    """What is recorded as a CUDA graph, and whether the network is compiled."""

    graph: Literal["network", "step"] | None = None
    compile: bool = False


def resolve(training: TrainingConfig, steps: int, device: torch.device, padded: bool = False) -> Acceleration:
    """Resolves the options `cuda_graph` and `compile` for a trial of `steps` steps on this device.

    A compiled network is not recorded on its own, because torch.cuda.make_graphed_callables expects a plain module.
    Nothing is recorded for `padded` images, whose batches differ in width.
    """
    compiled = steps >= COMPILED_STEPS and device.type == "cuda" if training.compile == "auto" else training.compile
    if device.type != "cuda" or training.cuda_graph is False or padded:
        return Acceleration(None, compiled)
    if training.cuda_graph == "auto":
        records = torch.version.hip is None  # AMD's graphs have not been tried
        return Acceleration("network" if records and not compiled else None, compiled)
    if training.cuda_graph == "step":
        return Acceleration("step", compiled)
    return Acceleration(None if compiled else "network", compiled)


def record_network(network: nn.Module, images: Tensor, numeric: str) -> None:
    """Records the network's forward and backward pass in training mode as one CUDA graph each.

    From then on, in training mode, the network accepts only batches of the shape and type of `images`, and each batch
    overwrites the logits (T, N, K) of the one before. In evaluation mode it runs as before.
    """
    buffers = [buffer.clone() for buffer in network.buffers()]
    network.train()
    _expect_other_streams()
    with autocast(images.device, numeric, cache=False):
        torch.cuda.make_graphed_callables(network, (images,))
    for buffer, before in zip(network.buffers(), buffers, strict=True):  # the warm-up changed batch-norm's statistics
        buffer.copy_(before)


class RecordedStep:
    """A whole training step, recorded as a CUDA graph with the first batch and replayed for every batch.

    All batches must have the first one's shapes. A graph has fixed addresses, so all that changes from step to step
    must be in tensors that are updated in place: images, labels, weights, optimiser state and learning rate (see
    `set_rate`).
    """

    def __init__(self, step: Step, network: nn.Module, optimizer: Optimizer) -> None:
        self._step, self._network, self._optimizer = step, network, optimizer
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor, widths: None = None) -> tuple[Tensor, Tensor]:
        if self._graph is None:
            self._graph = self._recorded(images, labels)
        self._images.copy_(images, non_blocking=True)
        self._labels.copy_(labels, non_blocking=True)
        self._graph.replay()
        losses, paths = self._results
        return losses.clone(), paths.clone()  # the next replay overwrites them

    def _recorded(self, images: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph:
        self._images, self._labels = images.clone(), labels.to(images.device, copy=True)
        for group in self._optimizer.param_groups:
            # Shape (1,): torch reads a tensor without dimensions on the CPU as a number, which a recording would keep.
            group["lr"] = torch.tensor([float(group["lr"])], device=images.device)
            if "capturable" in group:
                group["capturable"] = True
        before = self._snapshot()
        _expect_other_streams()
        side, main = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._step(self._images, self._labels)
        main.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # CUDA calls of other threads must not fail the capture: a DataLoader's thread may allocate pinned memory.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._results = self._step(self._images, self._labels)
        self._restore(before)
        return graph

    def _snapshot(self) -> dict[int, Tensor]:
        """Copies of all tensors that a step changes, by the tensor's `id`."""
        return {id(tensor): tensor.detach().clone() for tensor in self._changed()}

    def _restore(self, before: dict[int, Tensor]) -> None:
        """Undoes the warm-up, in place because the graph writes to these tensors.

        Optimiser state that the warm-up created becomes 0, its initial value.
        """
        with torch.no_grad():
            for tensor in self._changed():
                tensor.copy_(before.get(id(tensor), torch.zeros_like(tensor)))

    def _changed(self) -> list[Tensor]:
        states = [value for state in self._optimizer.state.values() for value in state.values()]
        return [*self._network.parameters(), *self._network.buffers(), *(s for s in states if isinstance(s, Tensor))]


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate, in place if it is a tensor, from which a recorded step reads it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def compiled(
    network: nn.Module, images: Tensor, numeric: str, cache: Path
) -> tuple[Callable[[Tensor], Tensor], str | None]:
    """Compiles the network's training pass. If the compiler fails, returns the network and a sentence that says so.

    Compilation happens at once, by a forward and a backward pass over `images`, and leaves the network unchanged. The
    folder `cache` keeps the result: of trials that start together one compiles, and the others wait and reuse it.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    cache.mkdir(parents=True, exist_ok=True)
    forward: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False)
    buffers = [buffer.clone() for buffer in network.buffers()]
    network.train()
    try:
        with FileLock(cache / "compile.lock"), torch.random.fork_rng(_devices(images)):
            with autocast(images.device, numeric):
                logits = forward(images)
            logits.float().sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler raises errors of many types
        _logger.warning("torch.compile failed", exc_info=error)
        line = " ".join(str(error).split())[:200]
        return network, f"torch.compile failed, so the trial runs without it: {type(error).__name__}: {line}"
    finally:
        network.zero_grad()
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return forward, None


def _devices(images: Tensor) -> list[torch.device]:
    return [images.device] if images.device.type == "cuda" else []


def _expect_other_streams() -> None:
    """Silences torch's warning about gradients that are accumulated on another stream than they were computed on.

    A recording does so on purpose, and its streams wait for each other.
    """
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
