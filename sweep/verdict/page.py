"""`report.html`: a sweep's verdict and the evidence for it, in one self-contained HTML file."""

import base64
import io
import logging
import math
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from optuna.importance import PedAnovaImportanceEvaluator
from PIL import Image
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs
from scipy.stats import spearmanr

from model.system.files import replace_file
from model.training.scores import Score, columns
from sweep.config import Asha, Median, NoStopping, Parameter, SweepConfig, Value, plain, walk
from sweep.config.workplace import Workplace
from sweep.search import study_file
from sweep.search.records import TrialRecord
from sweep.tensorboard.event_file import lifetime, scalars
from sweep.verdict import over_rate
from sweep.verdict.leaderboard import SHOWN, left_out
from sweep.verdict.misreadings import LOST, Kind, confusions, most_frequent, visible
from sweep.verdict.verdict import COMPARED, Verdict
from sweep.wording.faults import one_line
from sweep.wording.formatting import formatted, percent, probability, scored, span

_MATRIX = 40  # classes of the largest alphabet whose confusions are a matrix
_PAIRS = 30  # confusions that are shown of larger ones
_CONFUSED = 3  # best trials whose character confusions are counted: worse ones miss most characters
_WORST = 24
_CURVES = 5  # learning rates that are drawn
_TICKS = 6  # of a number's axis
_EDGE = 0.05  # of a range's length
_DEVICE = re.compile(r"  device +(.*)")  # the line that `Terminal.header` writes to sweep.log


class Page:
    """The report page, made from the verdict and the trials' event files."""

    def __init__(self, config: SweepConfig, workplace: Workplace, verdict: Verdict) -> None:
        self.config, self.workplace, self.verdict = config, workplace, verdict
        self.ranked, self.scored = verdict.ranked[:SHOWN], verdict.scored[:SHOWN]
        self.images = verdict.images
        self.readings, self.pool = verdict.readings, verdict.pool
        self.epochs = config.training.epochs
        self.alphabet = verdict.alphabet
        self.logs = {record.name: scalars(workplace.logs(record.name)) for record in self.ranked}
        self.spans = {name: lifetime(workplace.logs(name)) for name, tags in self.logs.items() if tags}

    @property
    def wall(self) -> float:
        """Seconds from the first event of any trial to the last; of the study's trials if not all are shown."""
        if len(self.ranked) < len(self.verdict.ranked):
            times = [
                (trial.datetime_start, trial.datetime_complete) for trial in self._study.get_trials(deepcopy=False)
            ]
            known = [time for pair in times for time in pair if time is not None]
            return (max(known) - min(known)).total_seconds()
        begins, ends = zip(*self.spans.values(), strict=True) if self.spans else ((0.0,), (0.0,))
        return float(max(ends) - min(begins))

    def write(self, path: Path) -> Path:
        html = rendered(
            "report.html",
            name=self.workplace.root.name,
            verdict=self.verdict.sentences,
            confirmed=self.confirmed(),
            warnings=self.warnings(),
            titles=[score.title for score in self._others.values()],
            rows=self.rows(),
            left_out=left_out(len(self.verdict.ranked)),
            paths=self.paths,
            images=self.images,
            plots=[(title, note, drawn_or_told(title, make)) for title, note, make in self.plots()],
            worst=self.worst(),
            compared=[reading.record.name[:4] for reading in self.readings[:COMPARED]],
            confused=self.confused(),
            kinds=self.kinds(),
            facts=self.facts(),
            yaml=self.config.yaml,
        )
        replace_file(path, html.encode())
        return path

    @property
    def paths(self) -> list[str]:
        return list(dict.fromkeys(path for path, _, _ in walk(self.config.search.space)))

    @property
    def _others(self) -> dict[str, Score]:
        """The scores other than the error rate, which has columns of its own with interval and p value."""
        return {name: score for name, score in columns().items() if name != "error_rate"}

    def warnings(self) -> list[str]:
        """Reasons to doubt the winner: a value near the edge of its range, or few trials for the search space."""
        found = []
        if self.scored:
            for path, parameter, given in walk(self.config.search.space):
                values = self.scored[0].values
                if path in values and given.items() <= values.items():
                    found += self._edge(path, parameter, float(values[path])) if parameter.bounds else []
        if self.verdict.plateau not in ("", *self.verdict.sentences):
            found.append(self.verdict.plateau)
        searched = [record for record in self.verdict.ranked if record.replicate_of is None]
        ended = sum(record.state in ("completed", "stopped") for record in searched)
        if ended < 4 * len(self.paths):
            found.append(
                f"{ended} trials are few for {len(self.paths)} searched values: take the importances below as a hint."
            )
        return found

    @staticmethod
    def _edge(path: str, parameter: Parameter, value: float) -> list[str]:
        assert parameter.bounds is not None
        (low, high), place = parameter.bounds, parameter.place(value)
        if _EDGE <= place <= 1 - _EDGE:
            return []
        if place < 0.5:
            wider = (low / 10 if parameter.loguniform else low - (high - low), high)
        else:
            wider = (low, high * 10 if parameter.loguniform else high + (high - low))
        ((kind, _),) = parameter.model_dump().items()
        return [
            f"The winner's {path} = {value:.3g} lies at the edge of its range {low:g} … {high:g}: the best may lie "
            f"beyond. Widen it: {path}: {{{kind}: [{wider[0]:g}, {wider[1]:g}]}}"
        ]

    def confirmed(self) -> list[dict[str, Any]]:
        """Rows of the confirmed configs, best first."""
        return [
            {
                "name": config.record.name,
                "seeds": len(config.wrong),
                "error": percent(config.error),
                "interval": span(config.interval),
                "each": ", ".join(percent(float(wrong.mean())) for wrong in config.wrong),
                "p": "" if config.p is None else probability(config.p),
                "seconds": f"{config.seconds:.0f}",
            }
            for config in self.verdict.confirmed
        ]

    def rows(self) -> list[dict[str, Any]]:
        tests = {reading.record.number: reading.p for reading in self.readings if reading.p is not None}
        return [
            {
                "rank": rank,
                "name": record.name,
                "state": record.state,
                "values": [
                    formatted(plain(record.values[path])) if path in record.values else "" for path in self.paths
                ],
                "epochs": f"{record.epochs}/{self.epochs}",
                "error": percent(record.error_rate),
                "interval": "" if record.error_rate is None else span(self.verdict.interval(record)),
                "p": probability(tests[record.number]) if record.number in tests else "",
                "scores": [scored(score, record.scores.get(name)) for name, score in self._others.items()],
                "seconds": f"{record.seconds:.0f}",
            }
            for rank, record in enumerate(self.ranked, start=1)
        ]

    def plots(self) -> list[tuple[str, str, Callable[[], str]]]:
        """The plots: title, what to look for, and a function that returns the plot's HTML."""
        if not self.scored:
            return []
        completed = sum(record.state == "completed" for record in self.ranked)
        of_the_study = [
            ("What matters", "Importance for the error, by PED-ANOVA (Watanabe et al. 2023).", self._importances),
            (
                "All values at once",
                "One line for each trial that ran to its end; blue is good, – means: not part of it.",
                self._parallel,
            ),
        ]
        return [
            (
                "Learning curves",
                "Validation error by epoch; a cross marks where early stopping ended a trial.",
                self._curves,
            ),
            ("Error over learning rate", "Each trial's best error; stopped trials are small.", self._over_rate),
            ("The winners' learning rates", "As they were, step by step.", self._rates),
            *(of_the_study if completed >= 4 else []),
            ("What each schedule costs and gains", "Over its trials.", self._schedules),
            ("When each trial ran", "", self._timeline),
        ]

    def _group(self, record: TrialRecord) -> str:
        return over_rate.schedule_of(record, self.config)

    @cached_property
    def _colors(self) -> dict[str, str]:
        return over_rate.colors(self.ranked, self.config)

    def _curves(self) -> str:
        figure, seen = go.Figure(), set[str]()
        for record in self.ranked:
            points = self.logs[record.name].get("epoch/error_rate", [])
            group = self._group(record)
            steps, values = [step for step, _ in points], [max(value, 0.5 / self.images) for _, value in points]
            symbols = ["circle"] * (len(points) - 1) + ["x" if record.state == "stopped" else "circle"]
            figure.add_scatter(
                x=steps, y=values, name=group, legendgroup=group, showlegend=group not in seen,
                mode="lines+markers", line={"color": self._colors[group], "width": 1.5},
                marker={"symbol": symbols, "size": [3] * (len(points) - 1) + [9 if record.state == "stopped" else 3]},
                hovertemplate=record.name + "<br>epoch %{x}: %{y:.4f}<extra></extra>",
            )  # fmt: skip
            seen.add(group)
        return drawn(figure, "epoch", "validation error rate", y_log=True)

    def _over_rate(self) -> str:
        figure, colors = go.Figure(), self._colors
        for group, points in over_rate.points(self.scored, self.config).items():
            bars = [self.verdict.interval(point.record) for point in points]
            figure.add_scatter(
                x=[point.rate for point in points], y=[point.error for point in points], name=group, mode="markers",
                marker={"color": colors[group], "size": [point.size for point in points]},
                error_y={
                    "array": [high - point.error for (_, high), point in zip(bars, points, strict=True)],
                    "arrayminus": [max(0.0, point.error - low) for (low, _), point in zip(bars, points, strict=True)],
                    "thickness": 1, "width": 0,
                },
                text=[point.record.name for point in points], hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
            )  # fmt: skip
        return drawn(figure, over_rate.X_TITLE, over_rate.Y_TITLE, x_log=True, y_log=True)

    def _rates(self) -> str:
        """The best trials' learning rates by epoch; trials with the same curve, as replicates, share a line."""
        curves: dict[tuple[float, ...], list[TrialRecord]] = {}
        for record in self.scored:
            trial = self.config.with_values(record.values)
            steps = trial.steps_per_epoch * trial.training.epochs
            at = np.unique(np.linspace(0, steps - 1, 200).astype(int))
            rates = tuple(trial.optimizer.lr * trial.schedule.factor(int(step), steps) for step in at)
            curves.setdefault(rates, []).append(record)
        figure = go.Figure()
        for rates, records in list(curves.items())[:_CURVES]:
            best, *others = records
            name = f"{best.name} and {len(others)} more" if others else best.name
            epochs = np.linspace(0, self.epochs, len(rates))
            figure.add_scatter(x=epochs, y=rates, name=name, mode="lines", showlegend=True)
        return drawn(figure, "epoch", "learning rate")

    def _importances(self) -> str:
        study = self._study
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
        figure = go.Figure(go.Bar(x=list(found.values())[::-1], y=list(found)[::-1], orientation="h"))
        return drawn(figure, "importance", "", height=120 + 40 * len(found))

    def _parallel(self) -> str:
        records = [record for record in self.scored if record.state == "completed"]
        errors = [over_rate.shown_error(record, self.config) for record in records]
        logarithms = [math.log10(error) for error in errors]
        scales = {path: bool(parameter.loguniform) for path, parameter, _ in walk(self.config.search.space)}
        axes = [(path, *axis([record.values.get(path) for record in records], scales[path])) for path in self.paths]
        axes.append(("error", *axis(list(errors), log=True)))
        lowest, highest = min(logarithms), max(logarithms)
        figure = go.Figure()
        for place, (record, logarithm) in enumerate(zip(records, logarithms, strict=True)):
            share = (logarithm - lowest) / ((highest - lowest) or 1)
            figure.add_scatter(
                x=list(range(len(axes))), y=[places[place] for _, places, _ in axes], mode="lines", showlegend=False,
                line={"color": sample_colorscale(["#1f77b4", "#d9822b"], [share])[0], "width": 2},
                text=record.name, hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
        for place, (_, _, ticks) in enumerate(axes):
            for height, text in ticks.items():
                figure.add_annotation(x=place, y=height, text=text, showarrow=False, xanchor="right", xshift=-4)
        titles = {"tickvals": list(range(len(axes))), "ticktext": [path for path, _, _ in axes]}
        figure.update_xaxes(**titles, range=[-0.5, len(axes) - 0.8], gridcolor="#888888", zeroline=False)
        figure.update_yaxes(visible=False)
        return drawn(figure, None, None)

    @cached_property
    def _study(self) -> optuna.Study:
        return optuna.load_study(study_name="sweep", storage=study_file.copied(self.workplace.root / "study.db"))

    def _schedules(self) -> str:
        groups = {g: [r for r in self.scored if self._group(r) == g] for g in self._colors}
        rows = [
            (
                group,
                len(records),
                percent(min(r.score("error_rate") for r in records)),
                percent(float(np.median([r.score("error_rate") for r in records]))),
                sum(r.state == "stopped" for r in records),
                f"{sum(r.seconds for r in records):.0f}",
            )
            for group, records in groups.items()
            if records
        ]
        header = ("schedule", "trials", "best error", "median error", "stopped early", "seconds in all")
        cells = "".join(f"<th>{title}</th>" for title in header)
        lines = ("".join(f"<td>{escape(str(value))}</td>" for value in row) for row in rows)
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>'

    def _timeline(self) -> str:
        figure = go.Figure()
        begin = min((start for start, _ in self.spans.values()), default=0.0)
        for group, color in self._colors.items():
            own = [
                (r.name, *self.spans[r.name]) for r in self.ranked if r.name in self.spans and self._group(r) == group
            ]
            figure.add_bar(
                y=[name[:4] for name, _, _ in own], base=[start - begin for _, start, _ in own],
                x=[end - start for _, start, end in own], name=group, orientation="h", marker={"color": color},
                text=[name for name, _, _ in own], textposition="none",
                hovertemplate="%{text}<br>%{x:.0f} s<extra></extra>",
            )  # fmt: skip
        figure.update_yaxes(type="category", categoryorder="category descending")
        return drawn(figure, "seconds since the first trial", "trial", height=140 + 16 * len(self.spans))

    def worst(self) -> list[dict[str, Any]]:
        """The images that most trials misread, each with the readings of the best trials."""
        if self.pool is None:
            return []
        return [
            {
                "image": embedded(self.pool.pictures([row])[0]),
                "true": self.alphabet.decode(self.pool.labels[row].tolist()),
                "count": count,
                "readings": [
                    (self.alphabet.decode(reading.decoded[row].tolist()) or "–", bool(reading.wrong[row]))
                    for reading in self.readings[:COMPARED]
                ],
            }
            for row, count in self.verdict.misread(_WORST)
        ]

    def kinds(self) -> list[Kind]:
        """The kinds of texts and characters, and the errors, of which the winner's rates are shown."""
        found = self.verdict.misreadings
        return [] if found is None else [*found.kinds.values(), *found.edits]

    def confused(self) -> str:
        """The characters that the best trials confuse: a heat map of true over read, without the correct diagonal, or
        of a large alphabet the most frequent pairs."""
        if not self.readings:
            return ""
        assert self.pool is not None
        pairs: Counter[tuple[str, str]] = Counter()
        for reading in self.readings[:_CONFUSED]:
            for row in np.flatnonzero(reading.wrong):
                true = self.alphabet.decode(self.pool.labels[row].tolist())
                read = self.alphabet.decode(reading.decoded[row].tolist())
                pairs.update(confusions(true, read))
        if not pairs:
            return ""
        if self.alphabet.classes > _MATRIX:
            found = most_frequent(pairs, _PAIRS)[::-1]
            figure = go.Figure(go.Bar(x=[count for _, count in found], y=[pair for pair, _ in found], orientation="h"))
            figure.update_yaxes(type="category")
            return drawn(figure, "how often", "true → read", height=120 + 18 * len(found))
        characters = [*self.alphabet.characters, LOST]
        index = {character: place for place, character in enumerate(characters)}
        counts = np.zeros((len(characters), len(characters)), int)
        for (true, read), count in pairs.items():
            counts[index[true], index[read]] = count
        cells = [[int(value) or None for value in row] for row in counts[:-1]]
        labels = [visible(character) for character in characters]
        figure = go.Figure(go.Heatmap(z=cells, x=labels, y=labels[:-1], colorscale="Reds", xgap=1, ygap=1))
        figure.update_xaxes(type="category")
        figure.update_yaxes(type="category", autorange="reversed")
        return drawn(figure, "read", "true", height=max(380, 18 * len(characters)))

    def facts(self) -> list[tuple[str, str]]:
        ranked = self.verdict.ranked
        config, states = self.config, Counter(record.state for record in ranked)
        spent = sum(record.seconds for record in ranked)
        stopped = [r for r in ranked if r.state == "stopped" and r.epochs]
        saved = sum(r.seconds / r.epochs * (self.epochs - r.epochs) for r in stopped)
        stopping, log = config.search.early_stopping, self._log()
        return [
            ("trials", ", ".join(f"{count} {state}" for state, count in states.items())),
            ("hardware", found[1] if (found := _DEVICE.search(log)) else "unknown"),
            ("seconds", f"{spent:,.0f} of training in {self.wall:,.0f} of wall clock"),
            *(
                [("early stopping", f"{stopping.name} saved {saved:,.0f} seconds of training"), *self._rungs(stopping)]
                if not isinstance(stopping, NoStopping)
                else []
            ),
            (
                "seeds",
                f"search {self.config.search.seed}, training {self.config.training.seed}, data {self.config.data.seed}",
            ),
            ("versions", ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "optuna", "captcha"))),
        ]

    def _log(self) -> str:
        try:
            return (self.workplace.root / "sweep.log").read_text("utf-8", "replace")
        except OSError:
            return ""

    def _rungs(self, stopping: Asha | Median) -> list[tuple[str, str]]:
        """How well the score at each rung predicts the final error (Spearman's ρ). Only over completed trials, so it
        leaves out those that early stopping judged worst."""
        errors = {record.number: record.error_rate for record in self.verdict.scored if record.state == "completed"}
        trials = [trial for trial in self._study.get_trials(deepcopy=False) if trial.number in errors]
        found = []
        for epoch in sorted({epoch for trial in trials for epoch in trial.intermediate_values}):
            there = [trial for trial in trials if epoch in trial.intermediate_values]
            scores, ends = [t.intermediate_values[epoch] for t in there], [errors[t.number] for t in there]
            if len(set(scores)) > 2 and len(set(ends)) > 2:
                what = f"Spearman's ρ of the {stopping.weights} weights' {stopping.metric} with the error in the end"
                correlation = f"{spearmanr(scores, ends).statistic:.2f}, over {len(there)} completed trials"
                found.append((f"after epoch {epoch}", f"{what}: {correlation}"))
        return found


def drawn_or_told(title: str, make: Callable[[], str]) -> str:
    """A plot as HTML, or a sentence if it fails, so that one failed plot does not cost the page."""
    try:
        return make()
    except Exception as error:
        logging.getLogger("sweep").error("the plot '%s' could not be made:", title, exc_info=error)
        return f"<p>could not be made: {escape(one_line(error))}</p>"


def axis(values: Sequence[Value], log: bool) -> tuple[list[float], dict[float, str]]:
    """One axis of the parallel coordinates: each value's height, 0 to 1, and the labels at some heights. Numbers stand
    by size, others by name, and "–", below them, is for a trial that has no such value."""
    there = [plain(value) for value in values if value is not None]
    if there and all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        scale: Callable[[float], float] = math.log10 if log else float
        numbers = [None if value is None else scale(float(value)) for value in values]
        ticks = {scale(float(value)): formatted(value) for value in there}
        if len(ticks) > _TICKS:
            ends = np.linspace(min(ticks), max(ticks), _TICKS)
            ticks = {float(end): f"{10**end if log else end:.2g}" for end in ends}
    else:
        names = sorted(set(map(str, there)))
        numbers = [None if value is None else float(names.index(str(plain(value)))) for value in values]
        ticks = {float(place): name for place, name in enumerate(names)}
    low, high = min(ticks, default=0.0), max(ticks, default=0.0)
    if None in numbers:
        low -= 0.2 * ((high - low) or 1)
        ticks[low] = "–"
    heights = [((low if number is None else number) - low) / ((high - low) or 1) for number in numbers]
    return heights, {(tick - low) / ((high - low) or 1): text for tick, text in ticks.items()}


def rendered(template: str, **values: Any) -> str:
    environment = Environment(loader=PackageLoader("sweep.verdict", "templates"), autoescape=True)
    return environment.get_template(template).render(plotly=get_plotlyjs(), **values)


def drawn(
    figure: go.Figure, x: str | None, y: str | None, x_log: bool = False, y_log: bool = False, height: int = 420
) -> str:
    """The figure's HTML, without Plotly's own code, which the page has once."""
    figure.update_layout(
        template="plotly_white",
        paper_bgcolor="rgba(0, 0, 0, 0)",  # the page's own, light or dark
        plot_bgcolor="rgba(0, 0, 0, 0)",
        height=height,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom"},
    )
    if x is not None:
        figure.update_xaxes(title=x, **({"type": "log", "dtick": "D2", "tickformat": ".0e"} if x_log else {}))
    if y is not None:
        figure.update_yaxes(title=y, **({"type": "log", "dtick": "D2", "tickformat": "~%"} if y_log else {}))
    # An id made from the content, instead of Plotly's random one, so that the same sweep gives the same file.
    name = f"plot-{zlib.crc32(figure.to_json().encode()):08x}"
    options = {"displaylogo": False, "responsive": True}
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, config=options, div_id=name)
    return html


def embedded(pixels: np.ndarray) -> str:
    """An image, uint8 (C, H, W), as a PNG data URL."""
    packed = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0).squeeze()).save(packed, "PNG")
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


def write_page(verdict: Verdict) -> Path:
    """Writes the report into the sweep's folder, or into the working directory if the folder can't be written, as
    another user's."""
    root = verdict.workplace.root
    page = Page(verdict.config, verdict.workplace, verdict)
    return page.write(root / "report.html" if is_writable(root) else Path.cwd() / f"report-of-{root.name}.html")


def is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
