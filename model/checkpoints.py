"""Saving whole or not at all, and loading what strangers send without running it."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a temporary file, syncs and renames it: a crash leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """To the CPU, tensors and plain values only. Raises ValueError for what is no whole checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise ValueError(f"{path}: this is no checkpoint, or a damaged one") from error
    if not isinstance(state, dict) or "network" not in state:
        raise ValueError(f"{path}: this is no checkpoint of a recogniser")
    return state
