"""Draws captchas.

An image and its text depend on the config and (seed, split, index) only, not on where or in what order they are drawn.
"""

import hashlib
import random
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import captcha.image
import numpy as np
from captcha.image import ImageCaptcha
from PIL import Image, ImageDraw, ImageFont

from model.config import CaptchaConfig, shown, shown_path
from model.data.pool_file import Split
from model.data.preparation import to_array
from model.system.files import reason, sha256


class _SeededSecrets:
    """Replaces the `secrets` module, which gives the captcha library its random numbers and can't be seeded."""

    def __init__(self, generator: random.Random) -> None:
        self.randbelow = generator.randrange
        self.randbits = generator.getrandbits
        self.choice = generator.choice


def check_characters(characters: str, fonts: Iterable[str] = captcha.image.DEFAULT_FONTS) -> None:
    """Raises ValueError if one of the fonts draws some of the characters alike or has no glyph for them.

    A font draws the same box for all characters without a glyph. No network could tell such characters apart. The
    message names them.
    """
    for file in fonts:
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


def checked_fonts(config: CaptchaConfig) -> tuple[str, ...]:
    """Returns the SHA-256 of each of the config's own fonts. Raises ValueError if a font can't draw its characters.

    If the config has the fonts' digests, the files must still have these contents.
    """
    fonts = config.fonts or ()
    found = tuple(map(_font_digest, fonts))
    expected = found if config.fonts_sha256 is None else config.fonts_sha256
    if found != expected:
        changed = [file for index, file in enumerate(fonts) if found[index] not in expected[index : index + 1]] or fonts
        names = ", ".join(map(shown_path, changed))
        raise ValueError(f"captcha.fonts must have the contents of captcha.fonts_sha256, got others: {names}")
    for file in fonts:
        try:
            check_characters(config.characters, [file])
        except (OSError, ImportError) as error:
            problem = f"FreeType can't open it ({reason(error)})"
            raise ValueError(
                f"captcha.fonts must be TrueType or OpenType fonts, got {shown_path(file)}: {problem}"
            ) from None
    return found


def _font_digest(file: str) -> str:
    try:
        return sha256(Path(file))
    except OSError as error:
        raise ValueError(
            f"captcha.fonts must be files that can be read, got {shown_path(file)}: {reason(error)}"
        ) from None


def determinants(config: CaptchaConfig) -> dict[str, Any]:
    """What determines the images of a config, for the key of a pool: fonts by their contents, not by their paths."""
    tree = config.model_dump(mode="json", exclude={"fonts", "fonts_sha256"})
    if config.fonts is not None:
        digests = config.fonts_sha256 or map(_font_digest, config.fonts)
        tree["fonts"] = hashlib.sha256("".join(digests).encode()).hexdigest()
    return tree


_UNASSIGNED = "\uffff"  # a noncharacter, for which fonts draw their missing-glyph sign
_NO_INK = ((0, 0), b"")


def _ink(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    """Size and pixels of a character's picture, cropped to its ink as the library does."""
    mask = Image.new("L", (256, 256))
    ImageDraw.Draw(mask).text((96, 96), character, font=font, fill=255)
    picture = mask.crop(mask.getbbox() or (0, 0, 0, 0))
    return picture.size, picture.tobytes()


@lru_cache(maxsize=8)
def _painter(config: CaptchaConfig) -> ImageCaptcha:
    if config.fonts is None:
        check_characters(config.characters)
    else:
        checked_fonts(config)
    scale, fonts = config.render_scale, None if config.fonts is None else [*config.fonts]
    return ImageCaptcha(config.width * scale, config.height * scale, fonts, config.font_sizes)


def draw(config: CaptchaConfig, seed: int, split: Split, index: int) -> tuple[Image.Image, str]:
    """Draws an image of the config's width × height and returns it with its text.

    Not thread-safe, because it replaces the captcha library's `secrets` module while it draws. Raises ValueError for
    characters and fonts that can't be drawn, see `check_characters` and `checked_fonts`.
    """
    generator = random.Random(f"{seed}/{split}/{index}")
    text = "".join(generator.choices(config.characters, k=generator.randint(*config.lengths)))
    painter = _painter(config)
    genuine = captcha.image.secrets
    captcha.image.secrets = _SeededSecrets(generator)
    try:
        image = painter.generate_image(text)
    finally:
        captcha.image.secrets = genuine
    image = image.reduce(config.render_scale)
    return (image.convert("L") if config.color == "grey" else image), text


def render(config: CaptchaConfig, seed: int, split: Split, index: int) -> tuple[np.ndarray, str]:
    """Draws an image as uint8 (C, H, W) and returns it with its text."""
    image, text = draw(config, seed, split, index)
    return to_array(image), text
