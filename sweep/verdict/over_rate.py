"""The plot of error over learning rate: what it shows, for the two that draw it, Plotly for the report and matplotlib
for TensorBoard. The schedules' colours are those of all plots."""

from collections.abc import Iterable
from dataclasses import dataclass

from sweep.config import SweepConfig
from sweep.search.records import TrialRecord

X_TITLE, Y_TITLE = "learning rate", "best validation error rate"
_PALETTE = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")


@dataclass(frozen=True)
class Point:
    """A trial with its learning rate and its best error; above 0, so that a logarithmic axis has a place for it."""

    record: TrialRecord
    rate: float
    error: float

    @property
    def size(self) -> int:
        """Diameter in pixels. Trials that were stopped early are small."""
        return 6 if self.record.state == "stopped" else 11


def schedule_of(record: TrialRecord, config: SweepConfig) -> str:
    return str(record.values.get("schedule.name", config.schedule.name))


def colors(records: Iterable[TrialRecord], config: SweepConfig) -> dict[str, str]:
    """A colour for each schedule of these trials."""
    names = sorted({schedule_of(record, config) for record in records})
    return {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(names)}


def shown_error(record: TrialRecord, config: SweepConfig) -> float:
    """The error rate, of which a logarithmic axis can show 0 too: as half an image."""
    return max(record.score("error_rate"), 0.5 / config.data.valid_images)


def points(records: Iterable[TrialRecord], config: SweepConfig) -> dict[str, list[Point]]:
    """The trials that have an error, by schedule."""
    found: dict[str, list[Point]] = {}
    for record in records:
        if record.error_rate is not None:
            rate = float(config.with_values(record.values).optimizer.lr)
            point = Point(record, rate, shown_error(record, config))
            found.setdefault(schedule_of(record, config), []).append(point)
    return dict(sorted(found.items()))
