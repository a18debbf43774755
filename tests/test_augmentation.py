import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as torchvision

from model.config import AugmentationConfig, TrialConfig
from model.data.augmentation import augment
from model.data.batches import Data


def draw(config: AugmentationConfig, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return augment(images, config, torch.Generator().manual_seed(seed))


IMAGES = torch.randint(0, 256, (64, 3, 8, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_without_augmentation_an_image_stays_as_it_is() -> None:
    assert draw(AugmentationConfig(), IMAGES) is IMAGES


def test_each_image_is_moved_as_a_whole_by_at_most_shift_and_its_edge_repeated() -> None:
    moved = draw(AugmentationConfig(shift=2), IMAGES)
    seen = set()
    for image, original in zip(moved, IMAGES, strict=True):
        padded = torch.nn.functional.pad(original[None].float(), (2, 2, 2, 2), mode="replicate")[0]
        fits = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.equal(padded[:, down : down + 8, right : right + 12], image.float())
        ]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) > 15  # of 25


def test_a_channel_grows_brighter_or_darker_by_at_most_the_fraction() -> None:
    grey = torch.full((64, 3, 2, 2), 100, dtype=torch.uint8)
    colored = draw(AugmentationConfig(color=0.2), grey)
    assert colored.dtype == torch.uint8
    levels = colored[:, :, 0, 0]
    assert (colored == levels[:, :, None, None]).all()
    assert 79 <= int(levels.min()) < 85
    assert 115 < int(levels.max()) <= 120
    assert draw(AugmentationConfig(color=0.9), grey * 2).max() == 255  # cut off, not wrapped


# Smooth, so that two ways to interpolate differ little, and without symmetry.
SMOOTH = torchvision.gaussian_blur(
    torch.randint(0, 256, (1, 3, 40, 60), generator=torch.Generator().manual_seed(1)).float(), [13, 13], [3.0, 3.0]
)
SMOOTH = ((SMOOTH - SMOOTH.min()) / (SMOOTH.max() - SMOOTH.min()) * 255).round().to(torch.uint8)
CHANGES: dict[str, dict[str, Any]] = {
    "rotation": {"rotation": 10},
    "shear": {"shear": 20},
    "perspective": {"perspective": 0.3},
    "blur": {"blur": 2},
    "noise": {"noise": 0.1},
    "erasing": {"erasing": 0.3},
    "brightness": {"brightness": 0.4},
    "contrast": {"contrast": 0.4},
}


def middle(images: torch.Tensor) -> torch.Tensor:
    """The part of SMOOTH that no change of CHANGES brings pixels from outside into."""
    return images[..., 12:-12, 18:-18].float()


GAUSSIAN = [13, 13]
REFERENCES: dict[str, Callable[[float], torch.Tensor]] = {
    "rotation": lambda degrees: torchvision.affine(SMOOTH, degrees, [0, 0], 1, [0, 0], interpolation=BILINEAR),
    "shear": lambda degrees: torchvision.affine(SMOOTH, 0, [0, 0], 1, [degrees, 0], interpolation=BILINEAR),
    "blur": lambda deviation: torchvision.gaussian_blur(SMOOTH, GAUSSIAN, [max(deviation, 1e-3)] * 2),
    "brightness": lambda factor: torchvision.adjust_brightness(SMOOTH, 1 + factor),
    "contrast": lambda factor: torchvision.adjust_contrast(SMOOTH, 1 + factor),
}
BILINEAR = InterpolationMode.BILINEAR


@pytest.mark.parametrize("change", REFERENCES)
def test_an_image_changes_as_by_torchvision_and_each_by_a_strength_of_its_own(change: str) -> None:
    (most,) = CHANGES[change].values()
    lowest = 0 if change == "blur" else -most
    strengths = torch.linspace(lowest, most, 101)
    references = middle(torch.cat([REFERENCES[change](float(strength)) for strength in strengths]))
    changed = middle(draw(AugmentationConfig(**CHANGES[change]), SMOOTH.expand(24, -1, -1, -1)))
    errors = (changed[:, None] - references).abs().mean((2, 3, 4))  # (24, 101)
    assert errors.min(1).values.max() < 0.7
    assert errors.max(1).values.min() > 1.5
    found = strengths[errors.argmin(1)]
    assert len(found.unique()) > 15
    assert found.min() < lowest + (most - lowest) / 4
    assert found.max() > most - (most - lowest) / 4


def test_a_perspective_is_one_of_those_that_torchvision_makes_and_each_image_has_its_own() -> None:
    height, width, count = 40, 60, 50
    # An image that shows its own coordinates, four levels a pixel: each point of a result says where it comes from.
    x = (torch.arange(width) + 0.5).expand(height, -1)
    y = (torch.arange(height) + 0.5)[:, None].expand(-1, width)
    places = torch.stack((x, y, torch.zeros(height, width))).mul(4).round().to(torch.uint8)
    changed = draw(AugmentationConfig(perspective=0.5), places.expand(count, -1, -1, -1)).float() / 4
    for image in changed:  # torchvision's function, from four points of the result, gives all the others
        points = [(24, 16), (36, 16), (36, 24), (24, 24)]
        shown = [[float(image[0, row, column]), float(image[1, row, column])] for column, row in points]
        ends = [[column + 0.5, row + 0.5] for column, row in points]
        again = torchvision.perspective(places[None], shown, ends, interpolation=BILINEAR)[0].float() / 4
        assert (middle(again) - middle(image)).abs().mean() < 0.5
    assert len(changed[:, 0, height // 2, width // 4].unique()) > 20
    # Corners only move inwards, so that no text is cut off: every part of the image is still to be seen.
    assert changed[:, 0].amin((1, 2)).max() <= 1
    assert changed[:, 0].amax((1, 2)).min() >= width - 1


def test_noise_has_mean_0_and_a_deviation_of_its_own_in_each_image() -> None:
    grey = torch.full((200, 1, 40, 60), 128, dtype=torch.uint8)
    noise = (draw(AugmentationConfig(noise=0.1), grey).float() - 128).flatten(1)
    assert noise.mean(1).abs().max() < 2
    deviations = noise.std(1) / 255
    assert deviations.min() < 0.005
    assert 0.095 < deviations.max() < 0.103
    halves = noise.unflatten(1, (2, -1))
    assert torch.corrcoef(halves[-1])[0, 1].abs() < 0.1


def test_erasing_fills_one_rectangle_of_at_most_its_share_with_the_mean_colour() -> None:
    images = IMAGES[:1].expand(200, -1, -1, -1)
    erased = draw(AugmentationConfig(erasing=0.5), images)
    mean = images[0].float().mean((1, 2)).round()[:, None, None]
    shares, places = [], set()
    for image, original in zip(erased, images, strict=True):
        changed = (image != original).any(0)
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        if len(rows):
            inside = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert ((inside - mean).abs() <= 0.5).all()
            shares.append(inside[0].numel() / original[0].numel())
            places.add((int(rows[0]), int(columns[0])))
    assert len(shares) > 180
    assert 0.4 < max(shares) <= 0.6  # of 8 × 12 pixels
    assert min(shares) < 0.05
    assert len(places) > 30


@pytest.mark.parametrize("change", ["rotation", "shear", "perspective", "blur", "erasing"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_comes_from_outside_has_the_colour_of_the_edge_and_is_never_black(change: str, channels: int) -> None:
    plain = torch.full((32, channels, 40, 60), 200, dtype=torch.uint8)
    strongest = {**CHANGES, "rotation": {"rotation": 180}, "shear": {"shear": 60}, "perspective": {"perspective": 0.5}}
    assert (draw(AugmentationConfig(**strongest[change]), plain) == 200).all()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_is_off_draws_no_random_numbers(change: str) -> None:
    (key,) = CHANGES[change]
    numbers = torch.Generator().manual_seed(0)
    augment(IMAGES, AugmentationConfig(**{key: 0}), numbers)
    assert torch.equal(numbers.get_state(), torch.Generator().manual_seed(0).get_state())
    augment(IMAGES, AugmentationConfig(**CHANGES[change]), numbers)
    assert not torch.equal(numbers.get_state(), torch.Generator().manual_seed(0).get_state())


def test_shift_and_color_give_the_numbers_that_they_gave_before_there_were_other_changes() -> None:
    """The sum over the pixels, from the version that knew these two changes alone."""
    changed = draw(AugmentationConfig(shift=2, color=0.3), IMAGES)
    weights = torch.arange(changed.numel()) % 9973
    assert int((changed.flatten().long() * weights).sum()) == 10501949168


EVERYTHING = {key: value for change in CHANGES.values() for key, value in change.items()} | {"shift": 2, "color": 0.2}


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (8, 8), (33, 101)])
@pytest.mark.parametrize("channels", [1, 3])
def test_all_changes_together_keep_the_shape_of_images_of_any_size(channels: int, size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (5, channels, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    changed = draw(AugmentationConfig(**EVERYTHING), images)
    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
    assert torch.equal(changed, draw(AugmentationConfig(**EVERYTHING), images))
    assert not torch.equal(changed, draw(AugmentationConfig(**EVERYTHING), images, seed=1))


def test_training_loads_no_torchvision() -> None:
    """It takes half a second to import, in each process that trains."""
    code = "import sys, model.training.loop; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torchvision" not in loaded


def test_an_epoch_repeats_its_augmentation_and_the_next_draws_anew(
    tiny: Callable[..., TrialConfig], tiny_data: Callable[[TrialConfig], Data]
) -> None:
    data = tiny_data(tiny({f"training.augmentation.{key}": value for key, value in EVERYTHING.items()}))
    first, again, second = ([batch.images for batch in data.train_batches(epoch)] for epoch in (1, 1, 2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    plain = tiny_data(tiny())
    labels = [batch.labels for batch in plain.train_batches(1)]
    assert all(torch.equal(one, other.labels) for one, other in zip(labels, data.train_batches(1), strict=True))
