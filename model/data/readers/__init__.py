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
from model.config.section import shown, shown_path
from model.data.readers.files import Folder, below, suffix_of
from model.data.readers.lmdb_reader import lmdb_in
from model.data.readers.names import names_in
from model.data.readers.row import Reader, Row
from model.data.readers.sidecar import SidecarReader, has_sidecar
from model.data.readers.table import find_tables, table_in
from model.system.files import reason

__all__ = ["Reader", "Row", "recognise"]

_TABLES = {"table", "tsv", "csv", "space", "json", "jsonl", "parquet"}


def recognise(section: ImagesConfig) -> Reader:
    """Looks at `images.path` and returns the reader that fits it, or that `images.format` asks for.

    Raises ValueError with one sentence that begins with the key to set, where there are no images, no texts, or no way
    to tell which is which.
    """
    if section.path is None:
        raise ValueError("images.path must be a folder or a table, got null: --images FOLDER sets it")
    path = os.path.abspath(os.path.expanduser(section.path))
    tried = _formats(section)
    if not os.path.isdir(path):
        return _of_file(section, path, tried)
    try:
        os.scandir(path).close()
    except OSError as error:
        raise ValueError(f"images.path can't be read: {reason(error)}: {shown_path(section.path)}") from None
    table, is_there, problem = find_tables(section, path) if tried[0] in _TABLES else (None, False, None)
    reader: Reader | None = table if is_there else None
    if reader is None and not {"sidecar", "lmdb"}.isdisjoint(tried):
        reader = _sidecar_or_lmdb(section, path, tried)
    reader = reader or table
    if reader is None and (problem or "names" not in tried):
        raise ValueError(problem or f"images.path has no {tried[0]} of images: {shown_path(section.path)}")
    return reader or names_in(section, path)


def _sidecar_or_lmdb(section: ImagesConfig, folder: str, tried: tuple[str, ...]) -> Reader | None:
    """Walks through the folder once. Raises ValueError if there is neither and one of them was asked for."""
    groups = section.group == "folder"
    databases: list[str] = []
    for where, names, _ in Folder(folder).walk():
        if "sidecar" in tried and has_sidecar(names):
            return SidecarReader(folder, groups)
        databases += [below(where, name) for name in names if name == "data.mdb"]
    if "lmdb" in tried and databases:
        return lmdb_in(folder, databases, groups)
    if len(tried) == 1:
        wanted = "image has a .gt.txt beside it" if tried == ("sidecar",) else "data.mdb is there"
        raise ValueError(f"images.format must fit the images, but no {wanted} in {shown_path(section.path)}")
    return None


def _formats(section: ImagesConfig) -> tuple[str, ...]:
    """The formats that are tried, in order. Raises ValueError for keys that the format does not have."""
    keys = {key: getattr(section, key) for key in ("file_column", "text_column", "split", "group")}
    columns = {key: value for key, value in keys.items() if value is not None and (key, value) != ("group", "folder")}
    is_table = section.format in _TABLES
    if columns and not is_table and section.format != "auto":
        key, value = next(iter(columns.items()))
        raise ValueError(
            f"images.{key} must not be set for images.format {section.format}, which has no columns, got {shown(value)}"
        )
    if section.pattern is not None and (columns or section.format not in ("auto", "names")):
        other = f"images.format {section.format}" if not columns else f"images.{next(iter(columns))}"
        raise ValueError(f"images.pattern must not be set with {other}, got {shown(section.pattern)}")
    if section.format != "auto":
        return (section.format,)
    return ("table",) if columns else ("names",) if section.pattern else ("table", "sidecar", "lmdb", "names")


def _of_file(section: ImagesConfig, path: str, tried: tuple[str, ...]) -> Reader:
    if not os.path.isfile(path):
        raise ValueError(f"images.path must be a folder or a table that is there, got {shown_path(section.path)}")
    folder, name = os.path.split(path)
    if tried == ("lmdb",) or (len(tried) > 1 and suffix_of(path) in (".mdb", ".lmdb")):
        return lmdb_in(folder, [name], section.group == "folder")
    if tried[0] not in _TABLES:
        raise ValueError(
            f"images.path must be a folder for texts in names and beside images, got {shown_path(section.path)}"
        )
    return table_in(section, path, folder, was_found=False)[0]
