"""An exponential moving average of a network's weights: how good it would be if its rate were lowered now.

While the learning rate is high, validation scores of the weights themselves say as much of the last few steps as of the
trial; those of the average foretell the end.
"""

from collections.abc import Mapping
from copy import deepcopy
from itertools import islice
from typing import Any

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn

from model.data.batches import Data
from model.training import precision
from model.training.evaluation import evaluate
from model.training.scores import Scores

_STATISTICS = 512  # training images from which batch-norm learns its statistics anew
_SAMPLES = 200  # of a trial's weights, evenly spread: averaging all costs a small network a hundredth of its time


class AveragedWeights:
    """Over about the last tenth of `steps`; near the start, where that would be the initial weights, over less (decay
    (1 + t) / (10 + t) after t samples, as TensorFlow's ExponentialMovingAverage has it).

    torch's AveragedModel would read its counter from the device at each step, and take eight times as long.
    """

    def __init__(self, network: nn.Module, steps: int) -> None:
        self._every = max(1, steps // _SAMPLES)
        self._longest, self._updates = max(0.0, 1 - 10 * self._every / steps), 0
        self._average = deepcopy(network).requires_grad_(False)
        self._averaged = [parameter.detach() for parameter in self._average.parameters()]
        self._current = [parameter.detach() for parameter in network.parameters()]

    def update(self) -> None:
        """After each step."""
        samples, since = divmod(self._updates, self._every)
        self._updates += 1
        if since == 0:
            decay = min(self._longest, (1 + samples) / (10 + samples)) if samples else 0.0
            get_ema_multi_avg_fn(decay)(self._averaged, self._current, samples)

    def scores(self, data: Data, epoch: int, numeric: str) -> Scores:
        """On the validation set."""
        batches = -(-_STATISTICS // data.config.training.batch_size)
        with precision.autocast(data.device, numeric):
            update_bn((images for images, _ in islice(data.train_batches(epoch), batches)), self._average)
        return evaluate(self._average, data.batches(*data.valid), numeric)[0]

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "network": self._average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._updates = state["updates"]
        self._average.load_state_dict(state["network"])
