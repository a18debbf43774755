"""Assigns images to splits by a hash, so that each image stays in its split whatever is added or removed."""

import hashlib
from collections.abc import Sequence

from model.data.pool_file import Split


def assign(key: bytes, seed: int, fractions: Sequence[float]) -> Split:
    """The split of an image or a group of images with this key; fractions are those of train, valid and test."""
    digest = hashlib.blake2b(key, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    point = int.from_bytes(digest, "little") / 2**64
    train, valid, _ = fractions
    return "train" if point < train else "valid" if point < train + valid else "test"
