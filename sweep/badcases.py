"""The images a network reads worst, as one picture: the truth, the reading with wrong characters in red, the loss."""

from itertools import groupby
from operator import itemgetter

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from model.alphabet import Alphabet
from model.evaluation import Samples

_COLUMNS = 4
_WIDTH = 192  # pixels an image gets; small captchas are enlarged to it
_RIGHT, _WRONG = (30, 110, 40), (205, 20, 20)


def draw(images: Tensor, samples: Samples, alphabet: Alphabet) -> np.ndarray:
    """images uint8 (n, C, H, W), those of `samples` in their order → uint8 (height, width, 3), four in a row."""
    font = ImageFont.load_default(13)
    height = round(_WIDTH * images.shape[2] / images.shape[3])
    cell_width, cell_height = _WIDTH + 12, height + 58
    rows = -(-len(images) // _COLUMNS)
    canvas = Image.new("RGB", (_COLUMNS * cell_width, rows * cell_height), "white")
    pen = ImageDraw.Draw(canvas)
    for place, image in enumerate(images):
        left, top = place % _COLUMNS * cell_width + 6, place // _COLUMNS * cell_height + 4
        pixels = image.expand(3, -1, -1).permute(1, 2, 0).numpy()  # (H, W, 3), also from grey
        canvas.paste(Image.fromarray(pixels).resize((_WIDTH, height), Image.Resampling.NEAREST), (left, top))
        true = alphabet.decode(samples.labels[place].tolist())
        read = alphabet.decode(samples.decoded[place].tolist())
        line = top + height + 2
        pen.text((left, line), f"true: {true}", "black", font)
        pen.text((left, line + 16), "pred: ", "black", font)
        x = left + pen.textlength("pred: ", font)
        for is_right, run in groupby(marked(read, true), key=itemgetter(1)):
            characters = "".join(character for character, _ in run)
            pen.text((x, line + 16), characters, _RIGHT if is_right else _WRONG, font)
            x += pen.textlength(characters, font)
        pen.text((left, line + 32), f"loss: {float(samples.losses[place]):.3f}", "grey", font)
    return np.asarray(canvas)


def marked(read: str, true: str) -> list[tuple[str, bool]]:
    """Each character of a reading and whether it is right, by an alignment of least edits; `·` is a lost one."""
    result = []
    for edit in Levenshtein.opcodes(read, true):
        if edit.tag == "delete":
            result += [(character, False) for character in read[edit.src_start : edit.src_end]]
        elif edit.tag == "insert":
            result += [("·", False)] * (edit.dest_end - edit.dest_start)
        else:
            result += [(character, edit.tag == "equal") for character in read[edit.src_start : edit.src_end]]
    return result
