"""Pictures of the whole sweep for TensorBoard: the images that most trials misread, and a plot of error over learning
rate."""

from collections.abc import Iterable

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sweep.config import SweepConfig
from sweep.search.records import TrialRecord
from sweep.tensorboard import badcases
from sweep.verdict import over_rate
from sweep.verdict.verdict import COMPARED, Verdict

_WORST = 16  # images in the picture


def worst_across(verdict: Verdict) -> np.ndarray | None:
    """Draws the images that most trials misread, with the readings of the best trials. uint8 (H, W, 3), or None if no
    image is misread."""
    misread = verdict.misread(_WORST)
    if verdict.pool is None or not misread:
        return None
    rows = [row for row, _ in misread]
    images, labels = verdict.pool.pictures(rows), torch.from_numpy(verdict.pool.labels[rows])
    readings = {r.record.name[:4]: torch.from_numpy(r.decoded[rows]) for r in verdict.readings[:COMPARED]}
    return badcases.draw_across(images, labels, [count for _, count in misread], readings, verdict.alphabet)


def error_over_learning_rate(records: Iterable[TrialRecord], config: SweepConfig) -> np.ndarray:
    """Plots each trial's best error rate over its learning rate, coloured by schedule. uint8 (H, W, 3)."""
    records = list(records)
    palette = over_rate.colors(records, config)
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel=over_rate.X_TITLE, ylabel=over_rate.Y_TITLE)
    for name, points in over_rate.points(records, config).items():
        areas = [point.size**2 / 2 for point in points]
        rates, errors = [point.rate for point in points], [point.error for point in points]
        axes.scatter(rates, errors, areas, color=palette[name], label=name, alpha=0.8)
    axes.legend(title="small: stopped early", fontsize=8, title_fontsize=8)
    axes.grid(True, which="both", alpha=0.2)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
