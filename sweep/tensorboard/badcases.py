"""Draws the images that a network reads worst as one picture: each with its true text, the text read with wrong
characters in red, and the loss."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from model.data.alphabet import Alphabet
from model.training.evaluation import Samples

_COLUMNS = 4
_WIDTH = 192  # pixels of an image, to which all are scaled
_LINE = 16  # pixels of a caption's line
_RIGHT, _WRONG = (30, 110, 40), (205, 20, 20)

Picture = Tensor | np.ndarray

Line = list[tuple[str, str | tuple[int, int, int]]]  # one line of a caption: texts with their colours


def draw(images: Sequence[Picture], samples: Samples, alphabet: Alphabet) -> np.ndarray:
    """Draws `images`, uint8 (C, H, W) in the order of `samples`, four in a row. Returns uint8 (height, width, 3)."""
    captions: list[list[Line]] = []
    for labels, decoded, loss in zip(samples.labels.tolist(), samples.decoded.tolist(), samples.losses, strict=True):
        true = alphabet.decode(labels)
        reading: Line = [("pred: ", "black"), *_colored(alphabet.decode(decoded), true)]
        captions.append([[(f"true: {true}", "black")], reading, [(f"loss: {float(loss):.3f}", "grey")]])
    return _grid(images, captions)


def draw_across(
    images: Sequence[Picture],
    labels: Tensor,
    misread_by: Sequence[int],
    readings: Mapping[str, Tensor],
    alphabet: Alphabet,
) -> np.ndarray:
    """Draws images as several trials read them, four in a row. Returns uint8 (height, width, 3).

    images: uint8 (C, H, W). labels: (n, L). misread_by: how many trials misread each image. readings: the label of a
    trial → what it read, (n, T).
    """
    captions: list[list[Line]] = []
    for place, count in enumerate(misread_by):
        true = alphabet.decode(labels[place].tolist())
        lines: list[Line] = [[(f"true: {true}  ", "black"), (f"misread by {count}", "grey")]]
        for label, decoded in readings.items():
            lines.append([(f"{label}: ", "black"), *_colored(alphabet.decode(decoded[place].tolist()), true)])
        captions.append(lines)
    return _grid(images, captions)


def _grid(images: Sequence[Picture], captions: Sequence[Sequence[Line]]) -> np.ndarray:
    font = ImageFont.load_default(13)
    height = max(round(_WIDTH * image.shape[1] / image.shape[2]) for image in images)
    cell_width, cell_height = _WIDTH + 12, height + 10 + _LINE * max(map(len, captions))
    rows = -(-len(images) // _COLUMNS)
    canvas = Image.new("RGB", (_COLUMNS * cell_width, rows * cell_height), "white")
    pen = ImageDraw.Draw(canvas)
    for place, (image, lines) in enumerate(zip(images, captions, strict=True)):
        left, top = place % _COLUMNS * cell_width + 6, place // _COLUMNS * cell_height + 4
        shown = np.asarray(image)
        pixels = np.broadcast_to(shown, (3, *shown.shape[1:])).transpose(1, 2, 0)  # (H, W, 3); grey images are repeated
        canvas.paste(Image.fromarray(pixels).resize((_WIDTH, height), Image.Resampling.NEAREST), (left, top))
        for number, line in enumerate(lines):
            x = float(left)
            for text, color in line:
                pen.text((x, top + height + 2 + _LINE * number), text, color, font)
                x += font.getlength(text)
    return np.asarray(canvas)


def _colored(read: str, true: str) -> Line:
    return [
        ("".join(character for character, _ in run), _RIGHT if is_right else _WRONG)
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
