"""Preparation of one image: from an encoded file to the pixels that a network reads.

Training and `model.predict` prepare images here alone, because a network reads badly what is prepared otherwise.
"""

from dataclasses import dataclass

import numpy as np
import xxhash
from PIL import Image

from model.config import ImageSection


@dataclass(frozen=True)
class Prepared:
    """An image's pixels, uint8 (C, H, W), padded on the right beyond `width`."""

    pixels: np.ndarray
    width: int


def prepare(image: Image.Image, section: ImageSection) -> Prepared:
    """Resizes an image of mode L or RGB, as `image_files.to_color` returns it, and pads it to one of the widths.

    An image that is too wide for the widest is squeezed. Padding repeats the last column, so that augmentation moves
    no edge into the picture.
    """
    width = min(section.target_width(image.size), section.widest)
    if image.size != (width, section.height):
        shrinks = image.width >= width and image.height >= section.height
        # BOX averages the pixels that a new one covers. It would repeat pixels where an image grows.
        method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
        image = image.resize((width, section.height), method)
    padded = next(each for each in section.all_widths if each >= width)
    return Prepared(pad(to_array(image), padded), width)


def pad(pixels: np.ndarray, width: int) -> np.ndarray:
    """Pads an image (C, H, W) on the right to a width by repeating its last column. NumPy's `pad` takes ten times as
    long for images this small."""
    padded = np.empty((*pixels.shape[:2], width), pixels.dtype)
    padded[:, :, : pixels.shape[2]] = pixels
    padded[:, :, pixels.shape[2] :] = pixels[:, :, -1:]
    return padded


def to_array(image: Image.Image) -> np.ndarray:
    """uint8 (C, H, W) of an RGB or grey image."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def pixel_digest(image: Image.Image) -> bytes:
    """A 16-byte hash of an image's pixels, the same for the same picture in another file or format."""
    digest = xxhash.xxh3_128(f"{image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    return digest.digest()
