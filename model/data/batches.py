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

_BUSY = 256  # images that an accelerator evaluates at once; in smaller batches it waits for launches

Batch = tuple[Tensor, Tensor]  # images uint8 (n, C, H, W); labels uint8 (n, L) padded with 0, on the CPU


class Data:
    """A trial's images. Raises FileNotFoundError if a pool in `folder` is missing or damaged.

    `workers` processes render a stream's images; with 0 the training process does it itself.
    """

    def __init__(self, config: TrialConfig, folder: Path, device: torch.device, workers: int = 0) -> None:
        self.config, self.folder, self.device, self.workers = config, folder, device, workers
        self.valid = self.open("valid")
        self.train = self.open("train") if config.data.source == "pool" else None

    def open(self, split: Split) -> Batch:
        """On the device if the images take less than a quarter of what is free there, else in mapped host memory."""
        spec = pool_spec(self.config, split)
        pool = open_pool(spec, self.folder)
        if pool is None:
            raise FileNotFoundError(f"{self.folder / spec.name}: the image pool is missing or damaged")
        images, labels = torch.from_numpy(pool.images), torch.from_numpy(pool.labels)
        if self.device.type != "cpu" and pool.images.nbytes < free_bytes(self.device) / 4:
            images = images.to(self.device)
        return images, labels

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """`steps_per_epoch` full batches; epochs count from 1. A pool's order and all augmentation are drawn from
        (seed, epoch), so a resumed trial needs no generator's state."""
        training = self.config.training
        generator = torch.Generator().manual_seed(derive(training.seed, epoch, 1))  # 0 is the network's dropout
        for images, labels in self._plain_batches(epoch, generator):
            yield augment(images.to(self.device, non_blocking=True), training.augmentation, generator), labels

    def _plain_batches(self, epoch: int, generator: torch.Generator) -> Iterator[Batch]:
        """Images where they lie, on the device or on the host."""
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
                images = pool_images.index_select(0, rows)  # ten times as fast as indexing, on the CPU
                # From pinned memory a batch travels while the device still trains on the last one. Types are compared:
                # a tensor's device has an index, so `cuda:0` is not `cuda`.
                yield images if images.device.type == self.device.type else images.pin_memory(), labels

    def batches(self, images: Tensor, labels: Tensor, size: int | None = None) -> Iterator[Batch]:
        """Of a split, in its order; by default as many at once as in training, whose memory is there already, but on an
        accelerator no fewer than it needs to be busy."""
        if size is None:
            size = max(self.config.training.batch_size, 1 if self.device.type == "cpu" else _BUSY)
        for some_images, some_labels in zip(images.split(size), labels.split(size), strict=True):
            yield some_images.to(self.device), some_labels


class _Captchas(Dataset[tuple[np.ndarray, np.ndarray]]):
    """The training set without end: any index gives an image and its label."""

    def __init__(self, config: TrialConfig) -> None:
        self.captcha, self.seed = config.captcha, config.data.seed
        self.alphabet = Alphabet(config.captcha.characters)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, text = render(self.captcha, self.seed, "train", index)
        return image.copy(), encode_padded(self.alphabet, text, self.captcha.lengths[1])
