"""Where a sweep's files lie, and what its trials may use."""

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock


@dataclass(frozen=True)
class Workplace:
    """Where a sweep's trials work and with what: absolute folders, CPU threads and the share of a GPU, 0 for none."""

    root: Path
    pools: Path
    threads: int
    gpus: float

    def logs(self, name: str) -> Path:
        return self.root / "tensorboard" / name

    def files(self, name: str) -> Path:
        return self.root / "trials" / name

    def lock(self, name: str) -> FileLock:
        """Goes with the process that holds it. Not a folder's own lock: on NFS there are none."""
        path = self.root / "ray" / f"{name}.lock"
        path.parent.mkdir(exist_ok=True)
        return FileLock(path)
