"""One trial of a sweep: trains, logs and saves, one epoch per call. Both executors, Ray and in-process, drive it."""

import contextlib
import errno
import math
import os
import time
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from model.config import TrialConfig
from model.data.alphabet import Alphabet
from model.data.batches import Data
from model.data.pools import ensure_pools, missing_pools
from model.data.workers import another_main_module
from model.network.crnn import CRNN
from model.system import device, malloc
from model.system.files import replace_file
from model.training import checkpoints, precision
from model.training.averaging import AveragedWeights
from model.training.evaluation import evaluate
from model.training.loop import Epoch, make_network, train
from model.training.running_scores import Diverged
from model.training.scores import SCORES
from sweep.config import Asha, ConfigError, Median, NoStopping, SweepConfig, named_files, read_trial
from sweep.config.workplace import Workplace
from sweep.execution.trial_copy import TrialCopy
from sweep.search.early_stopping import decides
from sweep.search.records import TrialRecord
from sweep.tensorboard.hparams import hparams
from sweep.tensorboard.trial_pictures import TrialPictures
from sweep.tensorboard.trial_writer import TrialWriter
from sweep.wording import faults


class Trial:
    """A trial that resumes from the newest undamaged checkpoint in its folder, if there is one.

    The checkpoint of an epoch is written after everything else of that epoch and holds the sizes of the event files at
    that moment. On resume the files are truncated to these sizes, so an epoch is in the curves once or not at all.
    """

    def __init__(self, base: SweepConfig, workplace: Workplace, record: TrialRecord) -> None:
        self.base, self.workplace, self.record = base, workplace, record
        self._copy = None if workplace.storage is None else TrialCopy(workplace, record.name)
        self._epochs: Generator[dict[str, Any]] | None = None
        self._closing = contextlib.ExitStack()

    @property
    def folder(self) -> Path:
        return self.workplace.files(self.record.name)

    @property
    def logs(self) -> Path:
        return self.workplace.logs(self.record.name)

    def step(self) -> dict[str, Any]:
        """Trains one more epoch, uploads the trial's files if the machines share no folder, and returns its result.

        `state` is running, completed, diverged, failed or interrupted. Interrupted means that something outside of this
        program made the trial fail, such as a full disk (see `faults.surroundings`), which would fail the other trials
        too. The last three states have `error`, one line; failed also has `out_of_memory`, a bool. Raises no exception:
        the process goes on with other trials.
        """
        result = self._step()
        if self._copy is not None and result["state"] != "interrupted":
            try:
                self._copy.upload()
            except OSError as error:
                return {"state": "interrupted", "error": faults.surroundings(error)}
        return result

    def _step(self) -> dict[str, Any]:
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
            torch.accelerator.empty_cache()  # the process may be reused, and others share the device

    def _open(self) -> Generator[dict[str, Any]]:
        if self._copy is not None:
            weights = [] if self.base.network.init is None else [named_files.COPY]
            self._closing.enter_context(self._copy.taken_over(weights))
            self.workplace = self._copy.workplace
        # Workers outlive a killed driver by some seconds: wait until the last one releases this trial's lock.
        self._closing.enter_context(self.workplace.lock(self.record.name).acquire(timeout=60))
        if self.workplace.elsewhere:
            self._render_missing()
        torch.set_num_threads(self.workplace.threads)
        malloc.keep_freed_blocks()
        epochs = self._train()
        self._closing.callback(epochs.close)
        return epochs

    def _train(self) -> Generator[dict[str, Any]]:
        sweep = self.base.with_values(self.record.values)
        config = sweep.trial()
        moved = self._prepare_folder(sweep, config)
        place = device.pick(self.workplace.gpus)
        warming = device.start_warm_up(place) if self.workplace.gpus else None
        data = Data(config, self.workplace.pools, place, workers=self.workplace.threads - 1)
        writer = TrialWriter(self.logs)
        pictures = TrialPictures(writer, data, config.training.epochs, Alphabet(config.image.characters))
        with contextlib.closing(writer):
            start, damaged = self._newest_checkpoint(writer)
            note, seconds = damaged or moved, 0.0
            if start is None:
                self._begin_logs(writer, sweep, config)
            else:
                writer.rewind(start["positions"])
                pictures.restore(start["pictures"])
                seconds = start["result"]["seconds"]
                if start["epoch"] > self.record.epochs:  # saved by a process that died before it could report the epoch
                    yield {**start["result"], "note": note}
            begin = time.monotonic()
            if warming is not None:
                warming.result()
            network = self._network(config, place)
            average = self._average_of(network, config)
            for epoch in train(config, network, data, writer.log, start, average):
                writer.epoch(epoch.number, epoch.train, epoch.valid, epoch.best_valid.error_rate)
                pictures.take(epoch)
                if epoch.best:
                    self._save_best(epoch, config)
                result: dict[str, Any] = {
                    "state": "completed" if epoch.number == config.training.epochs else "running",
                    "seconds": seconds + time.monotonic() - begin,
                    "epochs": epoch.number,
                    "best_epoch": epoch.best_number,
                    "scores": dict(epoch.best_valid),
                    "blank_share": epoch.valid_samples.blank_share,
                    "rung_score": self._rung_score(epoch, average, data),
                }
                if self.record.replicate_of is not None and result["state"] == "completed":
                    result["test_error_rate"] = self._judge(config, data)
                    writer.log(epoch.number, {"test/error_rate": result["test_error_rate"]})
                # Last, because the checkpoint promises that everything of its epoch is on disk.
                self._save(epoch, {"positions": writer.positions, "pictures": pictures.state, "result": result})
                yield {**result, "note": "; ".join(filter(None, (note, epoch.note))) or None}
                seconds, begin = result["seconds"], time.monotonic()

    def _render_missing(self) -> None:
        """Renders the images that this machine lacks, as the first of the trials here that need them: the sweep's own
        process has rendered them on its machine alone, unless all share the folder."""
        folder, tested = self.workplace.pools, self.base.confirm is not None
        if missing_pools(self.base, folder, tested):
            with another_main_module():
                ensure_pools(self.base, folder, self.workplace.threads, test=tested)

    def _prepare_folder(self, sweep: SweepConfig, config: TrialConfig) -> str | None:
        """Creates the trial's folder with config.yaml. Returns a sentence if leftover files of another trial were moved
        to `aside/`."""
        moved = self._move_strangers_aside(config)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
        replace_file(self.folder / "config.yaml", sweep.yaml.encode())
        return moved

    def _begin_logs(self, writer: TrialWriter, sweep: SweepConfig, config: TrialConfig) -> None:
        writer.rewind({"": 0, "train": 0})
        group = self.record.replicate_of or self.record.name
        writer.begin(group, hparams(self.base.search.space, self.record.values), config, sweep.yaml)

    def _average_of(self, network: CRNN, config: TrialConfig) -> AveragedWeights | None:
        """The EMA of the network's weights, if early stopping compares it."""
        if self._stopping is None or not self.base.averages:
            return None
        return AveragedWeights(network, config.steps_per_epoch * config.training.epochs)

    def _network(self, config: TrialConfig, place: torch.device) -> CRNN:
        return make_network(config, place, self.workplace.root / named_files.COPY)

    def _save_best(self, epoch: Epoch, config: TrialConfig) -> None:
        state = {
            "config": config.model_dump(mode="json"),
            "scores": dict(epoch.valid),
            "epoch": epoch.number,
            "network": epoch.state["network"],
            "readings": epoch.valid_samples.in_order().decoded,
        }
        checkpoints.save(self.folder / "best.pt", state)

    def _save(self, epoch: Epoch, kept: dict[str, Any]) -> None:
        """Writes the checkpoint to resume from. Keeps the one before it, a fallback if the new one is damaged."""
        checkpoints.save(self.folder / f"epoch_{epoch.number:04d}.pt", {**epoch.state, **kept})
        for old in sorted(self.folder.glob("epoch_*.pt"))[:-2]:
            old.unlink()

    @property
    def _stopping(self) -> Asha | Median | None:
        """The early-stopping rule of this trial; None without early stopping and for a replicate."""
        stopping = self.base.search.early_stopping
        return None if isinstance(stopping, NoStopping) or self.record.replicate_of else stopping

    def _rung_score(self, epoch: Epoch, average: AveragedWeights | None, data: Data) -> float | None:
        """The score that early stopping compares, lower is better, infinite if it is not finite. None if early stopping
        does not compare trials after this epoch."""
        stopping, training = self._stopping, data.config.training
        if stopping is None or epoch.number == training.epochs or not decides(stopping, epoch.number):
            return None
        numeric = precision.resolve(training.precision, data.device)
        scores = epoch.valid if average is None else average.scores(data, epoch.number, numeric)
        cost = SCORES[stopping.metric].cost(scores[stopping.metric])
        return cost if math.isfinite(cost) else math.inf

    def _judge(self, config: TrialConfig, data: Data) -> float:
        """Error rate of the best epoch's weights on the test set. Adds the test scores and the texts read to
        `best.pt`."""
        best = checkpoints.load(self.folder / "best.pt")
        network = self._network(config, data.device)
        network.load_state_dict(best["network"])
        numeric = precision.resolve(config.training.precision, data.device)
        scores, samples = evaluate(network, data.batches(data.open("test")), numeric)
        judged = {"test_scores": dict(scores), "test_readings": samples.in_order().decoded}
        checkpoints.save(self.folder / "best.pt", {**best, **judged})
        return scores.error_rate

    def _newest_checkpoint(self, writer: TrialWriter) -> tuple[dict[str, Any] | None, str | None]:
        """The newest usable checkpoint, or None, and a sentence if others had to be skipped. Deletes each checkpoint
        that is damaged, or whose event files are shorter than when it was written."""
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
        """Moves leftover files of an unknown trial with the same name to `aside/`, so that two trials never share a
        folder. Returns a sentence if there were any."""
        folders = {"trial": self.folder, "tensorboard": self.logs}
        # Not an empty folder or hidden temporary files: a trial that was killed at its start leaves those.
        there = {name: path for name, path in folders.items() if path.is_file() or any(path.glob("[!.]*"))}
        if not there or _same(config, self.folder / "config.yaml"):
            return None
        aside = self.workplace.root / "aside" / f"{self.record.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        aside.mkdir(parents=True)
        for name, path in there.items():
            path.rename(aside / name)
        return f"files of another trial with this name were moved to {aside.relative_to(self.workplace.root)}"


def _same(config: TrialConfig, file: Path) -> bool:
    """Whether the config file is this trial's, apart from the location of the image cache."""
    try:
        found = read_trial(file)
    except ConfigError:
        return False
    return found.model_copy(update={"data": found.data.model_copy(update={"cache": config.data.cache})}) == config


def _passed_over(damaged: list[str], what: str) -> str | None:
    return f"damaged, or without its curves: {', '.join(damaged)}; {what}" if damaged else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that a device or the host ran out of memory. CUDA's libraries and torch's CPU allocator
    raise a plain RuntimeError for that, so its message is searched."""
    words = ("can't allocate memory", "ALLOC_FAILED")
    told = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def keep_to_share(gpus: float) -> None:
    """Hides all GPUs from a trial that gets none, because Ray leaves them visible. Limits the GPU memory of a trial
    that gets a fraction of one, because Ray does not. Must be called before the process uses a GPU."""
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif gpus < 1:
        device.limit_memory(device.pick(gpus), gpus)
