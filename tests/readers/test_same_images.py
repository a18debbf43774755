"""The same labelled captchas are the same images and texts in whatever form they are stored."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import lmdb
import pyarrow
import pyarrow.parquet
import pytest

from model.config import CaptchaConfig, ImagesConfig, TrialConfig
from model.data.captchas import draw
from model.data.own_images import Look
from tests.other_images import kinds, write
from tests.readers.folders import reader, rows

Images = list[tuple[bytes, str]]


@pytest.fixture(scope="module")
def captchas() -> Images:
    config = CaptchaConfig(characters="0123456789", length=4, width=96, height=32, render_scale=2)
    drawn = [draw(config, 0, "test", index) for index in range(200)]
    encoded = []
    for index, (image, text) in enumerate(drawn):
        file = io.BytesIO()
        image.save(file, "JPEG" if index % 2 else "PNG")
        encoded.append((file.getvalue(), text))
    assert any(text.startswith("0") for _, text in encoded)
    return encoded


def files(folder: Path, captchas: Images) -> list[tuple[str, str]]:
    (folder / "images").mkdir(parents=True)
    names = [f"images/{index}.{'jpg' if index % 2 else 'png'}" for index in range(len(captchas))]
    for name, (content, _) in zip(names, captchas, strict=True):
        (folder / name).write_bytes(content)
    return [(name, text) for name, (_, text) in zip(names, captchas, strict=True)]


def as_tsv(folder: Path, captchas: Images) -> None:
    (folder / "gt.txt").write_text("".join(f"{name}\t{text}\n" for name, text in files(folder, captchas)))


def as_csv(folder: Path, captchas: Images) -> None:
    rows = [("filename", "words"), *files(folder, captchas)]
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)


def as_json(folder: Path, captchas: Images) -> None:
    (folder / "labels.json").write_text(json.dumps(dict(files(folder, captchas))))


def as_json_lines(folder: Path, captchas: Images) -> None:
    items = [{"file_name": name, "text": text} for name, text in files(folder, captchas)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, items)))


def as_parquet(folder: Path, captchas: Images) -> None:
    images = [{"bytes": content, "path": None} for content, _ in captchas]
    table = pyarrow.table({"image": images, "text": [text for _, text in captchas]})
    pyarrow.parquet.write_table(table, folder / "all.parquet", row_group_size=70)


def as_lmdb(folder: Path, captchas: Images) -> None:
    with lmdb.open(str(folder), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", str(len(captchas)).encode())
        for number, (content, text) in enumerate(captchas, start=1):
            transaction.put(b"image-%09d" % number, content)
            transaction.put(b"label-%09d" % number, text.encode())


def as_names(folder: Path, captchas: Images) -> None:
    for index, (content, text) in enumerate(captchas):
        (folder / f"{text}_{index}.{'jpg' if index % 2 else 'png'}").write_bytes(content)


def as_sidecars(folder: Path, captchas: Images) -> None:
    for name, text in files(folder, captchas):
        (folder / name).with_suffix(".gt.txt").write_text(f"{text}\n")


FORMS = [as_tsv, as_csv, as_json, as_json_lines, as_parquet, as_lmdb, as_names, as_sidecars]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_captchas_are_read_from_each_form(
    tmp_path: Path, captchas: Images, form: Callable[[Path, Images], None]
) -> None:
    form(tmp_path, captchas)
    found = rows(tmp_path)
    contents = reader(tmp_path).read([row.name for row in found])
    assert sorted(zip(contents, (row.text for row in found), strict=True)) == sorted(captchas)
    assert len({row.name for row in found}) == len(captchas)


def test_images_of_another_renderer_are_read_and_are_the_same_for_a_seed(tmp_path: Path) -> None:
    assert {"codes", "words"} <= set(kinds())
    for kind in kinds():
        written = write(tmp_path / kind, 10, seed=1, kind=kind)
        again = write(tmp_path / "again" / kind, 10, seed=1, kind=kind)
        found = rows(tmp_path / kind)
        assert {row.name: row.text for row in found} == written == again
        contents = [*reader(tmp_path / kind).read([*written])]
        assert contents == [*reader(tmp_path / "again" / kind).read([*written])]
        assert len(set(contents)) == 10
        assert {Path(name).suffix for name in written} == {".png", ".jpg"}


@pytest.mark.slow
def test_each_form_gives_the_same_pools_bit_for_bit(tmp_path: Path, captchas: Images) -> None:
    pools = []
    for number, form in enumerate(FORMS):
        folder, cache = tmp_path / f"images{number}", tmp_path / f"cache{number}"
        folder.mkdir()
        cache.mkdir()
        form(folder, captchas)
        Look(TrialConfig(images=ImagesConfig(path=str(folder))), cache, 1, lambda done, total: None).facts()
        pools.append({path.name: path.read_bytes() for path in cache.glob("*.pool")})
    assert len(pools[0]) >= 3
    assert all(each == pools[0] for each in pools)
