from collections.abc import Callable

import torch

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


def test_an_epoch_repeats_its_augmentation_and_the_next_draws_anew(
    tiny: Callable[..., TrialConfig], tiny_data: Callable[[TrialConfig], Data]
) -> None:
    data = tiny_data(tiny({"training.augmentation.shift": 3, "training.augmentation.color": 0.3}))
    first, again, second = ([batch.images for batch in data.train_batches(epoch)] for epoch in (1, 1, 2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    plain = tiny_data(tiny())
    labels = [batch.labels for batch in plain.train_batches(1)]
    assert all(torch.equal(one, other.labels) for one, other in zip(labels, data.train_batches(1), strict=True))
