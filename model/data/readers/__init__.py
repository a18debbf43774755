"""Readers of labelled images: tables, LMDB, text files beside images, texts in file names.

`recognise` looks what a folder or file holds. Where several readers fit a folder, the first of these is taken:

1. a table whose names exist as files,
2. a text file beside each image (`.gt.txt`),
3. LMDB,
4. a table whose names look like images, none of which exists (so that the missing files are named),
5. texts in the files' names.

The order is that of evidence: names that exist as files can't be there by chance, while every file has a name.
"""

import os

from model.config.images import ImagesConfig
from model.config.section import shown
from model.data.readers import records
from model.data.readers.files import is_hidden, suffix_of
from model.data.readers.lmdb_reader import lmdb_in
from model.data.readers.names import names_in
from model.data.readers.row import Reader, Row
from model.data.readers.sidecar import sidecar_in
from model.data.readers.table import TableReader, table_in

__all__ = ["Reader", "Row", "recognise"]

_TABLES = {"tsv", "csv", "space", "json", "jsonl", "parquet"}


def recognise(section: ImagesConfig) -> Reader:
    """Looks at `images.path` and returns the reader that fits it, or that `images.format` asks for.

    Raises ValueError with one sentence that begins with the key to set, where there are no images, no texts, or no way
    to tell which is which.
    """
    path = os.path.abspath(os.path.expanduser(section.path))
    wanted = section.format
    if not os.path.isdir(path):
        if not os.path.isfile(path):
            raise ValueError(f"images.path must be a folder or a table that is there, got {shown(section.path)}")
        if wanted == "lmdb" or (wanted == "auto" and suffix_of(path) in (".mdb", ".lmdb")):
            reader = lmdb_in(section, path)
            assert reader is not None, "another file of this name is refused"
            return reader
        if wanted in ("names", "sidecar"):
            raise ValueError(f"images.path must be a folder for images.format {wanted}, got {shown(section.path)}")
        return table_in(section, path, os.path.dirname(path), was_found=False)[0]
    try:
        os.scandir(path).close()
    except OSError as error:
        raise ValueError(f"images.path can't be read: {error.strerror}: {shown(section.path)}") from None

    table, problem = None, None
    if wanted in _TABLES or (wanted == "auto" and section.pattern is None):
        table, exist, problem = _table(section, path)
        if table is not None and (exist or wanted != "auto"):
            return table
        if wanted != "auto":
            raise ValueError(problem or f"images.format must fit the images, but there is no {wanted} table in {path}")
    if wanted == "sidecar" or (wanted == "auto" and section.pattern is None):
        sidecar = sidecar_in(section, path)
        if sidecar is not None:
            return sidecar
    if wanted == "lmdb" or (wanted == "auto" and section.pattern is None):
        database = lmdb_in(section, path)
        if database is not None:
            return database
    if table is not None:
        return table
    if problem is not None:
        raise ValueError(problem)
    return names_in(section, path)


def _table(section: ImagesConfig, folder: str) -> tuple[TableReader | None, float, str | None]:
    """Finds the one table in a folder: also returns which part of its files exists, and why there is none.

    Raises ValueError if there are several.
    """
    names = sorted(name for name in os.listdir(folder) if not is_hidden(name) and records.is_table_name(name))
    fitting: list[tuple[float, str, TableReader]] = []
    problems: list[str] = []
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.isfile(path) or not _may_be(section.format, suffix_of(name)):
            continue
        try:
            reader, exist = table_in(section, path, folder, was_found=True)
        except ValueError as error:
            problems.append(str(error))
        else:
            fitting.append((exist, name, reader))
    existing = [one for one in fitting if one[0] > 0]
    best = existing or fitting
    if len(best) > 1:
        listed = ", ".join(name for _, name, _ in best)
        raise ValueError(f"images.path must be one of the tables in {shown(folder)}: {listed}")
    if best:
        return best[0][2], best[0][0], None
    return None, 0.0, problems[0] if len(problems) == 1 else None


def _may_be(wanted: str, suffix: str) -> bool:
    """Whether a file with this suffix may be a table of the format."""
    if wanted == "auto":
        return True
    if wanted == "parquet":
        return suffix == ".parquet"
    if wanted in ("json", "jsonl"):
        return suffix in records.JSON_SUFFIXES
    return suffix in records.TEXT_SUFFIXES
