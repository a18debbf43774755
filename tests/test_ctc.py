import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from model.data.alphabet import Alphabet, collapse
from model.network import ctc

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


INTERPRETED = """
import torch
from torch.nn import functional as F
from model.network.ctc_kernel import launch

torch.manual_seed(0)
worst = 0.0
for steps, images, classes, longest in ((12, 6, 11, 4), (9, 8, 5, 4), (20, 4, 150, 8), (3, 2, 3, 1)):
    logits = (3 * torch.randn(steps, images, classes, dtype=torch.float64)).requires_grad_()
    lengths = torch.randint(0, longest + 1, (images,))
    lengths[0], lengths[1] = 0, longest  # empty and full
    labels = torch.randint(1, min(classes, 4), (images, longest))  # few characters: many repeats
    labels[-1] = 1  # nothing but repeats
    labels[torch.arange(longest) >= lengths[:, None]] = 0
    lengths = (labels != 0).sum(1)
    expected = F.ctc_loss(logits.log_softmax(2), labels, torch.full((images,), steps), lengths, reduction="none")
    (gradients,) = torch.autograd.grad(expected.sum(), logits)
    losses, found = launch(logits.detach(), labels.to(torch.uint8))
    worst = max(worst, float((losses - expected).abs().max()), float((found - gradients).abs().max()))
impossible = launch(torch.randn(2, 1, 3), torch.tensor([[1, 1]], dtype=torch.uint8))[0]
print(worst, float(impossible))
"""


@pytest.mark.slow
def test_the_kernels_losses_and_gradients_are_torchs_also_for_repeats_and_empty_labels() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # runs the kernel on the CPU
    command = [sys.executable, "-c", INTERPRETED]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    worst, impossible = map(float, printed.split())
    assert worst < 1e-9
    assert impossible == math.inf, "too few steps for a repeat"


@pytest.mark.slow
@pytest.mark.own_process  # the compiler stays in the process
def test_the_kernel_compiles_to_machine_code_for_gpus_that_are_not_here() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from model.network.ctc_kernel import _ctc

    floats = dict.fromkeys(("logits", "losses", "gradient", "alphas", "totals"), "*fp32")
    sizes = dict.fromkeys("TNKL", "i32")
    signature = {**floats, "labels": "*u8", **sizes, "STATES": "constexpr", "CLASSES": "constexpr"}
    ordered = {name: signature[name] for name in _ctc.arg_names}
    source = ASTSource(fn=_ctc, signature=ordered, constexprs={"STATES": 16, "CLASSES": 64})
    for capability in (80, 90):
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1})
        assert len(compiled.asm["cubin"]) > 1000


def test_the_recordable_loss_is_the_usual_one_and_scales_its_gradients() -> None:
    logits = torch.randn(6, 16, 5, requires_grad=True)
    labels = torch.randint(1, 5, (16, 2), dtype=torch.uint8)
    labels[::3, 1] = 0
    found = []
    for losses_of in (ctc.ctc_losses, ctc.recordable_ctc_losses):
        losses = losses_of(logits, labels)
        (gradients,) = torch.autograd.grad(ctc.mean_per_character(losses, labels), logits)
        found.append((losses.detach(), gradients))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)
