"""Evaluates a network on a set of images: its scores, and the images that it reads worst."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.data.alphabet import BLANK
from model.data.batches import Batch
from model.network import ctc
from model.network.crnn import CRNN
from model.training.precision import autocast
from model.training.scores import Scores, scores_of


@dataclass(frozen=True)
class Readings:
    """What a network read in N images, on the CPU: CTC losses of whole texts (N,), decoded texts and labels (N, ·).

    Each image has the same weight, whatever the sizes of the batches.
    """

    losses: Tensor
    decoded: Tensor
    labels: Tensor

    @property
    def loss(self) -> float:
        """Mean CTC loss per character."""
        return float(ctc.mean_per_character(self.losses.double(), self.labels))

    @property
    def error_rate(self) -> float:
        return 1 - float(ctc.exact_matches(self.decoded, self.labels).double().mean())

    @property
    def character_error_rate(self) -> float:
        return ctc.character_error_rate(self.decoded, self.labels)


@dataclass(frozen=True)
class Samples:
    """Images of a set by descending CTC loss, on the CPU.

    `rows` (n,) are their indices in the set; `labels` and `decoded` texts are (n, ·), `losses` of whole texts (n,).
    """

    rows: Tensor
    labels: Tensor
    decoded: Tensor
    losses: Tensor

    @property
    def blank_share(self) -> float:
        """The share of images in which nothing is read, because the best path is blank at every time step."""
        return float((self.decoded == BLANK).all(1).double().mean())

    def worst(self, count: int = 16) -> "Samples":
        return Samples(self.rows[:count], self.labels[:count], self.decoded[:count], self.losses[:count])

    def in_order(self) -> "Samples":
        """The samples by ascending row. Of samples of a whole set, number i is image i."""
        order = self.rows.argsort()
        return Samples(self.rows[order], self.labels[order], self.decoded[order], self.losses[order])


def by_loss(readings: Readings) -> Samples:
    order = readings.losses.argsort(descending=True, stable=True)
    return Samples(order, readings.labels[order], readings.decoded[order], readings.losses[order])


@torch.no_grad()
def evaluate(network: CRNN, batches: Iterable[Batch], precision: str) -> tuple[Scores, Samples]:
    """Reads all images and returns scores and samples. Leaves the network in evaluation mode."""
    network.eval()
    losses, paths, truths = [], [], []
    for images, labels, widths in batches:
        with autocast(images.device, precision):
            logits = network(images, widths)
        steps = network.time_steps(widths)
        losses.append(ctc.ctc_losses(logits, labels, steps))
        paths.append(ctc.best_path(logits, steps))
        truths.append(labels)
    readings = Readings(torch.cat(losses).cpu(), ctc.collapse(ctc.join(paths).cpu()), torch.cat(truths))
    return scores_of(readings), by_loss(readings)
