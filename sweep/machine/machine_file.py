"""`machine.json`: the hardware and the versions with which a sweep began."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from model.system.files import replace_file
from sweep.machine.resources import Machine

_PACKAGES = ("crnn-sweep", "torch", "optuna", "ray")  # those that a trial's numbers and the search's choices depend on


def keep(path: Path, machine: Machine) -> str | None:
    """Writes the file when the sweep begins. Later a sentence that names the versions which differ, None if none do:
    the trials so far ran with the ones in the file. Raises OSError."""
    now = _versions()
    before = _kept(path)
    if before is None:
        hardware = {"cpus": machine.cpus, "gpus": machine.gpus, "gpu": machine.gpu_name, "machine": platform.machine()}
        replace_file(path, json.dumps({"hardware": hardware, "versions": now}, indent=2).encode() + b"\n")
        return None
    others = [f"{name} {before[name]} (now {now[name]})" for name in now if before.get(name, now[name]) != now[name]]
    return f"this sweep began with {', '.join(others)}" if others else None


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # this package may run from a folder that was not installed
        return "unknown"


def _kept(path: Path) -> dict[str, Any] | None:
    """None for a file that is not there or that no sweep has written."""
    try:
        versions = json.loads(path.read_bytes())["versions"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return versions if isinstance(versions, dict) else None
