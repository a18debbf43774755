"""Exponential moving average (EMA) of a network's weights.

While the learning rate is high, the EMA's validation loss predicts a trial's final result better than the raw weights'
loss does, which depends as much on the last few steps as on the trial (measured in sweep/search/early_stopping.py).
"""

from collections.abc import Mapping
from copy import deepcopy
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn

from model.data.batches import Data
from model.network.crnn import CRNN
from model.training import precision
from model.training.evaluation import evaluate
from model.training.scores import Scores

_STATISTICS = 512  # training images from which the EMA's batch-norm statistics are computed
_SAMPLES = 200  # EMA updates per trial, evenly spaced: one at each step costs a small network a hundredth of its time


class AveragedWeights:
    """EMA of a network's weights over about the last tenth of `steps`.

    Early in training, where that would include the initial weights, the decay is smaller: (1 + t) / (10 + t) after t
    updates, as in TensorFlow's ExponentialMovingAverage. torch's AveragedModel takes eight times as long, because it
    reads its counter from the device at each step.
    """

    def __init__(self, network: CRNN, steps: int) -> None:
        self._every = max(1, steps // _SAMPLES)
        self._longest, self._updates = max(0.0, 1 - 10 * self._every / steps), 0
        self._average = deepcopy(network).requires_grad_(False)
        self._averaged = [parameter.detach() for parameter in self._average.parameters()]
        self._current = [parameter.detach() for parameter in network.parameters()]

    def update(self) -> None:
        """Counts a training step and updates the average if it is due. Call it after each step."""
        samples, since = divmod(self._updates, self._every)
        self._updates += 1
        if since == 0:
            decay = min(self._longest, (1 + samples) / (10 + samples)) if samples else 0.0
            get_ema_multi_avg_fn(decay)(self._averaged, self._current, samples)

    def scores(self, data: Data, epoch: int, numeric: str) -> Scores:
        """Scores of the averaged weights on the validation set, with batch-norm statistics from training images."""
        batches = -(-_STATISTICS // data.config.training.batch_size)
        with precision.autocast(data.device, numeric):
            inputs = islice(data.train_batches(epoch), batches)
            update_bn(({"images": batch.images, "widths": batch.widths} for batch in inputs), _Named(self._average))
        return evaluate(self._average, data.batches(data.valid), numeric)[0]

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "network": self._average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._updates = state["updates"]
        self._average.load_state_dict(state["network"])


class _Named(nn.Module):
    """Calls a network with named inputs, because torch's `update_bn` passes on one object for each batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Mapping[str, Tensor | None]) -> Tensor:
        logits: Tensor = self.network(**inputs)
        return logits
