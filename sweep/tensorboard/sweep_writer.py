"""The sweep's own run, `_sweep`, and the link that opens TensorBoard on the comparison."""

import json
import re
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
from tensorboardX.proto.api_pb2 import Experiment, MetricInfo, MetricName

from sweep.config import Space
from sweep.tensorboard.hparams import hparam_columns, metric_tags
from sweep.tensorboard.writer import Writer


class SweepWriter:
    """Writes the sweep's own run, `_sweep`: the HParams columns, the best error so far, the leaderboard, pictures.

    A resumed sweep appends to the same file and skips what is already in it, so an open TensorBoard just reads on.
    """

    def __init__(self, folder: Path, space: Space) -> None:
        self._run = Writer(folder)
        self._run.file.cut_half_record()
        self._told: dict[str, int] = {
            value.tag: event.step for event in self._run.file.events() for value in event.summary.value
        }
        if "_hparams_/experiment" not in self._told:
            metrics = [MetricInfo(name=MetricName(tag=tag)) for tag in metric_tags()]
            experiment = Experiment(
                hparam_infos=hparam_columns(space), metric_infos=metrics, time_created_secs=time.time()
            )
            self._run.hparams("experiment", experiment=experiment)

    def best(self, trials: int, error_rate: float) -> None:
        """Writes the lowest error rate of the first `trials` trials that ended."""
        if self._is_news("sweep/best_error_rate", trials):
            self._run.points({"sweep/best_error_rate": error_rate}, trials)

    def leaderboard(self, markdown: str, step: int) -> None:
        if self._is_news("leaderboard/text_summary", step):
            self._run.add_text("leaderboard", markdown, step)

    def image(self, tag: str, picture: np.ndarray, step: int) -> None:
        if self._is_news(tag, step):
            self._run.picture(tag, picture, step)

    def _is_news(self, tag: str, step: int) -> bool:
        before, self._told[tag] = self._told.get(tag, -1), max(step, self._told.get(tag, -1))
        return step > before

    def close(self) -> None:
        self._run.close()


def comparison_link(address: str, color_by: str | None) -> str:
    """A TensorBoard URL that opens on the comparison of trials: validation error pinned, without smoothing, runs
    coloured by the searched choice `color_by`."""
    pinned = json.dumps([{"plugin": "scalars", "tag": "epoch/error_rate"}], separators=(",", ":"))
    query = {"pinnedCards": pinned, "smoothing": "0", "runFilter": "^[^/]*$"}  # without the train/ runs
    if color_by:
        query["runColorGroup"] = f"regex:{re.escape(color_by)}=([A-Za-z0-9.+-]+)"
    text = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items())
    return f"{address}/?{text}#timeseries"
