import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from model import ctc
from model.alphabet import Alphabet, collapse

ALPHABET = Alphabet("ABCD")
PATHS = {"A--B--C--D-D": "ABCDD", "-A": "A", "A-A": "AA", "AAAA": "A", "----": "", "AABB-B": "ABB", "D": "D"}


def as_path(text: str) -> list[int]:
    return [0 if character == "-" else ALPHABET.encode(character)[0] for character in text]


def logits_of(paths: list[list[int]], classes: int = 5) -> torch.Tensor:
    """(T, N, K) whose best paths are the given ones."""
    return F.one_hot(torch.tensor(paths), classes).float().permute(1, 0, 2) * 9


@pytest.mark.parametrize(("path", "text"), PATHS.items())
def test_greedy_decoding_merges_repeats_then_drops_blanks(path: str, text: str) -> None:
    assert ALPHABET.decode(collapse(as_path(path))) == text
    assert ALPHABET.decode(ctc.greedy_decode(logits_of([as_path(path)]))[0].tolist()) == text


@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(st.integers(0, 4), min_size=n, max_size=n), min_size=1)))
def test_batched_decoding_equals_the_collapse_rule_on_any_paths(paths: list[list[int]]) -> None:
    decoded = ctc.greedy_decode(logits_of(paths))
    expected = [row + [0] * (len(paths[0]) - len(row)) for row in map(collapse, paths)]
    assert decoded.tolist() == expected


def test_loss_is_the_log_of_the_summed_probability_of_all_paths_that_collapse_to_the_label() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 1, 3)
    log_probs = logits.log_softmax(2)[:, 0]
    for label in ([1], [1, 2], [1, 1], [2, 1]):
        total = sum(
            math.exp(sum(float(log_probs[t, k]) for t, k in enumerate(path)))
            for path in itertools.product(range(3), repeat=4)
            if collapse(path) == label
        )
        losses = ctc.ctc_losses(logits, torch.tensor([label], dtype=torch.uint8))
        assert losses.item() == pytest.approx(-math.log(total), rel=1e-5)


def test_loss_per_character_equals_torchs_mean_for_labels_of_different_length() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 3, 5)
    labels = torch.tensor([[1, 2, 3], [4, 0, 0], [2, 2, 0]], dtype=torch.uint8)
    expected = F.ctc_loss(
        logits.log_softmax(2), labels.long(), torch.tensor([7, 7, 7]), torch.tensor([3, 1, 2]), reduction="mean"
    )
    assert torch.allclose(ctc.ctc_loss(logits, labels), expected)


def test_loss_of_half_precision_logits_is_computed_in_float32() -> None:
    logits = torch.randn(5, 2, 4).bfloat16()
    losses = ctc.ctc_losses(logits, torch.tensor([[1, 2], [3, 3]], dtype=torch.uint8))
    assert losses.dtype == torch.float32
    assert torch.equal(losses, ctc.ctc_losses(logits.float(), torch.tensor([[1, 2], [3, 3]], dtype=torch.uint8)))


def test_exact_match_needs_the_whole_text_and_nothing_more() -> None:
    labels = torch.tensor([[1, 2], [1, 2], [1, 2], [3, 0]], dtype=torch.uint8)
    decoded = torch.tensor([[1, 2, 0], [1, 2, 3], [1, 0, 0], [3, 0, 0]], dtype=torch.uint8)
    assert ctc.exact_matches(decoded, labels).tolist() == [True, False, False, True]


def test_character_error_rate_counts_edits_over_true_characters() -> None:
    labels = torch.tensor([[1, 2, 3, 4], [1, 1, 0, 0]], dtype=torch.uint8)
    decoded = torch.tensor([[1, 3, 4, 0], [1, 2, 0, 0]], dtype=torch.uint8)  # one lost, one wrong
    assert ctc.character_error_rate(decoded, labels) == pytest.approx(2 / 6)
    assert ctc.character_error_rate(torch.zeros_like(decoded), labels) == 1
