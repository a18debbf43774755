import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from model.data.alphabet import Alphabet
from model.training.evaluation import Readings, Samples, by_loss
from sweep.tensorboard import captions
from sweep.tensorboard.badcases import draw, draw_across, marked


@pytest.mark.parametrize(
    ("read", "true", "expected"),
    [
        ("1234", "1234", "++++"),
        ("1934", "1234", "+-++"),
        ("134", "1234", "+-++"),
        ("12345", "1234", "++++-"),
        ("", "12", "--"),
    ],
)
def test_wrong_and_lost_characters_are_marked(read: str, true: str, expected: str) -> None:
    assert "".join("+" if right else "-" for _, right in marked(read, true)) == expected


def test_the_worst_of_all_images_come_first_with_their_own_loss() -> None:
    losses = torch.tensor([0.5, 9.0, 0.1, 3.0])
    labels = torch.tensor([[1], [2], [3], [4]], dtype=torch.uint8)
    samples = by_loss(Readings(losses, labels, labels)).worst(3)
    assert samples.rows.tolist() == [1, 3, 0]
    assert samples.losses.tolist() == [9.0, 3.0, 0.5]
    assert samples.labels.flatten().tolist() == [2, 4, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_images_are_drawn_four_by_four_in_order(channels: int) -> None:
    images = (torch.arange(16, dtype=torch.uint8) * 15)[:, None, None, None].expand(16, channels, 32, 96)
    rows = torch.zeros(16, 4, dtype=torch.uint8)
    picture = draw(images, Samples(torch.arange(16), rows + 1, rows, torch.ones(16)), Alphabet("01"))
    cell_height, cell_width = picture.shape[0] // 4, picture.shape[1] // 4
    for place in range(16):
        top, left = place // 4 * cell_height, place % 4 * cell_width
        assert (picture[top + 30, left + 60] == place * 15).all()
    red = picture[..., 0].astype(int) - picture[..., 1] > 100
    assert red.any()  # all characters are lost
    assert picture.dtype == np.uint8


def test_the_same_images_are_drawn_once_with_a_line_for_each_trial() -> None:
    images = torch.full((3, 3, 32, 96), 200, dtype=torch.uint8)
    labels = torch.tensor([[1, 2], [2, 1], [1, 1]], dtype=torch.uint8)
    readings = {"0003": labels, "0007": labels.flip(1)}
    one = draw_across(images, labels, [2, 1, 1], {"0003": labels}, Alphabet("ab"))
    two = draw_across(images, labels, [2, 1, 1], readings, Alphabet("ab"))
    assert two.shape == (one.shape[0] + 16, one.shape[1], 3)
    red = two[..., 0].astype(int) - two[..., 1] > 100
    width = two.shape[1] // 4
    assert [bool(red[:, place * width : (place + 1) * width].any()) for place in range(4)] == [True, True, False, False]


def drawn(*pairs: tuple[str, str], size: tuple[int, int] = (32, 96)) -> np.ndarray:
    """The badcases of (true, read) texts, over grey images of one size."""
    alphabet = Alphabet("".join(sorted({character for pair in pairs for text in pair for character in text})))
    longest = max(len(text) for pair in pairs for text in pair)
    true, read = (
        torch.tensor([[*alphabet.encode(text), *[0] * (longest - len(text))] for text in texts])
        for texts in zip(*pairs, strict=True)
    )
    images = torch.full((len(pairs), 1, *size), 100, dtype=torch.uint8)
    return draw(images, Samples(torch.arange(len(pairs)), true, read, torch.ones(len(pairs))), alphabet)


def columns_of(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Where pixels are in this colour, red or green: places along the picture's width, ascending."""
    strong, weak = (1, 0) if color == captions.RIGHT else (0, 1)
    return np.flatnonzero((picture[..., strong].astype(int) - picture[..., weak] > 60).any(axis=0))


def test_a_right_to_left_text_is_read_from_the_right() -> None:
    first, last = (drawn(("مرحبا", read)) for read in ("ورحبا", "مرحبو"))
    assert columns_of(first, captions.WRONG).min() > columns_of(first, captions.RIGHT).max() - 3
    assert columns_of(last, captions.WRONG).max() < columns_of(last, captions.RIGHT).min() + 3
    latin = drawn(("abcde", "xbcde"))
    assert columns_of(latin, captions.WRONG).max() < columns_of(latin, captions.RIGHT).min() + 3


def test_words_of_a_right_to_left_text_stay_in_order_across_spaces_and_lost_characters() -> None:
    picture = drawn(("שלום עולם", "שלום עול"))
    assert columns_of(picture, captions.WRONG).max() < columns_of(picture, captions.RIGHT).min() + 3


def test_a_wrong_combining_mark_is_marked_with_its_letter() -> None:
    picture = drawn(("e\u0301a", "e\u0300a"))
    wrong, right = columns_of(picture, captions.WRONG), columns_of(picture, captions.RIGHT)
    assert wrong.size
    assert wrong.max() < right.min()


def test_a_text_that_is_wider_than_its_cell_is_broken_and_at_last_cut() -> None:
    short, long, longest = (drawn((text, text), ("ab", "ab")) for text in ("ab", "ab" * 30, "ab" * 500))
    assert short.shape[0] < long.shape[0] < longest.shape[0] < 3 * long.shape[0]
    cell = short.shape[1] // 4
    for picture in (long, longest):
        assert (picture[:, cell - 2 : cell + 6] == 255).all()
        under = short.shape[0]
        assert np.array_equal(picture[:under, cell:], short[:, cell:])


def test_images_keep_their_own_ratio_beside_each_other() -> None:
    sizes = [(32, 96), (64, 64), (32, 200), (64, 20), (500, 1500)]
    images = [torch.full((1, *size), 10 + 40 * place, dtype=torch.uint8) for place, size in enumerate(sizes)]
    labels = torch.zeros(len(sizes), 1, dtype=torch.uint8)
    picture = draw(images, Samples(torch.arange(5), labels, labels, torch.ones(5)), Alphabet("0"))
    for place, (height, width) in enumerate(sizes):
        there = (picture == 10 + 40 * place).all(axis=-1)
        row, column = (np.flatnonzero(there.any(axis=axis)) for axis in (1, 0))
        assert len(column) / len(row) == pytest.approx(width / height, rel=0.05)
        assert len(row) >= 24


def test_a_very_wide_image_is_high_enough_to_be_read() -> None:
    picture = drawn(("0", "0"), ("0", "1"), size=(32, 1000))
    rows = np.flatnonzero((picture == 100).all(axis=-1).any(axis=1))
    assert len(rows) >= 2 * 24


PICTURES = """
import sys, numpy as np
from tests.test_badcases import drawn
one, other, lacking, as_lacking = (drawn((text, text)) for text in ("中", "文", "\U000f1234", "\U000f1235"))
print((one != other).any(), (one != lacking).any(), (lacking != as_lacking).any(), (lacking < 100).any())
"""


def test_a_character_is_drawn_in_a_font_of_the_system_that_has_it_and_as_a_box_if_none_has(tmp_path: Path) -> None:
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    build_font(fonts / "Two.ttf", {"中": 200, "文": 900})
    (fonts / "Broken.ttf").write_bytes(b"no font")
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    command = [sys.executable, "-c", PICTURES]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["True", "True", "False", "True"]


def build_font(path: Path, heights: dict[str, int]) -> None:
    """A font in which each of these characters is a bar of its own height, in thousandths of the font's size."""
    glyphs = {".notdef": 700, **{f"uni{ord(character):04X}": height for character, height in heights.items()}}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([*glyphs])
    builder.setupCharacterMap({ord(character): f"uni{ord(character):04X}" for character in heights})
    outlines = {}
    for name, height in glyphs.items():
        pen = TTGlyphPen(None)
        pen.moveTo((100, 0))
        for corner in ((100, height), (900, height), (900, 0)):
            pen.lineTo(corner)
        pen.closePath()
        outlines[name] = pen.glyph()
    builder.setupGlyf(outlines)
    builder.setupHorizontalMetrics({name: (1000, 100) for name in glyphs})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Two", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def test_a_text_of_several_colours_in_one_font_is_laid_out_whole() -> None:
    text = captions.Line([], captions._clusters([("AV", "black"), ("To", "red")])).text
    assert [run.text for run in captions._runs(text, False)] == ["AVTo"]


def test_captions_in_ascii_load_no_matplotlib() -> None:
    code = "import sys; from tests.test_badcases import drawn; drawn(('ab', 'b')); print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
