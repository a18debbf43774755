"""Looking at a user's images: which can be used, how they are split, and the pools that come out."""

import csv
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from model.config import ImagesConfig, TrialConfig, override
from model.data import own_images
from model.data.alphabet import Alphabet
from model.data.image_facts import Facts
from model.data.own_images import Look, choose_widths, fitted_sections
from model.data.pool_file import SPLITS
from model.data.pools import open_split
from model.images import main


def draw(text: str, size: tuple[int, int] = (64, 24), noise: int = 0) -> Image.Image:
    """A picture of a text; `noise` makes pictures of the same text differ."""
    image = Image.new("RGB", size, (240, 240, 240 - noise % 200))
    pen = ImageDraw.Draw(image)
    pen.text((4, 4), text, fill="black", font=ImageFont.load_default(size[1] // 2))
    pen.point((noise % size[0], noise // size[0] % size[1]), fill="red")
    return image


def folder_of(texts: list[str], folder: Path, size: tuple[int, int] = (64, 24)) -> Path:
    """Images and a table of their texts."""
    folder.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file_name", "text"))
        for number, text in enumerate(texts):
            draw(text, size, number).save(folder / f"{number:04}.png")
            table.writerow((f"{number:04}.png", text))
    return folder


def seen(folder: Path, cache: Path, limits: Any = None, **settings: Any) -> tuple[Facts, TrialConfig]:
    """What a look has found, and the config that follows from it."""
    config = TrialConfig(images=ImagesConfig(path=str(folder), **settings))
    cache.mkdir(exist_ok=True)
    facts = Look(config, cache, 1, lambda done, total: None, limits=limits).facts()
    return facts, config.model_copy(update=fitted_sections(config, facts))


def texts_of(config: TrialConfig, cache: Path) -> dict[str, list[str]]:
    """The texts of each split, read from the pools."""
    alphabet, found = Alphabet(config.image.characters), {}
    for split in SPLITS:
        pools = open_split(config, split, cache)
        assert pools is not None
        found[split] = [alphabet.decode(row) for row in pools.labels.tolist()]
    return found


CODES = [f"{number:03}" for number in range(120)]


def test_every_image_is_in_one_split_with_its_own_text(tmp_path: Path) -> None:
    folder = folder_of(CODES, tmp_path / "images")
    facts, config = seen(folder, tmp_path / "cache")
    texts = texts_of(config, tmp_path / "cache")
    assert sorted(text for split in SPLITS for text in texts[split]) == CODES
    assert facts.counts == {split: len(texts[split]) for split in SPLITS}
    assert len(texts["train"]) > 70
    assert facts.settings["characters"] == "0123456789"
    pools = open_split(config, "valid", tmp_path / "cache")
    assert pools is not None
    image = Image.open(folder / f"{int(texts['valid'][0]):04}.png").resize((pools.pools[0].widths[0], 32), 2)
    (picture,) = pools.pictures([0])
    assert np.abs(picture.astype(int) - np.asarray(image).transpose(2, 0, 1)).max() < 60


def test_the_split_of_an_image_stays_when_others_come_and_go(tmp_path: Path) -> None:
    folder = folder_of(CODES, tmp_path / "images")
    _, before = seen(folder, tmp_path / "cache")
    for name in ("0003.png", "0004.png"):
        (folder / name).unlink()
    draw("999", noise=999).save(folder / "new.png")
    with (folder / "labels.csv").open("a") as file:
        file.write("new.png,999\n")
    _, after = seen(folder, tmp_path / "cache", bad="skip")
    first, second = texts_of(before, tmp_path / "cache"), texts_of(after, tmp_path / "cache")
    for split in SPLITS:
        assert set(first[split]) - set(second[split]) <= {"003", "004"}
        assert set(second[split]) - set(first[split]) <= {"999"}


def test_one_picture_under_several_names_is_in_one_split(tmp_path: Path) -> None:
    folder = folder_of(CODES, tmp_path / "images")
    with (folder / "labels.csv").open("a") as file:
        for number in range(40):
            shutil.copy(folder / f"{number:04}.png", folder / f"copy{number}.png")
            file.write(f"copy{number}.png,{number:03}\n")
    facts, config = seen(folder, tmp_path / "cache")
    texts = texts_of(config, tmp_path / "cache")
    assert not set(texts["train"]) & set(texts["valid"]) | set(texts["train"]) & set(texts["test"])
    assert facts.duplicates == 40
    assert sum(facts.counts.values()) == 160


def test_a_group_is_never_divided(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for writer in range(12):
        folder_of([f"{writer:02}{number}" for number in range(10)], folder / f"writer{writer}")
    for table in folder.glob("*/labels.csv"):
        table.unlink()
    for path in folder.glob("*/*.png"):
        path.rename(path.with_name(f"{int(path.parent.name[6:]):02}{int(path.stem)}_{path.stem}.png"))
    _, config = seen(folder, tmp_path / "cache", group="folder", format="names")
    writers = {split: {text[:2] for text in texts} for split, texts in texts_of(config, tmp_path / "cache").items()}
    assert sum(map(len, writers.values())) == 12


def test_folders_named_as_splits_are_the_splits_and_a_missing_one_is_taken_from_training(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for split, texts in {"train": CODES[:80], "val": CODES[80:100]}.items():
        folder_of(texts, folder / split)
        (folder / split / "labels.csv").unlink()
        for path in (folder / split).iterdir():
            path.rename(path.with_name(f"{texts[int(path.stem)]}_{split}.png"))
    _, config = seen(folder, tmp_path / "cache", format="names")
    texts = texts_of(config, tmp_path / "cache")
    assert sorted(texts["valid"]) == CODES[80:100]
    assert sorted(texts["train"] + texts["test"]) == CODES[:80]
    assert texts["test"]


def spoil(folder: Path) -> dict[str, str]:
    """Adds images that can't be used; returns the reason of each by name."""
    with (folder / "labels.csv").open("a", encoding="utf-8") as file:
        file.write("gone.png,123\ntruncated.png,123\nempty.png,123\nnotes.png,123\nblank.png,\n")
        file.write("twice.png,111\ntwice.png,112\nlong.png,123456789012345678901234567890\n")
    draw("1").save(folder / "long.png")
    draw("123", noise=500).save(folder / "twice.png")
    draw("123", noise=501).save(folder / "blank.png")
    draw("123", noise=502).save(folder / "truncated.png")
    data = (folder / "truncated.png").read_bytes()
    (folder / "truncated.png").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").touch()
    (folder / "notes.png").write_text("I am no image")
    return {
        "gone.png": "missing file",
        "truncated.png": "unreadable",
        "empty.png": "unreadable",
        "notes.png": "unreadable",
        "blank.png": "empty label",
        "twice.png": "listed twice with different labels",
        "long.png": "label longer than the time steps allow",
    }


def test_what_cannot_be_used_is_named_with_its_reason_and_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(CODES, tmp_path / "images")
    expected = spoil(folder)
    monkeypatch.chdir(tmp_path)
    assert main([str(folder)]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("images.bad must be skip")
    with (tmp_path / "bad_images.csv").open(newline="") as file:
        found = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert {name: reason.partition(":")[0] for name, reason in found.items()} == expected
    for name, reason in expected.items():
        assert name in output.out
        assert reason in output.out


def test_skipped_images_are_left_out_and_the_others_stay(tmp_path: Path) -> None:
    folder = folder_of(CODES, tmp_path / "images")
    spoil(folder)
    facts, config = seen(folder, tmp_path / "cache", bad="skip")
    texts = texts_of(config, tmp_path / "cache")
    assert sorted(text for split in SPLITS for text in texts[split]) == CODES
    assert facts.bad == 8


def test_a_character_that_only_validation_has_is_left_out_by_name(tmp_path: Path) -> None:
    folder = folder_of(CODES, tmp_path / "images")
    _, config = seen(folder, tmp_path / "cache")
    rare = texts_of(config, tmp_path / "cache")["valid"][0]
    table = (folder / "labels.csv").read_text().replace(f",{rare}\n", f",{rare}Ω\n")
    (folder / "labels.csv").write_text(table)
    facts, config = seen(folder, tmp_path / "cache")
    assert facts.settings["characters"] == "0123456789"
    assert facts.bad == 0
    assert facts.put_aside == {"character that no training label has": (1, [f"{int(rare):04}.png"])}


def test_texts_are_composed_and_that_is_counted(tmp_path: Path) -> None:
    folder = folder_of([f"e\u0301{number:03}" for number in range(100)], tmp_path / "images")
    facts, config = seen(folder, tmp_path / "cache")
    assert facts.composed == 100
    assert "é" in config.image.characters
    assert all(len(text) == 4 for text in texts_of(config, tmp_path / "cache")["train"])


@pytest.mark.parametrize(("characters", "bytes_each"), [(200, 1), (256, 2), (33_000, 4)])
def test_labels_take_as_many_bytes_as_the_alphabet_needs(tmp_path: Path, characters: int, bytes_each: int) -> None:
    alphabet = "".join(map(chr, [*range(0x4E00, 0x9FFF), *range(0xAC00, 0xD7A3), *range(0x3400, 0x4DBF)][:characters]))
    folder = folder_of([alphabet[-1] + alphabet[number] for number in range(100)], tmp_path / "images")
    _, config = seen(folder, tmp_path / "cache", characters=alphabet)
    pools = open_split(config, "train", tmp_path / "cache")
    assert pools is not None
    assert pools.labels.itemsize == bytes_each
    assert all(text[0] == alphabet[-1] for text in texts_of(config, tmp_path / "cache")["train"])


def test_images_of_many_widths_are_padded_to_few_and_keep_their_ratio(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(90):
        draw("12", (32 + number * number // 20, 32), number).save(folder / f"{number:02}_{number}.png")
    facts, config = seen(folder, tmp_path / "cache", format="names")
    assert len(facts.widths) == 3
    for split in SPLITS:
        pools = open_split(config, split, tmp_path / "cache")
        assert pools is not None
        for pool in pools.pools:
            for image, width in zip(pool.images, pool.widths, strict=True):
                assert (image[:, :, width:] == image[:, :, width - 1 : width]).all()
    assert facts.squeezed <= 1


def test_stretched_images_have_one_width_and_no_padding(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(60):
        draw("12", (32 + 4 * number, 32), number).save(folder / f"{number:02}_{number}.png")
    facts, config = seen(folder, tmp_path / "cache", fit="stretch", format="names")
    pools = open_split(config, "train", tmp_path / "cache")
    assert pools is not None
    assert [(pool.widths == pool.images.shape[3]).all() for pool in pools.pools] == [True]
    assert list(facts.widths) == list(config.image.all_widths)


def test_widths_are_as_few_as_save_a_tenth_of_the_pixels() -> None:
    assert choose_widths([100] * 50, "pad") == (104,)
    assert choose_widths([112, 116, 120] * 50, "pad") == (120,)
    assert choose_widths([64] * 50 + [120] * 40 + [128] * 10, "pad") == (64, 128)
    assert choose_widths([64] * 50 + [120] * 40 + [400] * 10, "pad") == (64, 120, 400)
    assert choose_widths([64] * 300 + [4000], "pad") == (64,)
    assert choose_widths([64] * 300 + [4000], "stretch") == (64,)


def test_a_second_look_decodes_nothing_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(CODES, tmp_path / "images")
    before, _ = seen(folder, tmp_path / "cache")
    calls: list[Any] = []
    decode = own_images.Look._decode
    monkeypatch.setattr(own_images.Look, "_decode", lambda *given: (calls.append(given), decode(*given))[1])
    assert seen(folder, tmp_path / "cache")[0] == before
    assert not calls
    draw("777", noise=9).save(folder / "0009.png")
    after, _ = seen(folder, tmp_path / "cache")
    assert len(calls) == 1
    assert after.settings["digest"] != before.settings["digest"]


def test_few_images_start_no_more_processes_than_they_keep_busy(tmp_path: Path) -> None:
    folder, counts = folder_of(CODES, tmp_path / "images"), set[int]()
    before = set(multiprocessing.active_children())
    (tmp_path / "cache").mkdir()

    def progress(done: int, total: int) -> None:
        counts.add(len(set(multiprocessing.active_children()) - before))

    config = TrialConfig(images=ImagesConfig(path=str(folder)))
    Look(config, tmp_path / "cache", 8, progress).facts()
    assert counts == {1}
    assert set(multiprocessing.active_children()) == before


def test_a_limit_takes_a_part_of_each_split(tmp_path: Path) -> None:
    folder = folder_of(CODES, tmp_path / "images")
    _, whole = seen(folder, tmp_path / "cache")
    facts, config = seen(folder, tmp_path / "cache", limits={"train": 20, "valid": 1000})
    assert facts.counts["train"] == 20
    assert facts.counts["valid"] == whole.data.valid_images
    assert set(texts_of(config, tmp_path / "cache")["train"]) < set(texts_of(whole, tmp_path / "cache")["train"])


def test_facts_survive_json(tmp_path: Path) -> None:
    folder = folder_of(CODES, tmp_path / "images")
    spoil(folder)
    facts, _ = seen(folder, tmp_path / "cache", bad="skip")
    assert Facts.from_json(json.loads(json.dumps(facts.as_json()))) == facts


@pytest.mark.parametrize(
    ("texts", "settings", "sentence"),
    [
        ([], {}, "images.path"),
        (["12", "13"], {}, "images.fractions must leave images"),
        (["11"] * 100, {}, "images.characters must be at least two characters"),
        (CODES, {"characters": "01", "bad": "skip"}, "images.fractions"),
        (CODES, {"format": "lmdb"}, "images.format|images.path"),
        (CODES, {"text_column": "label"}, "images.text_column"),
    ],
)
def test_images_without_use_are_refused_in_a_sentence(
    texts: list[str], settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = folder_of(texts, tmp_path / "images")
    with pytest.raises(ValueError, match=f"^({sentence})"):
        seen(folder, tmp_path / "cache", **settings)


def test_a_refusal_comes_with_the_table_and_all_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of([chr(0x4E00 + number) for number in range(40)], tmp_path / "few")  # no character is in two images
    assert main(["few"]) == 2
    output = capsys.readouterr()
    assert "read as: comma-separated" in output.out
    assert "got none for" in output.err
    with (tmp_path / "bad_images.csv").open(newline="") as file:
        listed = [row["file"] for row in csv.DictReader(file)]
    assert f"    … and {len(listed) - 10} more" in output.out or all(name in output.out for name in listed)
    assert listed
    (tmp_path / "broken").mkdir()
    for number in range(3):
        (tmp_path / "broken" / f"{number}a_{number}.png").write_bytes(b"x")
    assert main(["broken"]) == 2
    output = capsys.readouterr()
    assert "    0a_0.png: not an image of a known format" in output.out
    assert output.err.startswith("images.path must have images that can be used, but none of its 3 can")  # skip: no use


def test_all_that_is_put_aside_is_listed_also_where_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of([*CODES, *(chr(0x4E00 + number) for number in range(100))], tmp_path / "images")
    assert main(["images"]) == 0
    table = capsys.readouterr().out
    with (tmp_path / "bad_images.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) > 10
    assert f"{len(listed)} × character that no training label has" in table


def test_joiners_and_characters_for_private_use_are_part_of_a_text_and_what_nobody_sees_is_not(tmp_path: Path) -> None:
    good = [
        f"{number:02}{text}" for number in range(60) for text in ("\u06cc\u200c\u0647", "👨\u200d👩", "\ue665\u3000")
    ]
    bad = ["1\u200b", "2\ufeff", "3\u202e", "4\x07", "5\u2028"]
    folder = folder_of([*good, *bad], tmp_path / "images")
    facts, config = seen(folder, tmp_path / "cache", bad="skip")
    assert sorted(text for texts in texts_of(config, tmp_path / "cache").values() for text in texts) == sorted(good)
    (problem,) = facts.reasons
    codes = ("U+200B", "U+FEFF", "U+202E", "U+0007", "U+2028")
    assert facts.reasons[problem] == (5, [f"{len(good) + row:04}.png: {code}" for row, code in enumerate(codes)])


def test_names_that_a_terminal_would_obey_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(60):
        (tmp_path / "images").mkdir(exist_ok=True)
        draw("n", noise=number).save(tmp_path / "images" / f"n{number}_1.png")
    for name in ("\x1b[31mred_1.png", "a\nb_1.png", "\u202egnp.x_1.png"):
        (tmp_path / "images" / name).write_bytes(b"x")
    assert main(["images"]) == 2
    table = capsys.readouterr().out
    assert all(line.isprintable() for line in table.splitlines())
    assert "    \\x1b[31mred_1.png: U+001B\n" in table


def test_a_list_of_bad_images_is_never_read_as_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(60):
        draw("n", noise=number).save(tmp_path / f"AB{number}_1.png")
    (tmp_path / "CD_1.png").write_bytes(b"x")
    assert main(["."]) == 2
    assert (tmp_path / "bad_images.csv").is_file()
    (tmp_path / "runs").mkdir()
    shutil.copy(tmp_path / "bad_images.csv", tmp_path / "runs")  # where a sweep leaves the list
    capsys.readouterr()
    assert main(["."]) == 2
    assert "read as: texts in the files' names, before the last _, 61 images" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["", "x" * 300, "a\0b"])
def test_a_path_that_no_system_has_is_refused_in_a_sentence(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("FOLDER must be")


def test_the_table_is_shown_also_where_its_list_cannot_be_written(tmp_path: Path) -> None:
    folder = folder_of(CODES, tmp_path / "images")
    spoil(folder)
    (tmp_path / "here").mkdir(mode=0o555)
    denied = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*denied, sys.executable, "-m", "model.images", str(folder)]
    found = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True)
    assert found.returncode == 2
    assert "can't be used: " in found.stdout
    place = Path(found.stderr.rpartition(" are in ")[2].strip())
    assert place.is_file()
    shutil.rmtree(place.parent)


def test_images_and_captcha_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="images and captcha must not both"):
        TrialConfig.model_validate({"images": {"path": "x"}, "captcha": {"length": 3}})
    with pytest.raises(ValueError, match=r"data\.source must be pool"):
        TrialConfig.model_validate(override({"images": {"path": "x"}}, {"data.source": "stream"}))
