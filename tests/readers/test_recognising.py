"""Which reader reads a folder, and the sentences where none can."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tests.readers.folders import images, picture, reader, rows, texts


def database(folder: Path, labels: list[str]) -> None:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", str(len(labels)).encode())
        for number, label in enumerate(labels, start=1):
            transaction.put(b"image-%09d" % number, picture(number))
            transaction.put(b"label-%09d" % number, label.encode())


def test_a_table_whose_files_exist_wins_then_sidecars_then_lmdb_then_names(tmp_path: Path) -> None:
    images(tmp_path, ["AB_1.png", "CD_2.png"])
    assert "names" in reader(tmp_path).description
    database(tmp_path / "db", ["x"])
    assert reader(tmp_path).description == "LMDB"
    (tmp_path / "AB_1.gt.txt").write_text("y\n")
    assert "beside" in reader(tmp_path).description
    (tmp_path / "other.csv").write_text("filename,text\nelsewhere_1.png,z\n")
    assert "beside" in reader(tmp_path).description
    (tmp_path / "labels.csv").write_text("filename,text\nAB_1.png,z\n")
    assert texts(tmp_path) == {"AB_1.png": "z"}
    for name in ("names", "lmdb", "sidecar", "csv"):
        assert len(rows(tmp_path, format=name)) == {"names": 2, "lmdb": 1, "sidecar": 2, "csv": 1}[name]


def test_a_table_whose_files_are_all_missing_wins_over_names(tmp_path: Path) -> None:
    images(tmp_path, ["img_1.png", "pic_2.png"])
    (tmp_path / "labels.csv").write_text("filename,words\nold/img_1.png,AB\nold/pic_2.png,CD\n")
    assert texts(tmp_path) == {"old/img_1.png": "<missing file>", "old/pic_2.png": "<missing file>"}


def test_a_first_row_is_never_taken_for_a_header(tmp_path: Path) -> None:
    images(tmp_path, ["word.png", "text.png"])
    (tmp_path / "labels.tsv").write_text("broken\tAB\nword.png\ttext\ntext.png\tword\n")
    assert len(rows(tmp_path)) == 3
    (tmp_path / "labels.tsv").write_text("word\ttext\ntext\tword\n")  # the names lack their suffix
    assert texts(tmp_path) == {"word.png": "text", "text.png": "word"}


def test_columns_are_chosen_by_name_by_content_or_by_the_config(tmp_path: Path) -> None:
    images(tmp_path, ["a.png", "b.png"])
    table = tmp_path / "labels.csv"
    table.write_text("nr,datei,kennzeichen\n1,a.png,0071\n2,b.png,B\n")
    with pytest.raises(ValueError, match=r"images\.text_column must .* of the texts, one of nr, kennzeichen$"):
        reader(tmp_path)
    assert texts(tmp_path, text_column="kennzeichen") == {"a.png": "0071", "b.png": "B"}
    assert texts(tmp_path, text_column="nr", file_column="datei") == {"a.png": "1", "b.png": "2"}
    table.write_text("AB,a.png\nC,b.png\n")
    assert texts(tmp_path) == {"a.png": "AB", "b.png": "C"}
    table.write_text("7,a.png,AB\n8,b.png,C\n")
    assert texts(tmp_path, text_column="3") == {"a.png": "AB", "b.png": "C"}


def test_splits_come_from_a_column_or_from_folders(tmp_path: Path) -> None:
    images(tmp_path, ["Training/a.png", "dev/x/b.png", "site/c.png", "test/d.png"])
    table = tmp_path / "labels.csv"
    table.write_text("file,text,set\nTraining/a.png,A,val\ndev/x/b.png,B,TRAIN\nsite/c.png,C,other\ntest/d.png,D,\n")
    assert [row.split for row in rows(tmp_path, text_column="text")] == ["train", "valid", None, "test"]
    for key in ("split", "group"):
        with pytest.raises(ValueError, match=rf"^images\.{key} must be one of the columns file, text, set, got 'day'$"):
            reader(tmp_path, **{key: "day"})
    found = rows(tmp_path, split="set")
    assert [row.split for row in found] == ["valid", "train", None, None]
    assert [row.problem for row in found][2:] == [
        "its split is not train, valid or test, but 'other'", "its split is not train, valid or test, but ''",
    ]  # fmt: skip
    table.unlink()
    assert [row.split for row in rows(tmp_path, format="names")] == ["train", "valid", None, "test"]
    assert [row.group for row in rows(tmp_path, format="names", group="folder")] == [
        "Training",
        "dev/x",
        "site",
        "test",
    ]


def test_tables_of_a_split_each_are_read_together_and_others_are_listed(tmp_path: Path) -> None:
    images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "train.csv").write_text("a.png,A\n")
    (tmp_path / "val.csv").write_text("b.png,B\n")
    assert [(row.name, row.split) for row in rows(tmp_path)] == [("a.png", "train"), ("b.png", "valid")]
    (tmp_path / "all.csv").write_text("b.png,B\n")
    with pytest.raises(
        ValueError, match=r"images\.path must be one of the tables in .*: all\.csv, train\.csv, val\.csv$"
    ):
        reader(tmp_path)
    assert texts(tmp_path / "all.csv") == {"b.png": "B"}


def test_absolute_paths_and_backslashes_and_forms_of_unicode_find_their_files(tmp_path: Path) -> None:
    images(tmp_path / "data", ["sub/a.png", "b.png", "u\u0308.png"])
    linked = tmp_path / "link"
    linked.symlink_to(tmp_path / "data")
    for folder in (tmp_path / "data", linked):
        (tmp_path / "data" / "gt.txt").write_text(
            f"sub\\a.png\tA\n{folder}/b.png\tB\n\u00fc.png\tC\n.\\sub//a.png\tD\n"
        )
        assert [(row.name, row.text, row.problem) for row in rows(folder)] == [
            ("sub/a.png", "A", None), ("b.png", "B", None), ("u\u0308.png", "C", None), ("sub/a.png", "D", None),
        ]  # fmt: skip


def test_files_outside_of_the_folder_are_never_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    images(tmp_path, ["data/a.png", "secret/s.png", "data2/t.png"])
    (folder / "link.png").symlink_to(tmp_path / "secret" / "s.png")
    (folder / "linked").symlink_to(tmp_path / "secret")
    (folder / "itself").symlink_to(folder)  # nothing else is in it
    (folder / "inner.png").symlink_to(folder / "a.png")
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    outside = ["../secret/s.png", f"{tmp_path}/secret/s.png", "link.png", "linked/s.png", "../data2/t.png", "C:\\s.png"]
    inside = ["a.png", "inner.png", "dangling.png", "circle.png", "pipe.png", "folder.png", "../data/a.png"]
    (folder / "gt.txt").write_text("".join(f"{name}\tx\n" for name in [*inside, *outside]))
    found = rows(folder)
    assert [row.problem for row in found[: len(inside)]] == [
        None, None, "missing file", found[3].problem, "not a regular file", "not a regular file", None,
    ]  # fmt: skip
    assert found[3].problem is not None
    assert {row.problem for row in found[len(inside) :]} == {"outside of the folder"}
    assert [*reader(folder).read(outside[:5])] == ["outside of the folder"] * 5
    (folder / "gt.txt").unlink()
    assert {row.name: row.problem for row in rows(folder, format="names")} == {
        "a.png": None, "inner.png": None, "link.png": "outside of the folder", "linked": "outside of the folder",
        "dangling.png": "missing file", "circle.png": found[3].problem, "pipe.png": "not a regular file",
    }  # fmt: skip


def test_an_image_that_goes_after_it_was_listed_is_a_reason_and_no_exception(tmp_path: Path) -> None:
    images(tmp_path, ["AB_1.png", "CD_2.png"])
    source = reader(tmp_path)
    names = [row.name for row in source.rows()]
    (tmp_path / names[0]).unlink()
    assert [type(content) for content in source.read(names)] == [str, bytes]
    shutil.rmtree(tmp_path)
    assert list(source.read(names)) == ["missing file"] * 2
    assert len(list(source.rows())) == 1


def test_lmdb_stays_closed_between_rows_so_that_processes_may_be_forked(tmp_path: Path) -> None:
    database(tmp_path / "db", ["x"] * 50)
    source = reader(tmp_path)
    listed, contents = source.rows(), source.read([f"db/image-{number:09d}" for number in range(1, 51)])
    next(listed)
    next(contents)
    process = os.fork()
    if process == 0:
        os._exit(0 if next(iter(source.read(["db/image-000000002"]))) == picture(2) else 1)
    assert os.waitpid(process, 0)[1] == 0
    assert next(contents) == picture(2)
    path = tmp_path / "db" / "data.mdb"
    path.write_bytes(path.read_bytes()[:8192])
    with pytest.raises(
        ValueError, match=r"images\.path must have LMDB files with images, but db/data\.mdb can't be read"
    ):
        reader(tmp_path)


def test_many_files_of_text_are_no_tables(tmp_path: Path) -> None:
    images(tmp_path, [f"AB_{n}.png" for n in range(30)] + ["x\\y_1.png"])
    for n in range(30):
        (tmp_path / f"AB_{n}.txt").write_text(f"AB_{n}.png other\n")
    assert {row.text for row in rows_of_any_name(tmp_path)} == {"AB", "x\\y"}


def rows_of_any_name(path: Path) -> list[Any]:
    source = reader(path)
    found = list(source.rows())
    assert all(isinstance(content, bytes) for content in source.read([row.name for row in found]))
    return found


SENTENCES = [
    ({}, {}, "images.path has no images"),
    ({"notes.txt": "a b\nc d\n"}, {}, "images.path has no images"),
    ({"a.png": ""}, {"format": "csv"}, "images.path has no csv of images"),
    ({"a.png": ""}, {"format": "lmdb"}, "images.format must fit the images, but no data.mdb is there"),
    ({"a.png": ""}, {"format": "sidecar"}, "images.format must fit the images, but no image has a .gt.txt"),
    ({"a.png": "", "l.csv": "a.png,A\n"}, {"format": "tsv"}, "images.format must fit the table, but no line of"),
    ({f"IMG_{n}.png": "" for n in range(5)}, {}, "images.path has no labels"),
    ({f"{n}.png": "" for n in range(30)}, {}, "images.path has no labels"),
    ({"_1.png": "", "_2.png": ""}, {}, "images.path has no labels"),
    ({"a.png": ""}, {"pattern": "_(.*)"}, "images.pattern must match the images' names"),
    ({"a.png": ""}, {"pattern": "(.*)", "format": "csv"}, "images.pattern must not be set with images.format csv"),
    ({"a.png": ""}, {"split": "set", "format": "names"}, "images.split must not be set for images.format names"),
    ({"a.png": ""}, {"text_column": "t"}, "images.path has no table of images"),
    (
        {"a.png": "", "l.csv": "filename,text,label\na.png,A,B\n"},
        {},
        "images.text_column must name the column of the texts, one of text, label",
    ),
    (
        {"a.png": "", "l.csv": "filename,text\na.png,A\n"},
        {"split": "set", "format": "csv"},
        "images.split must be one of the columns filename, text, got 'set'",
    ),
]


@pytest.mark.parametrize(("files", "keys", "sentence"), SENTENCES)
def test_what_can_not_be_read_gets_a_sentence(
    tmp_path: Path, files: dict[str, str], keys: dict[str, Any], sentence: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(picture(1) if name.endswith("png") else content.encode())
    with pytest.raises(ValueError, match=r"^images\.") as refused:
        reader(tmp_path, **keys)
    assert str(refused.value).startswith(sentence)


def test_a_table_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    images(tmp_path, [f"{number:03}.png" for number in range(30)])
    (tmp_path / "labels.csv").symlink_to("/proc/self/mem")  # a regular file whose start can't be read, by root neither
    with pytest.raises(ValueError, match=r"^images\.path has a table that can't be read: .*labels\.csv'$"):
        reader(tmp_path)
    assert len(rows(tmp_path, format="names")) == 30


def test_a_path_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^images\.path must be a folder or a table that is there, got "):
        reader(tmp_path / "gone")
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"^images\.path must be a folder or a table \("):
        reader(tmp_path / "images.zip")


def test_readers_load_torch_never_and_pyarrow_and_lmdb_where_needed(tmp_path: Path) -> None:
    images(tmp_path, ["AB_1.png"])
    code = (
        "import sys; from model.config.images import ImagesConfig; from model.data.readers import recognise;"
        "print(*[row.text for row in recognise(ImagesConfig(path=sys.argv[1])).rows()], *sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    first, *loaded = run.stdout.split()
    assert first == "AB"
    assert {"torch", "sweep", "ruamel", "pyarrow", "lmdb"}.isdisjoint(name.partition(".")[0] for name in loaded)
