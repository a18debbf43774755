"""Event files, which TensorBoard reads: writes records that survive SIGKILL, and reads a run back."""

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event


class EventFile:
    """The only event file of a directory, written synchronously: after `add_event` the record survives SIGKILL.

    tensorboardX's own writer queues events for a thread: SIGKILL loses the queue, and on a full disk the thread dies
    and the queue then blocks for ever. Here, if a record can't be written whole, the file is truncated to its old size
    and OSError is raised.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = next(
            iter(sorted(folder.glob("events.out.tfevents.*"))),
            folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}",
        )
        # O_APPEND makes each record's write atomic, so that the driver can add a trial's end to the worker's file.
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if self.size == 0:
            self._begin()

    @property
    def size(self) -> int:
        return os.fstat(self._file).st_size

    def cut(self, size: int) -> None:
        """Truncates the file to `size` bytes, and begins it anew if that is 0."""
        os.ftruncate(self._file, size)
        if size == 0:
            self._begin()

    def cut_half_record(self) -> None:
        """Truncates the file after its last whole record: a killed process may have left part of another."""
        ends = [end for end, _ in _records(self.path)]
        if ends and ends[-1] < self.size:
            self.cut(ends[-1])

    def events(self) -> Iterator[Event]:
        for _, data in _records(self.path):
            yield Event.FromString(data)

    def _begin(self) -> None:
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_event(self, event: Event) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        record = length + _masked_checksum(length) + data + _masked_checksum(data)
        before = self.size
        try:
            written = os.write(self._file, record)
            if written < len(record):
                written += os.write(self._file, record[written:])  # raises the error that cut the first write short
        except OSError:
            os.ftruncate(self._file, before)
            raise

    def sync(self) -> None:
        """Calls fsync, so that the records survive a power failure."""
        os.fsync(self._file)

    def flush(self) -> None:
        pass

    def reopen(self) -> None:
        pass

    def get_logdir(self) -> str:
        return str(self.path.parent)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields each whole record of an event file as (offset of its end, data)."""
    position, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            position += 16 + length
            if position > total:
                return
            yield position, file.read(length + 4)[:-4]


def read_events(folder: Path) -> Iterator[Event]:
    """Yields the events of a run so far, nothing if it has no event file. Safe while a process writes to the run."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for _, data in _records(path):
            yield Event.FromString(data)


def last_event(folder: Path) -> Event | None:
    """The last whole event of a run, without parsing the others."""
    last: bytes | None = None
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for _, data in _records(path):
            last = data
    return None if last is None else Event.FromString(last)


def _masked_checksum(data: bytes) -> bytes:
    checksum = crc32c(data)
    return struct.pack("<I", (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def lifetime(folder: Path) -> tuple[float, float]:
    """The times of a run's first and last event, in seconds since 1970."""
    times = [event.wall_time for event in read_events(folder)]
    return min(times), max(times)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalar curves of a run: tag → points (step, value)."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in read_events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found
