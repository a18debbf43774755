"""Augmentation on the device: small random changes make a fixed pool of images work more like fresh ones."""

import torch
from torch import Tensor

from model.config import AugmentationConfig


def augment(images: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """Shifts and recolours images, uint8 (N, C, H, W).

    All random numbers come from the CPU's `generator`, so they are the same on every device.
    """
    count, channels, height, width = images.shape
    device = images.device
    if config.shift:
        shifts = torch.randint(-config.shift, config.shift + 1, (2, count, 1, 1), generator=generator)
        shifts = shifts.to(device, non_blocking=True)
        # Pixels shifted in from outside repeat the image's edge.
        rows = (torch.arange(height, device=device)[:, None] + shifts[0]).clamp_(0, height - 1)  # (N, H, 1)
        columns = (torch.arange(width, device=device) + shifts[1]).clamp_(0, width - 1)  # (N, 1, W)
        pixels = (rows * width + columns).flatten(1)[:, None].expand(-1, channels, -1)  # (N, C, H·W)
        images = images.flatten(2).gather(2, pixels).view(images.shape)
    if config.color:
        gains = 1 + config.color * (2 * torch.rand(count, channels, 1, 1, generator=generator) - 1)
        images = (images * gains.to(device, non_blocking=True)).clamp_(0, 255).to(torch.uint8)
    return images
