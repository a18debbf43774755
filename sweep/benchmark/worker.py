"""Worker processes of `sweep.bench`, called lanes. Each runs on the CPUs or the GPU share of one trial, and measures
one thing at a time."""

import gc
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch

from model.config import TrialConfig, override
from model.data.alphabet import Alphabet
from model.data.batches import Data, pictures
from model.network.crnn import CRNN
from model.system import device, malloc
from model.training import checkpoints, precision
from model.training.acceleration import set_rate
from model.training.averaging import AveragedWeights
from model.training.evaluation import evaluate
from model.training.loop import is_logged, make_network, make_step, train
from model.training.optimizers import make_optimizer
from sweep.benchmark import baseline
from sweep.tensorboard import badcases
from sweep.tensorboard.trial_pictures import picture_epochs
from sweep.tensorboard.trial_writer import TrialWriter


@dataclass(frozen=True)
class Lane:
    """The settings of a worker process. `folder`: for files it writes. `cpus`: its CPU affinity, empty to leave that
    unchanged. `averages`: whether its trials keep an EMA of their weights."""

    config: TrialConfig
    pools: Path
    folder: Path
    threads: int
    gpu: bool
    cpus: tuple[int, ...]
    averages: bool


@dataclass(frozen=True)
class Memory:
    """Peak memory of a process in megabytes, on the host and on the device, and how much is left of both.

    On the host this is the unique set size (USS), without memory shared with other processes, such as pools and
    libraries. It is a peak because the process keeps freed blocks.
    """

    host: float
    device: float
    host_left: float
    device_left: float

    @property
    def fitting(self) -> int:
        """How many such processes fit in memory at once, this one included."""
        more = self.host_left / self.host
        return 1 + int(min(more, self.device_left / self.device) if self.device else more)


class RunningLane:
    def __init__(self, lane: Lane) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(lane, theirs))
        self._process.start()
        theirs.close()

    def ask(self, what: str, *arguments: Any) -> None:
        self._connection.send((what, *arguments))

    def answer(self) -> Any:
        """Waits for the answer to the last `ask`. Raises RuntimeError if the process raised an error or died."""
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError("a measured process was lost: perhaps memory was short") from None
        if isinstance(answer, Exception):
            raise RuntimeError(f"{type(answer).__name__}: {answer}")
        return answer

    def call(self, what: str, *arguments: Any) -> Any:
        self.ask(what, *arguments)
        return self.answer()

    def close(self) -> None:
        """Kills the worker process. Idempotent."""
        self._connection.close()
        self._process.kill()
        self._process.join()


def _serve(lane: Lane, connection: Connection) -> None:
    """Main loop of the worker: answers questions until the pipe closes. Ignores SIGINT, which the parent handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A spawned process would also spawn its children; the baseline's DataLoader workers must start by default.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    if lane.cpus:
        os.sched_setaffinity(0, lane.cpus)
    measures = Measures(lane)
    while True:
        try:
            what, *arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(getattr(measures, what)(*arguments))
        except Exception as error:
            connection.send(error)


class Measures:
    """The measurements of a worker: each public method is a question that `RunningLane.ask` may send."""

    def __init__(self, lane: Lane) -> None:
        torch.set_num_threads(lane.threads)
        malloc.keep_freed_blocks()
        self.lane = lane
        self.device = device.pick(lane.gpu)
        self._before = {"torch and its libraries": _own_bytes()}
        if lane.gpu:
            device.warm_up(self.device)
            self._before["the GPU's context and libraries"] = _own_bytes()
        self.use(lane.config)
        gc.collect()  # otherwise a collection of a fifth of a second may fall into the first measurement

    def use(self, config: TrialConfig) -> None:
        self.config = config
        self.numeric = precision.resolve(config.training.precision, self.device)
        self.data = Data(config, self.lane.pools, self.device)
        self._streams: dict[str, Iterator[int]] = {}

    def rate(self, stream: str, seconds: float) -> float:
        """Images per second of a stream, measured over at least `seconds` and at least one of its steps."""
        images = self._streams.setdefault(stream, getattr(self, f"_{stream}")())
        begin, done = self._now(), 0
        while True:
            done += next(images)
            if (passed := self._now() - begin) >= seconds:
                return done / passed

    def _now(self) -> float:
        if self.lane.gpu:
            torch.accelerator.synchronize()
        return time.monotonic()

    def _bare(self) -> Iterator[int]:
        """The limit: training steps without gradient clipping on one batch that is already on the device. Raises
        RuntimeError if the network can't be compiled as the config says."""
        config = TrialConfig.model_validate(override(self.config.model_dump(), {"optimizer.gradient_clip": None}))
        network = make_network(config, self.device).train()
        optimizer = make_optimizer(network.parameters(), config.optimizer)
        step, note = make_step(config, network, optimizer, self.data)
        if note is not None:
            raise RuntimeError(note)
        batch = next(self.data.train_batches(1))
        set_rate(optimizer, config.optimizer.lr)
        while True:
            step(*batch)
            yield len(batch)

    def _trial(self) -> Iterator[int]:
        """Epochs of a real trial: data, augmentation, logging and scores."""
        writer = TrialWriter(self.lane.folder)
        while True:
            network = make_network(self.config, self.device)
            for _ in train(self.config, network, self.data, writer.log, average=self._average(network)):
                yield self.config.steps_per_epoch * self.config.training.batch_size
            writer.rewind({"": 0})

    def _average(self, network: CRNN) -> AveragedWeights | None:
        steps = self.config.steps_per_epoch * self.config.training.epochs
        return AveragedWeights(network, steps) if self.lane.averages else None

    def _plain(self) -> Iterator[int]:
        """Epochs of the baseline, shorter because it is much slower."""
        batch = self.config.training.batch_size
        shorter = sized(self.config, max(batch, self.config.data.train_images // 4), 1, 1)
        network = baseline.make_network(shorter, self.device)
        optimizer = baseline.make_optimizer(shorter, network)
        while True:
            baseline.epoch(shorter, network, shorter.data.train_images, self.device, optimizer)
            yield shorter.data.train_images

    def _evaluation(self) -> Iterator[int]:
        """Evaluations on the training images, because the validation set is kept small here."""
        network = make_network(self.config, self.device)
        while True:
            evaluate(network, self.data.batches(self.data.train, 128), self.numeric)
            yield sum(map(len, self.data.train))

    def _reading(self) -> Iterator[int]:
        """Reads batches from the pool to the device and does nothing with them."""
        epoch = 0
        while True:
            epoch += 1
            for batch in self.data.train_batches(epoch):
                yield len(batch)

    def graph(self) -> float:
        """Seconds to begin a trial's log, including the trace of the graph, which a process does only once."""
        writer = TrialWriter(self.lane.folder / "graph")
        return seconds(lambda _: writer.begin("0000", {}, self.config, "captcha:\n" * 80), times=1)

    def logging(self, whole: TrialConfig) -> float:
        """Seconds that a trial of the config `whole` spends on TensorBoard, without the beginning of its log."""
        epochs, steps = whole.training.epochs, whole.steps_per_epoch
        points = sum(is_logged(step, steps, epochs) for step in range(1, epochs * steps + 1))
        drawn = sorted(picture_epochs(epochs))
        between = sum(after - before > 1 for before, after in pairwise(drawn))  # a best epoch may lie between
        drawings = 2 * len(drawn) + between
        writer = TrialWriter(self.lane.folder / "logging")
        network = make_network(self.config, self.device)
        batch = next(self.data.train_batches(1))
        scores, samples = evaluate(network, [batch], self.numeric)
        samples = samples.worst()
        images = pictures([batch], samples.rows.tolist())
        alphabet = Alphabet(self.config.image.characters)
        values = {f"train/{name}": 0.5 for name in ("loss", "acc", "error_rate", "lr")}
        step = seconds(lambda number: writer.log(number, values), times=200)
        epoch = seconds(lambda number: writer.epoch(number, scores, scores, 0.5), times=50)
        picture = seconds(
            lambda number: writer.image("valid/badcase", badcases.draw(images, samples, alphabet), number), times=7
        )
        return points * step + epochs * epoch + drawings * picture

    def checkpoint(self) -> tuple[float, int]:
        """Seconds and bytes of the checkpoints of one epoch: the state to resume from, and the best weights."""
        network = make_network(self.config, self.device)
        epoch = next(train(self.config, network, self.data, average=self._average(network)))
        described = {"config": self.config.model_dump(mode="json"), "scores": dict(epoch.valid)}
        files = [
            (self.lane.folder / "epoch.pt", epoch.state),
            (self.lane.folder / "best.pt", {**described, "network": epoch.state["network"]}),
        ]

        def save(number: int) -> None:
            for path, state in files:
                checkpoints.save(path, state)

        taken = seconds(save, times=7)
        return taken, sum(path.stat().st_size for path, _ in files)

    def memory_parts(self) -> dict[str, float]:
        """The process's memory in megabytes, split by what allocated it."""
        sizes = [*self._before.values(), _own_bytes()]
        taken = [after - before for before, after in zip([0, *sizes], sizes, strict=False)]
        return {name: size / 1e6 for name, size in zip([*self._before, "training"], taken, strict=True)}

    def memory(self) -> Memory:
        host, host_left = _own_bytes(), psutil.virtual_memory().available
        on_device = device_left = 0
        if self.lane.gpu:
            on_device, device_left = torch.accelerator.max_memory_reserved(), device.free_bytes(self.device)
        return Memory(host / 1e6, on_device / 1e6, host_left / 1e6, device_left / 1e6)


def _own_bytes() -> int:
    """The unique set size (USS) of this process in bytes: memory that it shares with no other process."""
    size: int = psutil.Process().memory_full_info().uss
    return size


def seconds(action: Callable[[int], Any], times: int) -> float:
    """The median seconds of `times` calls of `action(number)`."""
    taken = []
    for number in range(1, times + 1):
        begin = time.monotonic()
        action(number)
        taken.append(time.monotonic() - begin)
    return statistics.median(taken)


def sized(config: TrialConfig, images: int, epochs: int, valid_images: int) -> TrialConfig:
    """The trial's config with other numbers of images and epochs, and images from a pool."""
    sizes = {"data.source": "pool", "data.train_images": images, "data.valid_images": valid_images}
    return TrialConfig.model_validate(override(config.model_dump(), {**sizes, "training.epochs": epochs}))
