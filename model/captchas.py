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
from PIL import Image

from model.config import CaptchaConfig, TrialConfig
from model.streams import forgiving_streams

Split = Literal["train", "valid", "test"]


class _SeededSecrets:
    """Stands in for the `secrets` module, from which the library draws and which can't be seeded."""

    def __init__(self, generator: random.Random) -> None:
        self.randbelow = generator.randrange
        self.randbits = generator.getrandbits
        self.choice = generator.choice


@lru_cache(maxsize=8)
def _painter(width: int, height: int, font_sizes: tuple[int, ...]) -> ImageCaptcha:
    return ImageCaptcha(width=width, height=height, font_sizes=font_sizes)


def draw(config: CaptchaConfig, seed: int, split: Split, index: int) -> tuple[Image.Image, str]:
    """The image (width × height of the config) and its text. Not for two threads of one process at once."""
    generator = random.Random(f"{seed}/{split}/{index}")
    text = "".join(generator.choices(config.characters, k=generator.randint(*config.lengths)))
    scale = config.render_scale
    painter = _painter(config.width * scale, config.height * scale, config.font_sizes)
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
        options.out.mkdir(parents=True, exist_ok=True)
        for index in range(options.count):
            image, text = draw(config.captcha, config.data.seed, "test", index)
            image.save(options.out / f"{text}_{index}.png")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.count} images in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
