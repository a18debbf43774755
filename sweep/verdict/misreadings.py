"""What kind of texts a recogniser misreads: equal neighbours, long texts, first and last characters, lost, added and
replaced ones; and what to try against it.

A kind is shown if at least 50 texts are of it and at least 50 are not, and at least 5 of them all are misread. Whether
it is misread more often than the rest is judged by Fisher's exact test with Holm's correction (p below 0.05). Long
texts have equal neighbours more often, and are misread more often for other reasons too; so texts with and without
equal neighbours are compared among texts of the same length (Cochran-Mantel-Haenszel test).
"""

import math
import shlex
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import ValidationError
from rapidfuzz.distance import Levenshtein

from model.config import TrialConfig, override
from model.data.alphabet import BLANK, Alphabet
from sweep.verdict.significance import difference_p_value, holm, stratified_p_value
from sweep.wording.formatting import percent

_TEXTS, _MISREAD = 50, 5  # least texts of a kind and of the rest; least misread ones of both
_SURE = 0.05
_ENOUGH_STEPS = 6  # T for each character, above which more time steps gain little
_ENOUGH_PIXELS = 16  # of an image's width for each character
_DOMINANT = 0.5  # of all errors


@dataclass(frozen=True)
class Count:
    """How many of a number of texts or characters are wrong."""

    wrong: int
    of: int

    def __str__(self) -> str:
        return f"{percent(self.rate)} ({self.wrong:,} of {self.of:,})"

    @property
    def rate(self) -> float:
        return self.wrong / self.of if self.of else 0.0


@dataclass(frozen=True)
class Kind:
    """How often a kind of text or character is misread, beside the rest of them. `p`: how likely an equal rate of both
    gives at least such a difference; None where the two are no samples of the same."""

    name: str
    these: Count
    rest: str
    others: Count
    p: float | None = None

    @property
    def is_worse(self) -> bool:
        return self.p is not None and self.p < _SURE and self.these.rate > self.others.rate

    @property
    def sentence(self) -> str:
        return f"{self.name[0].upper()}{self.name[1:]} are misread in {self.these}, {self.rest} in {self.others}."


class Misreadings:
    """What a recogniser misreads in images with these labels, (N, L) and (N, T) class indices padded with 0."""

    def __init__(self, labels: np.ndarray, decoded: np.ndarray, wrong: np.ndarray, alphabet: Alphabet) -> None:
        self._labels, self._wrong = labels, wrong
        self._lengths = (labels != BLANK).sum(axis=1)
        self._edits: Counter[str] = Counter()  # lost, added, replaced
        self._at_ends: Counter[str] = Counter()  # wrong characters that are their text's first, last, or neither
        self.pairs: Counter[tuple[str, str]] = Counter()  # replaced characters: (true, read)
        for row in np.flatnonzero(wrong):
            true, read = (alphabet.decode(indices[row].tolist()) for indices in (labels, decoded))
            self._compare(true, read)

    def _compare(self, true: str, read: str) -> None:
        for edit in Levenshtein.opcodes(true, read):
            if edit.tag == "insert":
                self._edits["added"] += edit.dest_end - edit.dest_start
            elif edit.tag != "equal":
                places = range(edit.src_start, edit.src_end)
                self._edits["lost" if edit.tag == "delete" else "replaced"] += len(places)
                self._at_ends.update("first" if p == 0 else "last" if p == len(true) - 1 else "middle" for p in places)
        self.pairs.update(pair for pair in confusions(true, read) if pair[1] != LOST)

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """The kinds with enough texts, by short names, with corrected p values."""
        doubled = ((self._labels[:, 1:] == self._labels[:, :-1]) & (self._labels[:, 1:] != BLANK)).any(axis=1)
        middle = int(np.median(self._lengths)) if len(self._lengths) else 0
        found = {
            "doubled": self._texts("texts with two equal neighbours", doubled, "others"),
            "longer": self._texts(f"texts of more than {middle} characters", self._lengths > middle, "shorter ones"),
            "first": self._characters("first"),
            "last": self._characters("last"),
        }
        shown = {name: kind for name, kind in found.items() if kind is not None}
        tests = {
            name: difference_p_value(kind.these.wrong, kind.these.of, kind.others.wrong, kind.others.of)
            for name, kind in shown.items()
        }
        if "doubled" in tests:
            tests["doubled"] = stratified_p_value(self._wrong, doubled, self._lengths)
        corrected = holm([*tests.values()])
        return {name: replace(kind, p=p) for (name, kind), p in zip(shown.items(), corrected, strict=True)}

    @property
    def edits(self) -> list[Kind]:
        """The three errors that a character may have, each beside the two others; none if errors are few."""
        characters, errors = int(self._lengths.sum()), self._edits.total()
        if errors < _MISREAD or len(self._wrong) < _TEXTS:
            return []
        return [
            Kind(f"characters {name}", Count(count, characters), "other errors", Count(errors - count, characters))
            for name, count in ((name, self._edits[name]) for name in ("lost", "added", "replaced"))
        ]

    def _texts(self, name: str, these: np.ndarray, rest: str) -> Kind | None:
        counts = [Count(int(self._wrong[which].sum()), int(which.sum())) for which in (these, ~these)]
        return _kind(name, counts[0], rest, counts[1])

    def _characters(self, end: str) -> Kind | None:
        """The first or last characters, beside the others, of all texts."""
        texts, characters = int((self._lengths > 1).sum()), int(self._lengths.sum())
        wrong = self._at_ends[end]
        others = Count(self._at_ends.total() - wrong, characters - texts)
        return _kind(f"{end} characters", Count(wrong, texts), "the other characters", others)

    def advice(self, config: TrialConfig) -> str:
        """A sentence that says where the errors point and what to try; empty if they point nowhere."""
        doubled, longer = self.kinds.get("doubled"), self.kinds.get("longer")
        errors, longest = self._edits.total(), int(self._lengths.max(initial=1))
        dominant = _DOMINANT * errors if self.edits else math.inf
        steps = config.time_steps / longest
        if steps < _ENOUGH_STEPS:
            line = more_time_steps(config)
            cure = f"The network has only {steps:.3g} time steps for each of {longest} characters: "
            cure += f"try {line}" if line else "draw wider images"
            if doubled is not None and doubled.is_worse:
                return f"{doubled.sentence} {cure}"
            if self._edits["lost"] > dominant:
                return f"Of {errors:,} wrong characters {self._edits['lost']:,} are lost. {cure}"
        pair, count = self._most_confused
        if count > dominant and count >= _MISREAD:
            return (
                f"{pair[0]!r} and {pair[1]!r} are taken for each other in {count:,} of {errors:,} wrong characters: if "
                f"the images and their labels do tell them apart, try {_larger(config)}"
            )
        if longer is not None and longer.is_worse and config.image.widest / longest < _ENOUGH_PIXELS:
            return f"{longer.sentence} Each character is narrow: try {_larger(config)}"
        return ""

    @property
    def _most_confused(self) -> tuple[tuple[str, str], int]:
        """The two characters that are most often taken for each other, and how often."""
        both: Counter[tuple[str, str]] = Counter()
        for (true, read), count in self.pairs.items():
            both[min(true, read), max(true, read)] += count
        return both.most_common(1)[0] if both else (("", ""), 0)


def _kind(name: str, these: Count, rest: str, others: Count) -> Kind | None:
    enough = min(these.of, others.of) >= _TEXTS and these.wrong + others.wrong >= _MISREAD
    return Kind(name, these, rest, others) if enough else None


def more_time_steps(config: TrialConfig) -> str:
    """The option that doubles T, by halving the last pool that halves the width; empty if there is none."""
    pools = [list(pool) for *_, pool in config.network.blocks]
    for block in reversed(range(len(pools))):
        if pools[block][1] % 2 == 0:
            pools[block][1] //= 2
            written = [height if height == width else [height, width] for height, width in pools]
            wider = _with(config, {"network.pools": written})
            return _option("network.pools", written) if wider and wider.time_steps >= 2 * config.time_steps else ""
    return ""


def _larger(config: TrialConfig) -> str:
    """The options that double the size of the images."""
    return " ".join(_option(f"{config.image.key}.{key}", value) for key, value in config.image.doubled.items())


def _with(config: TrialConfig, values: dict[str, Any]) -> TrialConfig | None:
    try:
        return TrialConfig.model_validate(override(config.model_dump(include=set(TrialConfig.model_fields)), values))
    except ValidationError:
        return None


def _option(path: str, value: Any) -> str:
    return f"--set {shlex.quote(f'{path}={value}')}"


LOST = "lost"  # stands for no character in a pair of `confusions`


def confusions(true: str, read: str) -> list[tuple[str, str]]:
    """The pairs (true, read) of each character that is read as another, or not read at all (`lost`)."""
    found = []
    for edit in Levenshtein.opcodes(true, read):
        if edit.tag == "replace":
            pairs = zip(true[edit.src_start : edit.src_end], read[edit.dest_start : edit.dest_end], strict=True)
            found += list(pairs)
        elif edit.tag == "delete":
            found += [(character, LOST) for character in true[edit.src_start : edit.src_end]]
    return found


def visible(character: str) -> str:
    """The character as a label by itself: a space as ␣, a combining mark on a circle, what has no shape by its code."""
    if character == LOST:
        return character
    kind = unicodedata.category(character)
    if kind.startswith("M"):
        return f"◌{character}"
    return "␣" if character == " " else character if character.isprintable() else f"U+{ord(character):04X}"


def most_frequent(pairs: Counter[tuple[str, str]], most: int) -> Sequence[tuple[str, int]]:
    """The most frequent pairs, as labels "true → read" that keep this order also between right-to-left characters."""
    mark = "\N{LEFT-TO-RIGHT MARK}"
    return [
        (f"{visible(true)}{mark} → {mark}{visible(read)}", count)
        for (true, read), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:most]
    ]
