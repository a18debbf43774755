"""A trial's two runs in TensorBoard.

Its own run has the batch curves, the validation set's epoch curves, graph, badcases and
hyperparameters. Below it, `train/` has the training set's epoch curves under the same tags, so that TensorBoard draws
both curves in one chart.
"""

import time
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.plugin_hparams_pb2 import SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard._pytorch_graph import graph  # torch's public `add_graph` writes a file of its own

from model.config import ImageSection, NetworkConfig, TrialConfig
from model.network.crnn import CRNN
from model.training.scores import Scores
from sweep.config import Value
from sweep.tensorboard.event_file import last_event
from sweep.tensorboard.hparams import set_value
from sweep.tensorboard.writer import Writer

_END = "_hparams_/session_end_info"


@lru_cache(maxsize=4)
def _graph(image: ImageSection, network: NetworkConfig) -> tuple[Any, Any]:
    """A network's GraphDef and StepStats. Cached, because most trials have the same network, and torch never frees the
    memory of a trace."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        images = torch.zeros(1, image.channels, image.height, image.widest)
        model = CRNN(TrialConfig.model_validate({image.key: image, "network": network})).eval()
        # `graph` accepts a traced model; given the model itself, it would trace twice to compare the results.
        drawn: tuple[Any, Any] = graph(torch.jit.trace(model, images, check_trace=False), images)
    return drawn


class TrialWriter:
    """Writes a trial's two runs. `rewind` to earlier `positions` removes everything that was written since."""

    def __init__(self, folder: Path) -> None:
        self._writers = {"": Writer(folder), "train": Writer(folder / "train")}
        self._run, self._train_run = self._writers.values()

    @property
    def positions(self) -> dict[str, int]:
        """Syncs each event file to disk and returns its size in bytes."""
        for writer in self._writers.values():
            writer.file.sync()
        return {name: writer.file.size for name, writer in self._writers.items()}

    def rewind(self, positions: Mapping[str, int]) -> None:
        for name, size in positions.items():
            self._writers[name].file.cut(size)

    def has(self, positions: Mapping[str, int]) -> bool:
        """Whether each file is at least as long as at `positions`."""
        return all(size <= self._writers[name].file.size for name, size in positions.items())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.points(values, step)

    def begin(self, group: str, values: Mapping[str, Value], config: TrialConfig, yaml: str) -> None:
        """Writes hyperparameters, config and graph. HParams shows the trials of one `group` as one row."""
        start = SessionStartInfo(start_time_secs=time.time(), group_name=group)
        for path, value in values.items():
            set_value(start.hparams[path], value)
        self._run.hparams("session_start_info", session_start_info=start)
        self._run.add_text("config", "```yaml\n" + yaml + "```")
        try:
            self._run.graph(_graph(config.image, config.network))
        except Exception as error:  # torch's tracing may fail in many ways, none of which should end a trial
            self._run.add_text("graph", f"The graph could not be drawn: {error}")

    def epoch(self, number: int, train: Scores, valid: Scores, best_error_rate: float) -> None:
        self.log(number, {**valid.tagged("epoch"), "best/error_rate": best_error_rate})
        self._train_run.points(train.tagged("epoch"), number)

    def image(self, tag: str, picture: np.ndarray, step: int) -> None:
        """picture: uint8 (H, W, 3)."""
        self._run.picture(tag, picture, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def end_session(folder: Path, success: bool, picture: tuple[int, np.ndarray] | None = None) -> None:
    """Ends a trial's HParams session with its status, and adds the last `valid/badcase` (step, picture). Writes neither
    twice. Must be called only when the trial is final and its process no longer writes, because a half-written last
    record is cut off."""
    status = Status.Value("STATUS_SUCCESS" if success else "STATUS_FAILURE")
    last = last_event(folder)
    if picture is None and last is not None and any(value.tag == _END for value in last.summary.value):
        return  # it was done by an earlier run of the sweep
    writer = Writer(folder)
    writer.file.cut_half_record()
    there = {value.tag: event.step for event in writer.file.events() for value in event.summary.value}
    if picture is not None and there.get("valid/badcase", 0) < picture[0]:
        writer.picture("valid/badcase", picture[1], picture[0])
    if _END not in there:
        writer.hparams("session_end_info", session_end_info=SessionEndInfo(status=status, end_time_secs=time.time()))
    writer.close()
