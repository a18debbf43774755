"""Names of the files and folders in a sweep's folder, and a check of their kinds."""

from pathlib import Path

from sweep.config import ConfigError

_FOLDERS = ("aside", "ray", "tensorboard", "top", "trials")
_FILES = (
    "best.pt",
    "best.yaml",
    "init.pt",
    "leaderboard.csv",
    "machine.json",
    "report.html",
    "study.db",
    "sweep.log",
    "sweep.yaml",
)


def require(option: str, root: Path) -> None:
    """Raises ConfigError if one of these names is taken by something else, such as a folder named `study.db`."""
    problems = [
        f"{option}: {root / name} must be a {kind}"
        for kind, names in (("folder", _FOLDERS), ("regular file", _FILES))
        for name in names
        if (root / name).exists() and not ((root / name).is_dir() if kind == "folder" else (root / name).is_file())
    ]
    if problems:
        raise ConfigError(problems)
