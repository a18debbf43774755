"""Baseline of `sweep.bench`: training as in a notebook, and Ray Tune with its defaults around it.

Written as one would write it without this project. DataLoader workers render every image anew for every trial; images
are contiguous float32; after every batch the loss is read from the device and texts are decoded in Python; a validation
follows each epoch.
"""

import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from model.config import TrialConfig
from model.data.captchas import render
from model.network.crnn import CRNN
from model.system.device import pick


class FreshCaptchas(Dataset[tuple[Tensor, Tensor, int, int]]):
    """`count` freshly rendered images: float32 (C, H, W), label (L,) padded with 0, T and the label's length."""

    def __init__(self, config: TrialConfig, count: int) -> None:
        self.config, self.count = config, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int, int]:
        captcha = self.config.drawn
        image, text = render(captcha, torch.initial_seed() % 2**32, "train", index)
        label = torch.zeros(captcha.lengths[1], dtype=torch.long)
        label[: len(text)] = torch.tensor([captcha.characters.index(character) + 1 for character in text])
        return torch.from_numpy(image.copy()).float() / 255, label, self.config.time_steps, len(text)


def make_network(config: TrialConfig, device: torch.device) -> nn.Module:
    return CRNN(config).to(device)


def make_optimizer(config: TrialConfig, network: nn.Module) -> Optimizer:
    return torch.optim.Adam(network.parameters(), lr=config.optimizer.lr)


def epoch(
    config: TrialConfig, network: nn.Module, count: int, device: torch.device, optimizer: Optimizer | None = None
) -> tuple[float, float]:
    """Trains on `count` fresh images, or only validates without an `optimizer`. Returns mean loss and accuracy."""
    training = optimizer is not None
    network.train(training)
    loader = DataLoader(FreshCaptchas(config, count), config.training.batch_size, num_workers=1)
    loss_sum = accuracy_sum = 0.0
    for images, labels, time_steps, lengths in loader:
        images, labels = images.to(device), labels.to(device)
        with torch.set_grad_enabled(training):
            logits = network(images)
            loss = F.ctc_loss(logits.log_softmax(2), labels, time_steps, lengths)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss_sum += loss.item()
        accuracy_sum += accuracy(logits, labels, config.drawn.characters)
    return loss_sum / len(loader), accuracy_sum / len(loader)


def accuracy(logits: Tensor, labels: Tensor, characters: str) -> float:
    paths = logits.detach().permute(1, 0, 2).argmax(2)
    return sum(decode(p, characters) == text(q, characters) for p, q in zip(paths, labels, strict=True)) / len(labels)


def decode(path: Tensor, characters: str) -> str:
    return "".join(characters[int(index) - 1] for index, _ in groupby(path.tolist()) if index)


def text(label: Tensor, characters: str) -> str:
    return "".join(characters[int(index) - 1] for index in label if index)


def _trial(values: dict[str, Any], config: TrialConfig, gpu: bool) -> None:
    from ray import tune

    changed = config.model_copy(update={"optimizer": config.optimizer.model_copy(update=values)})
    device = pick(gpu)
    network = make_network(changed, device)
    optimizer = make_optimizer(changed, network)
    for _ in range(changed.training.epochs):
        train_loss, train_acc = epoch(changed, network, changed.data.train_images, device, optimizer)
        valid_loss, valid_acc = epoch(changed, network, changed.data.valid_images, device)
        tune.report({"train_loss": train_loss, "train_acc": train_acc, "loss": valid_loss, "acc": valid_acc})


def sweep(config: TrialConfig, trials: int, gpus: float, storage: Path) -> None:
    """Runs Ray Tune with its defaults: one CPU per trial, random search, no early stopping."""
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
