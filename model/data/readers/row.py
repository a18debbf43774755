"""What a reader of labelled images gives: rows, one for each image, and the encoded images."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

MISSING = "missing file"
OUTSIDE = "outside of the folder"
IRREGULAR = "not a regular file"
EMPTY = "empty label"


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a source: its name and its text, or why it can't be used.

    A row is made for everything that was meant to be an image, so that nothing is dropped without its name.
    """

    name: str  # unique for each image, with forward slashes, relative to the folder
    text: str  # exactly as stored, before any normalisation
    split: str | None = None  # "train", "valid" or "test", by a column or by a folder's name
    group: str | None = None  # by a column or by the folder's path
    size: int = 0  # bytes of the encoded image, 0 if there is a problem
    changed: int = 0  # when the image's file, or its archive, was modified: nanoseconds since 1970
    problem: str | None = None  # why the row can't be used


class Reader(Protocol):
    """Reads labelled images from one kind of source. Can be pickled, and so be sent to worker processes."""

    @property
    def description(self) -> str:
        """How the source is read, such as "tab-separated, no header"."""
        ...

    def rows(self) -> Iterator[Row]:
        """Streams all rows in the source's order. Never raises because of what the source holds."""
        ...

    def read(self, names: Sequence[str]) -> Iterator[bytes | str]:
        """Gives the encoded image of each name, in order, or a string that says why it can't be read."""
        ...


_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_called(word: str) -> str | None:
    """Returns "train", "valid" or "test" for the names that people give to these splits, else None."""
    return _SPLITS.get(word.strip().lower())


@lru_cache
def split_of(folder: str) -> str | None:
    """Returns the split that the topmost folder with the name of a split stands for."""
    return next((split for part in folder.split("/") if (split := split_called(part)) is not None), None)


_UNPRINTABLE = re.compile("[\0\ud800-\udfff]")


def printable(name: str) -> str:
    """A name in valid Unicode: NUL and bytes that are not UTF-8 become %00 and %E9.

    Python decodes such bytes of file names to lone surrogates.
    """
    if name.isprintable():
        return name
    return _UNPRINTABLE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", name)
