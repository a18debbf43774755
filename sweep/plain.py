"""The notebook's way of training and Ray Tune's defaults around it: what `sweep.bench` compares with.

Written as one would write it without this project: every image rendered anew for every trial in DataLoader workers,
contiguous float32, a loss read and texts decoded in Python after every batch.
"""

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from model.captchas import render
from model.config import TrialConfig
from model.crnn import CRNN


class FreshCaptchas(Dataset[tuple[Tensor, Tensor, int, int]]):
    """`count` images: float32 (C, H, W), their label, T and the label's length."""

    def __init__(self, config: TrialConfig, count: int) -> None:
        self.config, self.count = config, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int, int]:
        captcha = self.config.captcha
        image, text = render(captcha, torch.initial_seed() % 2**32, "train", index)
        label = torch.zeros(captcha.lengths[1], dtype=torch.long)
        label[: len(text)] = torch.tensor([captcha.characters.index(character) + 1 for character in text])
        return torch.from_numpy(image.copy()).float() / 255, label, self.config.time_steps, len(text)


def make_network(config: TrialConfig, device: torch.device) -> nn.Module:
    return CRNN(config).to(device)


def train_epoch(
    config: TrialConfig, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, workers: int
) -> tuple[float, float]:
    """Mean loss and accuracy over `data.train_images` fresh images."""
    network.train()
    captchas = FreshCaptchas(config, config.data.train_images)
    loader = DataLoader(captchas, config.training.batch_size, num_workers=workers)
    loss_sum = accuracy_sum = 0.0
    for images, labels, time_steps, lengths in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = network(images)
        loss = F.ctc_loss(logits.log_softmax(2), labels, time_steps, lengths)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
        accuracy_sum += accuracy(logits, labels, config.captcha.characters)
    return loss_sum / len(loader), accuracy_sum / len(loader)


def accuracy(logits: Tensor, labels: Tensor, characters: str) -> float:
    paths = logits.detach().permute(1, 0, 2).argmax(2)
    return sum(decode(p, characters) == text(q, characters) for p, q in zip(paths, labels, strict=True)) / len(labels)


def decode(path: Tensor, characters: str) -> str:
    return "".join(characters[int(index) - 1] for index, _ in groupby(path.tolist()) if index)


def text(label: Tensor, characters: str) -> str:
    return "".join(characters[int(index) - 1] for index in label if index)


def epochs(config: TrialConfig, device: torch.device, workers: int) -> Iterator[tuple[float, float]]:
    network = make_network(config, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.optimizer.lr)
    while True:
        yield train_epoch(config, network, optimizer, device, workers)


def _trial(values: dict[str, Any], config: TrialConfig, gpu: bool) -> None:
    from ray import tune

    changed = config.model_copy(update={"optimizer": config.optimizer.model_copy(update=values)})
    device = torch.device("cuda" if gpu else "cpu")
    for number, (loss, exact) in enumerate(epochs(changed, device, workers=1), start=1):
        tune.report({"loss": loss, "acc": exact})
        if number == config.training.epochs:
            return


def sweep(config: TrialConfig, trials: int, gpus: float, storage: Path) -> None:
    """Ray Tune with nothing but its defaults: one CPU for each trial, a random search, no early stopping."""
    from ray import tune

    trainable = tune.with_resources(tune.with_parameters(_trial, config=config, gpu=gpus > 0), {"cpu": 1, "gpu": gpus})
    tune.Tuner(
        trainable,
        param_space={"lr": tune.loguniform(1e-4, 3e-2)},
        tune_config=tune.TuneConfig(num_samples=trials),
        run_config=tune.RunConfig(storage_path=str(storage)),
    ).fit()


if __name__ == "__main__":
    file, trials, gpus, folder = sys.argv[1:]
    sweep(TrialConfig.model_validate_json(Path(file).read_text()), int(trials), float(gpus), Path(folder) / "plain")
