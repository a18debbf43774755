"""One trial of a sweep: trains, logs, saves, an epoch at a time. Ray and the in-process executor both drive it."""

import contextlib
import errno
import math
import os
import time
import traceback
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from model import checkpoints, device, memory, precision
from model.alphabet import Alphabet
from model.averaging import AveragedWeights
from model.config import TrialConfig
from model.data import Data
from model.evaluation import Samples, evaluate
from model.files import replace_file
from model.pools import open_pool, pool_spec
from model.running_scores import Diverged
from model.training import Epoch, make_network, train
from sweep import badcases, faults
from sweep.config import Asha, ConfigError, Median, NoStopping, SweepConfig, read_trial
from sweep.early_stopping import decides
from sweep.searcher import TrialRecord
from sweep.tensorboard import TrialWriter, hparams


@dataclass(frozen=True)
class Workplace:
    """Where a sweep's trials work and with what: absolute folders, CPU threads and the share of a GPU, 0 for none."""

    root: Path
    pools: Path
    threads: int
    gpus: float

    def logs(self, name: str) -> Path:
        return self.root / "tensorboard" / name

    def files(self, name: str) -> Path:
        return self.root / "trials" / name

    def lock(self, name: str) -> FileLock:
        """Goes with the process that holds it. Not a folder's own lock: on NFS there are none."""
        path = self.root / "ray" / f"{name}.lock"
        path.parent.mkdir(exist_ok=True)
        return FileLock(path)


class Trial:
    """Goes on from the newest whole checkpoint in its folder, if there is one.

    An epoch's checkpoint is written after everything else of that epoch, with the sizes the event files then had: what
    a killed process logged after it is cut off, so an epoch is in the curves once or not at all.
    """

    def __init__(self, base: SweepConfig, workplace: Workplace, record: TrialRecord) -> None:
        self.base, self.workplace, self.record = base, workplace, record
        self.folder, self.logs = workplace.files(record.name), workplace.logs(record.name)
        self._epochs: Generator[dict[str, Any]] | None = None
        self._closing = contextlib.ExitStack()

    def step(self) -> dict[str, Any]:
        """Trains one more epoch. The result's `state` is running, completed, diverged, failed, or interrupted if
        something outside of this program made it fail (see `sweep/faults.py`), which would fail the other trials too.
        With the last three comes one line of `error`, with failed whether it was `out_of_memory`. Raises nothing: an
        error of one trial is no reason to lose its process."""
        try:
            if self._epochs is None:
                self._epochs = self._open()
            return next(self._epochs)
        except Diverged as error:
            return {"state": "diverged", "error": str(error)}
        except Exception as error:
            out_of_memory = is_out_of_memory(error)
            if not out_of_memory and (outside := faults.surroundings(error)) is not None:
                return {"state": "interrupted", "error": outside}
            with contextlib.suppress(OSError):
                (self.folder / "error.txt").write_text(traceback.format_exc(), "utf-8", "backslashreplace")
            return {"state": "failed", "error": faults.one_line(error), "out_of_memory": out_of_memory}

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk
            self._closing.close()
        if self.workplace.gpus:
            torch.accelerator.empty_cache()  # this process may live on, and others share the device

    def _open(self) -> Generator[dict[str, Any]]:
        # A killed driver's workers live on for some seconds: wait until the last one lets go of this trial.
        self._closing.enter_context(self.workplace.lock(self.record.name).acquire(timeout=60))
        torch.set_num_threads(self.workplace.threads)
        memory.keep_freed_blocks()
        epochs = self._train()
        self._closing.callback(epochs.close)
        return epochs

    def _train(self) -> Generator[dict[str, Any]]:
        resolved = self.base.with_values(self.record.values)
        config = resolved.trial()
        aside = self._move_strangers_aside(config)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "error.txt").unlink(missing_ok=True)  # of an earlier try
        replace_file(self.folder / "config.yaml", resolved.yaml.encode())
        place = device.pick(self.workplace.gpus)
        warming = device.start_warm_up(place) if self.workplace.gpus else None
        data = Data(config, self.workplace.pools, place, workers=self.workplace.threads - 1)
        writer = TrialWriter(self.logs)
        pictures = _Pictures(writer, data, config.training.epochs, Alphabet(config.captcha.characters))
        with contextlib.closing(writer):
            start, note = self._newest_checkpoint(writer)
            note = note or aside
            seconds = 0.0
            if start is None:
                writer.rewind({"": 0, "train": 0})
                group = self.record.replicate_of or self.record.name
                values = hparams(self.base.search.space, self.record.values)
                writer.begin(group, values, config, resolved.yaml)
            else:
                writer.rewind(start["positions"])
                pictures.restore(start["pictures"])
                seconds = start["result"]["seconds"]
                if start["epoch"] > self.record.epochs:  # trained, but nobody was told
                    yield {**start["result"], "note": note}
            begin = time.monotonic()
            if warming is not None:
                warming.result()
            network = make_network(config, place)
            average = None
            if self._stopping is not None and self.base.averages:
                average = AveragedWeights(network, config.steps_per_epoch * config.training.epochs)
            for epoch in train(config, network, data, writer.log, start, average):
                writer.epoch(epoch.number, epoch.train, epoch.valid, epoch.best_valid.error_rate)
                pictures.take(epoch)
                if epoch.best:
                    described = {"config": config.model_dump(mode="json"), "scores": asdict(epoch.valid)}
                    checkpoints.save(
                        self.folder / "best.pt",
                        {
                            **described,
                            "epoch": epoch.number,
                            "network": epoch.state["network"],
                            "readings": epoch.valid_samples.in_order().decoded,
                        },
                    )
                result = {
                    "state": "completed" if epoch.number == config.training.epochs else "running",
                    "seconds": seconds + time.monotonic() - begin,
                    "epochs": epoch.number,
                    "best_epoch": epoch.best_number,
                    **asdict(epoch.best_valid),
                    "rung_score": self._rung_score(epoch, average, data),
                }
                if self.record.replicate_of is not None and result["state"] == "completed":
                    result["test_error_rate"] = self._judge(config, data)
                    writer.log(epoch.number, {"test/error_rate": result["test_error_rate"]})
                kept = {"positions": writer.positions, "pictures": pictures.state, "result": result}
                checkpoints.save(self.folder / f"epoch_{epoch.number:04d}.pt", {**epoch.state, **kept})
                for old in sorted(self.folder.glob("epoch_*.pt"))[:-2]:
                    old.unlink()
                yield {**result, "note": "; ".join(filter(None, (note, epoch.note))) or None}
                seconds, begin = result["seconds"], time.monotonic()

    @property
    def _stopping(self) -> Asha | Median | None:
        """None for a trial that nothing stops early, as a replicate."""
        stopping = self.base.search.early_stopping
        return None if isinstance(stopping, NoStopping) or self.record.replicate_of else stopping

    def _rung_score(self, epoch: Epoch, average: AveragedWeights | None, data: Data) -> float | None:
        """What early stopping compares; None after an epoch that it does not look at."""
        stopping, training = self._stopping, data.config.training
        if stopping is None or epoch.number == training.epochs or not decides(stopping, epoch.number):
            return None
        numeric = precision.resolve(training.precision, data.device)
        scores = epoch.valid if average is None else average.scores(data, epoch.number, numeric)
        score: float = getattr(scores, stopping.metric)
        return score if math.isfinite(score) else math.inf

    def _judge(self, config: TrialConfig, data: Data) -> float:
        """Error rate on the test set of the best epoch's weights, whose readings then lie beside them."""
        best = checkpoints.load(self.folder / "best.pt")
        network = make_network(config, data.device)
        network.load_state_dict(best["network"])
        numeric = precision.resolve(config.training.precision, data.device)
        scores, samples = evaluate(network, data.batches(*data.open("test")), numeric)
        judged = {"test_scores": asdict(scores), "test_readings": samples.in_order().decoded}
        checkpoints.save(self.folder / "best.pt", {**best, **judged})
        return scores.error_rate

    def _newest_checkpoint(self, writer: TrialWriter) -> tuple[dict[str, Any] | None, str | None]:
        """With a sentence if one had to be passed over."""
        damaged: list[str] = []
        for path in sorted(self.folder.glob("epoch_*.pt"), reverse=True):
            try:
                state = checkpoints.load(path)
                if writer.has(state["positions"]):
                    return state, _passed_over(damaged, f"went on from epoch {state['epoch']}")
            except (ValueError, KeyError):
                pass
            damaged.append(path.name)
            path.unlink()
        return None, _passed_over(damaged, "started again")

    def _move_strangers_aside(self, config: TrialConfig) -> str | None:
        """Files of another trial that had this name, which no search knows any more, are kept, but not mixed in."""
        folders = {"trial": self.folder, "tensorboard": self.logs}
        # Killed as it began, a trial leaves an empty folder, or one with a temporary file that is written over.
        there = {name: path for name, path in folders.items() if path.is_file() or any(path.glob("[!.]*"))}
        if not there or _same(config, self.folder / "config.yaml"):
            return None
        aside = self.workplace.root / "aside" / f"{self.record.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        aside.mkdir(parents=True)
        for name, path in there.items():
            path.rename(aside / name)
        return f"files of another trial with this name were moved to {aside.relative_to(self.workplace.root)}"


def _same(config: TrialConfig, file: Path) -> bool:
    """Whether the file describes this trial, wherever its images are kept."""
    try:
        found = read_trial(file)
    except ConfigError:
        return False
    return found.model_copy(update={"data": found.data.model_copy(update={"path": config.data.path})}) == config


def _passed_over(damaged: list[str], what: str) -> str | None:
    return f"damaged, or without its curves: {', '.join(damaged)}; {what}" if damaged else None


def is_out_of_memory(error: BaseException) -> bool:
    """On a device or on the host; CUDA's libraries and the CPU allocator say so in words."""
    words = ("can't allocate memory", "ALLOC_FAILED")
    told = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def picture_epochs(epochs: int) -> set[int]:
    """The first, every quarter's and the last."""
    return {1, *(max(1, epochs * quarter // 4) for quarter in (1, 2, 3, 4))}


class _Pictures:
    """Badcases at the first, every quarter's and the last epoch, and at the best one.

    Which epoch is best shows only later, and steps must increase: the best so far waits until the next picture. If the
    trial ends before that, whoever ends it draws the best one (`last_picture`).
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
        """What waits to be drawn, for a checkpoint."""
        return None if self._best is None else {"number": self._best[0], **vars(self._best[1])}

    def restore(self, state: dict[str, Any] | None) -> None:
        self._best = None if state is None else _waiting(state)

    def _draw_valid(self, number: int, samples: Samples) -> None:
        images = self._data.valid[0][samples.rows].cpu()
        self._writer.image("valid/badcase", badcases.draw(images, samples, self._alphabet), number)


def _waiting(state: dict[str, Any]) -> tuple[int, Samples]:
    """The epoch and the samples of a picture that a checkpoint keeps."""
    return state["number"], Samples(**{key: value for key, value in state.items() if key != "number"})


def last_picture(base: SweepConfig, workplace: Workplace, record: TrialRecord) -> tuple[int, np.ndarray] | None:
    """The badcases of an ended trial's best epoch, and that epoch, if they still waited for the next picture: from its
    newest checkpoint. Its own process can't draw them: it may be killed after the end was decided."""
    if record.epochs in picture_epochs(base.training.epochs):
        return None
    config = base.with_values(record.values).trial()
    pool = open_pool(pool_spec(config, "valid"), workplace.pools)
    for path in sorted(workplace.files(record.name).glob("epoch_*.pt"), reverse=True):
        with contextlib.suppress(ValueError):  # a damaged one
            state = checkpoints.load(path)["pictures"]
            if state is None or pool is None:
                return None
            number, samples = _waiting(state)
            images = torch.from_numpy(pool.images)[samples.rows]
            return number, badcases.draw(images, samples, Alphabet(config.captcha.characters))
    return None


def keep_to_share(gpus: float) -> None:
    """Hides the GPUs from a trial that gets none, to which Ray shows all, and limits the memory of a trial that gets a
    part of one, which Ray does not. To be called before the process uses a GPU."""
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif gpus < 1:
        device.limit_memory(device.pick(gpus), gpus)
