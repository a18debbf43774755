"""A cache of rendered images that is shared, borrowed or deleted."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from model.config import TrialConfig, override
from model.data.pools import ensure_pools, missing_pools, pool_specs
from sweep.run import main
from tests.conftest import REPOSITORY
from tests.processes import TINY, UNCONFIRMED, sets, wait_for

CONFIG = TrialConfig.model_validate(override({}, {**TINY, "data.train_images": 40, "data.valid_images": 10}))
SETTINGS = {**TINY, **UNCONFIRMED, "search.trials": 1, "search.early_stopping": "none", "training.epochs": 1}
OWNER = 12345  # another user, whom a namespace without her can do nothing to


def command(outputs: Path, *arguments: str) -> list[str]:
    options = ["--local", "--name", "r", "--output-dir", str(outputs), *arguments]
    return [sys.executable, "-m", "sweep.run", *sets(SETTINGS), *options]


def run(line: list[str], home: str | None = None) -> tuple[int, str]:
    """Exit code and all that was printed."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {"PYTHONPATH": str(REPOSITORY)} | ({} if home is None else {"HOME": home})
    result = subprocess.run(line, env=environment, stdout=-1, stderr=-2, text=True, timeout=120, check=False)
    return result.returncode, result.stdout


def in_namespace(line: list[str], before: str = "true") -> list[str]:
    """As root of a user namespace: there, as on a machine of many users, other people's files are other people's."""
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{before} && exec "$@"', "sh", *line]


def filled(folder: Path, mode: int, owner: int = OWNER) -> Path:
    """A cache that another user has filled."""
    folder.mkdir()
    folder.chmod(mode)
    ensure_pools(TrialConfig.model_validate(override({}, TINY)), folder, workers=1)
    for path in (folder, *folder.iterdir()):
        os.chown(path, owner, owner)
    return folder


@pytest.mark.parametrize(
    ("folder_mode", "lock_mode", "pool_mode"),
    [
        (0o755, 0o644, 0o644),
        (0o700, 0o600, 0o600),
        (0o775, 0o664, 0o664),
        (0o2770, 0o660, 0o660),
        (0o777, 0o666, 0o664),
    ],
)
def test_who_may_write_into_the_folder_may_use_its_files_whatever_the_umask(
    folder_mode: int, lock_mode: int, pool_mode: int, tmp_path: Path
) -> None:
    tmp_path.chmod(folder_mode)
    before = os.umask(0o077)
    try:
        ensure_pools(CONFIG, tmp_path, workers=1)
    finally:
        os.umask(before)
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {".lock": lock_mode, ".pool": pool_mode}


def test_a_complete_cache_is_neither_locked_nor_written(tmp_path: Path) -> None:
    ensure_pools(CONFIG, tmp_path, workers=1)
    (tmp_path / "render.lock").unlink()
    before = tmp_path.stat().st_mtime_ns
    assert ensure_pools(CONFIG, tmp_path, workers=1) is False
    assert tmp_path.stat().st_mtime_ns == before


def test_a_link_in_the_place_of_a_pool_is_not_followed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    for spec in pool_specs(CONFIG):
        (cache / spec.name).symlink_to(mine)
        (cache / f".{spec.name}.{os.getpid()}").symlink_to(mine)
    assert ensure_pools(CONFIG, cache, workers=1) is True
    assert mine.read_text() == "precious"
    assert missing_pools(CONFIG, cache, whole=True) == []


@pytest.mark.slow
def test_a_cache_that_is_deleted_while_it_is_filled_is_filled_again(tmp_path: Path) -> None:
    cache, config = tmp_path / "cache", TrialConfig.model_validate(override({}, {**TINY, "data.train_images": 3000}))
    deleted = []

    def delete() -> None:
        wait_for(lambda: list(cache.glob(".*.pool.*")))
        shutil.rmtree(cache.rename(tmp_path / "deleted"))  # at once, so that no file is made in it meanwhile
        deleted.append(True)

    deleter = Thread(target=delete)
    deleter.start()
    assert ensure_pools(config, cache, workers=1) is True
    deleter.join()
    assert deleted
    assert missing_pools(config, cache, whole=True) == []
    assert not list(cache.glob(".*"))


@pytest.mark.namespaces
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_complete_cache_of_another_user_is_used(mode: int, tmp_path: Path) -> None:
    cache = filled(tmp_path / "cache", mode)
    (cache / "render.lock").chmod(0o644)  # as earlier versions made it
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    code, printed = run(in_namespace(command(tmp_path / "runs", "--cache-dir", str(cache))))
    assert code == 0, printed
    assert before == {path: path.stat().st_mtime_ns for path in cache.iterdir()}


@pytest.mark.namespaces
@pytest.mark.parametrize(("mode", "lock_mode"), [(0o777, 0o666), (0o777, 0o644), (0o1777, 0o666)])
def test_two_users_fill_one_cache(mode: int, lock_mode: int, tmp_path: Path) -> None:
    cache = filled(tmp_path / "cache", mode)
    (cache / "render.lock").chmod(lock_mode)
    render = (
        "from tests.test_cache import *\n"
        "config = TrialConfig.model_validate(override({}, TINY | {'data.seed': 1}))\n"
        "if __name__ == '__main__':\n"
        f"    print(ensure_pools(config, Path({str(cache)!r}), workers=1))\n"
    )
    (tmp_path / "render.py").write_text(render)
    code, printed = run(in_namespace([sys.executable, str(tmp_path / "render.py")]))
    assert code == 0, printed
    assert [path.stat().st_uid for path in cache.glob("*.pool")].count(os.getuid()) == 2
    assert len(list(cache.glob("*.pool"))) == 4


@pytest.mark.namespaces
def test_where_images_are_missing_a_cache_that_cannot_be_written_is_refused_in_a_sentence(tmp_path: Path) -> None:
    cache = filled(tmp_path / "cache", 0o755)
    more = command(tmp_path / "runs", "--cache-dir", str(cache), "--set", "data.seed=1")
    code, printed = run(in_namespace(more))
    assert code == 2
    assert printed.startswith("--cache-dir: ")
    assert str(cache) in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.namespaces
def test_a_cache_on_a_read_only_disk_is_used_if_it_is_complete_and_else_refused(tmp_path: Path) -> None:
    cache = filled(tmp_path / "cache", 0o755, os.getuid())
    mount = f"mount --bind {cache} {cache} && mount -o remount,bind,ro {cache}"
    line = command(tmp_path / "runs", "--cache-dir", str(cache))
    code, printed = run(in_namespace([*line, "--set", "data.seed=1"], mount))
    assert code == 2, printed
    assert printed.startswith("--cache-dir: ")
    assert not (tmp_path / "runs").exists()
    code, printed = run(in_namespace(line, mount))
    assert code == 0, printed


@pytest.mark.namespaces
def test_a_user_without_a_home_and_a_name_keeps_images_beside_the_sweeps(tmp_path: Path) -> None:
    nobody = ["unshare", "--user", f"--map-user={OWNER}"]  # who is in no list of users
    code, printed = run([*nobody, *command(tmp_path / "runs")])
    assert code == 0, printed
    assert len(list((tmp_path / "runs" / ".cache").glob("*.pool"))) == 2
    assert (tmp_path / "runs" / "r" / "best.pt").exists()


def test_a_file_in_the_place_of_the_cache_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").touch()
    assert main([*command(tmp_path / "runs", "--cache-dir", str(tmp_path / "cache"))[3:]]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
