"""Reads and writes `machine.json`: the hardware and the package versions with which a sweep began."""

import json
import platform
from pathlib import Path
from typing import Any

from model.system.files import replace_file
from sweep.machine.resources import Machine
from sweep.machine.versions import versions


def keep(path: Path, machine: Machine) -> str | None:
    """Writes the file if the sweep has none yet. Otherwise compares the versions in it, with which the sweep's first
    trials ran, and returns a sentence that names those which differ now, or None. Raises OSError."""
    now = versions()
    before = _kept(path)
    if before is None:
        hardware = {"cpus": machine.cpus, "gpus": machine.gpus, "gpu": machine.gpu_name, "machine": platform.machine()}
        replace_file(path, json.dumps({"hardware": hardware, "versions": now}, indent=2).encode() + b"\n")
        return None
    others = [f"{name} {before[name]} (now {now[name]})" for name in now if before.get(name, now[name]) != now[name]]
    return f"this sweep began with {', '.join(others)}" if others else None


def _kept(path: Path) -> dict[str, Any] | None:
    """The versions in the file; None if it is missing or invalid."""
    try:
        versions = json.loads(path.read_bytes())["versions"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return versions if isinstance(versions, dict) else None
