"""Measures the conversion of a user's own images against what Pillow alone takes to decode and resize them."""

import io
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from PIL import Image

from model.config import ImagesConfig, TrialConfig
from model.data import own_images
from model.data.readers import Reader, recognise
from model.data.workers import Workers, another_main_module

ROUNDS = 3
_CHUNK = 200  # as in the conversion


class Conversion:
    """Measures one folder with `workers` processes. `figures` are for bench.json, `rows` are for the table.

    Raises ValueError if the folder can't be used.
    """

    def __init__(self, images: str, workers: int) -> None:
        self._config = TrialConfig(images=ImagesConfig(path=images, bad="skip"))
        assert self._config.images is not None
        self._reader, self._workers = recognise(self._config.images), workers
        self.figures: dict[str, Any] = {"device": f"CPU, {workers} cores"}
        self.rows: list[tuple[str, str, str]] = []

    def measure(self) -> None:
        """Converts the images and lets Pillow alone decode and resize them, by turns."""
        names = [row.name for row in self._reader.rows() if row.problem is None]
        ours, pillow, again, memory = list[_Time](), list[_Time](), [], []
        with another_main_module():
            for _ in range(ROUNDS):
                with tempfile.TemporaryDirectory(prefix="crnn-bench-") as folder, _Peak() as peak:
                    ours.append(_timed(lambda: self._convert(Path(folder))))
                    memory.append(peak.megabytes)
                    again.append(_timed(lambda: self._convert(Path(folder))).wall)
                pillow.append(_timed(lambda: self._decode_with_pillow(names)))
        pairs = list(zip(ours, pillow, strict=True))
        ratios = sorted(other.wall / one.wall for one, other in pairs)
        in_cpu_time = sorted(other.cpu / one.cpu for one, other in pairs)
        self.figures |= {
            "images": len(names),
            "conversion_over_pillow": statistics.median(ratios),
            "conversion_over_pillow_cpu": statistics.median(in_cpu_time),
            "conversion_mb": max(memory),
            "second_look_seconds": statistics.median(again),
        }
        ours_rate, pillow_rate = (
            f"{len(names) / statistics.median(time.wall for time in times):,.0f} images/s" for times in (ours, pillow)
        )
        self.rows = [
            ("converting the images", ours_rate, f"{len(names):,} images"),
            ("Pillow alone: decode, resize", pillow_rate, ""),
            ("conversion over Pillow", f"{statistics.median(ratios):.2f}", _spread(ratios)),
            ("in CPU time", f"{statistics.median(in_cpu_time):.2f}", _spread(in_cpu_time)),
            ("memory of the driver", f"{max(memory):,.0f} MB", "grown while it converts"),
            ("a second look", f"{statistics.median(again):.2f} s", "when nothing has changed"),
        ]

    def _convert(self, folder: Path) -> None:
        own_images.Look(self._config, folder, self._workers, lambda done, total: None).facts()

    def _decode_with_pillow(self, names: Sequence[str]) -> None:
        """Includes the start of the processes, as in the conversion."""
        chunks = ((self._reader, names[start : start + _CHUNK]) for start in range(0, len(names), _CHUNK))
        with Workers(self._workers, __name__) as workers:
            for _ in workers.results(_decode_and_resize, chunks):
                pass


class _Time(NamedTuple):
    """Seconds that something took, and those that this process and its ended children computed meanwhile, which other
    programs on the machine change less."""

    wall: float
    cpu: float


def _timed(function: Callable[[], None]) -> _Time:
    wall, cpu = time.monotonic(), _cpu_seconds()
    function()
    return _Time(time.monotonic() - wall, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _spread(ratios: Sequence[float]) -> str:
    return f"({ratios[0]:.2f} … {ratios[-1]:.2f})"


class _Peak:
    """How much the memory of this process grows while the context lasts, sampled every 10 ms."""

    def __enter__(self) -> "_Peak":
        self._process, self._ended = psutil.Process(), threading.Event()
        self._before = self._most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def megabytes(self) -> float:
        return (self._most - self._before) / 1e6

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self._most = max(self._most, self._process.memory_info().rss)


def _decode_and_resize(reader: Reader, names: Sequence[str]) -> int:
    for data in _encoded(reader, names):
        with Image.open(io.BytesIO(data)) as image:
            image.convert("RGB").resize((max(8, round(image.width * 32 / image.height)), 32), Image.Resampling.BOX)
    return len(names)


def _encoded(reader: Reader, names: Sequence[str]) -> Iterator[bytes]:
    return (data for data in reader.read(names) if isinstance(data, bytes))
