"""One trial of a sweep: trains, logs, saves, an epoch at a time. Ray and the in-process executor both drive it."""

import contextlib
import os
import time
import traceback
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from model import checkpoints
from model.alphabet import Alphabet
from model.data import Data
from model.evaluation import Samples
from model.training import Diverged, Epoch, make_network, train
from sweep import badcases
from sweep.config import SweepConfig, Value
from sweep.tensorboard import TrialWriter


@dataclass(frozen=True)
class Workplace:
    """Where a sweep's trials work and with what: absolute folders, CPU threads and whether there is a GPU."""

    root: Path
    pools: Path
    threads: int
    gpu: bool

    def logs(self, name: str) -> Path:
        return self.root / "tensorboard" / name

    def files(self, name: str) -> Path:
        return self.root / "trials" / name


class Trial:
    """Continues from the newest whole checkpoint in its folder, if there is one."""

    def __init__(self, base: SweepConfig, workplace: Workplace, name: str, values: dict[str, Value]) -> None:
        self.base, self.workplace, self.name, self.values = base, workplace, name, values
        self.folder = workplace.files(name)
        self._epochs: Generator[Epoch] | None = None
        self._seconds = 0.0
        self._closing = contextlib.ExitStack()

    def step(self) -> dict[str, Any]:
        """Trains one more epoch. The result's `state` is running, completed, diverged or failed; with the last comes
        one line of `error`. Raises nothing: an error of one trial is no reason to lose its process."""
        start = time.monotonic()
        try:
            if self._epochs is None:
                self._epochs = self._open()
            epoch = next(self._epochs)
        except Diverged as error:
            return {"state": "diverged", "error": str(error)}
        except Exception as error:
            (self.folder / "error.txt").write_text(traceback.format_exc())
            return {"state": "failed", "error": one_line(error)}
        self._seconds += time.monotonic() - start
        return {
            "seconds": self._seconds,
            "state": "completed" if epoch.number == self.base.training.epochs else "running",
            "epochs": epoch.number,
            "best_epoch": epoch.best_number,
            **asdict(epoch.best_valid),
            **{f"epoch_{name}": value for name, value in asdict(epoch.valid).items()},
        }

    def close(self) -> None:
        self._closing.close()

    def _open(self) -> Generator[Epoch]:
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(self.workplace.threads)
        epochs = self._train()
        self._closing.callback(epochs.close)
        return epochs

    def _train(self) -> Generator[Epoch]:
        resolved = self.base.with_values(self.values)
        config = resolved.trial()
        device = torch.device("cuda" if self.workplace.gpu else "cpu")
        data = Data(config, self.workplace.pools, device, workers=self.workplace.threads - 1)
        writer = TrialWriter(self.workplace.logs(self.name))
        pictures = _Pictures(writer, data, config.training.epochs, Alphabet(config.captcha.characters))
        with contextlib.closing(writer), contextlib.closing(pictures):
            start = self._newest_checkpoint()
            if start is None:
                writer.rewind({"": 0, "train": 0})
                (self.folder / "config.yaml").write_text(resolved.yaml)
                writer.begin(self.name, self.values, config, resolved.yaml)
            else:
                writer.rewind(start["positions"])
                pictures.restore(start["pictures"])
            for epoch in train(config, make_network(config, device), data, writer.log, start):
                writer.epoch(epoch.number, epoch.train, epoch.valid, epoch.best_valid.error_rate)
                pictures.take(epoch)
                if epoch.best:
                    described = {"config": config.model_dump(mode="json"), "scores": asdict(epoch.valid)}
                    checkpoints.save(
                        self.folder / "best.pt",
                        {**described, "epoch": epoch.number, "network": epoch.state["network"]},
                    )
                state = {**epoch.state, "positions": writer.positions, "pictures": pictures.state}
                checkpoints.save(self.folder / f"epoch_{epoch.number:04d}.pt", state)
                for old in sorted(self.folder.glob("epoch_*.pt"))[:-2]:
                    old.unlink()
                yield epoch

    def _newest_checkpoint(self) -> dict[str, Any] | None:
        for path in sorted(self.folder.glob("epoch_*.pt"), reverse=True):
            with contextlib.suppress(ValueError):
                return checkpoints.load(path)
        return None


class _Pictures:
    """Badcases at the first, every quarter's and the last epoch, and at the best one.

    Which epoch is best shows only later, and steps must increase: the best so far waits until the next picture.
    """

    def __init__(self, writer: TrialWriter, data: Data, epochs: int, alphabet: Alphabet) -> None:
        self._writer, self._data, self._alphabet = writer, data, alphabet
        self._fixed = {1, *(max(1, epochs * quarter // 4) for quarter in (1, 2, 3, 4))}
        self._best: tuple[int, Samples] | None = None

    def take(self, epoch: Epoch) -> None:
        if epoch.best:
            self._best = (epoch.number, epoch.valid_worst)
        if epoch.number in self._fixed:
            if self._best is not None and self._best[0] != epoch.number:
                self._draw_best()
            self._draw_valid(epoch.number, epoch.valid_worst)
            self._best = None
            picture = badcases.draw(epoch.train_worst_images, epoch.train_worst, self._alphabet)
            self._writer.image("train/badcase", picture, epoch.number)

    @property
    def state(self) -> dict[str, Any] | None:
        """What waits to be drawn, for a checkpoint."""
        return None if self._best is None else {"number": self._best[0], **vars(self._best[1])}

    def restore(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            samples = {key: value for key, value in state.items() if key != "number"}
            self._best = (state["number"], Samples(**samples))

    def close(self) -> None:
        self._draw_best()

    def _draw_best(self) -> None:
        if self._best is not None:
            self._draw_valid(*self._best)
            self._best = None

    def _draw_valid(self, number: int, samples: Samples) -> None:
        images = self._data.valid[0][samples.rows].cpu()
        self._writer.image("valid/badcase", badcases.draw(images, samples, self._alphabet), number)


def one_line(error: BaseException) -> str:
    """What went wrong, without line breaks and without its stack."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def see_no_gpu() -> None:
    """Before CUDA is first used in this process: Ray shows all GPUs to a trial that has asked for none."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
