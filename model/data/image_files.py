"""Reads image files of common formats and converts images of any Pillow mode to the grey or RGB that networks read."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFilter, ImageOps, UnidentifiedImageError

from model.system.files import reason

# Pillow reads more formats, but starts other programs for some of them (EPS).
_FORMATS = {
    "PNG": [".png"],
    "JPEG": [".jpg", ".jpeg", ".jfif"],
    "BMP": [".bmp"],
    "GIF": [".gif"],
    "WEBP": [".webp"],
    "TIFF": [".tif", ".tiff"],
    "PPM": [".pbm", ".pgm", ".ppm", ".pnm"],
    "JPEG2000": [".jp2"],
    "ICO": [".ico"],
}
SUFFIXES = {suffix for suffixes in _FORMATS.values() for suffix in suffixes}
MAX_PIXELS = 50_000_000  # keeps the memory for one image below about a gigabyte


def read_image(path: Path, channels: int) -> Image.Image:
    """Reads the first frame of an image file, upright, in mode L (1 channel) or RGB (3).

    Raises ValueError with a message that names the file, which Pillow's own errors rarely do.
    """
    try:
        if path.exists() and not path.is_file():  # reading from a FIFO or a device may never end
            raise ValueError("not a regular file")
        with path.open("rb") as file:
            return decode(file, channels)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {reason(error)}") from None


def decode(file: BinaryIO, channels: int) -> Image.Image:
    """Decodes the first frame of an image, upright, in mode L (1 channel) or RGB (3). Raises ValueError."""
    try:
        with _opened(file) as image:
            return to_color(image, channels)
    except Exception as error:  # on damaged data, Pillow's decoders raise errors of many types
        raise ValueError(_problem(error, file)) from None


def size_of(file: BinaryIO) -> tuple[int, int]:
    """Width and height of an image, upright, without decoding its pixels. Raises ValueError."""
    try:
        with _opened(file) as image:
            width, height = image.size
            # Without EXIF data before the pixels of a PNG file, Pillow would decode these to look behind them.
            turned = image.format != "PNG" or "exif" in image.info
            turned = turned and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (height, width) if turned else (width, height)
    except Exception as error:
        raise ValueError(_problem(error, file)) from None


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata; Pillow's warnings don't name the file
        Image.init()  # registers all formats, not just the commonest
        with Image.open(file, formats=list(_FORMATS)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image


def _problem(error: Exception, file: BinaryIO) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"the image must have at most {MAX_PIXELS // 10**6} million pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format" if file.seek(0, io.SEEK_END) else "the file is empty"
    return reason(error)


def to_color(image: Image.Image, channels: int) -> Image.Image:
    """Converts an image to mode L (1 channel) or RGB (3), upright.

    Transparent images are composited on white, the colour of paper. Modes of more than 8 bits are scaled, see
    `_to_8_bits`. Pillow converts all others: 1 bit, palettes, CMYK, YCbCr, HSV and LAB. Dithered images are smoothed.
    """
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    elif image.has_transparency_data:
        image = _on_white(image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")  # also for 1 channel: Pillow can convert LAB to RGB only
    wanted = "L" if channels == 1 else "RGB"
    return _without_dither(image if image.mode == wanted else image.convert(wanted))


def _upright(image: Image.Image) -> Image.Image:
    """Rotates and mirrors the image as its EXIF orientation says."""
    image.load()
    with suppress(Exception):  # damaged EXIF data; the pixels have been read by `load`
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # without this, each image would be copied
            return ImageOps.exif_transpose(image)
    return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Converts an image of 16 or 32 bit integers or floats to mode L.

    The file does not say which value is white. White is taken to be the least of 1, 255, 4,095 (12 bits) and 65,535
    that no pixel exceeds, or else the brightest pixel. Black is 0, or minus white if there are negative values.
    """
    values = np.asarray(image).astype(np.float32)
    finite = values[np.isfinite(values)]
    lowest, highest = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    brightest = max(highest, -lowest)
    white = next((white for white in (1, 255, 4095, 65535) if brightest <= white), brightest)
    black = -white if lowest < 0 else 0
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = white
    scaled = np.nan_to_num((values - black) / (white - black), nan=1.0, posinf=1.0, neginf=0.0)
    return Image.fromarray((scaled * 255).round().astype(np.uint8))


_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}  # modes with premultiplied alpha, and the same without


def _on_white(image: Image.Image) -> Image.Image:
    color = image.info.get("transparency")
    if isinstance(color, tuple) and max(color) > 255:  # 16 bits, but Pillow has read only 8 bits of each pixel
        image.info["transparency"] = tuple(value >> 8 for value in color)
    image = image.convert(_STRAIGHT.get(image.mode, image.mode)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _without_dither(image: Image.Image) -> Image.Image:
    """Smooths a dithered image: one with only two colours and many dots of a single pixel.

    Such dots stand for a shade of grey. A network trained on images with shades can't read them unless smoothed.
    """
    if image.getcolors(2) is None:
        return image
    dark = np.pad(np.asarray(image.convert("L")) < 128, 1, mode="edge")
    inner = dark[1:-1, 1:-1]
    neighbours = (dark[:-2, 1:-1], dark[2:, 1:-1], dark[1:-1, :-2], dark[1:-1, 2:])
    dots = np.all([inner != neighbour for neighbour in neighbours], axis=0)
    # Dots were more than 4 % of the pixels in each of 200 dithered captchas, and less than 1 % in the same captchas
    # binarised at any threshold.
    return image.filter(ImageFilter.Kernel((3, 3), (1, 2, 1, 2, 6, 2, 1, 2, 1))) if dots.mean() > 0.02 else image
