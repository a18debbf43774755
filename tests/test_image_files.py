"""However an image arrives, a network gets the pixels that were drawn."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.config import CaptchaConfig
from model.data.captchas import draw
from model.data.image_files import MAX_PIXELS, read_image, to_color

CONFIG = CaptchaConfig(width=96, height=32, render_scale=2)
ROTATED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # EXIF's orientations, and how an upright image becomes one of them


@pytest.fixture(scope="module")
def captcha() -> Image.Image:
    """In colour, on white paper."""
    image, _ = draw(CONFIG, 0, "test", 0)
    pixels = np.array(image)
    pixels[paper(image)] = 255
    return Image.fromarray(pixels)


def paper(image: Image.Image) -> np.ndarray:
    found: np.ndarray = np.asarray(image).min(2) > 225
    return found


def values(image: Image.Image) -> np.ndarray:
    """Its grey pixels, without rounding errors when scaled."""
    return np.asarray(image.convert("L")).astype(np.float64)


def deep(image: Image.Image, mode: str, order: str) -> Image.Image:
    return Image.frombytes(mode, image.size, (values(image) * 257).astype(f"{order}u2").tobytes())


def transparent(image: Image.Image) -> Image.Image:
    """The paper is transparent, and black below."""
    pixels = np.array(image.convert("RGBA"))
    pixels[paper(image)] = 0
    return Image.fromarray(pixels)


def indexed(image: Image.Image) -> Image.Image:
    """With a palette, in which the paper is colour 255, black."""
    palette = image.quantize(255)
    indices = np.where(paper(image), 255, np.asarray(palette)).astype(np.uint8)
    result = Image.fromarray(indices)
    result.putpalette([*(palette.getpalette() or [])[:765], 0, 0, 0])
    return result


def cut(image: Image.Image) -> Image.Image:
    """Black and white."""
    return image.convert("L").point(lambda value: 255 * (value > 225))


def rotated(image: Image.Image, orientation: int, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.transpose(ROTATED[orientation]).save(path, exif=exif)


RED = Image.new("RGB", (96, 32), "red")

GREY: dict[str, tuple[str, Callable[[Image.Image, Path], None]]] = {
    "8 bits": ("png", lambda image, path: image.convert("L").save(path)),
    "16 bits": ("png", lambda image, path: deep(image, "I;16", "<").save(path)),
    "16 bits, little-endian": ("tif", lambda image, path: deep(image, "I;16", "<").save(path)),
    "16 bits, big-endian": ("tif", lambda image, path: deep(image, "I;16B", ">").save(path)),
    "16 bits in 32": ("pgm", lambda image, path: deep(image, "I;16", "<").save(path)),
    "8 bits in 16": ("png", lambda image, path: Image.fromarray(values(image).astype("<u2")).save(path)),
    "8 bits in 32": ("tif", lambda image, path: Image.fromarray(values(image).astype(np.int32)).save(path)),
    "16 bits in 32 (TIFF)": ("tif", lambda image, path: Image.fromarray((values(image) * 257).astype("i4")).save(path)),
    "32 bits": ("tif", lambda image, path: Image.fromarray((values(image) * 8_421_504).astype("i4")).save(path)),
    "floats to 1": ("tif", lambda image, path: Image.fromarray((values(image) / 255).astype("f4")).save(path)),
    "floats to 255": ("tif", lambda image, path: Image.fromarray(values(image).astype("f4")).save(path)),
    "floats to 65535": ("tif", lambda image, path: Image.fromarray((values(image) * 257).astype("f4")).save(path)),
    "floats from -1": ("tif", lambda image, path: Image.fromarray((values(image) / 127.5 - 1).astype("f4")).save(path)),
    "grey and alpha": ("png", lambda image, path: transparent(image).convert("LA").save(path)),
    "a transparent grey": ("png", lambda image, path: black_paper(image).save(path, transparency=0)),
    "a transparent grey of 16 bits": (
        "png",
        lambda image, path: deep(black_paper(image).convert("RGB"), "I;16", "<").save(path, transparency=0),
    ),
}

COLOR: dict[str, tuple[str, Callable[[Image.Image, Path], None]]] = {
    "as drawn": ("png", lambda image, path: image.save(path)),
    "16 bits a colour": ("png", lambda image, path: path.write_bytes(png_of_48_bits(image)) and None),
    "JPEG": ("jpg", lambda image, path: image.save(path, quality=95, subsampling=0)),
    "CMYK": ("tif", lambda image, path: image.convert("CMYK").save(path)),
    "CMYK as JPEG": ("jpg", lambda image, path: image.convert("CMYK").save(path, quality=95)),
    "YCbCr": ("tif", lambda image, path: image.convert("YCbCr").save(path)),
    "LAB": ("tif", lambda image, path: image.convert("LAB").save(path)),
    "palette": ("png", lambda image, path: image.quantize(256).save(path)),
    "palette with a transparent colour": ("png", lambda image, path: indexed(image).save(path, transparency=255)),
    "palette with alpha": ("png", lambda image, path: indexed(image).save(path, transparency=b"\xff" * 255 + b"\0")),
    "GIF with transparent paper": ("gif", lambda image, path: indexed(image).save(path, transparency=255)),
    "alpha": ("png", lambda image, path: transparent(image).save(path)),
    "alpha in TIFF": ("tiff", lambda image, path: transparent(image).save(path)),
    "alpha in WebP": ("webp", lambda image, path: transparent(image).save(path, lossless=True)),
    "a transparent colour": (
        "png",
        lambda image, path: transparent(image).convert("RGB").save(path, transparency=(0, 0, 0)),
    ),
    "animated GIF": ("gif", lambda image, path: image.save(path, save_all=True, append_images=[RED])),
    "animated WebP": ("webp", lambda image, path: image.save(path, save_all=True, append_images=[RED], lossless=True)),
    "animated PNG": ("png", lambda image, path: image.save(path, save_all=True, append_images=[RED])),
    "pages": ("tif", lambda image, path: image.save(path, save_all=True, append_images=[RED])),
    "JPEG 2000": ("jp2", lambda image, path: image.save(path)),
    "upper case": ("PNG", lambda image, path: image.save(path)),
    "mislabelled": ("jpg", lambda image, path: image.save(path, format="PNG")),
}  # fmt: skip


def black_paper(image: Image.Image) -> Image.Image:
    """Grey; the paper is 0, and nothing else is."""
    return Image.fromarray(np.where(paper(image), 0, np.maximum(values(image), 1)).astype(np.uint8))


def png_of_48_bits(image: Image.Image) -> bytes:
    """Pillow reads such files, but writes none. The paper is black, and transparent by a tRNS chunk."""
    pixels = np.asarray(transparent(image).convert("RGB")).astype(np.uint16) * 257
    pixels[paper(image)] = (1000, 2000, 3000)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", *image.size, 16, 2, 0, 0, 0)),
        (b"tRNS", struct.pack(">HHH", 1000, 2000, 3000)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def announce(path: Path, size: tuple[int, int]) -> None:
    """A black and white image that is said to be so large."""
    image = io.BytesIO()
    Image.new("1", (1, 1)).save(image, "PNG")
    header = b"IHDR" + struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0)
    start, rest = image.getvalue()[:12], image.getvalue()[33:]
    path.write_bytes(start + header + struct.pack(">I", zlib.crc32(header)) + rest)


def difference(path: Path, image: Image.Image, channels: int) -> float:
    """The mean over the pixels read from the file and those of the image."""
    read = read_image(path, channels)
    assert read.mode == ("L" if channels == 1 else "RGB")
    assert read.size == image.size
    return float(np.abs(np.asarray(read).astype(float) - np.asarray(image.convert(read.mode)).astype(float)).mean())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", GREY)
def test_grey_of_any_depth_has_the_pixels_that_were_drawn(
    name: str, channels: int, captcha: Image.Image, tmp_path: Path
) -> None:
    suffix, save = GREY[name]
    save(captcha, path := tmp_path / f"a.{suffix}")
    assert difference(path, captcha.convert("L"), channels) < 0.51


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", COLOR)
def test_colour_in_any_mode_and_format_has_the_pixels_that_were_drawn(
    name: str, channels: int, captcha: Image.Image, tmp_path: Path
) -> None:
    suffix, save = COLOR[name]
    save(captcha, path := tmp_path / f"a.{suffix}")
    assert difference(path, captcha, channels) < 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", ROTATED)
def test_a_photo_is_turned_as_its_exif_data_say(
    orientation: int, suffix: str, captcha: Image.Image, tmp_path: Path
) -> None:
    rotated(captcha, orientation, path := tmp_path / f"a.{suffix}")
    assert difference(path, captcha, 3) < 8


def test_damaged_exif_data_do_not_hide_an_image(captcha: Image.Image, tmp_path: Path) -> None:
    captcha.save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
    assert difference(tmp_path / "a.png", captcha, 3) == 0


@pytest.mark.parametrize("suffix", ["png", "tif", "gif", "bmp", "pbm"])
def test_one_bit_is_black_and_white(suffix: str, captcha: Image.Image, tmp_path: Path) -> None:
    cut(captcha).convert("1").save(tmp_path / f"a.{suffix}")
    assert difference(tmp_path / f"a.{suffix}", cut(captcha), 3) == 0


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_shades_that_were_dithered_away_come_back(suffix: str, captcha: Image.Image, tmp_path: Path) -> None:
    drawn, _ = draw(CONFIG, 0, "test", 0)  # with its paper, whose light grey becomes single dots
    grey, dithered = drawn.convert("L"), drawn.convert("1")
    dithered.save(tmp_path / f"a.{suffix}")
    before = np.abs(values(dithered) - values(grey)).mean()
    assert difference(tmp_path / f"a.{suffix}", grey, 1) < before * 2 / 3


def test_modes_that_no_file_has_are_converted_too(captcha: Image.Image) -> None:
    expected = np.asarray(captcha).astype(float)
    for mode in ("RGBa", "RGBX", "HSV"):
        assert np.abs(np.asarray(to_color(captcha.convert(mode), 3)) - expected).mean() < 3
    grey = transparent(captcha).convert("LA").convert("La")
    assert np.abs(np.asarray(to_color(grey, 1)) - values(captcha)).mean() < 1


def test_pixels_that_are_no_numbers_are_paper(tmp_path: Path) -> None:
    pixels = np.array([[0.0, np.nan, 1.0, np.inf, -np.inf, 0.5]], np.float32)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    assert np.asarray(read_image(tmp_path / "a.tif", 1)).tolist() == [[0, 255, 255, 255, 0, 128]]


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000), (MAX_PIXELS + 1, 1)])
def test_a_giant_image_is_refused_before_it_is_unpacked(size: tuple[int, int], tmp_path: Path) -> None:
    announce(tmp_path / "a.png", size)
    with pytest.raises(ValueError, match=r"a\.png: the image must have at most 50 million pixels"):
        read_image(tmp_path / "a.png", 3)


def test_no_other_program_is_started_to_read_an_image(tmp_path: Path, captcha: Image.Image) -> None:
    captcha.save(tmp_path / "a.png", format="EPS")  # which Pillow would hand to Ghostscript
    with pytest.raises(ValueError, match=r"a\.png: not an image of a known format"):
        read_image(tmp_path / "a.png", 3)
