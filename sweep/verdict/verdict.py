"""The verdict of a sweep: which config is best, and how certain that is. Shown by the terminal and the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from model.data.alphabet import Alphabet
from model.data.pool_file import Split
from model.data.pools import SplitPools, open_split
from model.network import ctc
from model.training import checkpoints
from sweep.config import SweepConfig
from sweep.config.workplace import Workplace
from sweep.search.records import TrialRecord
from sweep.search.search import Search
from sweep.verdict.leaderboard import SHOWN
from sweep.verdict.misreadings import Misreadings
from sweep.verdict.significance import SeedsAndImages, holm, interval, p_value
from sweep.wording.formatting import percent, probability, span

COMPARED = 5  # best trials whose readings are shown for the worst images
_INDICES = (torch.uint8, torch.int16, torch.int32, torch.int64)  # types of class indices, by the alphabet's size
SURE = 0.05  # significance level: p must be below it to count as a difference


@dataclass(frozen=True)
class Reading:
    """What a trial's best weights read on a split. `decoded`: uint8 (N, T), padded with 0. `wrong`: bool (N,). `p`:
    Holm's corrected p value for reading as well as the best trial; None for the best."""

    record: TrialRecord
    decoded: np.ndarray
    wrong: np.ndarray
    p: float | None = None

    @property
    def seconds(self) -> float:
        return self.record.seconds


@dataclass(frozen=True)
class Confirmed:
    """The replicates of a config on the test set. `wrong`: bool (S, N). `interval`: 95 % of their mean error.
    `seconds`: mean per replicate. `p`: Holm's corrected p value for being as good as the best; None for the best."""

    record: TrialRecord
    wrong: np.ndarray
    interval: tuple[float, float]
    seconds: float
    p: float | None = None

    @property
    def error(self) -> float:
        return float(self.wrong.mean())


class Verdict:
    """Which trials of a sweep read best, from the readings in its folder and the records of its search."""

    def __init__(self, config: SweepConfig, workplace: Workplace, search: Search) -> None:
        self.config, self.workplace = config, workplace
        self.ranked = search.ranked()
        self.scored = [record for record in self.ranked if record.error_rate is not None]
        self.alphabet = Alphabet(config.image.characters)
        self.pool: SplitPools | None = self._pool("valid")
        self.readings = self._readings()
        self.confirmed = self._confirmed(search)

    @property
    def images(self) -> int:
        return self.config.data.valid_images

    def _pool(self, split: Split) -> SplitPools | None:
        return open_split(self.config, split, self.workplace.pools)

    def _read(self, record: TrialRecord, key: str, pool: SplitPools) -> tuple[np.ndarray, np.ndarray] | None:
        """The readings (N, T) stored under `key` in a trial's best.pt, and which are wrong (N,). None if they are
        missing or don't fit the pool's size and alphabet."""
        path = self.workplace.files(record.name) / "best.pt"
        try:
            decoded = checkpoints.load(path)[key] if path.is_file() else None  # reading a FIFO would never end
        except (OSError, ValueError, KeyError):
            return None
        if not isinstance(decoded, torch.Tensor) or decoded.dtype not in _INDICES or decoded.ndim != 2:
            return None
        images, steps = decoded.shape
        if images != len(pool) or steps < pool.labels.shape[1]:
            return None
        if not 0 <= int(decoded.min()) <= int(decoded.max()) < self.alphabet.classes:
            return None
        return decoded.numpy(), ~ctc.exact_matches(decoded, torch.from_numpy(pool.labels)).numpy()

    def _readings(self) -> list[Reading]:
        """The readings of the validation images, best trial first, of the shown trials whose best.pt exists."""
        if self.pool is None:
            return []
        read = [(record, self._read(record, "readings", self.pool)) for record in self.scored[:SHOWN]]
        found = [(record, *both) for record, both in read if both is not None]
        p_values = holm([p_value(found[0][2], wrong) for _, _, wrong in found[1:]])
        return [Reading(*what, p) for what, p in zip(found, [None, *p_values], strict=False)]

    def _confirmed(self, search: Search) -> list[Confirmed]:
        """The confirmed configs, best first. A diverged replicate counts as wrong on every image."""
        pool = self._pool("test") if search.confirmed else None
        if pool is None:
            return []
        configs: list[tuple[TrialRecord, np.ndarray, float]] = []
        for record in search.confirmed:
            replicates = search.replicates(record)
            rows = [np.ones(len(pool), bool) for other in replicates if other.state == "diverged"]
            read = [self._read(other, "test_readings", pool) for other in replicates if other.state == "completed"]
            rows += [both[1] for both in read if both is not None]
            if rows:
                seconds = sum(other.seconds for other in replicates) / len(replicates)
                configs.append((record, np.stack(rows), seconds))
        compared = SeedsAndImages([wrong for _, wrong, _ in configs])
        p_values = holm([compared.p_value(configs[0][1], wrong) for _, wrong, _ in configs[1:]])
        return [
            Confirmed(record, wrong, compared.interval(wrong), seconds, p)
            for (record, wrong, seconds), p in zip(configs, [None, *p_values], strict=False)
        ]

    def misread(self, most: int) -> list[tuple[int, int]]:
        """The validation images that most trials misread, at most `most`: (row in the pool, number of trials)."""
        if not self.readings:
            return []
        counts = np.sum([reading.wrong for reading in self.readings], axis=0)
        rows = np.argsort(-counts, kind="stable")[:most]
        return [(int(row), int(counts[row])) for row in rows if counts[row]]

    @cached_property
    def misreadings(self) -> Misreadings | None:
        """What the winner misreads among the validation images; None if its readings are missing, or say nothing
        because it never left the all-blank plateau."""
        if self.pool is None or not self.readings or self.readings[0].record != self.scored[0]:
            return None
        winner = self.readings[0]
        if winner.record.on_plateau:
            return None
        return Misreadings(self.pool.labels, winner.decoded, winner.wrong, self.alphabet)

    @property
    def advice(self) -> list[str]:
        """A sentence on what the winner misreads and what to try against it, if that is clear."""
        if self.misreadings is None:
            return []
        sentence = self.misreadings.advice(self.config.with_values(self.scored[0].values).trial())
        return [sentence] if sentence else []

    @property
    def on_plateau(self) -> list[TrialRecord]:
        """The trials that never left the all-blank plateau, by number."""
        return sorted((record for record in self.scored if record.on_plateau), key=lambda record: record.number)

    @property
    def plateau(self) -> str:
        """A sentence that names the trials that never left the all-blank plateau; empty if there are none."""
        found = [record.name[:4] for record in self.on_plateau]
        if not found:
            return ""
        trials = "All trials" if len(found) == len(self.scored) else listed(found)
        return (
            f"{trials} stayed on CTC's all-blank plateau: at the end nothing is read in most images. Higher "
            "learning rates, more epochs or more time steps for each character lead off it."
        )

    def interval(self, record: TrialRecord) -> tuple[float, float]:
        """95 % confidence interval of one run's validation error."""
        return interval(round(record.score("error_rate") * self.images), self.images)

    @property
    def sentences(self) -> list[str]:
        """Up to three sentences: the best config and the interval of its error; which others may be as good; what the
        best misreads and what to try against that. If all trials are on the all-blank plateau, that is said instead of
        a comparison."""
        if not self.scored:
            return ["No trial has reached the end of an epoch."]
        all_stuck = len(self.on_plateau) == len(self.scored)
        if self.confirmed:
            best = self.confirmed[0]
            seeds, images = best.wrong.shape
            first = (
                f"{best.record.name} reads best: trained again with {seeds} fresh seeds it gets {percent(best.error)} "
                f"of {images:,} unseen test texts wrong (95 % interval {span(best.interval)})."
            )
            rest = [self.plateau] if all_stuck else [*_compared(self.confirmed, "on the test set"), *self.advice]
            return [first, *rest]
        winner = self.scored[0]
        first = (
            f"{winner.name} reads best: {percent(winner.error_rate)} of {self.images:,} validation texts are wrong "
            f"(95 % interval {span(self.interval(winner))}; a little flattered, as the best of many here)."
        )
        if all_stuck:
            return [first, self.plateau]
        if not self.readings or self.readings[0].record != winner:
            return [first]
        return [first, *_compared(self.readings, "on these images"), *self.advice]


def listed(names: Sequence[str], most: int = 12) -> str:
    """The names with commas, at most so many of them."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _compared(known: Sequence[Reading] | Sequence[Confirmed], where: str) -> list[str]:
    """A sentence that compares the best, the first of `known`, with the others; none if there are no others."""
    best, *others = known
    equals = [other for other in others if other.p is not None and other.p >= SURE]
    beaten = [other for other in others if other.p is not None and other.p < SURE]
    if not others:
        return []
    worst = f"p {probability(max(other.p or 0.0 for other in beaten), '≤')}" if beaten else ""
    if not equals:
        rest = f" and {len(beaten) - 1} more" if len(beaten) > 1 else ""
        return [f"It beats {beaten[0].record.name}{rest} {where} ({worst})."]
    names = listed([other.record.name[:4] for other in equals])
    least = min(other.p or 0.0 for other in equals)
    p = f"p {probability(least, '=' if len(equals) == 1 else '≥')}"
    rest = f", but it beats {len(beaten)} more ({worst})" if beaten else ""
    cheapest = min([best, *equals], key=lambda one: one.seconds)
    return [
        f"It can't be told apart from {names} {where} ({p}){rest}; of these equals {cheapest.record.name} is the "
        f"cheapest ({cheapest.seconds:.0f} s)."
    ]
