"""A network's training pass as two recorded graphs, forward and backward: two launches, not hundreds of kernels."""

import torch
from torch import Tensor, nn

from model.precision import autocast


def capture(network: nn.Module, images: Tensor, numeric: str) -> None:
    """From here on, in training mode, the network takes only batches of this shape, type and CUDA device, and its
    output (T, N, K) is overwritten by the next; in evaluation mode it runs as before."""
    before = [buffer.clone() for buffer in network.buffers()]
    network.train()
    with autocast(images.device, numeric, cache=False):
        torch.cuda.make_graphed_callables(network, (images,))
    for buffer, value in zip(network.buffers(), before, strict=True):  # its trial runs count in batch-norm's statistics
        buffer.copy_(value)
