"""Files that are there whole or not at all."""

import os
from pathlib import Path


def replace_file(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a temporary file, syncs and renames it: after a crash there is the old file or the new one.

    The temporary name is the same each time: what a killed process left is written over by the next one's.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """What an error says, in one line and without the file that it may name."""
    return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split()) or type(error).__name__
