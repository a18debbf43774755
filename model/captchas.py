"""(seed, split, index) → one captcha image and its text, the same wherever and in whatever order it is drawn.

`python -m model.captchas OUT --count N [--config FILE]` writes samples named TEXT_<index>.png.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

import captcha.image
import numpy as np
from captcha.image import ImageCaptcha
from PIL import Image, ImageDraw, ImageFont

from model.config import CaptchaConfig, TrialConfig, shown
from model.files import reason
from model.streams import forgiving_streams

Split = Literal["train", "valid", "test"]


class _SeededSecrets:
    """Stands in for the `secrets` module, from which the library draws and which can't be seeded."""

    def __init__(self, generator: random.Random) -> None:
        self.randbelow = generator.randrange
        self.randbits = generator.getrandbits
        self.choice = generator.choice


def check_characters(characters: str) -> None:
    """Raises ValueError, naming them, if some of the characters have no glyph in one of the library's fonts, which then
    draws the same box for each, or if some are drawn alike: no network could tell those apart."""
    for file in captcha.image.DEFAULT_FONTS:
        font = ImageFont.truetype(file, 64)
        missing = _ink(font, _UNASSIGNED)
        seen: dict[tuple[tuple[int, int], bytes], str] = {}
        undrawn = []
        for character in characters:
            ink = _ink(font, character)
            if ink in (missing, _NO_INK):
                undrawn.append(character)
            elif ink in seen:
                raise ValueError(
                    f"captcha.characters must look different, got {seen[ink]!r} (U+{ord(seen[ink]):04X}) and "
                    f"{character!r} (U+{ord(character):04X}): {Path(file).name} draws them alike"
                )
            seen[ink] = character
        if undrawn:
            raise ValueError(
                f"captcha.characters must be in the font, got {shown(''.join(undrawn))}: {Path(file).name} has no "
                f"glyph for {'it' if len(undrawn) == 1 else 'them'}"
            )


_UNASSIGNED = "\uffff"  # never a character, so that fonts draw their sign for a missing glyph
_NO_INK = ((0, 0), b"")


def _ink(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    """A character's picture cut to its ink, as the library cuts it out: size and pixels."""
    mask = Image.new("L", (256, 256))
    ImageDraw.Draw(mask).text((96, 96), character, font=font, fill=255)
    picture = mask.crop(mask.getbbox() or (0, 0, 0, 0))
    return picture.size, picture.tobytes()


@lru_cache(maxsize=8)
def _painter(characters: str, width: int, height: int, font_sizes: tuple[int, ...]) -> ImageCaptcha:
    check_characters(characters)
    return ImageCaptcha(width=width, height=height, font_sizes=font_sizes)


def draw(config: CaptchaConfig, seed: int, split: Split, index: int) -> tuple[Image.Image, str]:
    """The image (width × height of the config) and its text. Not for two threads of one process at once."""
    generator = random.Random(f"{seed}/{split}/{index}")
    text = "".join(generator.choices(config.characters, k=generator.randint(*config.lengths)))
    scale = config.render_scale
    painter = _painter(config.characters, config.width * scale, config.height * scale, config.font_sizes)
    genuine = captcha.image.secrets
    captcha.image.secrets = _SeededSecrets(generator)
    try:
        image = painter.generate_image(text)
    finally:
        captcha.image.secrets = genuine
    image = image.reduce(scale)
    return (image.convert("L") if config.color == "grey" else image), text


def render(config: CaptchaConfig, seed: int, split: Split, index: int) -> tuple[np.ndarray, str]:
    """The image as uint8 (C, H, W) and its text."""
    image, text = draw(config, seed, split, index)
    return to_array(image), text


def to_array(image: Image.Image) -> np.ndarray:
    """uint8 (C, H, W) of an RGB or grey image."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _read_config(path: Path) -> TrialConfig:
    # An entry point keeps YAML and the sweep out of this package: whoever has a config file brings its reader.
    (reader,) = entry_points(group="crnn_sweep.config_reader")
    config: TrialConfig = reader.load()(path)
    return config


@forgiving_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.captchas", description="Write sample captcha images.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the images; made if it is not there")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="how many (default 16)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML whose captcha: and data: sections to use")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count: {options.count} is not allowed: at least 1")
    try:
        config = _read_config(options.config) if options.config else TrialConfig()
        for index in range(options.count):
            image, text = draw(config.captcha, config.data.seed, "test", index)
            options.out.mkdir(parents=True, exist_ok=True)  # after the first was drawn, which may be too large
            image.save(options.out / f"{text}_{index}.png")
    except FileExistsError:
        print(f"OUT must be a folder, got the file {options.out}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"OUT {options.out} can't be written: {reason(error)}", file=sys.stderr)
        return 2
    except MemoryError:
        size = f"{config.captcha.width}×{config.captcha.height} × captcha.render_scale {config.captcha.render_scale}"
        print(f"images of {size} take more memory than there is; draw smaller ones", file=sys.stderr)
        return 2
    except ValueError as error:  # of the config, which names its file and keys
        print(error, file=sys.stderr)
        return 2
    print(f"{options.count} images in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
