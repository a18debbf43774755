"""Where images come from: a Source names the pools of each split and makes them.

Pools, batches, badcases and reports ask it alone; nothing else tells drawn images from a user's own.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from model.config import TrialConfig
from model.data.drawn_images import DrawnImages
from model.data.own_images import OwnImages
from model.data.pool_file import PoolSpec, Split
from model.data.workers import Progress


class Source(Protocol):
    def specs(self, split: Split) -> list[PoolSpec]:
        """The pools of a split, one for each width of its images, by ascending width."""

    def make(self, missing: list[PoolSpec], folder: Path, workers: int, progress: Progress) -> None:
        """Writes these pools with `workers` processes. Raises OSError."""

    def file_bytes(self, split: Split) -> int:
        """The size of the split's pools on the disk, at most."""

    def findings(self, folder: Path, bad_images: Path) -> list[str]:
        """Lines about the images of a user. Lists those that can't be used in the CSV file `bad_images`."""

    def fresh(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """An image of an endless training set, uint8 (C, H, W), and its label (L,)."""


def source_of(config: TrialConfig) -> Source:
    """The source of a config's images."""
    return DrawnImages(config) if config.images is None else OwnImages(config)
