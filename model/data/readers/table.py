"""Reads tables of image files and texts, whoever wrote them."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, NamedTuple

from model.config.images import ImagesConfig
from model.config.section import shown, shown_path
from model.data.catalog import BAD_IMAGES
from model.data.readers import records
from model.data.readers.files import File, Folder, below, is_hidden, is_image, suffix_of
from model.data.readers.records import Delimited, Parquet, Record, Table
from model.data.readers.row import EMPTY, MISSING, OUTSIDE, Row, printable, split_called, split_of
from model.data.readers.sidecar import ENDING
from model.system.files import reason

# The names of columns that EasyOCR (filename, words), fast-plate-ocr (image_path, plate_text), Hugging Face (file_name,
# text; image, text), docTR, Kaggle's data sets and people use. `key` and `value` are those of a JSON dictionary.
FILE_COLUMNS = (
    *("file_name", "filename", "file", "image_path", "img_path", "image_file", "image_filename", "image_name"),
    *("img_name", "imagename", "filepath", "file_path", "path", "image", "images", "img", "picture", "photo"),
    *("key", "name", "image_id", "id"),
)
TEXT_COLUMNS = (
    *("text", "texts", "words", "word", "label", "labels", "plate_text", "plate", "license_plate", "plate_number"),
    *("transcription", "transcript", "ground_truth", "groundtruth", "gt", "gt_text", "ocr", "ocr_text", "sentence"),
    *("string", "solution", "answer", "captcha", "code", "identity", "target", "caption", "content", "reading"),
    "value",
)
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".bmp", ".webp", ".gif")
_SAMPLE = 100  # records that are looked at to recognise the columns
_LONGEST_NAME = 4096
_TABLES = 20  # more files of text are no tables, but belong to one image each
_FOLDERS = 100  # sub-folders that are tried as the one that names are relative to


@dataclass(frozen=True)
class TableReader:
    """Reads a table: each record names an image's file, or holds the image's bytes."""

    folder: str
    table: Table
    file: int
    text: int
    split: int | None = None
    group: int | None = None
    groups_by_folder: bool = False
    root: str = ""  # what names are relative to: the folder, a folder in it or one above it
    suffix: str = ""  # added to names that have none
    was_found: bool = False  # in the folder, by looking

    @property
    def description(self) -> str:
        return self.table.description + (f", in {self.name}" if self.was_found else "")

    @property
    def name(self) -> str:
        """The table's path relative to the folder."""
        return printable(os.path.relpath(self.table.path, self.folder).replace(os.sep, "/"))

    @property
    def _embedded(self) -> str | None:
        """The column that holds the images' bytes, where they are not files."""
        column = self.table.columns[self.file]
        return column if isinstance(self.table, Parquet) and column in dict(self.table.embedded) else None

    def rows(self) -> Iterator[Row]:
        folder, table = Folder(self.folder), self.name
        try:
            archive = os.stat(self.table.path).st_mtime_ns if self._embedded else None
            for record in self.table.records():
                yield self._row(record, folder, table, archive)
        except OSError as error:  # the table has gone, or its disk
            yield Row(table, "", problem=reason(error))

    def _row(self, record: Record, folder: Folder, table: str, archive: int | None) -> Row:
        number, values, problem = record
        text, no_text = _text(_at(values, self.text))
        name = _at(values, self.file)
        if archive is not None:
            size, path = name or (None, None)
            path = path or ""
            file = File(below(f"{table}/{number}", path), size or 0, archive, None if size else "missing image")
        elif isinstance(name, str) and name.strip():
            is_found = problem is None and len(name) < _LONGEST_NAME
            file = find(folder, name, self.root, self.suffix) if is_found else _nowhere(table, number, name)
            path = file.name
        else:
            file, path = File(f"{table}:{number}", 0, 0, f"line {number} names no image"), ""
        parent = printable(path).rpartition("/")[0]
        problem = problem or file.problem or no_text or (EMPTY if not text.strip() else None)
        split, group = split_of(parent), parent if self.groups_by_folder else None
        if self.split is not None:
            value = _text(_at(values, self.split))[0]
            split = split_called(value)
            problem = problem or (f"its split is not train, valid or test, but {shown(value)}" if not split else None)
        if self.group is not None:
            group = _text(_at(values, self.group))[0]
            problem = problem or ("empty group" if not group.strip() else None)
        if problem is not None:
            name = printable(file.name.replace("\\", "/")) or f"{table}:{number}"
            return Row(name, text, split, group, problem=problem)
        return Row(printable(file.name), text, split, group, file.size, file.changed)

    def read(self, names: Sequence[str]) -> Iterator[bytes | str]:
        if self._embedded is None:
            folder = Folder(self.folder)
            yield from (folder.read(name) for name in names)
            return
        assert isinstance(self.table, Parquet)
        start = f"{self.name}/"
        numbers = [name.removeprefix(start).split("/")[0] for name in names]
        wanted = [int(number) if number.isdecimal() and len(number) < 19 else 0 for number in numbers]
        done = 0
        try:
            for image in self.table.images(self._embedded, wanted):
                yield image
                done += 1
        except Exception as error:  # pyarrow raises errors of many types on damaged files
            yield from [reason(error)] * (len(names) - done)


def find(folder: Folder, name: str, root: str, suffix: str) -> File:
    """Finds the image that a table names, also if it is spelt in another way than the file."""
    file = folder.find(name + suffix, root)
    if file.problem is None:
        return file
    for other in spellings(name):
        found = folder.find(other + suffix, root)
        if found.problem is None or (file.problem == MISSING and found.problem != MISSING):
            return found
    return file._replace(problem=OUTSIDE) if _is_on_a_drive(name) else file


def spellings(name: str) -> Iterator[str]:
    """Other ways to write the name of a file: Windows's separators, no space around, each form of Unicode."""
    stripped = name.strip().strip("\ufeff")
    slashes = stripped.replace("\\", "/")
    for other in (stripped, slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))):
        if other != name:
            yield other


def _is_on_a_drive(name: str) -> bool:
    """Whether a path is an absolute one of Windows, where this is not Windows."""
    return os.sep == "/" and name[1:2] == ":" and name[2:3] in ("\\", "/") and name[0].isalpha()


def _nowhere(table: str, number: int, name: str) -> File:
    """What stands for an image in a line that is broken."""
    is_long = len(name) >= _LONGEST_NAME
    return File(f"{table}:{number}:{name[:100]}{'…' if is_long else ''}", 0, 0, MISSING if is_long else None)


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


def _text(value: Any) -> tuple[str, str | None]:
    """A value as text, and why it is none."""
    if isinstance(value, str):
        return printable(value), None
    if value is None:
        return "", EMPTY
    if isinstance(value, bool):
        return str(value).lower(), None
    if isinstance(value, bytes):
        try:
            return value.decode(), None
        except UnicodeDecodeError:
            return "", "the text is not in UTF-8"
    if isinstance(value, list | tuple | dict):
        return "", "the text is no text but a list"
    return str(value), None


# --------------------------------------------------------------------------------------------- recognising


class NoTable(ValueError):
    """A file that has nothing in it that looks like a table of images."""


def table_in(section: ImagesConfig, path: str, folder: str, was_found: bool) -> tuple[TableReader, bool]:
    """Recognises a table, its columns and what its names are relative to; also returns whether any of its images exist.

    Raises ValueError with a sentence that begins with the key to set: NoTable if nothing looks like a table.
    """
    table = _open(section, path)
    search = _Search(folder, path)
    broken = [problem for problem in (record.problem for record in islice(table.records(), _SAMPLE)) if problem]
    if isinstance(table, Delimited):
        seen = [line for _, line, _ in islice(records.lines(path), _SAMPLE)]
        wrong = [problem for problem in broken if "is not in" in problem or "NUL" in problem]
        if len(wrong) > len(seen) / 2:
            raise ValueError(
                f"images.path must be a table in UTF-8, or in UTF-16 with a byte order mark, but {wrong[0]}: "
                f"{shown_path(path)}"
            )
        if not table.layout:
            table = _with_header(table, section, search)
    sample = [record for record in islice(table.records(), _SAMPLE) if record.problem is None]
    if not sample:
        raise NoTable(f"images.path has no images: {broken[0] if broken else 'no rows'} in {shown_path(path)}")
    return _columns(section, table, sample, search, was_found)


def _open(section: ImagesConfig, path: str) -> Table:
    suffix = os.path.splitext(path)[1].lower()
    wanted = section.format
    if wanted == "auto" and suffix not in records.SUFFIXES:
        raise NoTable(
            "images.path must be a folder or a table (.tsv, .csv, .txt, .json, .jsonl, .parquet), or images.format "
            f"must say what it is, got {shown_path(path)}"
        )
    try:
        if wanted == "parquet" or (wanted == "auto" and suffix == ".parquet"):
            return records.parquet_table(path)
        if wanted in ("json", "jsonl") or (wanted == "auto" and suffix in records.JSON_SUFFIXES):
            items = records.json_table(path, {"json": False, "jsonl": True}.get(wanted, suffix != ".json" or None))
            if items.columns:
                return items
            raise ValueError(next((problem for _, _, problem in items.items() if problem), "it has no dictionary"))
        delimiters = records.FORMATS.get(wanted) or records.TEXT_SUFFIXES.get(suffix, "\t,; ")
        lines = records.delimited(path, delimiters)
    except OSError as error:
        raise ValueError(f"images.path has a table that can't be read: {reason(error)}: {shown_path(path)}") from None
    except Exception as error:  # pyarrow raises errors of many types on damaged files
        raise NoTable(
            f"images.path must be a table of images and texts, but {shown_path(path)}: {reason(error)}"
        ) from None
    if lines is not None:
        return lines
    names = " or ".join({"\t": "tab", ",": "comma", ";": "semicolon", " ": "space"}[one] for one in delimiters)
    raise NoTable(f"images.format must fit the table, but no line of {shown_path(path)} has a {names}")


class _Search:
    """Looks for the files that a table names, relative to any folder that they may be relative to."""

    def __init__(self, folder: str, table: str) -> None:
        self.folder = Folder(folder)
        self.roots = list(dict.fromkeys(["", os.path.dirname(table), *_folders_in(folder), *_folders_above(folder)]))

    def rate(self, names: Sequence[str]) -> "_Rating":
        """Rates names by how many exist, over all folders and suffixes."""
        if not names:
            return _Rating()
        called = sum(map(is_image, names)) / len(names)
        best = _Rating(0.0, called)
        some = names[:: max(1, len(names) // 10)]
        for suffix in ("",) if called > 0.5 else ("", *_IMAGE_SUFFIXES):
            for root in self.roots:
                if suffix and not self._there(some, root, suffix):  # thousands of places, for a column of texts
                    continue
                there = self._there(names, root, suffix) / len(names)
                if there > best.there:
                    best = _Rating(there, called, root, suffix)
                if there == 1:
                    return best
        return best

    def _there(self, names: Sequence[str], root: str, suffix: str) -> int:
        found = (find(self.folder, name, root, suffix) for name in names)
        return sum(file.problem is None and is_image(file.name) for file in found)


class _Rating(NamedTuple):
    there: float = 0.0  # which part of the names exist
    called: float = 0.0  # which part have the suffix of an image
    root: str = ""
    suffix: str = ""

    @property
    def order(self) -> tuple[bool, float, float]:
        """The larger, the more likely names are; those that exist as they are written come first."""
        return (self.there > 0 and not self.suffix, self.there, self.called)


def _folders_in(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            folders = (
                entry.path for entry in entries if not is_hidden(entry.name) and entry.is_dir(follow_symlinks=False)
            )
            return sorted(islice(folders, _FOLDERS))
    except OSError:
        return []


def _folders_above(folder: str) -> list[str]:
    """Three levels: the names of PaddleOCR's lists are relative to where the training was started."""
    return [folder := os.path.dirname(folder) for _ in range(3)]


def _with_header(table: Delimited, section: ImagesConfig, search: _Search) -> Delimited:
    """Recognises whether the first line is a header, and how many columns there are."""
    whole = replace(table, takes_rest=False)
    sample = list(islice((item for item in records.lines(table.path) if item[0] > table.skipped), _SAMPLE))
    number, line, _ = sample[0]
    cells = [cell.strip().strip('"') for cell in whole.split(line.removeprefix("#"))[0]]
    below = [whole.split(line)[0] for _, line, _ in sample[1:]]
    asked = [section.file_column, section.text_column, section.split, section.group]
    if _is_header(cells, below, asked, search):
        names = tuple(cell or f"column {index}" for index, cell in enumerate(cells, start=1))
        return replace(table, columns=names, has_header=True, skipped=number)
    numbers = [int(one) for one in asked if one is not None and one.isdecimal() and len(one) < 4]
    counts = Counter(map(len, [cells, *below]))
    count = counts.most_common(1)[0][0]
    images = [sum(index < len(row) and is_image(row[index]) for row in [cells, *below]) for index in range(count)]
    is_name_first = count < 2 or images[0] >= max(images)
    if numbers or not is_name_first:
        return replace(table, columns=tuple(str(index) for index in range(1, max([count, *numbers]) + 1)))
    return table


def _is_header(cells: list[str], below: list[list[str]], asked: list[str | None], search: _Search) -> bool:
    """Whether the first line has the names of columns. A first row that is taken for a header would be lost."""
    if len(cells) < 2 or any(map(is_image, cells)):
        return False
    known = [_known(cell) for cell in cells]
    has_file, has_text = (any(name in columns for name in known) for columns in (FILE_COLUMNS, TEXT_COLUMNS))
    called = sum(any(map(is_image, row)) for row in below) > len(below) / 2
    same = sum(len(row) == len(cells) for row in below) > len(below) / 2
    if not (
        any(one in cells for one in asked if one is not None)
        or (has_file and has_text)
        or (called and (has_file or has_text or (same and len(cells) > 2)))
        or (
            has_file
            and any(
                search.rate([row[index] for row in below if index < len(row)]).there > 0.5
                for index, name in enumerate(known)
                if name in FILE_COLUMNS
            )
        )
    ):
        return False
    return all(search.rate([cell]).there == 0 for cell in cells if cell)


def _known(column: str) -> str:
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def _columns(
    section: ImagesConfig, table: Table, sample: list[Record], search: _Search, was_found: bool
) -> tuple[TableReader, bool]:
    """Chooses the columns of names, texts, splits and groups: those that the section names, else by name or content."""
    columns = table.columns
    chosen: dict[str, int] = {}
    for key in ("file_column", "text_column", "split", "group"):
        value = getattr(section, key)
        if value in columns:
            chosen[key] = columns.index(value)
        elif value is not None and (key, value) != ("group", "folder"):
            raise NoTable(f"images.{key} must be one of the columns {_list(columns)}, got {shown(value)}")

    def free() -> list[int]:
        return [index for index in range(len(columns)) if index not in chosen.values()]

    if "file_column" not in chosen:
        order = {name: place for place, name in enumerate(FILE_COLUMNS)}
        ratings = {}
        for index in sorted(free(), key=lambda index: order.get(_known(columns[index]), len(order))):
            ratings[index] = _rate(search, table, index, sample)
            if ratings[index].there == 1:
                break
        best = max(ratings, key=lambda index: ratings[index].order, default=None)  # the first of equals
        if best is None or (ratings[best][:2] == (0, 0) and _known(columns[best]) not in order):
            raise NoTable(
                f"images.file_column must name the column of the images' files, one of {_list(columns)}: "
                "no column has the names of images that are there"
            )
        chosen["file_column"] = best
    file = chosen["file_column"]
    rating = _rate(search, table, file, sample)
    if "text_column" not in chosen:
        candidates = [index for index in free() if _known(columns[index]) in TEXT_COLUMNS] or free()
        if len(candidates) != 1:
            raise ValueError(
                "images.text_column must name the column of the texts, one of "
                f"{_list([columns[index] for index in candidates] or columns)}"
            )
        chosen["text_column"] = candidates[0]
    text = chosen["text_column"]
    if rating.there == 0 and rating.called < 0.5 and not _is_known(columns[file], columns[text]):
        raise NoTable(
            f"images.path has no images: none of the names in {shown_path(table.path)} is a file that is there"
        )
    if isinstance(table, Delimited) and text != len(columns) - 1:
        table = replace(table, takes_rest=False)
    if isinstance(table, Parquet):
        used = tuple(dict.fromkeys(columns[index] for index in chosen.values()))
        kept = tuple(pair for pair in table.embedded if pair[0] == columns[file])
        table = replace(table, embedded=kept, wanted=used)
    reader = TableReader(
        search.folder.path,
        table,
        file,
        text,
        chosen.get("split"),
        chosen.get("group"),
        section.group == "folder" and "group" not in chosen,
        rating.root,
        rating.suffix,
        was_found,
    )
    return reader, rating.there > 0


def _is_known(file: str, text: str) -> bool:
    return _known(file) in FILE_COLUMNS and _known(text) in TEXT_COLUMNS


def _rate(search: _Search, table: Table, index: int, sample: list[Record]) -> _Rating:
    """Rates a column as the one of the images' names, or of the images themselves."""
    values = [record.values[index] for record in sample]
    if isinstance(table, Parquet) and table.columns[index] in dict(table.embedded):
        return _Rating(sum(size is not None for size, _ in values) / len(values), 1.0)
    return search.rate([value for value in values if isinstance(value, str) and value.strip()])


def _list(names: Sequence[str]) -> str:
    shortened = [*names[:20], *(["…"] if len(names) > 20 else [])]
    return ", ".join(map(printable, shortened))


# --------------------------------------------------------------------------------------------- several tables


@dataclass(frozen=True)
class TablesReader:
    """Reads several tables, each of which is a split by its name, such as `train.csv` and `test.csv`."""

    tables: tuple[TableReader, ...]

    @property
    def description(self) -> str:
        return "; ".join(table.description for table in self.tables)

    def rows(self) -> Iterator[Row]:
        for table in self.tables:
            split = split_in(table.name) if table.split is None else None
            yield from (row if split is None else replace(row, split=split) for row in table.rows())

    def read(self, names: Sequence[str]) -> Iterator[bytes | str]:
        for table, some in groupby(names, self._table):
            yield from table.read(list(some))

    def _table(self, name: str) -> TableReader:
        """The table that holds the image. Any table can read an image that is a file."""
        return next((table for table in self.tables if name.startswith(f"{table.name}/")), self.tables[0])


def split_in(name: str) -> str | None:
    """The split that a word in a table's path stands for: `rec_gt_train.txt`, `data/test-00000-of-00001.parquet`."""
    return next((split for word in re.split(r"[\W\d_]+", name) if (split := split_called(word)) is not None), None)


def find_tables(section: ImagesConfig, folder: str) -> tuple[TableReader | TablesReader | None, bool, str | None]:
    """Finds the table in a folder or, where there is none, in the folders in it.

    Returns it, whether its images exist, and why there is none. Raises ValueError if there are several.
    """
    problem = None
    # A file that happens to be no table of images is none to complain about, unless a table was asked for.
    columns = (section.file_column, section.text_column, section.split, section.group)
    is_asked = section.format != "auto" or any(one not in (None, "folder") for one in columns)
    for folders in ([folder], _folders_in(folder)):
        fitting: list[tuple[bool, TableReader]] = []
        for path in _tables_in(folders, section.format):
            try:
                reader, is_there = table_in(section, path, folder, was_found=True)
            except NoTable as error:
                problem = problem or (str(error) if is_asked else None)
            except ValueError as error:
                problem = str(error)
            else:
                fitting.append((is_there, reader))
        is_there = any(there for there, _ in fitting)
        best = [reader for there, reader in fitting if there == is_there]
        if len(best) == 1:
            return best[0], is_there, None
        if best and all(split_in(reader.name) for reader in best):
            return TablesReader(tuple(best)), is_there, None
        if best:
            listed = ", ".join(reader.name for reader in best[:20])
            raise ValueError(f"images.path must be one of the tables in {shown_path(folder)}: {listed}")
    return None, False, problem


def _may_be_a_table(name: str) -> bool:
    """Whether a file is none of those with one image's text, nor a list of bad images, whose names exist too."""
    return not name.endswith(ENDING) and name != BAD_IMAGES


def _tables_in(folders: Sequence[str], wanted: str) -> list[str]:
    """The files that may be tables of a format."""
    suffixes = {
        "auto": records.SUFFIXES,
        "parquet": {".parquet"},
        "json": records.JSON_SUFFIXES,
        "jsonl": records.JSON_SUFFIXES,
    }.get(wanted, set(records.TEXT_SUFFIXES))
    found = []
    for folder in folders:
        with suppress(OSError), os.scandir(folder) as entries:
            fitting = (entry for entry in entries if suffix_of(entry.name) in suffixes and not is_hidden(entry.name))
            # entry.is_file raises for some links
            found += [entry.path for entry in fitting if os.path.isfile(entry.path) and _may_be_a_table(entry.name)]
    parquet = [path for path in found if suffix_of(path) == ".parquet"]
    return sorted(found if len(found) - len(parquet) <= _TABLES else parquet)
