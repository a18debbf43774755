"""The versions on which a sweep's numbers depend. Does not import torch, which takes seconds."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("crnn-sweep", "torch", "optuna", "ray")  # a trial's numbers and the search's choices depend on them


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # not installed: this package may run from a checkout
        return "unknown"


def source_digest() -> str:
    """A short hash of this program's source files, which may differ where its version does not."""
    digest = hashlib.sha256()
    for file in sorted(file for package in ("model", "sweep") for file in (_ROOT / package).rglob("*.py")):
        digest.update(str(file.relative_to(_ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:8]
