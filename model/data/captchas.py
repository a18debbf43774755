"""Draws captchas.

An image and its text depend on the config and (seed, split, index) only, not on where or in what order they are drawn.
"""

import random
from functools import lru_cache
from pathlib import Path

import captcha.image
import numpy as np
from captcha.image import ImageCaptcha
from PIL import Image, ImageDraw, ImageFont

from model.config import CaptchaConfig, shown
from model.data.pool_file import Split
from model.data.preparation import to_array


class _SeededSecrets:
    """Replaces the `secrets` module, which gives the captcha library its random numbers and can't be seeded."""

    def __init__(self, generator: random.Random) -> None:
        self.randbelow = generator.randrange
        self.randbits = generator.getrandbits
        self.choice = generator.choice


def check_characters(characters: str) -> None:
    """Raises ValueError if one of the library's fonts draws some of the characters alike or has no glyph for them.

    A font draws the same box for all characters without a glyph. No network could tell such characters apart. The
    message names them.
    """
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


_UNASSIGNED = "\uffff"  # a noncharacter, for which fonts draw their missing-glyph sign
_NO_INK = ((0, 0), b"")


def _ink(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    """Size and pixels of a character's picture, cropped to its ink as the library does."""
    mask = Image.new("L", (256, 256))
    ImageDraw.Draw(mask).text((96, 96), character, font=font, fill=255)
    picture = mask.crop(mask.getbbox() or (0, 0, 0, 0))
    return picture.size, picture.tobytes()


@lru_cache(maxsize=8)
def _painter(characters: str, width: int, height: int, font_sizes: tuple[int, ...]) -> ImageCaptcha:
    check_characters(characters)
    return ImageCaptcha(width=width, height=height, font_sizes=font_sizes)


def draw(config: CaptchaConfig, seed: int, split: Split, index: int) -> tuple[Image.Image, str]:
    """Draws an image of the config's width × height and returns it with its text.

    Not thread-safe, because it replaces the captcha library's `secrets` module while it draws. Raises ValueError for
    characters that can't be drawn, see `check_characters`.
    """
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
    """Draws an image as uint8 (C, H, W) and returns it with its text."""
    image, text = draw(config, seed, split, index)
    return to_array(image), text
