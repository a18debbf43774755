"""Reads LMDB databases with the keys of deep-text-recognition-benchmark and PARSeq: `num-samples`, `image-000000001`
and `label-000000001`."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from model.config.section import shown_path
from model.data.readers.files import Folder, below
from model.data.readers.row import EMPTY, Row, printable, split_of
from model.system.files import reason

_ROWS, _IMAGES = 1000, 32  # how many are read at once
_COUNT = b"num-samples"
_lock = threading.Lock()  # lmdb opens a file only once in a process


@dataclass(frozen=True)
class LmdbReader:
    """Reads one or more LMDB files. An image's name is the file's folder and the key.

    No file is open while the caller goes on, which may fork: an open LMDB file can't be used in another process.
    """

    folder: str
    files: tuple[str, ...]  # relative to the folder
    groups_by_folder: bool = False

    @property
    def description(self) -> str:
        return "LMDB" if len(self.files) == 1 else f"LMDB, {len(self.files)} files"

    def rows(self) -> Iterator[Row]:
        for file in self.files:
            start, count = 1, 1
            while start <= count:
                rows, count = self._rows(file, start)
                start += _ROWS
                yield from rows

    def _rows(self, file: str, start: int) -> tuple[list[Row], int]:
        """The rows from one number on, and how many there are in all."""
        path = os.path.join(self.folder, file)
        parent = printable(folder_of(file))
        split, group = split_of(parent), parent if self.groups_by_folder else None
        rows = []
        try:
            changed = os.stat(path).st_mtime_ns
            with opened(path) as (environment, transaction):
                said, entries = int(bytes(transaction.get(_COUNT))), environment.stat()["entries"]
                count = min(said, entries)  # a wrong number must not make endless rows
                for number in range(start, min(start + _ROWS, count + 1)):
                    name = below(parent, f"image-{number:09d}")
                    image, label = (transaction.get(b"%s-%09d" % (kind, number)) for kind in (b"image", b"label"))
                    text, problem = _text(label)
                    problem = "missing image" if not image else problem
                    if problem is not None:
                        rows.append(Row(name, text, split, group, problem=problem))
                    else:
                        rows.append(Row(name, text, split, group, len(image), changed))
                if start + _ROWS > count and (said > count or transaction.get(b"image-%09d" % (said + 1))):
                    problem = f"num-samples is {said}, which is not the number of images"
                    rows.append(Row(printable(file), "", split, group, problem=problem))
        except Exception as error:  # lmdb's own errors, and those of damaged numbers
            return [*rows, Row(printable(file), "", split, group, problem=reason(error))], 0
        return rows, count

    def read(self, names: Sequence[str]) -> Iterator[bytes | str]:
        files = {printable(folder_of(file)): file for file in self.files}
        done = 0
        while done < len(names):
            parent = names[done].rpartition("/")[0]
            end = done + 1
            while end < min(done + _IMAGES, len(names)) and names[end].rpartition("/")[0] == parent:
                end += 1
            yield from self._read(files.get(parent), [name.rpartition("/")[2] for name in names[done:end]])
            done = end

    def _read(self, file: str | None, keys: list[str]) -> list[bytes | str]:
        if file is None:
            return ["missing file"] * len(keys)
        try:
            with opened(os.path.join(self.folder, file)) as (_, transaction):
                return [bytes(transaction.get(key.encode()) or b"") or "missing image" for key in keys]
        except Exception as error:  # lmdb's own errors
            return [reason(error)] * len(keys)


def folder_of(file: str) -> str:
    """`a/b/data.mdb` is the database `a/b`; another name is a part of the images' names."""
    folder, _, name = file.rpartition("/")
    return folder if name == "data.mdb" else file


def _text(label: memoryview | None) -> tuple[str, str | None]:
    try:
        text = "" if label is None else bytes(label).decode()
    except UnicodeDecodeError:
        return "", "the text is not in UTF-8"
    return text, None if text.strip() else EMPTY


@contextmanager
def opened(path: str) -> Iterator[tuple[Any, Any]]:
    """Opens an LMDB file for reading only, also on media that can't be written to. Raises errors of many types."""
    import lmdb  # compiled code, which only such files need

    with _lock, lmdb.open(path, subdir=False, readonly=True, lock=False, readahead=False) as environment:
        pages = environment.info()["last_pgno"] + 1
        if pages * environment.stat()["psize"] > os.path.getsize(path):
            raise ValueError("the LMDB file is cut off")  # reading what is not there would kill the process
        with environment.begin(buffers=True) as transaction:
            yield environment, transaction


def lmdb_in(folder: str, files: Sequence[str], groups_by_folder: bool) -> LmdbReader:
    """Opens LMDB files to look whether there is a number of samples. Raises ValueError if there is none in any."""
    search = Folder(folder)
    problems: list[str] = []
    usable: list[str] = []
    for file in files:
        if (problem := search.find(file).problem) is None:
            try:
                with opened(os.path.join(folder, file)) as (_, transaction):
                    problem = None if transaction.get(_COUNT) is not None else "it has no key num-samples"
            except Exception as error:  # lmdb's own errors
                problem = reason(error)
        (usable if problem is None else problems).append(
            file if problem is None else f"{file} can't be read: {problem}"
        )
    if problems:
        raise ValueError(f"images.path must have LMDB files with images, but {problems[0]}: {shown_path(folder)}")
    return LmdbReader(folder, tuple(usable), groups_by_folder)
