"""Reads tables of image files and texts, whoever wrote them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from model.config.images import ImagesConfig
from model.config.section import shown
from model.data.readers import records
from model.data.readers.files import File, Folder, below, is_image
from model.data.readers.records import Parquet, Record, Table
from model.data.readers.row import EMPTY, MISSING, OUTSIDE, Row, printable, split_called, split_of
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
        return self.table.description + (f", in {os.path.basename(self.table.path)}" if self.was_found else "")

    @property
    def _embedded(self) -> str | None:
        """The column that holds the images' bytes, where they are not files."""
        column = self.table.columns[self.file]
        return column if isinstance(self.table, Parquet) and column in dict(self.table.embedded) else None

    def rows(self) -> Iterator[Row]:
        folder = Folder(self.folder)
        table = os.path.basename(self.table.path)
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
            path = _shown(path or "")
            file = File(below(f"{table}/{number}", path), size or 0, archive, None if size else "missing image")
        elif isinstance(name, str) and name.strip():
            file = self._find(folder, name) if problem is None else File(f"{table}:{number}:{name}", 0, 0)
            path = file.name
        else:
            file, path = File(f"{table}:{number}", 0, 0, f"line {number} names no image"), ""
        parent = _shown(path).rpartition("/")[0]
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
            return Row(_shown(file.name) or f"{table}:{number}", text, split, group, problem=problem)
        return Row(_shown(file.name), text, split, group, file.size, file.changed)

    def _find(self, folder: Folder, name: str) -> File:
        root = self.root or None
        file = folder.find(name + self.suffix, root)
        if file.problem is None:
            return file
        for other in spellings(name):
            found = folder.find(other + self.suffix, root)
            if found.problem is None or (file.problem == MISSING and found.problem != MISSING):
                return found
        return file._replace(problem=OUTSIDE) if _is_on_a_drive(name) else file

    def read(self, names: Sequence[str]) -> Iterator[bytes | str]:
        if self._embedded is None:
            folder = Folder(self.folder)
            yield from (folder.read(name) for name in names)
            return
        assert isinstance(self.table, Parquet)
        start = f"{os.path.basename(self.table.path)}/"
        numbers = [name.removeprefix(start).split("/")[0] for name in names]
        wanted = [int(number) if number.isdecimal() else 0 for number in numbers]
        done = 0
        try:
            for image in self.table.images(self._embedded, wanted):
                yield image
                done += 1
        except Exception as error:  # pyarrow raises errors of many types on damaged files
            yield from [reason(error)] * (len(names) - done)


def spellings(name: str) -> Iterator[str]:
    """Other ways to write the name of a file: Windows's separators, no space around, each form of Unicode."""
    import unicodedata

    stripped = name.strip().strip("\ufeff")
    slashes = stripped.replace("\\", "/")
    for other in (stripped, slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))):
        if other != name:
            yield other


def _is_on_a_drive(name: str) -> bool:
    """Whether a path is an absolute one of Windows, where this is not Windows."""
    return os.sep == "/" and name[1:2] == ":" and name[2:3] in ("\\", "/") and name[0].isalpha()


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


def _shown(name: str) -> str:
    return printable(name.replace("\\", "/"))


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


def table_in(section: ImagesConfig, path: str, folder: str, was_found: bool) -> tuple[TableReader, float]:
    """Recognises a table, its columns and what its names are relative to. Also returns which part of a sample exists.

    Raises ValueError, with a sentence that begins with the key to set.
    """
    table = _open(section, path)
    sample = [record for record in islice(table.records(), _SAMPLE + 1) if record.problem is None]
    broken = [record.problem for record in islice(table.records(), _SAMPLE + 1) if record.problem is not None]
    if broken and len(broken) > len(sample) and "is not in" in broken[0]:
        raise ValueError(
            f"images.path must be a table in UTF-8, or in UTF-16 with a byte order mark, but {broken[0]}: {path}"
        )
    search = Folder(folder)
    if isinstance(table, records.Delimited) and not table.layout:
        table = _with_header(table, section, search)
        sample = [record for record in islice(table.records(), _SAMPLE) if record.problem is None]
    return _columns(section, table, sample[:_SAMPLE], search, folder, was_found)


def _open(section: ImagesConfig, path: str) -> Table:
    suffix = os.path.splitext(path)[1].lower()
    wanted = section.format
    if wanted == "auto" and suffix not in records.SUFFIXES:
        raise ValueError(
            "images.path must be a folder or a table (.tsv, .csv, .txt, .json, .jsonl, .parquet), or images.format "
            f"must say what it is, got {shown(path)}"
        )
    try:
        if wanted == "parquet" or (wanted == "auto" and suffix == ".parquet"):
            return records.parquet_table(path)
        if wanted in ("json", "jsonl") or (wanted == "auto" and suffix in records.JSON_SUFFIXES):
            items = records.json_table(path, {"json": False, "jsonl": True}.get(wanted, suffix != ".json" or None))
            if items.columns:
                return items
            problem = next((problem for _, _, problem in items.items() if problem), "it has no dictionary")
            raise ValueError(problem)
        delimiters = records.FORMATS.get(wanted) or records.TEXT_SUFFIXES.get(suffix, "\t,; ")
        lines = records.delimited(path, delimiters)
    except Exception as error:  # pyarrow raises errors of many types on damaged files
        raise ValueError(f"images.path must be a table of images and texts, but {path}: {reason(error)}") from None
    if lines is not None:
        return lines
    names = " or ".join({"\t": "tab", ",": "comma", ";": "semicolon", " ": "space"}[one] for one in delimiters)
    raise ValueError(f"images.format must fit the table, but no line of {shown(path)} has a {names}")


def _with_header(table: records.Delimited, section: ImagesConfig, folder: Folder) -> records.Delimited:
    """Recognises whether the first line is a header, and how many columns there are."""
    whole = replace(table, takes_rest=False)
    first = next(((number, line) for number, line, _ in records.lines(table.path) if number > table.skipped), None)
    assert first is not None, "a delimiter was found"
    cells = [_cell(cell) for cell in whole.split(first[1].lstrip("#\ufeff"))[0]]
    asked = [section.file_column, section.text_column, section.split, section.group]
    others = islice((line for number, line, _ in records.lines(table.path) if number > first[0]), _SAMPLE)
    below = [whole.split(line)[0] for line in others]
    if (
        len(cells) > 1
        and not any(map(is_image, cells))
        and (
            any(one in cells for one in asked if one is not None)
            or any(_known(cell) in (*FILE_COLUMNS, *TEXT_COLUMNS) for cell in cells)
            or sum(any(map(is_image, line)) for line in below) > len(below) / 2
        )
        and (len(below) > 0 or all(_known(cell) in (*FILE_COLUMNS, *TEXT_COLUMNS) for cell in cells[:2]))
        and folder.find(cells[0]).problem is not None
    ):
        names = tuple(cell or f"column {index}" for index, cell in enumerate(cells, start=1))
        return replace(table, columns=names, has_header=True, skipped=first[0], takes_rest=True)
    by_number = [int(one) for one in asked if one is not None and one.isdecimal()]
    count = max(map(len, [cells, *below]))
    files = [sum(index < len(line) and is_image(line[index]) for line in [cells, *below]) for index in range(count)]
    if by_number or (count > 2 and max(files) > files[0]):  # not the name first and then the text
        return replace(table, columns=tuple(str(index) for index in range(1, max([count, *by_number]) + 1)))
    return table


def _cell(cell: str) -> str:
    return cell.strip().strip('"')


def _known(column: str) -> str:
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def _columns(
    section: ImagesConfig, table: Table, sample: list[Record], folder: Folder, path: str, was_found: bool
) -> tuple[TableReader, float]:
    columns = table.columns
    chosen = {}
    for key in ("file_column", "text_column", "split", "group"):
        value = getattr(section, key)
        if value in columns:
            chosen[key] = columns.index(value)
        elif value is not None and (key, value) != ("group", "folder"):
            raise ValueError(f"images.{key} must be one of the columns {_list(columns)}, got {shown(value)}")
    others = set(chosen.values())
    if "file_column" not in chosen:
        known = [name for name in FILE_COLUMNS if name in map(_known, columns)]
        free = [index for index in range(len(columns)) if index not in others]
        order = {name: index for index, name in enumerate(known)}
        free.sort(key=lambda index: order.get(_known(columns[index]), len(order)))
        rated = [(_rate(folder, table, index, sample), -place, index) for place, index in enumerate(free)]
        best = max(rated, default=((0.0, 0.0, "", ""), 0, -1))
        if best[2] < 0 or (best[0][:2] == (0, 0) and not known):
            raise ValueError(
                f"images.file_column must name the column of the images' files, one of {_list(columns)}: "
                "no column has the names of files that are there"
            )
        chosen["file_column"] = best[2]
        others.add(best[2])
    file = chosen["file_column"]
    exist, _, root, suffix = _rate(folder, table, file, sample)
    if "text_column" not in chosen:
        free = [index for index in range(len(columns)) if index not in others]
        named = [index for index in free if _known(columns[index]) in TEXT_COLUMNS]
        candidates = named or free
        if len(candidates) != 1:
            raise ValueError(
                "images.text_column must name the column of the texts, one of "
                f"{_list([columns[index] for index in candidates] or columns)}"
            )
        chosen["text_column"] = candidates[0]
    text = chosen["text_column"]
    if isinstance(table, records.Delimited) and text != len(columns) - 1:
        table = replace(table, takes_rest=False)
    if isinstance(table, Parquet):
        used = tuple(dict.fromkeys(columns[index] for index in chosen.values()))
        kept = tuple(pair for pair in table.embedded if pair[0] == columns[file])
        table = replace(table, embedded=kept, wanted=used)
    reader = TableReader(
        path,
        table,
        file,
        text,
        chosen.get("split"),
        chosen.get("group"),
        "group" not in chosen and section.group == "folder",
        root,
        suffix,
        was_found,
    )
    return reader, exist


def _list(names: Sequence[str]) -> str:
    shortened = [*names[:20], *(["…"] if len(names) > 20 else [])]
    return ", ".join(map(printable, shortened))


def _rate(folder: Folder, table: Table, index: int, sample: list[Record]) -> tuple[float, float, str, str]:
    """Which part of a column's values are files that exist, and are called like images; the folder that the names
    are relative to, and the suffix that they lack."""
    column = table.columns[index]
    if isinstance(table, Parquet) and column in dict(table.embedded):
        sizes = [record.values[index][0] for record in sample]
        return (sum(size is not None for size in sizes) / max(len(sizes), 1), 1.0, "", "")
    names = [value for record in sample if isinstance(value := record.values[index], str) and value.strip()]
    if not names:
        return (0.0, 0.0, "", "")
    called = sum(map(is_image, names)) / len(names)
    best = (0.0, called, "", "")
    for suffix in [""] if called > 0.5 else ["", *_IMAGE_SUFFIXES]:
        for root in _roots(folder.path):
            reader = TableReader(folder.path, table, index, 0, root=root, suffix=suffix)
            files = [reader._find(folder, name) for name in names]
            exist = sum(file.problem is None and is_image(file.name) for file in files) / len(names)
            exist = exist or sum(file.problem is None for file in files) / len(names) / 100 * called
            if exist > best[0]:
                best = (exist, called, root, suffix)
            if exist == 1:
                return best
    return best


def _roots(folder: str) -> Iterator[str]:
    """What the names in a table may be relative to: its folder, a folder in it, or one of those above it."""
    yield ""
    with os.scandir(folder) as entries:
        folders = (entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        yield from sorted(islice(folders, _FOLDERS))
    for _ in range(3):
        folder = os.path.dirname(folder)
        yield folder
