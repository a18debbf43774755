"""Reads image files of any common format and turns each of Pillow's modes into the grey or RGB that networks read."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from model.system.files import reason

# Pillow reads more formats, but some by starting other programs (EPS).
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
MAX_PIXELS = 50_000_000  # so that no image takes more than about a gigabyte of memory


def read_image(path: Path, channels: int) -> Image.Image:
    """The first frame of an image file, upright, in mode L (1 channel) or RGB (3). Raises ValueError with a sentence
    that names the file, which Pillow's own errors rarely do."""
    try:
        if path.exists() and not path.is_file():  # from a FIFO or a device one may read for ever
            raise ValueError("not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which would not name the file either
            Image.init()  # else Pillow knows only the commonest formats
            with Image.open(path, formats=list(_FORMATS)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                return to_color(image, channels)
    except Image.DecompressionBombError:
        problem = f"the image must have at most {MAX_PIXELS // 10**6} million pixels"
    except UnidentifiedImageError:
        problem = "not an image of a known format" if path.stat().st_size else "the file is empty"
    except Exception as error:  # Pillow's decoders raise whatever they meet in damaged data
        problem = reason(error)
    raise ValueError(f"{path}: {problem}")


def to_color(image: Image.Image, channels: int) -> Image.Image:
    """The image upright and in mode L (1 channel) or RGB (3).

    Transparency is laid on white, as paper is. Modes of more than 8 bits are scaled, see `_to_8_bits`. All others are
    converted by Pillow: 1 bit, palettes, CMYK, YCbCr, HSV and LAB. A dithered picture is smoothed.
    """
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    elif image.has_transparency_data:
        image = _on_white(image)
    if image.mode != "L":
        image = image.convert("RGB")  # also for 1 channel: Pillow converts LAB to nothing else
    return _without_dither(image.convert("L" if channels == 1 else "RGB"))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF's orientation says."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data say nothing of the pixels, which have been read
        return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Mode L of an image in 16 or 32 bit integers or floats.

    The file does not say which value is white. It is the least of 1, 255, 4,095 (12 bits) and 65,535 that no pixel
    exceeds, else the brightest pixel. Black is 0, or minus white where there are negative values.
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


_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}  # modes whose colours are multiplied by their alpha


def _on_white(image: Image.Image) -> Image.Image:
    color = image.info.get("transparency")
    if isinstance(color, tuple) and max(color) > 255:  # of 16 bits, of which Pillow has read 8 bits of each pixel
        image.info["transparency"] = tuple(value >> 8 for value in color)
    image = image.convert(_STRAIGHT.get(image.mode, image.mode)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _without_dither(image: Image.Image) -> Image.Image:
    """The image, smoothed if it has two colours only and many dots of a single pixel: such dots stand for a shade,
    which a network that has learnt from shades can't read otherwise."""
    if image.getcolors(2) is None:
        return image
    dark = np.pad(np.asarray(image.convert("L")) < 128, 1, mode="edge")
    inner = dark[1:-1, 1:-1]
    neighbours = (dark[:-2, 1:-1], dark[2:, 1:-1], dark[1:-1, :-2], dark[1:-1, 2:])
    dots = np.all([inner != neighbour for neighbour in neighbours], axis=0)
    # Of 200 captchas every one has more than 4 % when dithered and less than 1 % when cut at any threshold.
    return image.filter(ImageFilter.Kernel((3, 3), (1, 2, 1, 2, 6, 2, 1, 2, 1))) if dots.mean() > 0.02 else image
