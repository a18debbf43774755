"""Training scores of an epoch, logged as means over windows of steps."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from model.network import ctc
from model.training.evaluation import Readings, Samples, by_loss
from model.training.scores import Scores, scores_of

Log = Callable[[int, Mapping[str, float]], None]


class Diverged(Exception):
    """The training loss became NaN or infinite."""


class RunningScores:
    """Collects losses, best paths and labels of an epoch's batches and logs their scores.

    An accelerator runs asynchronously, behind the host. A window's results are therefore copied to the host while the
    next window is trained, and the host waits for the device only at the end of an epoch. On a CPU they are logged at
    once.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []  # losses (N,), best paths (N, T), labels (N, L)
        self._logged = 0  # number of batches in windows that have ended
        self._pending: tuple[int, float, _Fetched] | None = None

    def add(self, losses: Tensor, paths: Tensor, labels: Tensor) -> None:
        self._batches.append((losses, paths, labels))

    def end_window(self, step: int, rate: float) -> None:
        """Ends a window of batches at `step`. Logs its scores now on a CPU, with the next call on an accelerator.

        Raises Diverged.
        """
        self.flush()
        self._pending = step, rate, _Fetched(self._batches[self._logged :])
        self._logged = len(self._batches)
        if self._pending[2].is_here:
            self.flush()

    def flush(self) -> None:
        """Logs the last window that has ended, unless it is logged already. Raises Diverged."""
        if self._pending is None:
            return
        (step, rate, fetched), self._pending = self._pending, None
        scores = scores_of(fetched.wait(), by_window=True)
        self._log(step, {**scores.tagged("train"), "train/lr": rate})
        if not math.isfinite(scores.loss):
            raise Diverged(f"the loss was {scores.loss} by step {step}")

    def end_epoch(self, number: int) -> tuple[Scores, Samples]:
        """Returns the scores of the epoch with this number and the last batch's samples. Raises Diverged."""
        self.flush()
        scores = scores_of(_Fetched(self._batches).wait())
        if not math.isfinite(scores.loss):
            raise Diverged(f"the loss was {scores.loss} in epoch {number}")
        return scores, by_loss(_Fetched(self._batches[-1:]).wait())


class _Fetched:
    """Losses, best paths and labels of some batches, copied to the host asynchronously."""

    def __init__(self, batches: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        loss_parts, path_parts, label_parts = zip(*batches, strict=True)
        losses, paths, self._labels = torch.cat(loss_parts), ctc.join(path_parts), torch.cat(label_parts)
        self.is_here = losses.device.type == "cpu"
        self._losses, self._paths = (part.to("cpu", non_blocking=True) for part in (losses, paths))
        if not self.is_here:
            self._arrived = torch.Event(losses.device)
            self._arrived.record()

    def wait(self) -> Readings:
        if not self.is_here:
            self._arrived.synchronize()
        return Readings(self._losses, ctc.collapse(self._paths), self._labels)
