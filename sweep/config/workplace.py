"""The folders of a sweep and the resources of each trial."""

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock


@dataclass(frozen=True)
class Workplace:
    """What each trial of a sweep works with: absolute folders, CPU threads, and GPUs (0 is none, a fraction a share of
    one). `elsewhere`: whether a trial may run on another machine, where images may be missing. `storage`: the URI
    through which trials exchange their files with the sweep, if the machines do not share `root`."""

    root: Path
    pools: Path
    threads: int
    gpus: float
    elsewhere: bool = False
    storage: str | None = None

    def logs(self, name: str) -> Path:
        return self.root / "tensorboard" / name

    def files(self, name: str) -> Path:
        return self.root / "trials" / name

    def lock(self, name: str) -> FileLock:
        """An advisory lock for the sweep or a trial, not yet acquired; the kernel releases it if its process dies. A
        lock file, because NFS can't lock folders."""
        path = self.root / "ray" / f"{name}.lock"
        path.parent.mkdir(exist_ok=True)
        return FileLock(path)
