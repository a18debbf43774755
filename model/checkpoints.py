"""Saving whole or not at all, and loading what strangers send without running it."""

import io
from pathlib import Path
from typing import Any

import torch
from crc32c import crc32c

from model.files import replace_file

_TRAILER = b"\ncrc32c %08x\n"  # behind the zip archive, where torch does not look; it checks no checksum of its own


def save(path: Path, state: dict[str, Any]) -> None:
    """Synced to the disk, whole or not at all. Raises OSError."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    replace_file(path, data, _TRAILER % crc32c(data))


def load(path: Path) -> dict[str, Any]:
    """To the CPU, tensors and plain values only. Raises ValueError for what is no whole checkpoint."""
    data = path.read_bytes()
    size = len(_TRAILER % 0)
    body, trailer = data[:-size], data[-size:]
    if trailer.startswith(b"\ncrc32c ") and trailer != _TRAILER % crc32c(body):
        raise ValueError(f"{path}: this checkpoint is damaged: its checksum does not fit")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its readers meet
        raise ValueError(f"{path}: this is no checkpoint, or a damaged one") from error
    if not isinstance(state, dict) or "network" not in state:
        raise ValueError(f"{path}: this is no checkpoint of a recogniser")
    return state
