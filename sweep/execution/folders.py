"""Checks the folders that a sweep reads and writes before anything starts, and locks the sweep's own folder."""

import argparse
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from model.config import shown, unusable_path
from model.data.pools import missing_pools
from model.system.files import replace_file
from sweep.config import ConfigError, SweepConfig, layout, load
from sweep.config.changes import fixed_changes
from sweep.config.workplace import Workplace

_OWN_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".mdb"}  # .mdb is LMDB
_NAME = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]{0,99}")


def default_cache(outputs: Path) -> Path:
    """The user's cache folder. Falls back to `.cache` beside the sweeps if the user has no home, as in a container."""
    try:
        return user_cache_path("crnn-sweep")
    except RuntimeError:
        return outputs / ".cache"


def cache_folder(config: SweepConfig) -> Path:
    """The folder of the rendered images, as an absolute path. Raises ConfigError if it can't be written, unless it
    already holds all images of this config: another user's cache may be read-only."""
    folder = Path(str(config.data.cache)).expanduser().absolute()
    try:
        return writable(folder, "--cache-dir")
    except ConfigError:
        if not config.image.is_known or missing_pools(config, folder, test=config.confirm is not None):
            raise
    return folder


def candidates(options: argparse.Namespace) -> list[Path]:
    """Paths for the folder of a new sweep, in order of preference: `--name`, or CONFIG-DATE-TIME and the same with a
    number from 2 to 99. Raises ConfigError if `--name` is invalid, or if its folder already exists and the sweep is not
    one to start or go on with."""
    outputs = writable(options.output_dir, "--output-dir")
    if options.name is None:
        stem = re.sub(r"[^A-Za-z0-9._=+-]", "-", options.config.stem)[:60].lstrip(".") or "sweep"
        first = outputs / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        return [first, *(first.with_name(f"{first.name}-{again}") for again in range(2, 100))]
    if not _NAME.fullmatch(options.name):
        raise ConfigError(
            [f"--name: must be 1 to 100 letters, digits and . _ = + -, not a dot first, got {options.name!r}"]
        )
    root = outputs / options.name
    if root.exists() and not _is_free(root) and not options.start_or_resume:
        raise _taken(root)
    return [root]


def take_new(
    roots: Sequence[Path], config: SweepConfig, workplace: Callable[[Path], Workplace]
) -> tuple[Workplace, FileLock]:
    """Creates the first free folder of `roots`, locks it and writes sweep.yaml. Because of the lock, only one of two
    sweeps that start with the same name gets the folder. Raises ConfigError if none is free or writable."""
    for root in roots:
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not _is_free(root) or (lock := take_lock(workplace(root))) is None:
                continue
            if _is_free(root):  # once more: another sweep may have taken the folder before the lock was acquired
                replace_file(root / "sweep.yaml", config.yaml.encode())
                return workplace(root), lock
            lock.release()
        except FileExistsError:  # a file has this name
            continue
        except OSError as error:
            raise _not_writable("--output-dir", root.parent, str(error.strerror)) from None
    raise _taken(roots[0])


def take_begun(option: str, workplace: Workplace) -> FileLock:
    """Locks the folder of a sweep that has begun. Raises ConfigError if it is running or its folder is damaged."""
    layout.require(option, writable(workplace.root, option))
    if (lock := take_lock(workplace)) is None:
        raise ConfigError(
            [f"{option}: must be a sweep that has stopped, got '{workplace.root}': this sweep is running"]
        )
    return lock


def take_new_or_begun(root: Path, config: SweepConfig, workplace: Callable[[Path], Workplace]) -> FileLock:
    """Locks the folder of a sweep that begins now, or that has begun with the same settings. Raises ConfigError.

    The folder is looked at again under its lock: until then, another command may have started the same sweep.
    """
    require_free_or_same(root, config)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = take_begun("--name", workplace(root))
        try:
            require_free_or_same(root, config)
            if _is_free(root):
                replace_file(root / "sweep.yaml", config.yaml.encode())
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise _not_writable("--output-dir", root.parent, str(error.strerror)) from None
    return lock


def require_free_or_same(root: Path, config: SweepConfig) -> None:
    """Raises ConfigError unless a new sweep may have the folder, or the sweep in it began with the settings of
    `config`. Those that any resume may change can differ."""
    if not root.exists() or _is_free(root):
        return
    file = root / "sweep.yaml"
    if not file.is_file():
        raise ConfigError([f"--name: must be a new one or that of a sweep, got {root.name!r}: there is no {file}"])
    if differing := fixed_changes(load(file, to_resume=True), config):
        named = differing if len(differing) <= 6 else [*differing[:6], f"{len(differing) - 6} more"]
        raise ConfigError([f"--resume: {', '.join(named)} must be as in {file}; for other settings use another --name"])


def _is_free(root: Path) -> bool:
    """Whether the folder is empty, or holds no more than a sweep leaves that was killed at its start: `ray/` and a
    temporary file of sweep.yaml."""
    return root.is_dir() and all(path.name == "ray" or path.name.startswith(".sweep.yaml.") for path in root.iterdir())


def take_lock(workplace: Workplace) -> FileLock | None:
    """Acquires the sweep's advisory lock; None if a running sweep holds it. The kernel releases the lock of a killed
    sweep; its workers may hold the locks of their trials for some seconds longer. Raises OSError."""
    try:
        lock = workplace.lock("sweep")
        lock.acquire(timeout=0)
    except TimeoutError:
        return None
    return lock


def _taken(root: Path) -> ConfigError:
    return ConfigError([f"--name: must be a new one, got {root.name!r}: {root} exists already"])


def _not_writable(option: str, folder: Path, reason: str) -> ConfigError:
    return ConfigError(
        [f"{option}: must be a folder that you may write, got {str(folder)!r}: cannot be written: {reason}"]
    )


def expanded(folder: Path, option: str) -> Path:
    """The folder as an absolute path, with `~` expanded. Raises ConfigError if the path is unusable."""
    try:
        found = folder.expanduser().absolute()
    except RuntimeError:
        raise ConfigError([f"{option} must begin with the name of a user after ~, got {shown(str(folder))}"]) from None
    if (problem := unusable_path(str(found))) is not None:
        raise ConfigError([f"{option} {problem}, got {shown(str(folder))}"])
    return found


def refuse_pictures(folder: Path, key: str) -> None:
    """Raises ConfigError if the cache folder holds the user's own images. A sweep trains only on captchas that it has
    rendered, so it would ignore those images and write its cache among them."""
    with suppress(OSError):
        for path in islice(chain(folder.iterdir(), folder.glob("*/*")), 10_000):
            if path.suffix.lower() in _OWN_IMAGES:
                found = f"{str(folder)!r}, which holds {path.name!r}"
                raise ConfigError([f"{key} must be a cache of rendered captchas, not own images, got {found}"])


def writable(folder: Path, option: str) -> Path:
    """The folder as an absolute path. Raises ConfigError if it can't be created or written."""
    folder = folder.expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise _not_writable(option, folder, f"{there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _not_writable(option, folder, f"{there} is not yours to write")
    return folder
