"""Image pools: prepared once, then shared by all trials. Makes those that are missing, and opens them.

This module doesn't import torch, so that the processes that prepare images start fast.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from model.config import TrialConfig
from model.data.cache import locked, remove_leftovers
from model.data.pool_file import SPLITS, Pool, PoolSpec, Split, open_pool
from model.data.source import source_of
from model.data.workers import Progress, refuse_unguarded_script


def splits(config: TrialConfig, test: bool = False) -> list[Split]:
    """The splits that lie in pools. A stream has no pool for training: its images are rendered when used."""
    wanted = {"train": config.data.source == "pool", "valid": True, "test": test}
    return [split for split in SPLITS if wanted[split]]


def pool_specs(config: TrialConfig, test: bool = False) -> list[PoolSpec]:
    """The pools that a config's trials read, with those of the test set if `test`."""
    return [spec for split in splits(config, test) for spec in source_of(config).specs(split)]


def pool_sizes(config: TrialConfig, test: bool = False) -> dict[str, int]:
    """The files of these pools, with their sizes in bytes. What is known of a split's size is shared by its pools."""
    source, sizes = source_of(config), dict[str, int]()
    for split in splits(config, test):
        specs = source.specs(split)
        sizes |= {spec.name: source.file_bytes(split) // len(specs) for spec in specs}
    return sizes


class SplitPools:
    """All images of a split, numbered through its pools, of which there is one for each width."""

    def __init__(self, pools: list[Pool]) -> None:
        self.pools = [pool for pool in pools if len(pool)] or pools[:1]

    def __len__(self) -> int:
        return sum(map(len, self.pools))

    @cached_property
    def labels(self) -> np.ndarray:
        """All labels, (N, L)."""
        return np.concatenate([pool.labels for pool in self.pools])

    def pictures(self, rows: Sequence[int]) -> list[np.ndarray]:
        """The images with these numbers, uint8 (C, H, W), without their padding."""
        found = []
        for row in rows:
            for pool in self.pools:
                if row < len(pool):
                    found.append(pool.images[row, :, :, : pool.widths[row]])
                    break
                row -= len(pool)
        return found


def open_split(config: TrialConfig, split: Split, folder: Path) -> SplitPools | None:
    """Opens the pools of a split. Returns None if one of them is missing or damaged."""
    pools = [open_pool(spec, folder) for spec in source_of(config).specs(split)]
    found = [pool for pool in pools if pool is not None]
    return SplitPools(found) if len(found) == len(pools) else None


def ensure_pools(
    config: TrialConfig, folder: Path, workers: int, progress: Progress | None = None, test: bool = False
) -> bool:
    """Makes missing or damaged pools with `workers` processes and returns whether it made any. Raises OSError.

    A folder that has all pools is only read, so it may belong to another user. If two sweeps start at the same time,
    the second waits for the lock and then finds the files of the first.
    """
    refuse_unguarded_script()
    made = False
    # If the folder is deleted meanwhile, create it again, at most twice.
    for attempts_left in (2, 1, 0):
        missing = missing_pools(config, folder, test, whole=True)
        if not missing:
            break
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                missing = [spec for spec in missing if open_pool(spec, folder, whole=True) is None]
                if missing:
                    remove_leftovers(folder)
                    source_of(config).make(missing, folder, workers, progress or (lambda done, total: None))
                    made = True
        except FileNotFoundError:
            if not attempts_left or folder.exists():
                raise
    return made


def missing_pools(config: TrialConfig, folder: Path, test: bool = False, whole: bool = False) -> list[PoolSpec]:
    """The pools that a config's trials read but that can't be opened; for `whole` see `open_pool`."""
    return [spec for spec in pool_specs(config, test) if open_pool(spec, folder, whole) is None]
