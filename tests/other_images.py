"""Writes folders of labelled images that no part of this project draws, for tests and measurements on own images.

Drawn by wheezy.captcha with the fonts that matplotlib brings: another renderer, other fonts and other noise than those
of the `captcha` library. `python -m tests.other_images FOLDER COUNT [SEED] [KIND]` writes one from the shell.
"""

import random
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import matplotlib
from PIL import Image
from wheezy.captcha import image as wheezy

_LATIN = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-BoldItalic", "DejaVuSansMono-Oblique")
_CODES = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # without 0, O, 1 and I
_CLASSES = 3000
_INK = "#6B7FB0"  # the library draws darker letters transparent
_SYSTEM_FONTS = ("NotoSansCJK*", "NotoSerifCJK*", "wqy-*", "DroidSansFallback*", "SourceHanSans*")  # with Chinese


def write(folder: Path, count: int, seed: int = 0, kind: str = "codes") -> dict[str, str]:
    """Writes `count` images and `labels.csv` (file_name, text) into a folder; returns the texts by file name.

    Kinds: `codes` of 3 to 6 digits and upper-case letters, PNG and JPEG of mixed sizes; `words` of 3 to 12 letters;
    `chinese`, 2 to 6 of 3,000 characters, where a font has them (see `kinds`). The same seed writes the same files.
    """
    draw_text, draw = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(f"{kind} {seed}")
    texts = {}
    state = random.getstate()
    try:
        for index in range(count):
            text = draw_text(chance)
            random.seed(chance.getrandbits(64))  # the library draws from Python's global generator
            image = draw(text, chance)
            suffix = chance.choice((".png", ".jpg"))
            name = f"{index:06d}{suffix}"
            image.save(folder / name, **({"quality": chance.randint(60, 95)} if suffix == ".jpg" else {}))
            texts[name] = text
    finally:
        random.setstate(state)
    lines = [f"{name},{text}\n" for name, text in texts.items()]
    (folder / "labels.csv").write_text("file_name,text\n" + "".join(lines), encoding="utf-8")
    return texts


def kinds() -> list[str]:
    """The kinds that can be drawn here: Chinese needs a font."""
    return [kind for kind in KINDS if kind != "chinese" or chinese_font() is not None]


def _code(chance: random.Random) -> str:
    return "".join(chance.choices(_CODES, k=chance.randint(3, 6)))


def _word(chance: random.Random) -> str:
    """Letters in syllables, mostly in lower case."""
    length = chance.randint(3, 12)
    word = ""
    while len(word) < length:
        word += chance.choice("bcdfghjklmnpqrstvwxyz") + chance.choice("aeiou") + chance.choice(("", "", *"lnrst"))
    return chance.choice((str.lower, str.lower, str.capitalize, str.upper))(word[:length])


def _chinese(chance: random.Random) -> str:
    """Every fifth character of the Unicode block, which is sorted by the characters' radicals."""
    return "".join(chr(0x4E00 + 5 * chance.randrange(_CLASSES)) for _ in range(chance.randint(2, 6)))


def _drawn(fonts: Callable[[], tuple[str, ...]], sizes: tuple[int, ...]) -> Callable[[str, random.Random], Image.Image]:
    def draw(text: str, chance: random.Random) -> Image.Image:
        size = chance.choice(sizes)
        letters, background = _drawers(fonts(), size)
        width = round(size * (1.0 * len(text) + chance.uniform(0.6, 1.4)))
        ink = chance.choice(("#5C87B2", "#7A3B2E", "#2F5D3A", "#444444"))
        drawings = [background, letters, wheezy.curve(ink, max(1, size // 16), 6), wheezy.noise(size, ink, 1)]
        image: Image.Image = wheezy.captcha([*drawings, wheezy.smooth()], width, round(size * 1.5))(text)
        return image

    return draw


@cache
def _drawers(fonts: tuple[str, ...], size: int) -> tuple[object, object]:
    distortions = [wheezy.warp(0.1, 0.1), wheezy.rotate(12), wheezy.offset(0.05, 0.1)]
    return wheezy.text(fonts, (size,), distortions, _INK, 0.9), wheezy.background("#EEEECC")


def latin_fonts() -> tuple[str, ...]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return tuple(str(folder / f"{name}.ttf") for name in _LATIN)


@cache
def chinese_font() -> str | None:
    """A font with Chinese characters: of the package manimgx-fonts-cjk, or of the system."""
    package = find_spec("manimgx_fonts_cjk")
    folders = [Path(place) for place in (package and package.submodule_search_locations) or ()]
    folders += [Path("/usr/share/fonts"), Path.home() / ".local/share/fonts"]
    found = (path for folder in folders for pattern in _SYSTEM_FONTS for path in sorted(folder.rglob(pattern)))
    return next((str(path) for path in found if path.suffix in (".ttc", ".ttf", ".otf")), None)


def _chinese_fonts() -> tuple[str, ...]:
    font = chinese_font()
    if font is None:
        raise ValueError("no font with Chinese characters: install manimgx-fonts-cjk, or Debian's fonts-wqy-microhei")
    return (font,)


KINDS = {
    "codes": (_code, _drawn(latin_fonts, (24, 32, 40, 56))),
    "words": (_word, _drawn(latin_fonts, (24, 32, 40, 56))),
    "chinese": (_chinese, _drawn(_chinese_fonts, (40, 48, 56))),
}


def main(arguments: list[str]) -> None:
    folder, count, seed, kind = [*arguments, *("0", "codes")[len(arguments) - 2 :]]
    texts = write(Path(folder), int(count), int(seed), kind)
    print(f"{len(texts)} images in {folder}, {len(set(texts.values()))} different texts")


if __name__ == "__main__":
    main(sys.argv[1:])
