"""An exponential moving average of a network's weights: how good it would be if its rate were lowered now.

While the learning rate is high, validation scores of the weights themselves say as much of the last few steps as of the
trial; those of the average foretell the end.
"""

from itertools import islice

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from model import precision
from model.data import Data
from model.evaluation import Scores, evaluate

_Tensors = tuple[Tensor, ...] | list[Tensor]
_STATISTICS = 512  # training images from which batch-norm learns its statistics anew


class AveragedWeights:
    """Over about the last tenth of `steps`; near the start, where that would be the initial weights, over less (decay
    (1 + t) / (10 + t) after t steps, as TensorFlow's ExponentialMovingAverage has it)."""

    def __init__(self, network: nn.Module, steps: int) -> None:
        self._network, self._longest = network, max(0.0, 1 - 10 / steps)
        self._average = AveragedModel(network, multi_avg_fn=self._mix)

    def _mix(self, averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        decay = min(self._longest, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(decay)(averaged, current, count)

    def update(self) -> None:
        """After each step."""
        self._average.update_parameters(self._network)

    def scores(self, data: Data, epoch: int, numeric: str) -> Scores:
        """On the validation set."""
        batches = -(-_STATISTICS // data.config.training.batch_size)
        with precision.autocast(data.device, numeric):
            update_bn((images for images, _ in islice(data.train_batches(epoch), batches)), self._average)
        return evaluate(self._average, data.batches(*data.valid), numeric)[0]

    def state_dict(self) -> dict[str, Tensor]:
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._average.load_state_dict(state)
