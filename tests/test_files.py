"""Files that are replaced: by several writers at once, beside links, and after a writer was killed."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from model.system import files
from model.system.files import replace_file

FORK = multiprocessing.get_context("fork")


def write_many(path: Path, letter: bytes) -> None:
    for _ in range(60):
        replace_file(path, letter * 50_000, letter * 50_000)


def test_writers_of_one_file_never_mix_what_they_write_and_none_fails(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    replace_file(path, b"z")
    writers = [FORK.Process(target=write_many, args=(path, letter)) for letter in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_bytes())
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert seen <= {b"z", *(letter * 100_000 for letter in (b"a", b"b", b"c"))}
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_threads_of_one_process_do_not_take_each_others_files_for_leftovers(tmp_path: Path) -> None:
    path, failed = tmp_path / "page.html", []

    def write(letter: bytes) -> None:
        try:
            write_many(path, letter)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(set(path.read_bytes())) == 1


def test_a_file_that_others_take_for_a_leftover_again_and_again_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, losses = files._try_to_lock, iter(range(5))

    def lock_too_late(descriptor: int) -> bool:
        if next(losses, None) is not None:
            for path in tmp_path.glob(".*.tmp"):
                path.unlink()
        return lock(descriptor)

    monkeypatch.setattr(files, "_try_to_lock", lock_too_late)
    replace_file(tmp_path / "page.html", b"new")
    assert next(losses, None) is None
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_bytes() == b"new"
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "nowhere" / "page.html", b"new")


@pytest.mark.parametrize("name", ["page.html", ".page.html.tmp", ".page.html.0123456789abcdef.tmp"])
def test_a_link_at_the_files_or_a_temporary_name_is_not_written_through(tmp_path: Path, name: str) -> None:
    victim, folder = tmp_path / "victim.txt", tmp_path / "got"
    victim.write_text("precious")
    folder.mkdir()
    (folder / name).symlink_to(victim)
    replace_file(folder / "page.html", b"new")
    assert victim.read_text() == "precious"
    assert (folder / "page.html").read_bytes() == b"new"
    assert not (folder / "page.html").is_symlink()


def write_and_die(path: Path) -> None:
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # in this process alone, as if killed there
    replace_file(path, b"half")


def test_what_a_killed_writer_left_goes_with_the_next_write_in_its_folder(tmp_path: Path) -> None:
    writer = FORK.Process(target=write_and_die, args=(tmp_path / "page.html",))
    writer.start()
    writer.join()
    assert writer.exitcode == -9
    assert len(list(tmp_path.glob(".page.html.*.tmp"))) == 1
    replace_file(tmp_path / "other.csv", b"rows")
    assert [file.name for file in tmp_path.iterdir()] == ["other.csv"]


def test_files_of_others_stay_whatever_their_names(tmp_path: Path) -> None:
    others = [".editor.tmp", ".page.html.swp", ".a.0123.tmp", "page.html.0123456789abcdef.tmp"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".folder.0123456789abcdef.tmp").mkdir()
    replace_file(tmp_path / "page.html", b"new")
    assert {file.name for file in tmp_path.iterdir()} == {*others, ".folder.0123456789abcdef.tmp", "page.html"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    replace_file(tmp_path / "page.html", b"old")
    with pytest.raises(TypeError):
        replace_file(tmp_path / "page.html", b"new", "text")  # type: ignore[arg-type]
    assert (tmp_path / "page.html").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    replace_file(tmp_path / "page.html", b"new")
    assert (tmp_path / "page.html").stat().st_mode == (tmp_path / "usual").stat().st_mode
