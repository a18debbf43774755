"""The versions on which a sweep's numbers depend. Does not import torch, which takes seconds."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import model
import sweep

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
    for package in (model, sweep):
        root = Path(str(package.__file__)).parent
        for file in sorted(root.rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:8]
