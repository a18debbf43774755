"""Scores of a network over a set of images, and the images it reads worst."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.network import ctc
from model.training.precision import autocast


@dataclass(frozen=True)
class Scores:
    """Means over images: CTC's `loss` per character, `error_rate` of whole texts, `cer` of characters."""

    loss: float
    error_rate: float
    cer: float

    @property
    def acc(self) -> float:
        return 1 - self.error_rate

    def tagged(self, prefix: str) -> dict[str, float]:
        names = ("loss", "acc", "error_rate", "cer")
        return {f"{prefix}/{name}": getattr(self, name) for name in names}


@dataclass(frozen=True)
class Samples:
    """Images of a set, on the CPU, by descending loss: rows (n,) in the set, labels and readings (n, ·), and each
    image's own CTC loss (n,)."""

    rows: Tensor
    labels: Tensor
    decoded: Tensor
    losses: Tensor

    def worst(self, count: int = 16) -> "Samples":
        return Samples(self.rows[:count], self.labels[:count], self.decoded[:count], self.losses[:count])

    def in_order(self) -> "Samples":
        """Of a whole set: row by row."""
        order = self.rows.argsort()
        return Samples(self.rows[order], self.labels[order], self.decoded[order], self.losses[order])


def score(losses: Tensor, decoded: Tensor, labels: Tensor) -> Scores:
    """Weighs each image the same, however they were batched. Losses (N,) are those of whole texts."""
    loss, accuracy = loss_and_accuracy(losses, decoded, labels)
    return Scores(loss, 1 - accuracy, ctc.character_error_rate(decoded, labels))


def loss_and_accuracy(losses: Tensor, decoded: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss per character, and exact match."""
    accuracy = ctc.exact_matches(decoded, labels).double().mean()
    return float(ctc.mean_per_character(losses.double(), labels)), float(accuracy)


def by_loss(losses: Tensor, decoded: Tensor, labels: Tensor) -> Samples:
    order = losses.argsort(descending=True, stable=True)
    return Samples(order, labels[order], decoded[order], losses[order])


@torch.no_grad()
def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str) -> tuple[Scores, Samples]:
    """All images, with their scores. Leaves the network in evaluation mode."""
    network.eval()
    losses, paths, truths = [], [], []
    for images, labels in batches:
        with autocast(images.device, precision):
            logits = network(images)
        losses.append(ctc.ctc_losses(logits, labels))
        paths.append(ctc.best_path(logits))
        truths.append(labels)
    result = (torch.cat(losses).cpu(), ctc.collapse(torch.cat(paths).cpu()), torch.cat(truths))
    return score(*result), by_loss(*result)
