"""Freezes layers: their weights are not trained, and their batch norm keeps its statistics."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Self

from torch import nn

from model.config import shown


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that stays in evaluation mode, also while the network around it trains or an EMA of its weights
    computes its statistics anew (`torch.optim.swa_utils.update_bn`)."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def reset_running_stats(self) -> None:
        """Does nothing, except while the module is being created: only then it is in training mode."""
        if self.training:
            super().reset_running_stats()


def freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    """Freezes the weights whose own name or whose layer's name fits one of the patterns, such as `cnn.*` or `*.bias`.

    Batch norm of which all weights are frozen keeps its statistics too. Raises ValueError if a pattern fits no weight,
    or if no weight is left to train.
    """
    unused = [
        pattern for pattern in patterns if not any(_fits(name, pattern) for name, _ in network.named_parameters())
    ]
    if unused:
        layers = ", ".join(name for name, layer in network.named_modules() if name and [*layer.parameters()])
        raise ValueError(
            f"network.freeze must be name patterns of layers, got {shown(unused)}, which fits none of {layers}"
        )
    for name, parameter in network.named_parameters():
        if any(_fits(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"network.freeze must leave a layer to be trained, got {shown(patterns)}, which fit all")
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.BatchNorm2d) and not any(weight.requires_grad for weight in layer.parameters()):
            frozen = FrozenBatchNorm2d(layer.num_features, layer.eps, layer.momentum, device=layer.weight.device)
            frozen.load_state_dict(layer.state_dict())
            network.set_submodule(name, frozen.requires_grad_(False).eval())


def _fits(name: str, pattern: str) -> bool:
    """Whether the pattern fits the name of a weight, or of one of the modules that it is in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:length]), pattern) for length in range(1, len(parts) + 1))
