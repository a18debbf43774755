"""What a node of a Ray cluster says of itself before a sweep starts. Imports neither torch nor Ray."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sweep.execution.storage import Storage, reason
from sweep.machine.versions import source_digest, versions

_DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Folders:
    """The folders that a sweep needs on each node: one that all share, or a storage, and one for images, which may be
    its own."""

    outputs: Path
    images: Path
    mark: str  # a file in `outputs` that the driver has written there
    storage: str | None  # a URI, used instead of `outputs`
    settings: bytes  # the contents of sweep.yaml, which the driver has written to the storage
    pools: Mapping[str, int]  # files that trials need in `images`, with their sizes


@dataclass(frozen=True)
class Answer:
    """What a node has answered."""

    versions: dict[str, str]
    code: str
    gpu_names: list[str]
    shares: bool  # whether it sees the folder or the storage that all must share
    problem: str | None  # why the node can't write there
    images_problem: str | None
    free: int  # bytes on the disk of the images
    needed: int  # bytes of the images that are missing there


def answer(folders: Folders, name: str) -> Answer:
    """Looks around on this node. Leaves the file `name` in the shared folder, for the driver to find and remove."""
    images = _existing(folders.images)
    shared, problem = (_shares_outputs if folders.storage is None else _shares_storage)(folders, name)
    needed = sum(size for pool, size in folders.pools.items() if not _has(folders.images / pool, size))
    writable = not needed or (images.is_dir() and os.access(images, os.W_OK | os.X_OK))
    return Answer(
        versions=versions(),
        code=source_digest(),
        gpu_names=_gpu_names(),
        shares=shared,
        problem=problem,
        images_problem=None if writable else f"{images} is not yours to write",
        free=shutil.disk_usage(images).free,
        needed=needed,
    )


def _shares_outputs(folders: Folders, name: str) -> tuple[bool, str | None]:
    """Whether this node sees the sweep's folder, and why it can't write there."""
    if not (folders.outputs / folders.mark).is_file():
        return False, None
    try:
        (folders.outputs / name).touch()
    except OSError as error:
        return True, error.strerror or str(error)
    return True, None


def _shares_storage(folders: Folders, name: str) -> tuple[bool, str | None]:
    """Whether this node sees the sweep's storage, and why it can't read and write it."""
    try:
        storage = Storage.unread(str(folders.storage))
        if storage.read("sweep.yaml") != folders.settings:
            return False, None
        storage.put(name, b"")
        storage.remove(name)
    except FileNotFoundError:
        return False, None
    except Exception as error:  # pyarrow and fsspec raise errors of many types
        return True, reason(error)
    return True, None


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _has(file: Path, size: int) -> bool:
    with suppress(OSError):
        return file.stat().st_size == size
    return False


def _gpu_names() -> list[str]:
    """The names of NVIDIA's GPUs, as the kernel's driver tells them."""
    names = []
    for file in sorted(_DRIVER.glob("*/information")):
        with suppress(OSError):
            lines = file.read_text().splitlines()
            names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return names
