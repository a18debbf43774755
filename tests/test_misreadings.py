"""What kind of texts a recogniser misreads, and what the report says of large and unusual alphabets."""

import json
import shlex
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import chi2, chi2_contingency

from model.config import TrialConfig, override
from model.data.alphabet import Alphabet
from sweep.config import load
from sweep.verdict.misreadings import LOST, Misreadings, more_time_steps, most_frequent, visible
from sweep.verdict.significance import difference_p_value, stratified_p_value
from tests.conftest import QUICKSTART

DIGITS = "0123456789"
Read = Callable[[str, int], str]


def misreadings(texts: list[str], read: Read, characters: str = DIGITS) -> Misreadings:
    """Of texts that `read`, given a text and its number, misreads where it returns another."""
    alphabet, readings = Alphabet(characters), [read(text, number) for number, text in enumerate(texts)]
    width = max(map(len, [*texts, *readings]))
    labels, decoded = (
        np.array([[*alphabet.encode(text), *[0] * (width - len(text))] for text in lines], np.int16)
        for lines in (texts, readings)
    )
    return Misreadings(labels, decoded, (labels != decoded).any(axis=1), alphabet)


def texts(count: int, low: int = 4, high: int = 4, characters: str = DIGITS) -> list[str]:
    draw = np.random.default_rng(0)
    return ["".join(draw.choice([*characters], draw.integers(low, high + 1))) for _ in range(count)]


def is_doubled(text: str) -> bool:
    return any(a == b for a, b in pairwise(text))


def config(**settings: object) -> TrialConfig:
    """The quickstart's config with three time steps for each character."""
    few_steps = {"network.pools": [2, 2, 2, [2, 1], [2, 1]]}
    return load(QUICKSTART, few_steps | {key.replace("__", "."): value for key, value in settings.items()}).trial()


def test_lost_neighbours_point_at_time_steps_with_an_option_that_doubles_them() -> None:
    def loses_doubles(text: str, number: int) -> str:
        place = next((i for i in range(1, len(text)) if text[i] == text[i - 1]), 0)
        return text[:place] + text[place + 1 :] if place and number % 4 == 0 else text

    given = texts(1000)
    found = misreadings(given, loses_doubles)
    doubled = found.kinds["doubled"]
    wrong = sum(loses_doubles(text, number) != text for number, text in enumerate(given))
    assert (doubled.these.wrong, doubled.these.of) == (wrong, sum(map(is_doubled, given)))
    assert (doubled.others.wrong, doubled.others.of) == (0, 1000 - sum(map(is_doubled, given)))
    assert doubled.is_worse
    advice = found.advice(config())
    assert advice.startswith(f"Texts with two equal neighbours are misread in {doubled.these}, others in 0.00 % (0 of ")
    *_, option, setting = shlex.split(advice)
    assert (option, setting) == ("--set", "network.pools=[2, 2, [2, 1], [2, 1], [2, 1]]")
    assert found.advice(config(network__pools=[2, 2, [2, 1], [2, 1], [2, 1]])) == ""  # T is enough: it says nothing


def test_lost_characters_that_dominate_point_at_time_steps_too() -> None:
    found = misreadings(texts(400), lambda text, number: text[1:] if number % 8 == 0 and not is_doubled(text) else text)
    assert {edit.name: edit.these.wrong for edit in found.edits}["characters lost"] > 20
    assert "are lost. The network has only 3 time steps for each of 4 characters: try --set" in found.advice(config())


def test_two_characters_that_are_confused_above_all_are_named() -> None:
    swap = str.maketrans("07", "70")
    found = misreadings(texts(400), lambda text, number: text.translate(swap) if number % 5 == 0 else text)
    advice = found.advice(config())
    assert advice.startswith("'0' and '7' are taken for each other in ")
    assert advice.endswith("try --set captcha.width=192 --set captcha.height=64")


def test_long_texts_on_narrow_images_point_at_the_images_size() -> None:
    draw = np.random.default_rng(1)

    def reads_short_ones(text: str, number: int) -> str:
        return text if len(text) < 7 or number % 3 else "".join(draw.permutation([*text]))

    found = misreadings(texts(600, 3, 8), reads_short_ones)
    assert found.kinds["longer"].is_worse
    wide = config(captcha__length=[3, 8], network__pools=[2, [2, 1], [2, 1], [2, 1], [2, 1]])
    assert found.advice(wide).startswith("Texts of more than 6 characters are misread in ")
    assert found.advice(wide).endswith("try --set captcha.width=192 --set captcha.height=64")


def test_errors_without_a_kind_point_nowhere() -> None:
    draw = np.random.default_rng(2)

    def reads_badly(text: str, number: int) -> str:
        place = int(draw.integers(4))
        return text if number % 10 else text[:place] + str(draw.integers(10)) + text[place + 1 :]

    found = misreadings(texts(2000), reads_badly)
    assert not any(kind.is_worse for kind in found.kinds.values())
    assert found.advice(config()) == ""


def test_first_and_last_characters_are_counted_apart_and_errors_by_what_became_of_a_character() -> None:
    def last_is_wrong(text: str, number: int) -> str:
        return text[:-1] + {0: "", 1: str(9 - int(text[-1])), 2: text[-1] + "5"}.get(number % 20, text[-1])

    found = misreadings(["1234"] * 400, last_is_wrong)
    assert found.kinds["last"].these.wrong == 40
    assert found.kinds["last"].is_worse
    assert found.kinds["first"].these.wrong == 0
    assert {kind.name: kind.these.wrong for kind in found.edits} == {
        "characters lost": 20, "characters added": 20, "characters replaced": 20,
    }  # fmt: skip


@pytest.mark.parametrize(("images", "misread"), [(40, 10), (400, 2)])
def test_few_texts_or_few_errors_show_no_kind(images: int, misread: int) -> None:
    found = misreadings(texts(images), lambda text, number: text[:-1] if number < misread else text)
    assert found.kinds == {}
    assert found.edits == []
    assert found.advice(config()) == ""


def test_a_difference_between_kinds_is_judged_by_fishers_test() -> None:
    # the lady tasting tea: 3 of 4 against 1 of 4, (16 + 16 + 1 + 1) / 70
    assert difference_p_value(3, 4, 1, 4) == pytest.approx(34 / 70)
    assert difference_p_value(27, 530, 30, 1470) < 0.001


def test_kinds_within_strata_are_judged_as_by_the_chi_square_test_of_each() -> None:
    draw = np.random.default_rng(0)
    these, wrong, strata = draw.random(800) < 0.4, draw.random(800) < 0.1, np.arange(800) % 2
    wrong |= these & (draw.random(800) < 0.03)
    table = [[int(((these == a) & (wrong == b)).sum()) for b in (True, False)] for a in (True, False)]
    statistic = chi2_contingency(table, correction=True).statistic * 799 / 800
    assert stratified_p_value(wrong, these, np.zeros(800)) == pytest.approx(chi2.sf(statistic, 1))
    # A stratum in which all are of one kind tells nothing.
    alone = np.concatenate([strata, np.full(100, 5)])
    more = stratified_p_value(np.append(wrong, np.ones(100, bool)), np.append(these, np.ones(100, bool)), alone)
    assert more == pytest.approx(stratified_p_value(wrong, these, strata))


def test_long_texts_that_are_misread_do_not_blame_the_equal_neighbours_that_they_have() -> None:
    draw = np.random.default_rng(1)
    found = misreadings(texts(2000, 2, 12), lambda text, number: text[1:] if draw.random() < len(text) / 40 else text)
    doubled = found.kinds["doubled"]
    table = (doubled.these.wrong, doubled.these.of, doubled.others.wrong, doubled.others.of)
    assert difference_p_value(*table) < 0.01
    assert not doubled.is_worse
    assert found.kinds["longer"].is_worse


@pytest.mark.parametrize(
    ("pools", "wider"),
    [
        ([2, 2, 2, [2, 1], [2, 1]], "[2, 2, [2, 1], [2, 1], [2, 1]]"),
        ([2, 4, [2, 1], [2, 1], 1], "[2, [4, 2], [2, 1], [2, 1], 1]"),
        ([[2, 1], [2, 1], [2, 3], [2, 1], [2, 1]], None),
        ([[2, 1], [2, 1], [2, 1], [2, 1], [2, 1]], None),
    ],
)
def test_the_option_for_more_time_steps_doubles_them(pools: list[object], wider: str | None) -> None:
    before = config(network__pools=pools)
    option = more_time_steps(before)
    if wider is None:
        assert option == ""
    else:
        assert shlex.split(option) == ["--set", f"network.pools={wider}"]
        after = override(before.model_dump(), {"network.pools": json.loads(wider)})
        assert TrialConfig.model_validate(after).time_steps == 2 * before.time_steps


def test_the_most_frequent_confusions_come_first_and_can_be_told_by_their_labels() -> None:
    pairs = Counter({("a", "b"): 3, ("ש", "ס"): 5, (" ", LOST): 4, ("\u0301", "\u0300"): 1})
    found = most_frequent(pairs, 3)
    assert [count for _, count in found] == [5, 4, 3]
    assert [label.replace("\u200e", "") for label, _ in found] == ["ש → ס", "␣ → lost", "a → b"]
    assert visible("\u0301") == "◌\u0301"
    assert visible("\u200b") == "U+200B"


def test_an_alphabet_of_thousands_costs_no_more_than_its_errors() -> None:
    characters = "".join(chr(0x4E00 + place) for place in range(20_000))
    given = texts(500, characters=characters)
    start = time.monotonic()
    found = misreadings(given, lambda text, number: text[:-1] + characters[number] if number % 2 else text, characters)
    assert len(most_frequent(found.pairs, 30)) == 30
    assert time.monotonic() - start < 5
