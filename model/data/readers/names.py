"""Reads labelled images whose texts are in the names of their files."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from model.config.images import ImagesConfig
from model.config.section import shown, shown_path
from model.data.readers.files import Folder
from model.data.readers.row import EMPTY, Row, printable, split_of

_SAMPLE = 1000


@dataclass(frozen=True)
class NamesReader:
    """The text is a file's name before its last `_`, or the whole name without one; or what a pattern finds in it."""

    folder: str
    pattern: str | None = None
    groups_by_folder: bool = False

    @property
    def description(self) -> str:
        where = "before the last _" if self.pattern is None else f"where {self.pattern} matches"
        return f"texts in the files' names, {where}"

    def rows(self) -> Iterator[Row]:
        pattern = None if self.pattern is None else re.compile(self.pattern)
        for file in Folder(self.folder).images():
            name = printable(file.name)
            parent = name.rpartition("/")[0]
            text, problem = text_in(name, pattern)
            if name != file.name:
                problem = "the name is not in UTF-8"
            problem = file.problem or problem or (EMPTY if not text.strip() else None)
            group = parent if self.groups_by_folder else None
            if problem is not None:
                yield Row(name, text, split_of(parent), group, problem=problem)
            else:
                yield Row(name, text, split_of(parent), group, file.size, file.changed)

    def read(self, names: Sequence[str]) -> Iterator[bytes | str]:
        folder = Folder(self.folder)
        return (folder.read(name) for name in names)


def text_in(name: str, pattern: re.Pattern[str] | None) -> tuple[str, str | None]:
    """The text in a file's name, and why there is none. A pattern may also match the whole path."""
    stem = name.rpartition("/")[2].rpartition(".")[0]
    if pattern is None:
        return stem.rpartition("_")[0] if "_" in stem else stem, None
    found = pattern.search(stem) or pattern.search(name)
    if found is None:
        return "", "images.pattern doesn't match the name"
    return found["text" if "text" in pattern.groupindex else 1] or "", None


def names_in(section: ImagesConfig, folder: str) -> NamesReader:
    """Raises ValueError if the names have no texts in them that differ."""
    reader = NamesReader(folder, section.pattern, section.group == "folder")
    sample = list(islice(reader.rows(), _SAMPLE))
    if not sample:
        raise ValueError(f"images.path has no images: {shown_path(section.path)}")
    if section.pattern is not None:
        if all(row.problem is not None and "images.pattern" in row.problem for row in sample):
            raise ValueError(
                f"images.pattern must match the images' names, got {shown(section.pattern)}, which doesn't match "
                f"{shown(sample[0].name)}"
            )
    elif all(row.problem == EMPTY for row in sample):
        raise ValueError(f"images.path has no labels: the files' names have no text, such as {shown(sample[0].name)}")
    elif section.format == "auto" and (why := _no_texts([row.text for row in sample if row.problem is None])):
        raise ValueError(
            "images.path has no labels: there is no table of the images and no text file beside them, and the files' "
            f"names {why}, such as {shown(sample[0].name)}; images.format: names reads them all the same"
        )
    return reader


def _no_texts(texts: list[str]) -> str | None:
    """Says why the names of files are no texts, as far as can be seen."""
    if len(texts) > 2 and len(set(texts)) == 1:
        return f"all begin with {shown(texts[0])}"
    numbers = sorted(int(text) for text in texts if text.isascii() and text.isdecimal() and len(text) < 15)
    if len(numbers) == len(texts) >= 20 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return "are numbers in sequence"
    return None
