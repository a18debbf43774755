"""Drawn images as a source: captchas, rendered into pools or one by one."""

from importlib.metadata import version
from pathlib import Path

import numpy as np

from model.config import TrialConfig
from model.data import pool_file
from model.data.alphabet import Alphabet
from model.data.cache import written
from model.data.captchas import determinants, render
from model.data.pool_file import PoolSpec, Shape, Split, label_type
from model.data.workers import Progress, Workers

_CHUNK = 500  # images that a worker renders per task


class DrawnImages:
    """Captchas. An image depends on the config and on (seed, split, index) only."""

    def __init__(self, config: TrialConfig) -> None:
        assert config.captcha is not None
        self._captcha, self._data = config.captcha, config.data
        self._alphabet = Alphabet(config.captcha.characters)

    def specs(self, split: Split) -> list[PoolSpec]:
        libraries = {name: version(name) for name in ("captcha", "pillow")}
        contents = {"config": determinants(self._captcha), "seed": self._data.seed, "libraries": libraries}
        return [PoolSpec.of(split, self._data.count(split), self._captcha.width, contents)]

    def make(self, missing: list[PoolSpec], folder: Path, workers: int, progress: Progress) -> None:
        total, done = sum(spec.count for spec in missing), 0
        progress(0, total)
        shapes = {spec: self._shape(spec.count) for spec in missing}
        with written(shapes, folder) as paths, Workers(workers, __name__) as processes:
            tasks = [
                (self, paths[spec], spec.split, shapes[spec], start, min(start + _CHUNK, spec.count))
                for spec in missing
                for start in range(0, spec.count, _CHUNK)
            ]
            processes.start(len(tasks))
            for rendered in processes.results(DrawnImages.render_chunk, tasks):
                done += rendered
                progress(done, total)

    def render_chunk(self, path: Path, split: Split, shape: Shape, start: int, stop: int) -> int:
        """Renders some images of a split into its pool's file and returns their number."""
        pool = pool_file.mapped(path, shape, "r+")
        for index in range(start, stop):
            pool.images[index], text = render(self._captcha, self._data.seed, split, index)
            pool.labels[index] = self._alphabet.encode_padded(text, shape.longest)
            pool.widths[index] = shape.width
        return stop - start

    def file_bytes(self, split: Split) -> int:
        return self._shape(self._data.count(split)).file_bytes

    def findings(self, folder: Path, bad_images: Path) -> list[str]:
        return []

    def fresh(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, text = render(self._captcha, self._data.seed, "train", index)
        return image.copy(), self._alphabet.encode_padded(text, self._captcha.longest)

    def _shape(self, count: int) -> Shape:
        captcha = self._captcha
        kind = label_type(self._alphabet.classes)
        return Shape(count, captcha.channels, captcha.height, captcha.width, captcha.longest, kind)
