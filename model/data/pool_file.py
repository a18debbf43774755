"""The file of an image pool: prepared images and their labels, mapped into the memory of all processes that read them.

A file is a 4,096-byte header (magic, JSON, checksums), then the images' true widths, int32 (N,), the labels (N, L),
class indices padded with 0, and the images, uint8 (N, C, H, W). Its name holds a hash of all that determines its bytes.
"""

import errno
import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

_MAGIC = b"crnn-pool-3\n"
_HEADER_BYTES = 4096
_CHECKSUM_BYTES = 8  # CRC-32 of all that follows the header in hexadecimal, at the header's end


@dataclass(frozen=True)
class Pool:
    """Images of one width, memory-mapped.

    `images` are uint8 (N, C, H, W), padded on the right beyond `widths`, int32 (N,). `Alphabet.decode` turns `labels`
    (N, L) into texts.
    """

    widths: np.ndarray
    labels: np.ndarray
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Shape:
    """The sizes of a pool's arrays."""

    count: int
    channels: int
    height: int
    width: int
    longest: int  # L, the length of the longest text
    label_type: str  # NumPy's name

    @property
    def arrays(self) -> tuple[tuple[Any, tuple[int, ...]], ...]:
        """Type and shape of widths, labels and images, in the file's order, in which each is aligned."""
        images = (self.count, self.channels, self.height, self.width)
        return ((np.int32, (self.count,)), (self.label_type, (self.count, self.longest)), (np.uint8, images))

    @property
    def file_bytes(self) -> int:
        return _HEADER_BYTES + sum(int(np.dtype(kind).itemsize * np.prod(shape)) for kind, shape in self.arrays)


@dataclass(frozen=True)
class PoolSpec:
    """Names a pool by everything that determines its bytes: `contents`, as JSON."""

    split: Split
    count: int  # images of the split, in pools of all widths
    width: int
    contents: str

    @classmethod
    def of(cls, split: Split, count: int, width: int, contents: Mapping[str, Any]) -> "PoolSpec":
        everything = {"split": split, "count": count, "width": width, **contents}
        return cls(split, count, width, json.dumps(everything, sort_keys=True))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.contents.encode()).hexdigest()

    @property
    def name(self) -> str:
        return f"{self.split}-{self.count}-{self.digest[:16]}.pool"

    def header(self, shape: Shape) -> bytes:
        body = json.dumps({"contents": self.digest, **asdict(shape)}).encode()
        header = _MAGIC + f"{zlib.crc32(body):08x} {len(body):06d}\n".encode() + body
        return header.ljust(_HEADER_BYTES - _CHECKSUM_BYTES, b"\0")


def label_type(classes: int) -> str:
    """The smallest type that holds the class indices of an alphabet and that torch computes with."""
    return "uint8" if classes <= 2**8 else "int16" if classes <= 2**15 else "int32"


def create(path: Path, spec: PoolSpec, shape: Shape, reserve: Any) -> None:
    """Creates a pool's file without images. `reserve` takes the disk space of a file descriptor."""
    with path.open("xb") as file:
        file.write(spec.header(shape))
        file.flush()
        reserve(file.fileno(), shape.file_bytes)


def open_pool(spec: PoolSpec, folder: Path, whole: bool = False) -> Pool | None:
    """Opens a pool. Returns None if the file is missing, is truncated or has another header than `spec`.

    With `whole`, verifies the checksum too, which reads the whole file, and returns None if it doesn't fit. Raises
    OSError if this process or the machine has too many open files or too little memory.
    """
    path = folder / spec.name
    try:
        with path.open("rb") as file:
            header, checksum = file.read(_HEADER_BYTES - _CHECKSUM_BYTES), file.read(_CHECKSUM_BYTES)
            shape = _shape(header)
            if shape is None or header != spec.header(shape) or path.stat().st_size != shape.file_bytes:
                return None
            if whole and checksum != _checksum(file):
                return None
        return mapped(path, shape, "c")  # copy-on-write: shares the page cache, and torch wants writable memory
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # too many open files or too little memory, which says nothing about the pool
        return None
    except ValueError:  # the file has been truncated since its size was looked at
        return None


def mapped(path: Path, shape: Shape, mode: Any) -> Pool:
    """Maps a pool's arrays. An array without elements, which no system can map, lies in memory."""
    arrays, offset = [], _HEADER_BYTES
    for kind, size in shape.arrays:
        array = np.memmap(path, kind, mode, offset, size) if np.prod(size) else np.empty(size, kind)
        arrays.append(array)
        offset += array.nbytes
    return Pool(*arrays)


def write(
    file: BinaryIO, shape: Shape, place: int, widths: Sequence[int], labels: Sequence[np.ndarray], images: bytes
) -> None:
    """Writes images with their widths and labels into a pool that `create` made, from the number `place` on.

    Not through `mapped`, with which the whole pool would count as this process's memory.
    """
    offset = _HEADER_BYTES
    for (kind, size), values in zip(shape.arrays, (widths, labels, np.frombuffer(images, np.uint8)), strict=True):
        one = np.dtype(kind).itemsize * math.prod(size[1:])
        file.seek(offset + place * one)
        file.write(np.ascontiguousarray(values, kind).data)
        offset += size[0] * one


def seal(path: Path) -> None:
    """Writes the checksum of a pool that is complete, and syncs the file to the disk."""
    with path.open("rb+") as file:
        checksum = _checksum(file)
        file.seek(_HEADER_BYTES - _CHECKSUM_BYTES)
        file.write(checksum)
        file.flush()
        os.fsync(file.fileno())


def _shape(header: bytes) -> Shape | None:
    try:
        body = json.loads(header[len(_MAGIC) + 16 :].rstrip(b"\0"))
        return Shape(**{key: value for key, value in body.items() if key != "contents"})
    except (ValueError, TypeError, AttributeError):
        return None


def _checksum(file: BinaryIO) -> bytes:
    """CRC-32 of all that follows the header, in hexadecimal."""
    file.seek(_HEADER_BYTES)
    checksum = 0
    while block := file.read(1 << 22):
        checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}".encode()
