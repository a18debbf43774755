"""Whatever a table holds: never an exception, and no row lost without a name."""

import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from model.data.readers import Row
from tests.readers.folders import images, picture, reader, rows, texts

GOOD = ["1.png", "2.png", "sub/3.jpg", "ü.png"]
EVIL = [
    *("../1.png", "/etc/passwd", "sub", "sub/../1.png", ".", "..", "", " ", "C:\\x.png", "sub\\3.jpg", "//1.png"),
    *("1.png/", "~/1.png", "\ufeff1.png", "u\u0308.png", "a" * 300 + ".png", "a/" * 3000, "-", "#1.png", "x\0.png"),
]
NAMES = st.sampled_from(GOOD * 3 + EVIL) | st.text(max_size=20)
LABELS = st.sampled_from(["0071", "NA", "1e5", "", '"', '""', '"a', 'a"b', "a,b", "a\tb", " a ", "a;b"]) | st.text()
quickly = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "25")),
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,  # CI repeats what was tried here
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        images(Path(place) / "images", GOOD)
        yield Path(place) / "images"


def read(folder: Path, name: str, content: bytes) -> list[Row] | None:
    """The rows of a table with this content, or None if it was refused with a sentence."""
    path = folder / name
    path.write_bytes(content)
    refused = ""
    try:
        return rows(path)
    except ValueError as error:
        refused = str(error)
    finally:
        path.unlink()
    assert refused.startswith("images.")
    assert "\n" not in refused
    return None


def lines_in(content: bytes, encoding: str = "utf-8") -> int:
    """How many lines are not blank, with any line end."""
    text = content.decode(encoding, "replace")
    return sum(bool(line.strip("\n")) and not line.isspace() for line in io.StringIO(text, newline=None))


SUFFIXES = [".txt", ".tsv", ".csv", ".json", ".jsonl", ".parquet"]


@quickly
@given(
    st.binary(max_size=300), st.sampled_from(SUFFIXES), st.sampled_from([b"", b"1.png\tA\n", b'{"1.png": "A", ', b"["])
)
@example(b'{"1.png": ' * 20_000, ".json", b"")
@example(b"[" * 100_000, ".jsonl", b"")
@example(b"x" * 300_000, ".csv", b"1.png,A\n")
@example(b"\xff\xfe1", ".txt", b"")
@example(b"\xff\xfe\0\0", ".txt", b"")
def test_no_bytes_raise_anything_but_a_sentence(folder: Path, content: bytes, suffix: str, start: bytes) -> None:
    read(folder, f"labels{suffix}", start + content)


@quickly
@given(st.lists(st.tuples(NAMES, LABELS) | st.binary(max_size=40), max_size=12), st.sampled_from("\t,; "))
def test_each_line_of_a_table_is_a_row_with_a_name(
    folder: Path, items: list[tuple[str, str] | bytes], delimiter: str
) -> None:
    start = "".join(f"{name}{delimiter}x\n" for name in GOOD * 4)  # most lines are fine
    lines = [item if isinstance(item, bytes) else delimiter.join(item).encode() for item in items]
    content = start.encode() + b"\n".join(lines)
    found = read(folder, "labels.txt", content)
    assert found is not None
    assert len(found) == lines_in(content)
    assert [(row.name, row.text) for row in found[: len(GOOD)]] == [(name, "x") for name in GOOD]
    assert all((folder / row.name).resolve().is_relative_to(folder) for row in found if row.problem is None)


@quickly
@given(st.lists(st.tuples(NAMES, LABELS, LABELS), max_size=12), st.sampled_from("\t,;"), st.booleans())
def test_each_line_below_a_header_is_a_row_with_a_name(
    folder: Path, items: list[tuple[str, str, str]], delimiter: str, text_is_last: bool
) -> None:
    header = ["file_name", "site", "text"] if text_is_last else ["file_name", "text", "site"]
    lines = [header, *([name, "x", "x"] for name in GOOD), *items]
    content = "\n".join(delimiter.join(line) for line in lines).encode()
    found = read(folder, "labels.csv", content)
    assert found is not None
    assert len(found) == lines_in(content) - 1


@quickly
@given(st.lists(st.tuples(NAMES, LABELS)), st.sampled_from(["utf-16", "utf-32", "utf-8-sig"]))
def test_other_encodings_with_a_mark_are_read(folder: Path, items: list[tuple[str, str]], encoding: str) -> None:
    start = "".join(f"{name}\tü\n" for name in GOOD)
    content = (start + "\n".join(map("\t".join, items))).encode(encoding)
    found = read(folder, "labels.txt", content)
    assert found is not None
    assert len(found) == lines_in(content, encoding)
    assert [(row.name, row.text) for row in found[: len(GOOD)]] == [(name, "ü") for name in GOOD]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@quickly
@given(st.lists(st.tuples(NAMES, JSON)), st.booleans())
def test_each_item_of_json_is_a_row_with_a_name(folder: Path, items: list[tuple[str, object]], by_line: bool) -> None:
    pairs = [*((name, "x") for name in GOOD), *items]
    if by_line:
        content = "\n".join(json.dumps({"file_name": name, "text": value}) for name, value in pairs)
    else:
        content = "{" + ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs) + "}"
    found = read(folder, f"labels.json{'l' if by_line else ''}", content.encode())
    assert found is not None
    assert len(found) == len(pairs)


@quickly
@given(st.data())
def test_what_is_broken_in_json_costs_no_other_line(folder: Path, data: st.DataObject) -> None:
    names = [*GOOD, *(f"gone {number}.png" for number in range(20))]
    lines = json.dumps(dict.fromkeys(names, "x"), indent=0, ensure_ascii=False).splitlines()
    number = data.draw(st.integers(len(GOOD) + 1, len(lines) - 1))
    lines[number] = data.draw(st.text(alphabet=st.characters(codec="utf-8", exclude_characters='\n\r"{}[]\\')))
    found = read(folder, "labels.json", "\n".join(lines).encode())
    assert found is not None
    present = {row.name for row in found}
    assert {name for index, name in enumerate(names, start=1) if index != number} <= present


def test_a_long_dictionary_is_streamed_over_the_ends_of_its_parts(folder: Path) -> None:
    names = [f"{index:05d}{'x' * (index % 50)}.png" for index in range(20_000)]
    content = json.dumps({**dict.fromkeys(GOOD, "x"), **dict.fromkeys(names, "1e5\\ü")}, ensure_ascii=False)
    found = read(folder, "labels.json", content.encode())
    assert found is not None
    assert [row.name for row in found[4:]] == names
    assert {row.text for row in found[4:]} == {"1e5\\ü"}


def test_lines_in_another_encoding_are_named_and_a_whole_such_table_is_refused(folder: Path) -> None:
    content = "".join(f"{name}\tx\n" for name in GOOD[:3]).encode() + "1.png\té\n2.png\ty\n".encode("latin-1")
    found = read(folder, "labels.txt", content)
    assert found is not None
    assert [row.problem for row in found[3:]] == ["line 4 is not in UTF-8", None]
    assert found[3].name == "labels.txt:4:1.png"
    path = folder / "labels.txt"
    for wrong in ("1.png\té\n2.png\tü\n".encode("latin-1"), "1.png\té\n".encode("utf-16-le")):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"images\.path must be a table in UTF-8, or .* but line 1 "):
            reader(path)
    path.unlink()


def test_a_cut_off_parquet_file_is_refused_and_damaged_rows_are_named(tmp_path: Path) -> None:
    table = pyarrow.table({"image": [{"bytes": picture(n), "path": None} for n in range(40)], "text": ["x"] * 40})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"images\.path must be a table of images and texts, but .*Parquet"):
        reader(path)
    place = pyarrow.parquet.ParquetFile(io.BytesIO(whole)).metadata.row_group(1).column(0).data_page_offset
    path.write_bytes(whole[:place] + b"\xff" * 20 + whole[place + 20 :])
    found = texts(path)
    assert [*found] == [f"a.parquet/{number}" for number in range(1, 41)]
    damaged = [number for number, text in enumerate(found.values(), start=1) if text.startswith(f"<row {number} can't")]
    assert damaged == [*range(11, 21)]
    contents = list(reader(path).read([f"a.parquet/{number}" for number in range(1, 41)]))
    assert [index for index, content in enumerate(contents) if isinstance(content, str)] == [*range(10, 20)]
    assert contents[20] == picture(20)
