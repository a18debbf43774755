"""Reads tables: lines of text with a delimiter, JSON, JSON lines and parquet, as records of values.

Every value of a text is text: `0071` stays `0071`, `NA` stays `NA` and `1e5` stays `1e5`. What can't be read becomes a
record with a problem, which names its line, and reading goes on with the next.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

from model.data.readers.files import is_image
from model.system.files import reason

_LONGEST_LINE = 100_000  # characters; a longer line is no row, and must not fill the memory
_BATCH = 256  # rows of a parquet file that are in memory at once


class Record(NamedTuple):
    number: int  # of the line, item or row, from 1
    values: Sequence[Any]
    problem: str | None = None


def encoding_of(path: str) -> str:
    """The encoding of a text file: what its byte order mark says, else UTF-8."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    return "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def undecoded(text: str, encoding: str) -> bool:
    """Whether bytes could not be decoded: they have become lone surrogates (UTF-8) or U+FFFD (UTF-16, UTF-32)."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return encoding != "utf-8-sig" and "\ufffd" in text


def opened(path: str, encoding: str) -> TextIO:
    """Opens a text file in such a way that no byte raises an error; see `undecoded`."""
    return open(path, encoding=encoding, errors="surrogateescape" if encoding == "utf-8-sig" else "replace")


def shown_encoding(encoding: str) -> str:
    return encoding.removesuffix("-sig").upper()


def lines(path: str) -> Iterator[tuple[int, str, str | None]]:
    """Gives each line that is not blank: its number, its text without the line's end, and what is wrong with it."""
    encoding = encoding_of(path)
    with opened(path, encoding) as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            problem = None
            if len(line) == _LONGEST_LINE and not line.endswith("\n"):
                problem = f"line {number} is longer than {_LONGEST_LINE:,} characters"
                while (rest := file.readline(_LONGEST_LINE)) and not rest.endswith("\n"):
                    pass
            line = line.removesuffix("\n")
            if undecoded(line, encoding):
                problem = f"line {number} is not in {shown_encoding(encoding)}"
            elif "\0" in line:
                problem = f"line {number} has NUL characters"
            if line and not line.isspace():
                yield number, line, problem


# --------------------------------------------------------------------------------------------- delimited lines

NAMES = {"\t": "tab-separated", ",": "comma-separated", ";": "separated by semicolons", " ": "separated by spaces"}
_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"')
_NAME_BEFORE_SPACE = re.compile(r"(.*?\.(?:png|jpe?g|jfif|bmp|gif|webp|tiff?|p[bgpn]m|jp2|ico))\s+(.*)", re.I | re.S)
_MJSYNTH = re.compile(r"((?:\S*/)?[^/_\s]*_([^/\s]*)_(\d+)\.jpe?g) (\d+)")
_IAM_WORD = re.compile(r"((\w+)-(\w+)-\w+-\w+) (?:ok|err)(?: -?\d+){5} \S+ (.*)")
_IAM_LINE = re.compile(r"((\w+)-(\w+)-\w+) (?:ok|err)(?: -?\d+){6} (.*)")


@dataclass(frozen=True)
class Delimited:
    """Lines with a delimiter. Where the text is the last column, it may have the delimiter in it."""

    path: str
    delimiter: str
    columns: tuple[str, ...] = ("1", "2")
    has_header: bool = False
    skipped: int = 0  # lines before the first row: comments and the header
    takes_rest: bool = True  # the last column, after one split from the left for each column before it
    is_spaced: bool = False  # a space after each delimiter is no part of the value
    layout: str = ""  # "MJSynth" or "IAM", whose lines have a meaning of their own

    @property
    def description(self) -> str:
        if self.layout:
            return f"{self.layout}'s list of words"
        return f"{NAMES[self.delimiter]}, {'header ' + ', '.join(self.columns) if self.has_header else 'no header'}"

    def records(self) -> Iterator[Record]:
        for number, line, problem in lines(self.path):
            if number <= self.skipped:
                continue
            values, wrong = self.split(line)
            wrong = problem or (wrong and f"line {number} {wrong}")
            if wrong is not None or len(values) == len(self.columns):
                yield Record(number, values, wrong)
            elif not (self.layout == "IAM" and line.startswith("#")):
                yield Record(number, values, f"line {number} has {_fields(len(values))} instead of {len(self.columns)}")

    def split(self, line: str) -> tuple[list[str], str | None]:
        """The values of a line, and what is wrong with it."""
        if self.layout:
            return LAYOUTS[self.layout](line), None
        if self.delimiter == " " and self.takes_rest and len(self.columns) == 2:
            found = _NAME_BEFORE_SPACE.fullmatch(line)
            return list(found.groups()) if found else line.split(maxsplit=1), None
        count = len(self.columns) if self.takes_rest else 0
        if '"' in line and self.delimiter in ",;":
            values, wrong = split_quoted(line, self.delimiter, count)
        else:
            values, wrong = line.split(self.delimiter, count - 1), None
        return [value.removeprefix(" ") for value in values] if self.is_spaced else values, wrong


def split_quoted(line: str, delimiter: str, count: int) -> tuple[list[str], str | None]:
    """Splits a line of CSV with quotation marks into `count` values (0: all), and says what is wrong with it.

    A value's line always ends with the line: if a missing quotation mark could join lines, rows would be lost. That,
    and that the last of `count` values may have delimiters and single quotation marks in it, the csv module can't do.
    """
    values: list[str] = []
    while True:
        is_last = len(values) + 1 == count
        line = line.lstrip(" ") if line.lstrip(" ").startswith('"') else line  # `word_1.png, "Tiredness"`
        quoted = _QUOTED.match(line)
        end = quoted.end() if quoted else 0
        if quoted and (end == len(line) or (line.startswith(delimiter, end) and not is_last)):
            values.append(quoted[1].replace('""', '"'))
            if end == len(line):
                return values, None
            line = line[end + 1 :]
        elif quoted and line.startswith(delimiter, end):
            return [*values, line], f"has more than {_fields(count)}"
        elif line.startswith('"'):
            if not is_last or not line.endswith('"') or len(line) < 2:
                return [*values, line], "has a quotation mark that is not closed"
            return [*values, line[1:-1].replace('\\"', '"')], None  # `"he said "hi""`
        elif is_last or delimiter not in line:
            return [*values, line], None
        else:
            value, _, line = line.partition(delimiter)
            values.append(value)


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"


def mjsynth(line: str) -> list[str]:
    """`./2425/1/115_Lube_45484.jpg 45484`: the text is in the file's name, the number is a line of a lexicon."""
    found = _MJSYNTH.fullmatch(line)
    return [found[1], found[2]] if found and found[3] == found[4] else [line]


def iam(line: str) -> list[str]:
    """`a01-000u-00-00 ok 154 408 768 27 51 AT A`: the image is `a01/a01-000u/a01-000u-00-00.png`, the text `A`.

    In the list of lines, there is no kind of word (`AT`), and `|` stands for a space.
    """
    found = _IAM_WORD.fullmatch(line) or _IAM_LINE.fullmatch(line)
    if found is None:
        return [line]
    text = found[4] if found.re is _IAM_WORD else found[4].replace("|", " ")
    return [f"{found[2]}/{found[2]}-{found[3]}/{found[1]}.png", text]


LAYOUTS = {"MJSynth": mjsynth, "IAM": iam}


# --------------------------------------------------------------------------------------------- JSON

_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
_SPACE = re.compile(r"[\s,]*")
_COLON = re.compile(r"\s*:\s*")
_CHUNK = 2**16


@dataclass(frozen=True)
class Json:
    """A dictionary of names and texts, a list of dictionaries, or one dictionary in each line (`by_line`)."""

    path: str
    columns: tuple[str, ...]
    by_line: bool
    has_header: bool = True

    @property
    def description(self) -> str:
        return "JSON lines" if self.by_line else "JSON"

    def records(self) -> Iterator[Record]:
        for number, item, problem in self.items():
            if problem is None and not isinstance(item, dict):
                problem = f"item {number} is no dictionary"
            if problem is not None:
                yield Record(number, [item if isinstance(item, str) else None], problem)
            else:
                yield Record(number, [item.get(column) for column in self.columns])

    def items(self) -> Iterator[tuple[int, Any, str | None]]:
        return json_lines(self.path) if self.by_line else json_items(self.path)


def decoded(text: str, start: int = 0) -> tuple[Any, int]:
    """One JSON value and where it ends. Raises ValueError."""
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("nested too deep") from None


def json_lines(path: str) -> Iterator[tuple[int, Any, str | None]]:
    for number, line, problem in lines(path):
        item = None
        try:
            stripped = line.strip().rstrip(",")
            item, end = decoded(stripped)
            if end != len(stripped):
                raise ValueError
        except ValueError:
            problem = problem or f"line {number} is not JSON"
        yield number, item, problem


def json_items(path: str) -> Iterator[tuple[int, Any, str | None]]:
    """Streams the items of one large JSON dictionary or list, with their number from 1.

    A dictionary's items become `{"key": key, "value": value}`, or `{**value, "key": key}`.
    Only a part of the file is in memory. After something that is not JSON, goes on with the next line.
    """
    encoding = encoding_of(path)
    with opened(path, encoding) as file:
        text, number, is_whole, count = file.read(_CHUNK), 1, False, 0
        position = len(text) - len(text.lstrip())
        number += text.count("\n", 0, position)
        is_dictionary = text.startswith("{", position)
        if not text.startswith(("{", "["), position):
            yield 1, None, f"line {number} is not the start of a JSON dictionary or list"
            return
        position += 1
        is_closed = False
        while True:
            if not is_whole and len(text) - position < _CHUNK:
                more = file.read(_CHUNK)
                text, position, is_whole = text[position:] + more, 0, not more
            skipped = _SPACE.match(text, position)
            assert skipped is not None
            number += text.count("\n", position, skipped.end())
            position = skipped.end()
            if position == len(text):
                if not is_whole:
                    continue
                if not is_closed:
                    yield count + 1, None, f"line {number}: the JSON ends too early"
                return
            if text[position] in "}]" and not is_closed:
                is_closed, position = True, position + 1
                continue
            item, end = None, position
            try:
                if is_closed:
                    raise ValueError
                item, end = _keyed(text, position) if is_dictionary else decoded(text, position)
                if end == len(text) and not is_whole:  # a number could go on
                    raise ValueError
            except ValueError:
                if not is_whole and len(text) - position < _LONGEST_LINE:
                    more = file.read(_CHUNK)
                    text, position, is_whole = text[position:] + more, 0, not more
                    continue
                count += 1
                yield count, None, f"line {number} is not JSON"
                while (end := text.find("\n", position)) < 0 and (text := file.read(_CHUNK)):
                    position = 0
                if end < 0:
                    return
                position = end
                continue
            count += 1
            is_wrong = undecoded(text[position:end], encoding)
            yield count, item, f"line {number} is not in {shown_encoding(encoding)}" if is_wrong else None
            number += text.count("\n", position, end)
            position = end


def _keyed(text: str, position: int) -> tuple[dict[str, Any], int]:
    key, position = decoded(text, position)
    colon = _COLON.match(text, position)
    if colon is None or not isinstance(key, str):
        raise ValueError
    value, position = decoded(text, colon.end())
    return ({**value, "key": key} if isinstance(value, dict) else {"key": key, "value": value}), position


# --------------------------------------------------------------------------------------------- parquet


@dataclass(frozen=True)
class Parquet:
    """A parquet file, whose images are files, or bytes in a column as in Hugging Face's `image` {bytes, path}."""

    path: str
    columns: tuple[str, ...]
    embedded: tuple[tuple[str, str], ...] = ()  # columns that hold images' bytes, and where in them
    has_header: bool = True
    wanted: tuple[str, ...] | None = None  # the columns that are read

    @property
    def description(self) -> str:
        return "parquet"

    def records(self) -> Iterator[Record]:
        """Values of a column of bytes are (size, path)."""
        wanted = self.columns if self.wanted is None else self.wanted
        number = 0
        try:
            with open_parquet(self.path) as file:
                groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
                for group, rows in enumerate(groups):
                    end = number + rows
                    try:
                        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=list(wanted)):
                            for values in zip(*(self._values(batch, name) for name in self.columns), strict=True):
                                number += 1
                                yield Record(number, values)
                    except Exception as error:  # pyarrow raises errors of many types on damaged data
                        while number < end:
                            number += 1
                            yield Record(number, [], f"row {number} can't be read: {reason(error)}")
        except Exception as error:
            yield Record(number + 1, [], f"the file can't be read: {reason(error)}")

    def _values(self, batch: Any, name: str) -> list[Any]:
        import pyarrow  # as above
        import pyarrow.compute

        if name not in batch.schema.names:
            return [None] * batch.num_rows
        values = batch.column(name)
        place = dict(self.embedded).get(name)
        if place is None:
            return list(values.to_pylist())
        if place == name:
            return [(size, None) for size in pyarrow.compute.binary_length(values).to_pylist()]
        parts = dict(zip([field.name for field in values.type], values.flatten(), strict=True))
        sizes = pyarrow.compute.binary_length(parts["bytes"]).to_pylist()
        paths = parts["path"].to_pylist() if "path" in parts else [None] * len(sizes)
        return list(zip(sizes, paths, strict=True))

    def images(self, column: str, numbers: Sequence[int]) -> Iterator[bytes | str]:
        """The encoded images of rows, from 1. Reads forward as far as possible: rows in order are fastest."""
        with open_parquet(self.path) as file:
            place = dict(self.embedded)[column]
            starts = [0]
            for index in range(file.num_row_groups):
                starts.append(starts[-1] + file.metadata.row_group(index).num_rows)
            batches: Iterator[Any] = iter(())
            batch: Any = ()
            first, last = 1, 0
            for number in numbers:
                if not 1 <= number <= starts[-1]:
                    yield "missing row"
                    continue
                try:
                    group = next(index for index, start in enumerate(starts) if number <= start) - 1
                    if not starts[group] < first <= number or not len(batch):
                        batches = file.iter_batches(_BATCH, row_groups=[group], columns=[place])
                        batch, first, last = (), starts[group] + 1, starts[group]
                    while last < number:
                        values = next(batches).column(column)
                        batch = values if place == column else values.flatten()[0]
                        first, last = last + 1, last + len(batch)
                    image = batch[number - first].as_py()
                except Exception as error:  # as in `records`
                    batch = ()
                    image = f"row {number} can't be read: {reason(error)}"
                yield image if image is not None else "missing image"


Table = Delimited | Json | Parquet


def open_parquet(path: str) -> Any:
    """Opens a parquet file. Raises errors of many types on damaged files."""
    import pyarrow.parquet  # 40 MB and half a second, which only parquet files need

    return pyarrow.parquet.ParquetFile(path)


# --------------------------------------------------------------------------------------------- which table


TEXT_SUFFIXES = {".tsv": "\t,; ", ".csv": ",;\t ", ".txt": "\t,; ", ".lst": "\t,; ", ".list": "\t,; ", "": "\t,; "}
JSON_SUFFIXES = {".json", ".jsonl", ".ndjson"}
SUFFIXES = {*TEXT_SUFFIXES, *JSON_SUFFIXES, ".parquet"}
FORMATS = {"tsv": "\t", "csv": ",;", "space": " "}
_SAMPLE = 100


def delimited(path: str, delimiters: str) -> Delimited | None:
    """Recognises the delimiter of lines of text, or returns None if they have none of `delimiters`."""
    sample = []
    for number, line, _ in lines(path):
        sample.append((number, line))
        if len(sample) > _SAMPLE:
            break
    skipped = 0
    for name, layout in LAYOUTS.items():
        rows = [line for _, line in sample if not (name == "IAM" and line.startswith("#"))]
        if " " in delimiters and rows and sum(len(layout(line)) == 2 for line in rows) > len(rows) / 2:
            return Delimited(path, " ", layout=name)
    while sample and sample[0][1].startswith("#") and not set(delimiters.strip()) & set(sample[0][1]):
        skipped = sample.pop(0)[0]
    best, best_score = None, (0, 0)
    for delimiter in delimiters:
        fields = [Delimited(path, delimiter).split(line)[0] for _, line in sample]
        fields = [row for row in fields if len(row) > 1]
        score = (sum(any(is_image(field.strip(' "')) for field in row) for row in fields), len(fields))
        if score > best_score:
            is_spaced = delimiter in ",;" and all(row[1].startswith(" ") for row in fields) and len(fields) > 1
            best, best_score = Delimited(path, delimiter, skipped=skipped, is_spaced=is_spaced), score
    return best


def json_table(path: str, by_line: bool | None) -> Json:
    if by_line is None:
        by_line = _has_items_in_lines(path)
    columns: dict[str, None] = {}
    for index, (_, item, _) in enumerate(Json(path, (), by_line).items()):
        columns |= dict.fromkeys(map(str, item) if isinstance(item, dict) else ())
        if index >= _SAMPLE or len(columns) > 1000:
            break
    return Json(path, tuple(columns), by_line)


def _has_items_in_lines(path: str) -> bool:
    """Whether the first lines are dictionaries of their own."""
    found = 0
    for _, line, _ in lines(path):
        if not line.lstrip().startswith("{"):
            return False
        try:
            item, end = decoded(line.strip())
        except ValueError:
            return found > 0
        if end != len(line.strip()):
            return False
        found += 1
        if found == 2:
            return True
    return found == 1 and all(isinstance(value, str) for value in item.values()) and not any(map(is_image, item))


def parquet_table(path: str) -> Parquet:
    """Raises errors of many types on damaged files."""
    import pyarrow

    types = pyarrow.types
    with open_parquet(path) as file:
        schema = file.schema_arrow
    embedded = []
    for field in schema:
        kind = field.type
        place = field.name
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind, place = kind.field("bytes").type, f"{field.name}.bytes"
        if types.is_binary(kind) or types.is_large_binary(kind):
            embedded.append((field.name, place))
    return Parquet(path, tuple(schema.names), tuple(embedded))
