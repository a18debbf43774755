"""Batches on a trial's device, from pools or from a stream of fresh images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.config import TrialConfig
from model.data.alphabet import Alphabet
from model.data.augmentation import augment
from model.data.captchas import Split, render
from model.data.pools import encode_padded, open_pool, pool_spec
from model.system.device import free_bytes
from model.system.seeds import derive

_BUSY = 256  # images in an accelerator's evaluation batch; smaller batches are limited by kernel launches

Batch = tuple[Tensor, Tensor]  # images uint8 (n, C, H, W); labels uint8 (n, L) padded with 0, on the CPU


class Data:
    """A trial's images. Raises FileNotFoundError if a pool in `folder` is missing or damaged.

    `workers` processes render a stream's images; with 0, the training process renders them itself.
    """

    def __init__(self, config: TrialConfig, folder: Path, device: torch.device, workers: int = 0) -> None:
        self.config, self.folder, self.device, self.workers = config, folder, device, workers
        self.valid = self.open("valid")
        self.train = self.open("train") if config.data.source == "pool" else None

    def open(self, split: Split) -> Batch:
        """Opens the pool of a split.

        The images are on the device if they take less than a quarter of its free memory, else in a memory-mapped file.
        """
        spec = pool_spec(self.config, split)
        pool = open_pool(spec, self.folder)
        if pool is None:
            raise FileNotFoundError(f"{self.folder / spec.name}: the image pool is missing or damaged")
        images, labels = torch.from_numpy(pool.images), torch.from_numpy(pool.labels)
        if self.device.type != "cpu" and pool.images.nbytes < free_bytes(self.device) / 4:
            images = images.to(self.device)
        return images, labels

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """Yields `steps_per_epoch` full batches; epochs count from 1.

        A pool's order and all augmentation are drawn from (seed, epoch), so a resumed trial needs no generator state.
        """
        training = self.config.training
        generator = torch.Generator().manual_seed(derive(training.seed, epoch, 1))  # path (epoch, 0) seeds dropout
        for images, labels in self._plain_batches(epoch, generator):
            yield augment(images.to(self.device, non_blocking=True), training.augmentation, generator), labels

    def _plain_batches(self, epoch: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches without augmentation, on the device or the host, wherever the images are stored."""
        size = self.config.training.batch_size
        count = self.config.steps_per_epoch * size
        if self.train is None:
            first = (epoch - 1) * self.config.data.train_images
            fresh = DataLoader(
                _Captchas(self.config),
                batch_size=size,
                sampler=range(first, first + count),
                num_workers=self.workers,
                pin_memory=self.device.type != "cpu",
            )
            yield from fresh
        else:
            pool_images, pool_labels = self.train
            order = torch.randperm(len(pool_labels), generator=generator)[:count]
            there = order.to(pool_images.device)
            for rows, labels in zip(there.split(size), pool_labels[order].split(size), strict=True):
                images = pool_images.index_select(0, rows)  # on the CPU ten times as fast as indexing
                # A batch in pinned memory is copied while the device still trains on the one before. The comparison
                # is of types, because a tensor's device has an index and `cuda:0` does not equal `cuda`.
                yield images if images.device.type == self.device.type else images.pin_memory(), labels

    def batches(self, images: Tensor, labels: Tensor, size: int | None = None) -> Iterator[Batch]:
        """Yields batches of a split, in order.

        The default size is that of training, for which memory is already allocated, but on an accelerator at least
        `_BUSY`, to keep it busy.
        """
        if size is None:
            size = max(self.config.training.batch_size, 1 if self.device.type == "cpu" else _BUSY)
        for some_images, some_labels in zip(images.split(size), labels.split(size), strict=True):
            yield some_images.to(self.device), some_labels


class _Captchas(Dataset[tuple[np.ndarray, np.ndarray]]):
    """An endless training set: every index gives an image, uint8 (C, H, W), and its label, uint8 (L,)."""

    def __init__(self, config: TrialConfig) -> None:
        self.captcha, self.seed = config.captcha, config.data.seed
        self.alphabet = Alphabet(config.captcha.characters)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, text = render(self.captcha, self.seed, "train", index)
        return image.copy(), encode_padded(self.alphabet, text, self.captcha.lengths[1])
