"""Draws the images that a network reads worst as one picture: each with its true text, the text read with wrong
characters in red, and the loss."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
from PIL import Image
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from model.data.alphabet import Alphabet
from model.training.evaluation import Samples
from sweep.tensorboard import captions
from sweep.tensorboard.captions import LINE_HEIGHT, RIGHT, WRONG, Text

_ROW = 816  # pixels of a row of cells
_COLUMNS = (4, 2, 1)  # cells in a row: as many as leave each image high enough
_MARGIN, _TOP = 6, 4  # pixels beside and above an image
_LOWEST, _HIGHEST = 24, 128  # pixels of an image's height

Picture = Tensor | np.ndarray
Caption = tuple[Text, Text]  # a label, and a text in reading order


def draw(images: Sequence[Picture], samples: Samples, alphabet: Alphabet) -> np.ndarray:
    """Draws `images`, uint8 (C, H, W) each, in the order of `samples`, in rows. Returns uint8 (height, width, 3)."""
    cells: list[list[Caption]] = []
    for labels, decoded, loss in zip(samples.labels.tolist(), samples.decoded.tolist(), samples.losses, strict=True):
        true = alphabet.decode(labels)
        cells.append(
            [
                ([("true: ", "black")], [(true, "black")]),
                ([("pred: ", "black")], _colored(alphabet.decode(decoded), true)),
                ([(f"loss: {float(loss):.3f}", "grey")], []),
            ]
        )
    return _grid(images, cells)


def draw_across(
    images: Sequence[Picture],
    labels: Tensor,
    misread_by: Sequence[int],
    readings: Mapping[str, Tensor],
    alphabet: Alphabet,
) -> np.ndarray:
    """Draws images as several trials read them, in rows. Returns uint8 (height, width, 3).

    images: uint8 (C, H, W) each. labels: (n, L). misread_by: how many trials misread each image. readings: the label of
    a trial → what it read, (n, T).
    """
    cells: list[list[Caption]] = []
    for place, count in enumerate(misread_by):
        true = alphabet.decode(labels[place].tolist())
        cells.append([([(f"misread by {count}", "grey")], []), ([("true: ", "black")], [(true, "black")])])
        for label, decoded in readings.items():
            read = alphabet.decode(decoded[place].tolist())
            cells[-1].append(([(f"{label}: ", "black")], _colored(read, true)))
    return _grid(images, cells)


def _grid(images: Sequence[Picture], cells: Sequence[Sequence[Caption]]) -> np.ndarray:
    """Draws each image with its captions beneath into a cell of its own, out of which nothing can reach."""
    flattest = max(image.shape[2] / image.shape[1] for image in images)
    columns = next((n for n in _COLUMNS if _ROW / n - 2 * _MARGIN >= _LOWEST * flattest), _COLUMNS[-1])
    cell_width = _ROW // columns
    width = cell_width - 2 * _MARGIN
    drawn = [_cell(image, texts, width) for image, texts in zip(images, cells, strict=True)]
    rows = [drawn[first : first + columns] for first in range(0, len(drawn), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    canvas = Image.new("RGB", (_ROW, sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            canvas.paste(cell, (column * cell_width + _MARGIN, sum(heights[:number])))
    return np.asarray(canvas)


def _cell(image: Picture, texts: Sequence[Caption], width: int) -> Image.Image:
    picture = _scaled(image, width)
    lines = [line for label, text in texts for line in captions.broken(label, text, width)]
    under = _TOP + picture.height + 2
    cell = Image.new("RGB", (width + _MARGIN, under + LINE_HEIGHT * len(lines) + 4), "white")
    cell.paste(picture, (0, _TOP))
    for number, line in enumerate(lines):
        captions.draw(cell, 0, under + LINE_HEIGHT * number, line)
    return cell


def _scaled(image: Picture, width: int) -> Image.Image:
    """The image, uint8 (C, H, W), as large as `width` and the greatest height allow, in its own ratio."""
    shown = np.asarray(image)
    pixels = np.broadcast_to(shown, (3, *shown.shape[1:])).transpose(1, 2, 0)  # (H, W, 3); grey images are repeated
    scale = min(width / pixels.shape[1], _HIGHEST / pixels.shape[0])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)


def _colored(read: str, true: str) -> Text:
    return [
        ("".join(character for character, _ in run), RIGHT if is_right else WRONG)
        for is_right, run in groupby(marked(read, true), key=itemgetter(1))
    ]


def marked(read: str, true: str) -> list[tuple[str, bool]]:
    """Aligns a reading with the true text by minimal edit distance (Levenshtein). Returns each character with whether
    it is right; `·` stands for a missing one."""
    result = []
    for edit in Levenshtein.opcodes(read, true):
        if edit.tag == "delete":
            result += [(character, False) for character in read[edit.src_start : edit.src_end]]
        elif edit.tag == "insert":
            result += [("·", False)] * (edit.dest_end - edit.dest_start)
        else:
            result += [(character, edit.tag == "equal") for character in read[edit.src_start : edit.src_end]]
    return result
