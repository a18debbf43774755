"""What a node of a Ray cluster says of itself before a sweep starts. Imports neither torch nor Ray."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sweep.machine.versions import source_digest, versions

_DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Folders:
    """The folders that a sweep needs on each node: one that all share, and one for images, which may be its own."""

    outputs: Path
    images: Path
    mark: str  # a file in `outputs` that the driver has written there
    pools: Mapping[str, int]  # files that trials need in `images`, with their sizes


@dataclass(frozen=True)
class Answer:
    """What a node has answered."""

    versions: dict[str, str]
    code: str
    gpu_names: list[str]
    shares_outputs: bool
    problem: str | None  # why the node can't write to `outputs`
    images_problem: str | None
    free: int  # bytes on the disk of the images
    needed: int  # bytes of the images that are missing there


def answer(folders: Folders, name: str) -> Answer:
    """Looks around on this node. Leaves the file `name` in the shared folder, for the driver to find and remove."""
    outputs, images = folders.outputs, _existing(folders.images)
    shared, problem = (outputs / folders.mark).is_file(), None
    if shared:
        try:
            (outputs / name).touch()
        except OSError as error:
            problem = error.strerror or str(error)
    needed = sum(size for pool, size in folders.pools.items() if not _has(folders.images / pool, size))
    writable = not needed or (images.is_dir() and os.access(images, os.W_OK | os.X_OK))
    return Answer(
        versions=versions(),
        code=source_digest(),
        gpu_names=_gpu_names(),
        shares_outputs=shared,
        problem=problem,
        images_problem=None if writable else f"{images} is not yours to write",
        free=shutil.disk_usage(images).free,
        needed=needed,
    )


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
