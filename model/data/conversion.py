"""What worker processes do with a user's own images: read their sizes, decode them, and copy them into pools.

Decoded images lie in the spool, a temporary file with one slot for each, until it is known to which pool each belongs.
"""

import io
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model.config.images import ImagesConfig
from model.data import image_files, pool_file
from model.data.alphabet import Alphabet
from model.data.pool_file import Shape
from model.data.preparation import pixel_digest, prepare
from model.data.readers.row import Reader

Found = tuple[str | None, int | None, int | None, bytes | None, int | None, int | None, bool | None, int]


@dataclass(frozen=True)
class Spool:
    """A file with a slot of `slot` bytes for each image, at its position in the catalog."""

    path: Path
    slot: int


def target_widths(reader: Reader, section: ImagesConfig, names: Sequence[str]) -> list[int]:
    """The widths that images get before padding. Reads only their headers; those that can't be read are left out."""
    found = []
    for data in reader.read(names):
        with suppress(ValueError):
            if not isinstance(data, str):
                found.append(section.target_width(image_files.size_of(io.BytesIO(data))))
    return found


def decode(
    reader: Reader, section: ImagesConfig, spool: Spool | None, positions: Sequence[int], names: Sequence[str]
) -> list[Found]:
    """Decodes some images and writes their pixels to the spool.

    Returns of each: the problem, its width and height, the digest of its pixels, its width after resizing, without and
    with padding, whether it was squeezed, and its position.
    """
    rows: list[Found] = []
    file = None if spool is None else os.open(spool.path, os.O_WRONLY)
    try:
        for position, data in zip(positions, reader.read(names), strict=True):
            if isinstance(data, str):
                rows.append((data, None, None, None, None, None, None, position))
                continue
            try:
                image = image_files.decode(io.BytesIO(data), section.channels)
            except ValueError as error:
                rows.append((f"unreadable: {error}", None, None, None, None, None, None, position))
                continue
            prepared = prepare(image, section)
            squeezed = section.target_width(image.size) > section.widest
            padded = prepared.pixels.shape[2]
            rows.append((None, *image.size, pixel_digest(image), prepared.width, padded, squeezed, position))
            if file is not None:
                assert spool is not None
                os.pwrite(file, prepared.pixels.data, position * spool.slot)
    finally:
        if file is not None:
            os.close(file)
    return rows


def copy_to_pool(
    spool: Spool, path: Path, shape: Shape, characters: str, start: int, images: Sequence[tuple[int, str, int]]
) -> None:
    """Copies images, given as position, text and width, from the spool into a pool, from the place `start` on."""
    positions, texts, widths = zip(*images, strict=True)
    alphabet, size = Alphabet(characters), shape.channels * shape.height * shape.width
    labels = [alphabet.encode_padded(text, shape.longest) for text in texts]
    with spool.path.open("rb") as pixels, path.open("rb+") as pool:
        copied = b"".join([os.pread(pixels.fileno(), size, position * spool.slot) for position in positions])
        pool_file.write(pool, shape, start, widths, labels, copied)
