"""Reads images that have a text file of the same name beside them, as tesstrain, kraken and Calamari do."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.data.readers.files import Folder, below, is_image
from model.data.readers.row import EMPTY, MISSING, Row, printable, split_of

ENDING = ".gt.txt"
_TREATED = (".bin", ".nrm", ".raw", ".dew", ".des")  # `line.bin.png` is an image of `line.gt.txt`
_LONGEST = 2**16
_ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class SidecarReader:
    """The text of `line.png`, `line.bin.png` and `line.nrm.png` is the one line in `line.gt.txt`."""

    folder: str
    groups_by_folder: bool = False

    @property
    def description(self) -> str:
        return f"a text file ({ENDING}) beside each image"

    def rows(self) -> Iterator[Row]:
        folder = Folder(self.folder)
        for path, names, links in folder.walk():
            texts = {name.removesuffix(ENDING) for name in names if name.endswith(ENDING)}
            unused = set(texts)
            for name in names:
                if is_image(name):
                    stem = stem_of(name, texts)
                    unused.discard(stem)
                    yield self._row(folder, path, name, stem if stem in texts else None)
            for stem in sorted(unused):
                yield self._problem(below(path, stem + ENDING), "no image beside it")
            for name in links:
                yield self._problem(below(path, name), "outside of the folder" if name else "the folder can't be read")

    def _row(self, folder: Folder, path: str, name: str, stem: str | None) -> Row:
        file = folder.find(below(path, name))
        if stem is None:
            return self._problem(file.name, file.problem or "no text file beside it")
        text, problem = _text_of(folder.read(below(path, stem + ENDING)))
        problem = file.problem or problem
        if problem is not None:
            return self._problem(file.name, problem, text)
        group = path if self.groups_by_folder else None
        return Row(printable(file.name), text, split_of(path), group, file.size, file.changed)

    def _problem(self, name: str, problem: str, text: str = "") -> Row:
        parent = printable(name.rpartition("/")[0])
        group = parent if self.groups_by_folder else None
        return Row(printable(name), text, split_of(parent), group, problem=problem)

    def read(self, names: Sequence[str]) -> Iterator[bytes | str]:
        folder = Folder(self.folder)
        return (folder.read(name) for name in names)


def stem_of(name: str, texts: set[str]) -> str:
    """The name without its suffix, and without one such as `.bin` unless a text has it too."""
    stem = os.path.splitext(name)[0]
    base, treated = os.path.splitext(stem)
    return base if stem not in texts and treated in _TREATED else stem


def _text_of(content: bytes | str) -> tuple[str, str | None]:
    if isinstance(content, str):
        return "", "no text file beside it" if content == MISSING else f"its text file: {content}"
    try:
        text = content[:_LONGEST].decode(_ENCODINGS.get(content[:2], "utf-8-sig"))
    except UnicodeDecodeError:
        return "", "its text file is not in UTF-8"
    text = text.rstrip("\r\n")
    if "\n" in text or len(content) > _LONGEST:
        return "", "its text file has more than one line"
    return text, None if text.strip() else EMPTY


def has_sidecar(names: Sequence[str]) -> bool:
    """Whether one of the files in a folder is an image with a text file beside it."""
    texts = {name.removesuffix(ENDING) for name in names if name.endswith(ENDING)}
    return bool(texts) and any(is_image(name) and stem_of(name, texts) in texts for name in names)
