"""Maps characters to class indices and back. Index 0 is CTC's blank, which stands for no character."""

from collections.abc import Iterable
from itertools import groupby

import numpy as np

BLANK = 0


def collapse(path: Iterable[int]) -> list[int]:
    """Applies CTC's collapse rule to one path of class indices: first merges repeats, then drops blanks."""
    return [index for index, _ in groupby(path) if index != BLANK]


class Alphabet:
    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._index = {character: index for index, character in enumerate(characters, start=1)}

    @property
    def classes(self) -> int:
        """K, the number of classes: the characters and the blank."""
        return len(self.characters) + 1

    def encode(self, text: str) -> list[int]:
        """The text's class indices. Raises KeyError for a character that is not in the alphabet."""
        return [self._index[character] for character in text]

    def encode_padded(self, text: str, length: int) -> np.ndarray:
        """The text as one row of labels (length,), padded with 0. Raises KeyError as `encode`."""
        indices = self.encode(text)
        return np.array(indices + [BLANK] * (length - len(indices)))

    def decode(self, indices: Iterable[int]) -> str:
        """The text of a label or a decoded row. Skips blanks, including those used as padding."""
        return "".join(self.characters[index - 1] for index in indices if index != BLANK)
