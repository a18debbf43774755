"""Positional encodings, from which attention learns the order of a sequence's items."""

import math

import torch
from torch import Tensor, nn


class SinusoidalPositions(nn.Module):
    """Adds sinusoidal positional encodings to (T, N, size), for any T. Vaswani et al. 2017, section 3.5."""

    def forward(self, x: Tensor) -> Tensor:
        length, _, size = x.shape
        position = torch.arange(length, device=x.device, dtype=torch.float32)[:, None]
        pair = torch.arange(0, size, 2, device=x.device, dtype=torch.float32)
        angle = position * torch.exp(pair * (-math.log(10_000.0) / size))  # (T, size / 2)
        encoding = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (T, size)
        return x + encoding[:, None].to(x.dtype)
