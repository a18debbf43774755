"""Augmentation on the device: small random changes make a fixed set of images work more like fresh ones.

The changes are those of torchvision.transforms.v2 (RandomAffine, RandomPerspective, GaussianBlur, GaussianNoise,
RandomErasing, ColorJitter), computed for a whole batch with other parameters for each image. torchvision's functions
take one parameter for a whole batch, and torch's global random numbers. Called image by image, all changes together
took 259 ms for 32 images of 96×32 on one core, here 13 ms, and the training step 55 ms. The tests compare the results
with torchvision's.

Pixels from outside of the image repeat its edge, and an erased rectangle has the image's mean colour; torchvision makes
both black.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import AugmentationConfig

_GREY = (0.2989, 0.587, 0.114)  # shares of red, green and blue in a grey value, ITU-R 601-2
_FLATTEST, _STEEPEST = 0.3, 3.3  # height / width of an erased rectangle, as in torchvision


def augment(images: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """Changes images, uint8 (N, C, H, W). Draws no random numbers for a change that is off.

    All random numbers come from the CPU's `generator`, so they are the same on every device, except the pixels of
    `noise`: they are drawn on the device, with a seed from `generator`, because drawing on the CPU as many numbers as
    the batch has pixels would keep a GPU waiting.
    """
    if config.shift:
        images = _shifted(images, config.shift, generator)
    changed = images
    if config.rotation or config.shear or config.perspective:
        changed = _warped(changed.float(), config, generator)
    if config.blur:
        changed = _blurred(changed.float(), config.blur, generator)
    if config.brightness:
        changed = changed * _factors(config.brightness, images, generator)
    if config.contrast:
        mean = _grey(changed).mean((1, 2, 3), keepdim=True)
        changed = mean + _factors(config.contrast, images, generator) * (changed - mean)
    if config.noise:
        changed = changed + _noise(config.noise, images, generator)
    if config.erasing:
        changed = _erased(changed.float(), config.erasing, generator)
    if changed is not images:
        images = changed.round_().clamp_(0, 255).to(torch.uint8)
    if config.color:
        gains = 1 + config.color * _signed((len(images), images.shape[1], 1, 1), generator)
        images = (images * gains.to(images.device, non_blocking=True)).clamp_(0, 255).to(torch.uint8)
    return images


def _signed(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers from −1 to 1, on the CPU."""
    return 2 * torch.rand(shape, generator=generator) - 1


def _factors(strength: float, images: Tensor, generator: torch.Generator) -> Tensor:
    """A factor of 1 ± `strength` for each image, (N, 1, 1, 1)."""
    return (1 + strength * _signed((len(images), 1, 1, 1), generator)).to(images.device, non_blocking=True)


def _shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    count, channels, height, width = images.shape
    device = images.device
    shifts = torch.randint(-most, most + 1, (2, count, 1, 1), generator=generator)
    shifts = shifts.to(device, non_blocking=True)
    rows = (torch.arange(height, device=device)[:, None] + shifts[0]).clamp_(0, height - 1)  # (N, H, 1)
    columns = (torch.arange(width, device=device) + shifts[1]).clamp_(0, width - 1)  # (N, 1, W)
    pixels = (rows * width + columns).flatten(1)[:, None].expand(-1, channels, -1)  # (N, C, H·W)
    return images.flatten(2).gather(2, pixels).view(images.shape)


def _warped(images: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """Shears and rotates around the centre, then distorts the perspective, in one interpolation for all three."""
    count, _, height, width = images.shape
    # Maps (N, 3, 3) from a point in the result to the point in the image that it shows; both ±1 at the image's edges.
    maps = torch.eye(3).repeat(count, 1, 1)
    if config.rotation or config.shear:
        angle = math.radians(config.rotation) * _signed((count,), generator) if config.rotation else torch.zeros(count)
        slant = math.radians(config.shear) * _signed((count,), generator) if config.shear else torch.zeros(count)
        cos, sin, tan = angle.cos(), angle.sin(), slant.tan()
        maps[:, 0, 0], maps[:, 0, 1] = cos + tan * sin, (tan * cos - sin) * (height / width)
        maps[:, 1, 0], maps[:, 1, 1] = sin * (width / height), cos
    if config.perspective:
        maps = maps @ _to_corners(config.perspective, count, generator)
    maps = maps.to(images.device, non_blocking=True)
    x = (2 * torch.arange(width, device=images.device) + 1) / width - 1  # centres of the pixels
    y = (2 * torch.arange(height, device=images.device) + 1) / height - 1
    points = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width), torch.ones_like(x).expand(height, -1)))
    shown = (maps @ points.flatten(1)).unflatten(2, (height, width))  # (N, 3, H, W), homogeneous coordinates
    grid = (shown[:, :2] / shown[:, 2:]).permute(0, 2, 3, 1)  # (N, H, W, 2)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _to_corners(strength: float, count: int, generator: torch.Generator) -> Tensor:
    """Homographies (N, 3, 3) that map four points, the corners moved inwards at random, back to the corners."""
    corners = torch.tensor([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    points = corners * (1 - strength * torch.rand((count, 4, 2), generator=generator))
    # (h1·p / h3·p, h2·p / h3·p) = corner for each point p = (x, y, 1), linear in the eight unknowns of (h1, h2, h3)
    equations = torch.zeros(count, 4, 2, 8)
    equations[:, :, 0, 0:2] = equations[:, :, 1, 3:5] = points
    equations[:, :, 0, 2] = equations[:, :, 1, 5] = 1
    equations[..., 6:] = -corners[:, :, None] * points[:, :, None, :]
    unknowns = torch.linalg.solve(equations.flatten(1, 2), corners.flatten().expand(count, -1))
    return torch.cat((unknowns, torch.ones(count, 1)), 1).view(count, 3, 3)


def _blurred(images: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Convolves each image with a Gaussian of its own, first along the rows, then along the columns."""
    count, channels, *_ = images.shape
    radius = math.ceil(3 * most)
    deviations = (most * torch.rand((count, 1), generator=generator)).clamp_(min=1e-3)
    weights = (-(torch.arange(-radius, radius + 1) ** 2) / (2 * deviations**2)).exp()  # (N, K)
    weights = (weights / weights.sum(1, keepdim=True)).to(images.device, non_blocking=True)
    kernels = weights.repeat_interleave(channels, 0)[:, None, None]  # (N·C, 1, 1, K)
    planes = F.pad(images, (radius,) * 4, mode="replicate").flatten(0, 1)[None]  # (1, N·C, H + 2r, W + 2r)
    planes = F.conv2d(planes, kernels, groups=count * channels)
    return F.conv2d(planes, kernels.transpose(2, 3), groups=count * channels).view(images.shape)


def _grey(images: Tensor) -> Tensor:
    """Grey values (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = (share * channel for share, channel in zip(_GREY, images.split(1, 1), strict=True))
    grey: Tensor = red + green + blue
    return grey


def _noise(most: float, images: Tensor, generator: torch.Generator) -> Tensor:
    deviations = 255 * most * torch.rand((len(images), 1, 1, 1), generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    on_device = torch.Generator(images.device).manual_seed(seed)
    noise = torch.randn(images.shape, generator=on_device, device=images.device)
    return noise.mul_(deviations.to(images.device, non_blocking=True))


def _erased(images: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Fills a rectangle of each image with the image's mean colour."""
    count, _, height, width = images.shape
    area, form, down, right = torch.rand((4, count, 1), generator=generator)
    area, form = most * height * width * area, _FLATTEST * (_STEEPEST / _FLATTEST) ** form
    tall, wide = (area * form).sqrt().clamp(max=height), (area / form).sqrt().clamp(max=width)
    top, left = down * (height - tall), right * (width - wide)
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5  # centres of the pixels
    rows, columns = (top <= y) & (y < top + tall), (left <= x) & (x < left + wide)  # (N, H), (N, W)
    rows, columns = (inside.to(images.device, non_blocking=True) for inside in (rows, columns))
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return images.where(~inside, images.mean((2, 3), keepdim=True))
