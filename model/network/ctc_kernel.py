"""CTC loss and its gradient as one Triton kernel that a CUDA graph can record.

The kernel reads label lengths on the device. torch's own CUDA losses read them on the host, so a recorded graph would
keep using the lengths of the batch that it was recorded with.

One program handles one image: alpha forwards, beta backwards and the gradient with respect to the logits, as in Graves
et al. 2006, "Connectionist Temporal Classification", equations 5 to 16, in log space. Sums are taken in a fixed order,
so the gradient is deterministic, unlike cuDNN's and torch's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_IMPOSSIBLE = tl.constexpr(-1e30)  # log(0); minus infinity would give NaN when subtracted from itself


@triton.jit
def _log_sum(a, b, c):
    """log(exp(a) + exp(b) + exp(c))."""
    most = tl.maximum(tl.maximum(a, b), c)
    return most + tl.log(tl.exp(a - most) + tl.exp(b - most) + tl.exp(c - most))


@triton.jit
def _ctc(
    logits,  # (T, N, K)
    labels,  # (N, L), padded with 0, the blank
    losses,  # (N,)
    gradient,  # (T, N, K)
    alphas,  # (N, T, STATES), scratch
    totals,  # (N, T), scratch: the logarithm of each step's softmax denominator
    T,
    N,
    K,
    L,
    STATES: tl.constexpr,  # a power of 2, at least 2·L + 1: blank, character, blank, … blank
    CLASSES: tl.constexpr,  # number of classes read at a time
):
    n = tl.program_id(0)
    state = tl.arange(0, STATES)
    position = state // 2
    real = (state % 2 == 1) & (position < L)
    label = tl.load(labels + n * L + position, mask=real, other=0).to(tl.int32)
    before = tl.load(labels + n * L + position - 1, mask=real & (position > 0), other=0).to(tl.int32)
    length = tl.sum((label != 0).to(tl.int32), 0)
    valid = state < 2 * length + 1
    # A character's state can also be entered from two states before, past the blank, unless both characters are equal.
    skips = (label != 0) & (label != before)
    one_before, two_before = tl.maximum(state - 1, 0), tl.maximum(state - 2, 0)
    one_after, two_after = tl.minimum(state + 1, STATES - 1), tl.minimum(state + 2, STATES - 1)
    skipped = (tl.gather(skips.to(tl.int32), two_after, 0) != 0) & (state + 2 < STATES)
    classes = tl.arange(0, CLASSES)
    row = logits + n * K  # image n at the first time step; the next step is N · K further

    alpha = tl.where(state == 0, 0.0, _IMPOSSIBLE).to(logits.dtype.element_ty)  # before the first step
    for t in range(T):
        total = tl.full((), _IMPOSSIBLE, logits.dtype.element_ty)
        for first in range(0, K, CLASSES):
            there = first + classes < K
            values = tl.load(row + t * N * K + first + classes, mask=there, other=_IMPOSSIBLE)
            most = tl.maximum(total, tl.max(values, 0))
            total = most + tl.log(tl.exp(total - most) + tl.sum(tl.where(there, tl.exp(values - most), 0.0), 0))
        tl.store(totals + n * T + t, total)
        emitted = tl.load(row + t * N * K + label, mask=valid, other=_IMPOSSIBLE) - total
        stepped = tl.where(state >= 1, tl.gather(alpha, one_before, 0), _IMPOSSIBLE)
        skipping = tl.where(skips & (state >= 2), tl.gather(alpha, two_before, 0), _IMPOSSIBLE)
        if t == 0:  # a path begins in the first blank or the first character
            arrived = tl.where(state <= 1, 0.0, _IMPOSSIBLE).to(logits.dtype.element_ty)
        else:
            arrived = _log_sum(alpha, stepped, skipping)
        alpha = tl.where(valid, tl.maximum(arrived + emitted, _IMPOSSIBLE), _IMPOSSIBLE)
        tl.store(alphas + (n * T + t) * STATES + state, alpha)

    ends = valid & (state >= 2 * length - 1)  # last character or last blank; only the blank if the label is empty
    last = tl.where(ends, alpha, _IMPOSSIBLE)
    most = tl.max(last, 0)
    likelihood = most + tl.log(tl.sum(tl.where(ends, tl.exp(last - most), 0.0), 0))
    loss = tl.where(likelihood > 0.5 * _IMPOSSIBLE, -likelihood, float("inf"))
    tl.store(losses + n, loss)

    tl.debug_barrier()
    beta = tl.where(ends, 0.0, _IMPOSSIBLE).to(logits.dtype.element_ty)  # log-probability of the steps after t
    for back in range(T):
        t = T - 1 - back
        total = tl.load(totals + n * T + t)
        alpha = tl.load(alphas + (n * T + t) * STATES + state)
        share = tl.where(valid, tl.exp(alpha + beta - likelihood), 0.0)  # share of paths that pass this state at t
        for first in range(0, K, CLASSES):
            there = first + classes < K
            values = tl.load(row + t * N * K + first + classes, mask=there, other=_IMPOSSIBLE)
            same = (label[:, None] == (first + classes)[None, :]) & valid[:, None]
            read = tl.sum(tl.where(same, share[:, None], 0.0), 0)
            softmax = tl.exp(values - total)
            tl.store(gradient + t * N * K + n * K + first + classes, softmax - read, mask=there)
        emitted = tl.load(row + t * N * K + label, mask=valid, other=_IMPOSSIBLE) - total
        onward = tl.where(valid, tl.maximum(beta + emitted, _IMPOSSIBLE), _IMPOSSIBLE)
        stepped = tl.where(state + 1 < STATES, tl.gather(onward, one_after, 0), _IMPOSSIBLE)
        skipping = tl.where(skipped, tl.gather(onward, two_after, 0), _IMPOSSIBLE)
        beta = tl.where(valid, tl.maximum(_log_sum(onward, stepped, skipping), _IMPOSSIBLE), _IMPOSSIBLE)


def launch(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the kernel on logits (T, N, K) and labels (N, L) of one device: losses (N,) and gradients (T, N, K)."""
    steps, images, classes = logits.shape
    length = labels.shape[1]
    states = triton.next_power_of_2(2 * length + 1)
    losses, gradient = logits.new_empty(images), torch.empty_like(logits)
    scratch = logits.new_empty(images * steps * (states + 1))
    alphas, totals = scratch[images * steps :], scratch[: images * steps]
    _ctc[(images,)](
        logits,
        labels,
        losses,
        gradient,
        alphas,
        totals,
        steps,
        images,
        classes,
        length,
        STATES=states,
        CLASSES=min(128, triton.next_power_of_2(classes)),
        num_warps=1,
    )
    return losses, gradient
