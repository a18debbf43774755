"""`python -m sweep.report A B`: compares two sweeps on one HTML page."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from model.data.pool_file import Split
from model.data.source import source_of
from model.system.files import replace_file
from sweep.verdict.page import drawn, rendered
from sweep.verdict.significance import SeedsAndImages, p_value
from sweep.verdict.verdict import SURE, Verdict
from sweep.wording.formatting import formatted, percent, probability, span


class Comparison:
    def __init__(self, first: Verdict, second: Verdict) -> None:
        self.sweeps = (first, second)
        # Folder names identify the sweeps, unless both have the same one.
        roots = [sweep.workplace.root for sweep in self.sweeps]
        self.names = [root.name for root in roots] if roots[0].name != roots[1].name else [str(root) for root in roots]

    def write(self, folder: Path) -> Path:
        path = folder / f"compared-with-{self.sweeps[1].workplace.root.name}.html"
        html = rendered(
            "comparison.html",
            name=" and ".join(self.names),
            sentences=self.sentences,
            names=self.names,
            rows=self.rows(),
            settings=self.settings(),
            plot=self._best_so_far(),
        )
        replace_file(path, html.encode())
        return path

    @property
    def sentences(self) -> list[str]:
        """The verdict on each sweep, then which of the two winners reads better."""
        told = [f"{name}: {sweep.sentences[0]}" for name, sweep in zip(self.names, self.sweeps, strict=True)]
        return [*told, self._which()]

    def _which(self) -> str:
        first, second = self.sweeps
        if not (first.readings and second.readings):
            return "The two winners can't be compared: of one there are no readings."
        confirmed = bool(first.confirmed and second.confirmed)
        split: Split = "test" if confirmed else "valid"
        if source_of(first.config).specs(split) != source_of(second.config).specs(split):
            return "The two winners can't be compared image by image: the sweeps were judged on different images."
        if confirmed:
            runs = [sweep.confirmed[0].wrong for sweep in self.sweeps]
            p = SeedsAndImages(runs).p_value(*runs)
        else:
            runs = [sweep.readings[0].wrong for sweep in self.sweeps]
            p = p_value(*runs)
        if p >= SURE:
            return f"On the same images the two winners can't be told apart (p {probability(p, '=')})."
        better = int(np.argmin([wrong.mean() for wrong in runs]))
        return f"On the same images the winner of {self.names[better]} reads better (p {probability(p, '=')})."

    def rows(self) -> list[tuple[str, list[str]]]:
        """Rows of the table that compares both sweeps: label, then one cell per sweep."""
        about: dict[str, Callable[[Verdict], str]] = {
            "winner": lambda s: s.scored[0].name if s.scored else "–",
            "its validation error": lambda s: percent(s.scored[0].error_rate) if s.scored else "–",
            "95 % interval": lambda s: span(s.interval(s.scored[0])) if s.scored else "–",
            "confirmed test error": lambda s: percent(s.confirmed[0].error) if s.confirmed else "–",
            "trials": lambda s: ", ".join(f"{n} {state}" for state, n in Counter(r.state for r in s.ranked).items()),
            "epochs trained": lambda s: f"{sum(record.epochs for record in s.ranked):,}",
            "seconds of training": lambda s: f"{sum(record.seconds for record in s.ranked):,.0f}",
        }
        return [(what, [tell(sweep) for sweep in self.sweeps]) for what, tell in about.items()]

    def settings(self) -> list[tuple[str, list[str]]]:
        """The settings that differ: path, then its value in each sweep."""
        first, second = (dict(_flat(sweep.config.model_dump(mode="json"))) for sweep in self.sweeps)
        paths = [path for path in {**first, **second} if first.get(path) != second.get(path)]
        return [(path, [formatted(settings.get(path)) for settings in (first, second)]) for path in paths]

    def _best_so_far(self) -> str:
        figure = go.Figure()
        for name, sweep in zip(self.names, self.sweeps, strict=True):
            records = sorted(sweep.scored, key=lambda record: record.number)
            spent = np.cumsum([record.seconds for record in records])
            best = np.minimum.accumulate([max(r.score("error_rate"), 0.5 / sweep.images) for r in records] or [1.0])
            figure.add_scatter(x=spent, y=best, name=name, mode="lines+markers", line={"shape": "hv"})
        return drawn(figure, "seconds of training, trial after trial", "best validation error rate", y_log=True)


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and f"{above}{key}" != "search.space":
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
