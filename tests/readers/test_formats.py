"""Each form in which people have labelled images, each with its trap: one small folder per row of a survey of the
formats that text recognisers' trainers read."""

import json
import unicodedata
from pathlib import Path

import lmdb
import pyarrow
import pyarrow.parquet
import pytest

from tests.readers.folders import images, picture, reader, rows, texts


def test_tab_separated_with_a_mark_and_windows_line_ends_keeps_zeros_and_nothing_else(tmp_path: Path) -> None:
    images(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "gt.txt").write_bytes(b"\xef\xbb\xbf1.png\t0071\r\n2.png\tNA\r\n3.png\t1e5\r\n")
    assert texts(tmp_path) == {"1.png": "0071", "2.png": "NA", "3.png": "1e5"}
    assert reader(tmp_path).description == "tab-separated, no header, in gt.txt"
    assert reader(tmp_path / "gt.txt").description == "tab-separated, no header"


def test_tab_separated_takes_quotes_commas_tabs_and_spaces_in_texts_literally(tmp_path: Path) -> None:
    images(tmp_path, [f"{n}.png" for n in range(6)])
    labels = ['"quoted"', '5" pipe', "100,000", "a\tb", " spaces ", "x;y"]
    (tmp_path / "labels.tsv").write_text("".join(f"{n}.png\t{label}\n" for n, label in enumerate(labels)))
    assert [*texts(tmp_path).values()] == labels


def test_paddle_lists_are_relative_to_a_folder_above_and_split_by_their_names(tmp_path: Path) -> None:
    data = tmp_path / "train_data" / "rec"
    images(data, ["train/1.jpg", "train/2.jpg", "test/1.jpg"])
    (data / "rec_gt_train.txt").write_text("train_data/rec/train/1.jpg\tAB\ntrain_data/rec/train/2.jpg\tCD\n")
    (data / "rec_gt_test.txt").write_text("train_data/rec/test/1.jpg\tEF\n")
    assert {(row.name, row.text, row.split) for row in rows(data)} == {
        ("train/1.jpg", "AB", "train"), ("train/2.jpg", "CD", "train"), ("test/1.jpg", "EF", "test"),
    }  # fmt: skip


def test_easyocr_csv_with_a_header_commas_in_texts_and_semicolons(tmp_path: Path) -> None:
    images(tmp_path, ["1.jpg", "2.jpg", "3.jpg"])
    (tmp_path / "labels.csv").write_text('filename,words\n1.jpg,100,000\n2.jpg,"a ""b"", c"\n3.jpg,0071\n')
    assert texts(tmp_path) == {"1.jpg": "100,000", "2.jpg": 'a "b", c', "3.jpg": "0071"}
    (tmp_path / "labels.csv").write_text("filename;words\n1.jpg;a,b\n2.jpg;c\n3.jpg;d\n")
    assert texts(tmp_path) == {"1.jpg": "a,b", "2.jpg": "c", "3.jpg": "d"}


def test_fast_plate_ocr_csv_with_more_columns_and_an_open_quote(tmp_path: Path) -> None:
    images(tmp_path / "images", ["1.jpg", "2.jpg", "3.jpg"])
    (tmp_path / "train.csv").write_text(
        'image_path,plate_text,plate_region\nimages/1.jpg,0A-12,Peru\nimages/2.jpg,"B3,Chile\nimages/3.jpg,C4,Peru\n'
    )
    assert texts(tmp_path) == {
        "images/1.jpg": "0A-12",
        "train.csv:3:images/2.jpg": "<line 3 has a quotation mark that is not closed>",
        "images/3.jpg": "C4",
    }
    assert [row.group for row in rows(tmp_path, group="plate_region")] == ["Peru", "", "Peru"]


def test_doctr_dictionary_beside_a_folder_of_images(tmp_path: Path) -> None:
    images(tmp_path / "images", ["1.png", "2.png", "3.png"])
    labels = {"1.png": "ÄB ", "2.png": 71, "3.png": "x", "gone.png": "y"}
    (tmp_path / "labels.json").write_text(json.dumps(labels, indent=1).replace("71", "1e5"))
    assert texts(tmp_path) == {
        "images/1.png": "ÄB ", "images/2.png": "1e5", "images/3.png": "x", "images/gone.png": "<missing file>",
    }  # fmt: skip


def test_hugging_face_folder_with_json_lines_in_each_split(tmp_path: Path) -> None:
    images(tmp_path, ["train/1.png", "train/2.png", "validation/1.png"])
    (tmp_path / "train" / "metadata.jsonl").write_text(
        '{"file_name": "1.png", "text": "a"}\n{"file_name": "2.png", "text": "b", "more": [1]}\n'
    )
    (tmp_path / "validation" / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "c"}')
    assert {(row.name, row.text, row.split) for row in rows(tmp_path)} == {
        ("train/1.png", "a", "train"), ("train/2.png", "b", "train"), ("validation/1.png", "c", "valid"),
    }  # fmt: skip


def test_hugging_face_parquet_holds_the_images_and_their_paths(tmp_path: Path) -> None:
    table = {
        "image": [{"bytes": picture(n), "path": f"w{n % 2}/same.png"} for n in range(5)] + [None],
        "text": ["0071", "NA", "", "1e5", "ok", "no image"],
    }
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), path, row_group_size=2)
    start = "data/train-00000-of-00001.parquet"
    assert texts(tmp_path) == {
        f"{start}/1/w0/same.png": "0071",
        f"{start}/2/w1/same.png": "NA",
        f"{start}/3/w0/same.png": "<empty label>",
        f"{start}/4/w1/same.png": "1e5",
        f"{start}/5/w0/same.png": "ok",
        f"{start}/6": "<missing image>",
    }
    assert [row.group for row in rows(tmp_path, group="folder")][:2] == ["w0", "w1"]
    source = reader(tmp_path)
    names = [row.name for row in source.rows()]
    order = [4, 0, 1, 3, 0, 2]
    assert list(source.read([names[index] for index in order])) == [picture(index) for index in order]
    assert list(source.read([f"{start}/99", f"{start}/x"])) == ["missing row", "missing row"]


def test_numbers_in_a_parquet_column_of_texts_and_images_as_files(tmp_path: Path) -> None:
    images(tmp_path, ["1.png", "2.png"])
    pyarrow.parquet.write_table(
        pyarrow.table({"file_name": ["1.png", "2.png"], "label": [71, None]}), tmp_path / "metadata.parquet"
    )
    assert texts(tmp_path) == {"1.png": "71", "2.png": "<empty label>"}


def test_texts_in_file_names_end_at_the_last_underscore(tmp_path: Path) -> None:
    names = ["0071_a.png", "A_b_c.jpg", "NA.png", "b a_1.JPG", "_1.png", "sub/x_1.png", ".hidden_1.png", "x_2.webp"]
    images(tmp_path, names)
    images(tmp_path / "__MACOSX", ["y_1.png"])
    images(tmp_path / ".git", ["z_1.png"])
    (tmp_path / "._0071_a.png").write_bytes(b"x")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "new_1.heic").write_bytes(b"x")
    (tmp_path / "README.txt").write_text("Images of 2026, with text\nin their names\n")
    assert texts(tmp_path) == {
        "0071_a.png": "0071", "A_b_c.jpg": "A_b", "NA.png": "NA", "b a_1.JPG": "b a", "_1.png": "<empty label>",
        "sub/x_1.png": "x", "x_2.webp": "x", "new_1.heic": "<images of the format .heic are not read>",
    }  # fmt: skip


def test_texts_in_file_names_are_found_by_a_pattern(tmp_path: Path) -> None:
    images(tmp_path, ["7_AB.png", "8_CD.png", "other.png"])
    problem = "<images.pattern doesn't match the name>"
    assert texts(tmp_path, pattern=r"_(.*)") == {"7_AB.png": "AB", "8_CD.png": "CD", "other.png": problem}
    assert texts(tmp_path, pattern=r"(?P<id>\d)_(?P<text>.)")["7_AB.png"] == "A"
    images(tmp_path / "EF", ["1.png"])
    assert texts(tmp_path, pattern=r"([^/]+)/\d+\.png$")["EF/1.png"] == "EF"


def test_lmdb_may_be_nested_read_only_and_wrong_about_its_number(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "real"
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for number, label in enumerate(["0071", "é", "", "x"], start=1):
            transaction.put(b"image-%09d" % number, picture(number))
            transaction.put(b"label-%09d" % number, label.encode())
        transaction.put(b"label-000000004", b"\xff")
        transaction.put(b"num-samples", b"6")
    before = sorted(path.name for path in folder.iterdir())
    assert texts(tmp_path) == {
        "train/real/image-000000001": "0071",
        "train/real/image-000000002": "é",
        "train/real/image-000000003": "<empty label>",
        "train/real/image-000000004": "<the text is not in UTF-8>",
        "train/real/image-000000005": "<missing image>",
        "train/real/image-000000006": "<missing image>",
    }
    assert {row.split for row in rows(tmp_path)} == {"train"}
    assert sorted(path.name for path in folder.iterdir()) == before
    names = ["train/real/image-000000002", "train/real/image-000000001", "elsewhere/image-000000001"]
    assert list(reader(tmp_path).read(names)) == [picture(2), picture(1), "missing file"]


@pytest.mark.parametrize("content", [b"x", b"x\n", b"x\r\n", b"\xef\xbb\xbfx\n", "x\n".encode("utf-16")])
def test_sidecars_may_lack_the_last_line_end(tmp_path: Path, content: bytes) -> None:
    images(tmp_path, ["a.png"])
    (tmp_path / "a.gt.txt").write_bytes(content)
    assert texts(tmp_path) == {"a.png": "x"}


def test_sidecars_belong_to_images_with_double_suffixes_in_any_folder(tmp_path: Path) -> None:
    images(tmp_path, ["p1/a.png", "p1/a.bin.png", "p1/b.nrm.png", "p1/c.tif", "p2/1.5.png", "lonely.png"])
    decomposed = unicodedata.normalize("NFD", "Größe")
    for name, text in {"p1/a": "0071", "p1/b": decomposed, "p1/c": "two\nlines", "p2/1.5": "", "p2/1": "no"}.items():
        (tmp_path / f"{name}.gt.txt").write_text(text + "\n")
    assert texts(tmp_path) == {
        "lonely.png": "<no text file beside it>",
        "p1/a.bin.png": "0071",
        "p1/a.png": "0071",
        "p1/b.nrm.png": decomposed,
        "p1/c.tif": "<its text file has more than one line>",
        "p2/1.5.png": "<empty label>",
        "p2/1.gt.txt": "<no image beside it>",
    }
    assert {row.name: row.group for row in rows(tmp_path, group="folder")}["p1/a.png"] == "p1"


def test_mjsynth_texts_are_in_the_file_names_of_its_list(tmp_path: Path) -> None:
    names = ["2425/1/115_Lube_45484.jpg", "2425/1/116_a_b_7.jpg", "2425/2/1_NA_9.jpg"]
    images(tmp_path, names)
    listed = "".join(f"./{name} {number}\n" for name, number in zip(names, (45484, 7, 9), strict=True))
    (tmp_path / "annotation_train.txt").write_text(listed + "./2425/9/1_gone_5.jpg 5\n")
    assert [(row.name, row.text, row.problem) for row in rows(tmp_path)] == [
        (names[0], "Lube", None), (names[1], "a_b", None), (names[2], "NA", None),
        ("2425/9/1_gone_5.jpg", "gone", "missing file"),
    ]  # fmt: skip


def test_icdar_words_have_a_space_and_quotes_inside_quotes(tmp_path: Path) -> None:
    images(tmp_path, [f"word_{n}.png" for n in range(1, 6)])
    (tmp_path / "gt.txt").write_bytes(
        b'\xef\xbb\xbfword_1.png, "Tiredness"\r\nword_2.png, "100,000"\r\nword_3.png, "say \\"hi\\""\r\n'
        b'word_4.png, "he "said""\r\nword_5.png, ""\r\n'
    )
    assert [*texts(tmp_path).values()] == ["Tiredness", "100,000", 'say "hi"', 'he "said"', "<empty label>"]
    (tmp_path / "gt.txt").write_text("word_1.png, Tiredness\nword_2.png, 100,000\n")
    assert [*texts(tmp_path).values()] == ["Tiredness", "100,000"]


def test_iam_words_and_lines_lie_three_levels_deep(tmp_path: Path) -> None:
    images(tmp_path / "words", ["a01/a01-000u/a01-000u-00-00.png", "a01/a01-000u/a01-000u-00-01.png"])
    (tmp_path / "words.txt").write_text(
        "#--- words.txt ---#\n#\n# a01-000u-00-00 ok 154 1 408 768 27 51 AT A\n"
        "a01-000u-00-00 ok 154 408 768 27 51 AT A\na01-000u-00-01 err 154 507 766 213 48 NN MOVE it\n"
    )
    assert texts(tmp_path) == {
        "words/a01/a01-000u/a01-000u-00-00.png": "A", "words/a01/a01-000u/a01-000u-00-01.png": "MOVE it",
    }  # fmt: skip
    images(tmp_path / "lines", ["a01/a01-000u/a01-000u-00.png"])
    (tmp_path / "lines.txt").write_text("# x\na01-000u-00 ok 154 19 408 746 1661 89 A|MOVE|to\n")
    assert texts(tmp_path / "lines.txt") == {"lines/a01/a01-000u/a01-000u-00.png": "A MOVE to"}


def test_spaces_separate_the_first_word_only(tmp_path: Path) -> None:
    images(tmp_path, ["1.png", "my image.png"])
    (tmp_path / "labels.txt").write_text("1.png two words\nmy image.png x, y\n")
    assert texts(tmp_path) == {"1.png": "two words", "my image.png": "x, y"}
    assert reader(tmp_path).description == "separated by spaces, no header, in labels.txt"
