"""The optimisers by name."""

from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from model.config import OptimizerConfig
from model.system.malloc import collector_paused

Parameters = Iterable[nn.Parameter]

# `fused` updates all tensors in one kernel, on CUDA and on CPU.
OPTIMIZERS: dict[str, Callable[[Parameters, OptimizerConfig], Optimizer]] = {
    "adam": lambda parameters, c: Adam(parameters, lr=c.lr, weight_decay=c.weight_decay, fused=True),
    "adamw": lambda parameters, c: AdamW(parameters, lr=c.lr, weight_decay=c.weight_decay, fused=True),
    "sgd": lambda parameters, c: SGD(
        parameters,
        lr=c.lr,
        weight_decay=c.weight_decay,
        momentum=c.momentum,
        nesterov=c.momentum > 0,
        fused=True,
    ),
}


@collector_paused()  # creating the first optimiser makes torch import its compiler
def make_optimizer(parameters: Parameters, config: OptimizerConfig) -> Optimizer:
    """Creates the optimiser of those parameters that are not frozen."""
    return OPTIMIZERS[config.name]([parameter for parameter in parameters if parameter.requires_grad], config)
