"""Images of several widths: padding counts neither in the standardisation nor in the time steps."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from model.config import TrialConfig, override
from model.data.batches import Batch, Data, pictures
from model.data.own_images import Look, fitted_sections
from model.network import ctc
from model.network.crnn import CRNN
from model.training.averaging import AveragedWeights
from model.training.evaluation import evaluate
from model.training.loop import make_network, train
from tests.test_own_images import draw

SMALL = {"network.channels": [8, 8], "network.pools": [4, [4, 2]], "network.encoder.size": 16, "training.batch_size": 8}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialConfig, Path]:
    """Ninety images of three widths, converted: their config and the cache."""
    folder, cache = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("cache")
    for number in range(90):
        width = (48, 96, 160)[number % 3] + number % 7
        draw(f"{number:02}", (width, 32), number).save(folder / f"{number:02}_x{number}.png")
    config = TrialConfig.model_validate(
        override({}, {**SMALL, "images.path": str(folder), "images.format": "names", "training.epochs": 2})
    )
    facts = Look(config, cache, 1, lambda done, total: None).facts()
    return config.model_copy(update=fitted_sections(config, facts)), cache


def network_of(config: TrialConfig) -> CRNN:
    return make_network(config, torch.device("cpu")).eval()


def test_a_narrow_image_is_standardised_alike_whatever_it_is_padded_to(several: tuple[TrialConfig, Path]) -> None:
    network = network_of(several[0])
    seen = []
    network.cnn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
    network(image)
    for padding in (torch.zeros(1, 3, 32, 64), torch.full((1, 3, 32, 64), 255.0)):
        network(torch.cat([image, padding.to(torch.uint8)], 3), torch.tensor([64]))
    plain, *padded = seen
    for other in padded:
        torch.testing.assert_close(other[..., :64], plain, rtol=1e-4, atol=1e-5)
        assert not other[..., 64:].any()


def test_nothing_is_read_in_the_padding(several: tuple[TrialConfig, Path]) -> None:
    network = network_of(several[0])
    logits = torch.zeros(20, 1, network.fc.out_features)
    logits[:, 0, 1] = 5  # character 1 everywhere, then blank, then 1 again in the padding
    logits[6:8, 0, 0] = 9
    assert ctc.greedy_decode(logits, torch.tensor([6])).count_nonzero() == 1
    assert ctc.greedy_decode(logits).count_nonzero() == 2


def test_the_loss_ignores_the_padding(several: tuple[TrialConfig, Path]) -> None:
    logits = torch.randn(20, 2, 12)
    labels = torch.tensor([[1, 2, 0], [3, 0, 0]], dtype=torch.uint8)
    steps = torch.tensor([9, 20])
    losses = ctc.ctc_losses(logits, labels, steps)
    assert losses[0] == pytest.approx(float(ctc.ctc_losses(logits[:9, :1], labels[:1])[0]), rel=1e-5)
    assert losses[1] == pytest.approx(float(ctc.ctc_losses(logits, labels)[1]), rel=1e-5)


def test_time_steps_are_those_of_the_feature_map(several: tuple[TrialConfig, Path]) -> None:
    config, _ = several
    network = network_of(config)
    for width in config.image.all_widths:
        logits = network(torch.zeros(1, 3, 32, width, dtype=torch.uint8))
        assert network.time_steps(torch.tensor([width])) == torch.tensor([len(logits)])


def test_an_epoch_shows_each_image_at_most_once_and_all_but_the_last_few(several: tuple[TrialConfig, Path]) -> None:
    config, cache = several
    data = Data(config, cache, torch.device("cpu"))
    assert len(data.train) == 3
    batches = list(data.train_batches(1))
    assert [len(batch) for batch in batches] == [8] * config.steps_per_epoch
    shown = Counter(
        (bytes(batch.labels[row]), batch.images[row, :, :, : batch.widths[row]].numpy().tobytes())
        for batch in batches
        for row in range(len(batch))
        if batch.widths is not None
    )
    assert shown.total() == len(shown) == config.steps_per_epoch * 8
    again = list(data.train_batches(1))
    assert all(torch.equal(one.images, other.images) for one, other in zip(batches, again, strict=True))
    assert len({batch.images.shape[3] for batch in batches}) == 3


def test_scores_are_the_same_one_by_one_as_in_batches_of_any_width(several: tuple[TrialConfig, Path]) -> None:
    config, cache = several
    data = Data(config, cache, torch.device("cpu"))
    network = network_of(config)
    together, samples = evaluate(network, data.batches(data.train, 16), "float32")
    alone, single = evaluate(network, data.batches(data.train, 1), "float32")
    assert together.loss == pytest.approx(alone.loss, rel=1e-4)
    assert torch.equal(samples.in_order().labels, single.in_order().labels)
    rows = samples.rows[:4].tolist()
    for picture, row in zip(pictures(data.train, rows), rows, strict=True):
        assert picture.shape[2] <= max(batch.images.shape[3] for batch in data.train)
        assert picture.shape[2] == torch.cat([batch.widths for batch in data.train if batch.widths is not None])[row]


def test_padded_images_train_with_averaged_weights_and_again_alike(several: tuple[TrialConfig, Path]) -> None:
    config, cache = several
    results = []
    for _ in range(2):
        data = Data(config, cache, torch.device("cpu"))
        network = make_network(config, torch.device("cpu"))
        average = AveragedWeights(network, config.steps_per_epoch * 2)
        epochs = list(train(config, network, data, average=average))
        results.append([dict(epoch.valid) for epoch in epochs] + [dict(average.scores(data, 2, "float32"))])
        assert all(len(epoch.train_worst_images) == 8 for epoch in epochs)
    assert results[0] == results[1]


def test_batches_without_padding_are_computed_as_if_widths_were_unknown(several: tuple[TrialConfig, Path]) -> None:
    network = network_of(several[0])
    images = torch.randint(0, 256, (4, 3, 32, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(network(images, torch.full((4,), 64)), network(images), rtol=1e-4, atol=1e-5)
    assert Batch(images, torch.ones(4, 1), None).widths is None
