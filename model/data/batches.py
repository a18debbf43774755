"""Batches on a trial's device, from pools or from a stream of fresh images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.config import TrialConfig
from model.data.augmentation import augment
from model.data.pool_file import Split
from model.data.pools import open_split
from model.data.source import source_of
from model.system.device import free_bytes
from model.system.seeds import derive

_BUSY = 256  # images in an accelerator's evaluation batch; smaller batches are limited by kernel launches


@dataclass(frozen=True)
class Batch:
    """Images uint8 (n, C, H, W); labels (n, L) padded with 0, on the CPU; and widths (n,) without padding, on the CPU.

    `widths` is None if no image of the set is padded.
    """

    images: Tensor
    labels: Tensor
    widths: Tensor | None

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Any]:
        """Images, labels and widths, so that a batch can be unpacked."""
        return iter((self.images, self.labels, self.widths))

    def rows(self, rows: Tensor) -> "Batch":
        """Some images, copied. On the CPU this is ten times as fast as indexing."""
        images = self.images.index_select(0, rows.to(self.images.device))
        return Batch(images, self.labels[rows], None if self.widths is None else self.widths[rows])


class Data:
    """A trial's images. Raises FileNotFoundError if a pool in `folder` is missing or damaged.

    `valid` and `train` hold a Batch for each width of images. `workers` processes render a stream's images; with 0, the
    training process renders them itself.
    """

    def __init__(self, config: TrialConfig, folder: Path, device: torch.device, workers: int = 0) -> None:
        self.config, self.folder, self.device, self.workers = config, folder, device, workers
        self.valid = self.open("valid")
        self.train = self.open("train") if config.data.source == "pool" else []
        self.padded = any(batch.widths is not None for batch in (*self.valid, *self.train))

    def open(self, split: Split) -> list[Batch]:
        """Opens the pools of a split that have images.

        The images are on the device if they take less than a quarter of its free memory, else in memory-mapped files.
        """
        opened = open_split(self.config, split, self.folder)
        if opened is None:
            names = ", ".join(spec.name for spec in source_of(self.config).specs(split))
            raise FileNotFoundError(f"{self.folder / names}: the image pool is missing or damaged")
        pools = opened.pools
        total = sum(pool.images.nbytes for pool in pools)
        moves = self.device.type != "cpu" and total < free_bytes(self.device) / 4
        padded = any((pool.widths != pool.images.shape[3]).any() for pool in pools) or len(pools) > 1
        return [
            Batch(
                torch.from_numpy(pool.images).to(self.device if moves else "cpu"),
                torch.from_numpy(pool.labels),
                torch.from_numpy(pool.widths) if padded else None,
            )
            for pool in pools
        ]

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """Yields `steps_per_epoch` full batches; epochs count from 1.

        A pool's order and all augmentation are drawn from (seed, epoch), so a resumed trial needs no generator state.
        """
        training = self.config.training
        generator = torch.Generator().manual_seed(derive(training.seed, epoch, 1))  # path (epoch, 0) seeds dropout
        for images, labels, widths in self._plain_batches(epoch, generator):
            images = augment(images.to(self.device, non_blocking=True), training.augmentation, generator)
            yield Batch(images, labels, widths)

    def _plain_batches(self, epoch: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches without augmentation, on the device or the host, wherever the images are stored."""
        size = self.config.training.batch_size
        if not self.train:
            first = (epoch - 1) * self.config.data.train_images
            fresh = DataLoader(
                _Fresh(self.config),
                batch_size=size,
                sampler=range(first, first + self.config.steps_per_epoch * size),
                num_workers=self.workers,
                pin_memory=self.device.type != "cpu",
            )
            for images, labels in fresh:
                yield Batch(images, labels, None)
            return
        for parts in self._shuffled(size, generator):
            batch = _joined([self.train[width].rows(rows) for width, rows in parts])
            # A batch in pinned memory is copied while the device still trains on the one before. The comparison
            # is of types, because a tensor's device has an index and `cuda:0` does not equal `cuda`.
            here = batch.images.device.type == self.device.type
            yield batch if here else replace(batch, images=batch.images.pin_memory())

    def _shuffled(self, size: int, generator: torch.Generator) -> Iterator[list[tuple[int, Tensor]]]:
        """Yields the images of each batch as (index of the width, rows), in random order.

        The images of one width make full batches. Those that are left over join the images of the next width.
        """
        batches: list[list[tuple[int, Tensor]]] = []
        left: list[tuple[int, Tensor]] = []
        for width, images in enumerate(self.train):
            order = torch.randperm(len(images), generator=generator)
            missing = size - sum(len(rows) for _, rows in left)
            if left and len(order) >= missing:
                batches.append([*left, (width, order[:missing])])
                left, order = [], order[missing:]
            full = len(order) // size * size if not left else 0
            batches += [[(width, rows)] for rows in order[:full].split(size)] if full else []
            if len(order) > full:
                left.append((width, order[full:]))
        # With one width the images are in random order already.
        mixed = list(range(len(batches)))
        if len(self.train) > 1:
            mixed = torch.randperm(len(batches), generator=generator).tolist()
        yield from (batches[number] for number in mixed)

    def batches(self, images: Sequence[Batch], size: int | None = None) -> Iterator[Batch]:
        """Yields batches of a split, in order.

        The default size is that of training, for which memory is already allocated, but on an accelerator at least
        `_BUSY`, to keep it busy.
        """
        if size is None:
            size = max(self.config.training.batch_size, 1 if self.device.type == "cpu" else _BUSY)
        for whole in images:
            widths = [None] * len(whole) if whole.widths is None else whole.widths.split(size)
            for some, labels, own in zip(whole.images.split(size), whole.labels.split(size), widths, strict=False):
                yield Batch(some.to(self.device), labels, own)


def pictures(images: Sequence[Batch], rows: Sequence[int]) -> list[Tensor]:
    """The images with these numbers in all of a split, uint8 (C, H, W), on the CPU and without their padding."""
    found = []
    for row in rows:
        for batch in images:
            if row < len(batch):
                width = batch.images.shape[3] if batch.widths is None else int(batch.widths[row])
                found.append(batch.images[row, :, :, :width].cpu())
                break
            row -= len(batch)
    return found


def _joined(parts: list[Batch]) -> Batch:
    """Joins images of several widths to one batch, padded to the widest by repeating the last column."""
    if len(parts) == 1:
        return parts[0]
    widest = max(part.images.shape[3] for part in parts)
    padded = []
    for images, _, _ in parts:
        last = images[:, :, :, -1:].expand(-1, -1, -1, widest - images.shape[3])
        padded.append(torch.cat([images, last], 3))
    widths = [part.widths for part in parts if part.widths is not None]
    return Batch(torch.cat(padded), torch.cat([part.labels for part in parts]), torch.cat(widths))


class _Fresh(Dataset[tuple[np.ndarray, np.ndarray]]):
    """An endless training set: every index gives an image, uint8 (C, H, W), and its label (L,)."""

    def __init__(self, config: TrialConfig) -> None:
        self._source = source_of(config)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._source.fresh(index)
