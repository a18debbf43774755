"""Draws captions in any script: each character in a font that has it, right-to-left text from the right.

Fonts are looked for in this order: Pillow's own for ASCII; DejaVu Sans, which matplotlib brings (Latin, Greek,
Cyrillic, Arabic, Hebrew); Noto Sans CJK from the package `noto-cjk-sans-jp-regular`, if it is installed; the system's
fonts. A character that no font has is drawn as a box. Joined letters and right-to-left order need Pillow's raqm, which
its wheels have; without raqm all text runs from left to right.
"""

import contextlib
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

Color = str | tuple[int, int, int]
Text = Sequence[tuple[str, Color]]  # pieces in reading order, each with its colour

LINE_HEIGHT = 16  # pixels
RIGHT, WRONG = (30, 110, 40), (205, 20, 20)

_SIZE, _BASELINE = 13, 12  # of a font and of its letters' feet below the line's top, in pixels
_MOST_LINES = 4  # into which a caption is broken
_BITMAP_SIZES = (109, 128, 136, 160)  # at which fonts of coloured emoji have their only pictures
_PLAIN = {chr(code) for code in range(32, 127)} | {"·", "…"}  # what Pillow's font has for sure
_SELECTORS = set(range(0xFE00, 0xFE10))  # of a character's variant, as text or as a picture; they draw nothing
_STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif", "math", "display")


@dataclass(frozen=True)
class _Cluster:
    """A character with the marks that combine with it, which share its font, direction and colour."""

    text: str
    color: Color

    @property
    def width(self) -> float:
        return _length(self.text, _font_of(self.text), False)


@dataclass(frozen=True)
class _Run:
    """Clusters of one font and one direction."""

    clusters: list[_Cluster]
    font: ImageFont.FreeTypeFont
    right_to_left: bool

    @property
    def text(self) -> str:
        return "".join(cluster.text for cluster in self.clusters)


@dataclass(frozen=True)
class Line:
    """A line of a caption: a label at the left, then a text that has a direction of its own."""

    label: list[_Cluster]
    text: list[_Cluster] = field(default_factory=list)
    right_to_left: bool = False


def broken(label: Text, text: Text, width: int) -> list[Line]:
    """Breaks a caption into lines of at most `width` pixels. One that needs too many lines ends with "…"."""
    clusters, from_right = _clusters(text), _starts_from_right(text)
    lines = [Line(_clusters(label), right_to_left=from_right)]
    room = width - sum(cluster.width for cluster in lines[0].label)
    for cluster in clusters:
        if cluster.width > room and (lines[-1].text or lines[-1].label):
            if len(lines) == _MOST_LINES:
                more = _Cluster("…", "grey")
                while lines[-1].text and room < more.width:
                    room += lines[-1].text.pop().width
                lines[-1].text.append(more)
                break
            lines.append(Line([], right_to_left=from_right))
            room = width
        lines[-1].text.append(cluster)
        room -= cluster.width
    return lines


def draw(canvas: Image.Image, left: float, top: int, line: Line) -> None:
    """Draws a line with its upper left corner at (left, top)."""
    for run in [*_runs(line.label, False), *_runs(line.text, line.right_to_left)]:
        picture = _picture(run)
        canvas.paste(picture, (round(left), top), picture)
        left += _length(run.text, run.font, run.right_to_left)


def _clusters(text: Text) -> list[_Cluster]:
    found: list[_Cluster] = []
    for character, color in ((character, color) for piece, color in text for character in piece):
        kind = unicodedata.category(character)
        if kind in ("Cc", "Cs", "Zl", "Zp"):  # line breaks, control characters, lone surrogates: no font draws them
            character = "\N{REPLACEMENT CHARACTER}"
        joined = kind[0] == "M" or character == "\u200d" or "\U0001f3fb" <= character <= "\U0001f3ff"
        if found and (joined or found[-1].text.endswith("\u200d")):
            both = {found[-1].color, color}
            found[-1] = _Cluster(found[-1].text + character, WRONG if WRONG in both else found[-1].color)
        else:
            found.append(_Cluster(character, color))
    return found


def _direction(text: str) -> str:
    """L, R, or N for what has no direction of its own, by Unicode's bidirectional classes."""
    kind = unicodedata.bidirectional(text[0])
    return "R" if kind in ("R", "AL") else "L" if kind in ("L", "EN", "AN") else "N"


def _starts_from_right(text: Text) -> bool:
    strong = (way for piece, _ in text for character in piece if (way := _direction(character)) != "N")
    return _has_raqm() and next(strong, "L") == "R"


def _runs(clusters: Sequence[_Cluster], right_to_left: bool) -> Iterator[_Run]:
    """The runs of a text in the order from left to right.

    Characters without a direction take that of both neighbours, or that of the whole text where those differ.
    """
    whole = "R" if right_to_left else "L"
    ways = [_direction(cluster.text) for cluster in clusters]
    strong = [place for place, way in enumerate(ways) if way != "N"]
    for before, after in zip([-1, *strong], [*strong, len(ways)], strict=True):
        ends = {ways[before] if before >= 0 else whole, ways[after] if after < len(ways) else whole}
        ways[before + 1 : after] = [ends.pop() if len(ends) == 1 else whole] * (after - before - 1)
    if not _has_raqm():
        ways = ["L"] * len(ways)
    parts = [
        (way == "R", [cluster for _, cluster in group])
        for way, group in groupby(zip(ways, clusters, strict=True), itemgetter(0))
    ]
    for backwards, part in reversed(parts) if right_to_left else parts:
        if backwards:  # in one font, spaces too, so that the letters are put in order together
            letters = (cluster.text for cluster in part if _direction(cluster.text) == "R")
            yield _Run(part, _font_of(next(letters, part[0].text)), True)
        else:
            for _, same in groupby(part, lambda cluster: id(_font_of(cluster.text))):
                alike = list(same)
                yield _Run(alike, _font_of(alike[0].text), False)


def _picture(run: _Run) -> Image.Image:
    """A run as it is drawn, RGBA, transparent elsewhere. Its letters are joined across the colours."""
    font, scale = run.font, run.font.size / _SIZE
    direction = _direction_argument(font, run.right_to_left)
    width = math.ceil(_length(run.text, font, run.right_to_left) * scale) + 1
    size, feet = (width, round(LINE_HEIGHT * scale)), (0, round(_BASELINE * scale))
    picture = Image.new("RGBA", size, (255, 255, 255, 0))
    if scale != 1:  # a font of pictures, which have their own colours
        ImageDraw.Draw(picture).text(feet, run.text, "black", font, "ls", embedded_color=True, direction=direction)
        return picture.resize((max(1, round(width / scale)), LINE_HEIGHT), Image.Resampling.BOX)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).text(feet, run.text, 255, font, "ls", direction=direction)
    pen, done, start = ImageDraw.Draw(picture), "", 0
    for cluster in run.clusters:  # colours all that follows; the next cluster covers its own part of that
        pen.rectangle((0, 0, width - 1 - start, size[1]) if run.right_to_left else (start, 0, *size), cluster.color)
        done += cluster.text
        start = min(max(start, round(_length(done, font, run.right_to_left))), width - 1)
    picture.putalpha(mask)
    return picture


@lru_cache(10_000)
def _length(text: str, font: ImageFont.FreeTypeFont, right_to_left: bool) -> float:
    """The width in pixels of a line."""
    return font.getlength(text, direction=_direction_argument(font, right_to_left)) * _SIZE / font.size


def _direction_argument(font: ImageFont.FreeTypeFont, right_to_left: bool) -> str | None:
    """Pillow's argument, which it refuses without raqm."""
    return "rtl" if right_to_left and font.layout_engine == ImageFont.Layout.RAQM else None


@cache
def _has_raqm() -> bool:
    return bool(features.check("raqm"))


@cache
def _font_of(cluster: str) -> ImageFont.FreeTypeFont:
    """The first font that has a character and its marks, or else at least the character."""
    if not _PLAIN.issuperset(cluster):
        drawn = {ord(character) for character in cluster if unicodedata.category(character) != "Cf"} - _SELECTORS
        for needed in (drawn, {ord(cluster[0])}):
            for path in _files():
                if needed <= _characters(path) and (found := _opened(path)) is not None:
                    return found
    return _default_font()


@cache
def _default_font() -> ImageFont.FreeTypeFont:
    """Pillow's own font: one object, because characters of different fonts are drawn apart."""
    font = ImageFont.load_default(_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)  # as Pillow has FreeType
    return font


@cache
def _files() -> list[str]:
    """The font files, in the order in which they are looked through."""
    from matplotlib import font_manager  # takes half a second, and is needed only for captions that are not ASCII

    first = [str(font_manager.findfont("DejaVu Sans"))]
    package = find_spec("noto_cjk_sans_jp_regular")
    if package is not None and package.origin is not None:
        first += [str(path) for path in Path(package.origin).parent.glob("*.otf")]
    return [*first, *sorted(map(str, font_manager.findSystemFonts()), key=_plainest)]


def _plainest(path: str) -> tuple[int, str]:
    """Sorts upright sans-serif fonts of normal weight first."""
    name = Path(path).stem.lower()
    return sum(style in name for style in _STYLES), path


@cache
def _characters(path: str) -> frozenset[int]:
    """The codes of the characters that a font has."""
    from matplotlib.ft2font import FT2Font

    with contextlib.suppress(OSError, RuntimeError, ValueError):  # not a font that FreeType reads
        return frozenset(FT2Font(path).get_charmap())
    return frozenset()


@cache
def _opened(path: str) -> ImageFont.FreeTypeFont | None:
    for size in (_SIZE, *_BITMAP_SIZES):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(path, size)
    return None
