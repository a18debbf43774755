"""CTC loss, greedy decoding and scores.

Labels (N, L) hold class indices, padded with 0, the blank. They stay on the CPU: cuDNN's CTC loss takes them from
there, and reading their lengths from the device would make the host wait at every step.

Graves et al. 2006, "Connectionist Temporal Classification", sections 3.2 and 4.
"""

from collections.abc import Sequence
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torch.nn import functional as F

from model.data.alphabet import BLANK


def ctc_losses(logits: Tensor, labels: Tensor, steps: Tensor | None = None) -> Tensor:
    """The negative log-likelihood (N,) of each label given logits (T, N, K) of any type, computed in float32.

    `steps` (N,), on the CPU, are the time steps of each image without its padding; without it, all T.
    """
    if steps is None:
        steps = torch.full(logits.shape[1:2], len(logits), dtype=torch.long)
    return F.ctc_loss(
        logits.float().log_softmax(2),
        # Concatenated, int32 and on the CPU, as cuDNN needs them; else torch uses its own CUDA loss, which waits for
        # the device.
        labels[labels != BLANK].int(),
        input_lengths=steps,
        target_lengths=label_lengths(labels),
        blank=BLANK,
        reduction="none",
    )


def recordable_ctc_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Like `ctc_losses`, but for labels on the logits' device, so that a CUDA graph can record it.

    The label lengths are read on the device, so the graph may be replayed with labels of other lengths.
    """
    losses: Tensor = _losses_and_gradients(logits.float(), labels)[0]
    return losses


@torch.library.custom_op("crnn_sweep::ctc", mutates_args=())
def _losses_and_gradients(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (N,) and their gradients with respect to the logits (T, N, K)."""
    if logits.device.type != "cpu":
        from model.network.ctc_kernel import launch  # Triton comes only with torch's GPU builds

        return launch(logits, labels)
    # Autograd records nothing inside a custom operator, so this calls the forward and backward of torch's loss itself.
    steps, images, _ = logits.shape
    log_probabilities = logits.log_softmax(2)
    lengths = [steps] * images, label_lengths(labels).tolist()
    arguments = log_probabilities, labels[labels != BLANK].int(), *lengths
    losses, alphas = torch.ops.aten._ctc_loss(*arguments, BLANK, False)
    ones = torch.ones_like(losses)
    gradients = torch.ops.aten._ctc_loss_backward(ones, *arguments, losses, alphas, BLANK, False)
    return losses, torch.ops.aten._log_softmax_backward_data(gradients, log_probabilities, 2, logits.dtype)


@_losses_and_gradients.register_fake
def _(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[1]), torch.empty_like(logits)


def _keep_gradients(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _scale_gradients(ctx: Any, of_losses: Tensor, _: Tensor) -> tuple[Tensor, None]:
    (gradients,) = ctx.saved_tensors
    return gradients * of_losses[:, None], None


_losses_and_gradients.register_autograd(_scale_gradients, setup_context=_keep_gradients)


def ctc_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over images of the loss per character, like torch's `reduction="mean"`."""
    return mean_per_character(ctc_losses(logits, labels), labels)


def mean_per_character(losses: Tensor, labels: Tensor) -> Tensor:
    """The mean over images of the loss per character; an empty label counts as one character."""
    return (losses / label_lengths(labels).clamp(min=1).to(losses.device, non_blocking=True)).mean()


def label_lengths(labels: Tensor) -> Tensor:
    return (labels != BLANK).sum(1)


def best_path(logits: Tensor, steps: Tensor | None = None) -> Tensor:
    """The most likely class at each time step, (N, T), of logits (T, N, K). Beyond `steps` (N,) there are blanks."""
    classes = logits.shape[2]
    kind = torch.uint8 if classes <= 2**8 else torch.int16 if classes <= 2**15 else torch.int32
    path = logits.argmax(2).T.to(kind)
    if steps is not None:
        number = torch.arange(len(logits), device=path.device)
        path = path.masked_fill(number >= steps.to(path.device, non_blocking=True)[:, None], BLANK)
    return path


def join(paths: Sequence[Tensor]) -> Tensor:
    """Joins paths (n, T) of batches to one (N, T), padded with blanks where T differs."""
    longest = max(path.shape[1] for path in paths)
    return torch.cat([F.pad(path, (0, longest - path.shape[1]), value=BLANK) for path in paths])


def collapse(path: Tensor) -> Tensor:
    """Applies CTC's collapse rule to paths (N, T): merges repeats, then drops blanks. Pads with 0 to (N, T)."""
    repeats = torch.zeros_like(path, dtype=torch.bool)
    repeats[:, 1:] = path[:, 1:] == path[:, :-1]
    kept = (path != BLANK) & ~repeats
    # Entries to drop are scattered into an extra last column, which is then cut off.
    position = torch.where(kept, kept.cumsum(1) - 1, path.shape[1])
    return path.new_zeros(path.shape[0], path.shape[1] + 1).scatter_(1, position, path)[:, :-1]


def greedy_decode(logits: Tensor, steps: Tensor | None = None) -> Tensor:
    """The collapsed best path of each image: (N, T), padded with 0."""
    return collapse(best_path(logits, steps))


def exact_matches(decoded: Tensor, labels: Tensor) -> Tensor:
    """Whether each decoded text equals its label: bool (N,)."""
    length = labels.shape[1]
    return (decoded[:, :length] == labels).all(1) & (decoded[:, length:] == BLANK).all(1)


def character_error_rate(decoded: Tensor, labels: Tensor) -> float:
    """Edit distance divided by the number of true characters.

    An image counts at most as many errors as its label has characters, so that the rate stays in 0…1.
    """
    wrong = ~exact_matches(decoded, labels)
    errors = 0
    for read, true in zip(decoded[wrong].tolist(), labels[wrong].tolist(), strict=True):
        true = [index for index in true if index != BLANK]
        errors += min(Levenshtein.distance([index for index in read if index != BLANK], true), len(true))
    return errors / int(label_lengths(labels).sum())
