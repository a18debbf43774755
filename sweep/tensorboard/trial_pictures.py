"""Decides which badcases (worst-read images) of a trial are logged to TensorBoard, and after which epochs."""

import contextlib
from typing import Any

import numpy as np

from model.data.alphabet import Alphabet
from model.data.batches import Data, pictures
from model.data.pools import open_split
from model.training import checkpoints
from model.training.evaluation import Samples
from model.training.loop import Epoch
from sweep.config import SweepConfig
from sweep.config.workplace import Workplace
from sweep.search.records import TrialRecord
from sweep.tensorboard import badcases
from sweep.tensorboard.trial_writer import TrialWriter


def picture_epochs(epochs: int) -> set[int]:
    """The epochs whose badcases are always logged: the first, and the last of each quarter of the training."""
    return {1, *(max(1, epochs * quarter // 4) for quarter in (1, 2, 3, 4))}


class TrialPictures:
    """Logs the badcases of the epochs of `picture_epochs` and of the best epoch.

    Which epoch is best is known only later, and TensorBoard needs increasing steps. So the badcases of the best epoch
    so far are kept, and logged just before the next picture. If the trial ends before that, the driver logs them
    (`last_picture`).
    """

    def __init__(self, writer: TrialWriter, data: Data, epochs: int, alphabet: Alphabet) -> None:
        self._writer, self._data, self._alphabet = writer, data, alphabet
        self._fixed = picture_epochs(epochs)
        self._best: tuple[int, Samples] | None = None

    def take(self, epoch: Epoch) -> None:
        if epoch.best:
            self._best = (epoch.number, epoch.valid_samples.worst())
        if epoch.number in self._fixed:
            if self._best is not None and self._best[0] != epoch.number:
                self._draw_valid(*self._best)
            self._draw_valid(epoch.number, epoch.valid_samples.worst())
            self._best = None
            picture = badcases.draw(epoch.train_worst_images, epoch.train_worst, self._alphabet)
            self._writer.image("train/badcase", picture, epoch.number)

    @property
    def state(self) -> dict[str, Any] | None:
        """The badcases that wait to be logged, for a checkpoint; None if there are none."""
        return None if self._best is None else {"number": self._best[0], **vars(self._best[1])}

    def restore(self, state: dict[str, Any] | None) -> None:
        self._best = None if state is None else _waiting(state)

    def _draw_valid(self, number: int, samples: Samples) -> None:
        images = pictures(self._data.valid, samples.rows.tolist())
        self._writer.image("valid/badcase", badcases.draw(images, samples, self._alphabet), number)


def _waiting(state: dict[str, Any]) -> tuple[int, Samples]:
    """Inverse of `TrialPictures.state`: the epoch and its samples."""
    return state["number"], Samples(**{key: value for key, value in state.items() if key != "number"})


def last_picture(base: SweepConfig, workplace: Workplace, record: TrialRecord) -> tuple[int, np.ndarray] | None:
    """The best epoch of an ended trial and its badcases, uint8 (height, width, 3), read from the newest checkpoint.
    None if none wait to be logged. The driver calls this, because the trial's own process may have been killed."""
    if record.epochs in picture_epochs(base.training.epochs):
        return None
    for path in sorted(workplace.files(record.name).glob("epoch_*.pt"), reverse=True):
        with contextlib.suppress(ValueError):  # a damaged one
            state = checkpoints.load(path)["pictures"]
            config = base.with_values(record.values).trial()
            pools = None if state is None else open_split(config, "valid", workplace.pools)
            if state is None or pools is None:
                return None
            number, samples = _waiting(state)
            images = pools.pictures(samples.rows.tolist())
            return number, badcases.draw(images, samples, Alphabet(config.image.characters))
    return None
