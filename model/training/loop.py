"""The training loop of one trial, a generator that yields the scores of each epoch."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model.config import TrialConfig
from model.data.batches import Data, pictures
from model.network import ctc
from model.network.crnn import CRNN
from model.system.seeds import derive
from model.training import acceleration, precision
from model.training.acceleration import Step, set_rate
from model.training.averaging import AveragedWeights
from model.training.evaluation import Samples, evaluate
from model.training.freezing import freeze
from model.training.initial_weights import InitialWeights
from model.training.optimizers import make_optimizer
from model.training.running_scores import Log, RunningScores
from model.training.scores import Scores

LOG_POINTS = 200  # per tag and trial; more only make TensorBoard slow


@dataclass(frozen=True)
class Epoch:
    """The results of an epoch.

    `state` is all that `train(resume_from=)` needs to continue after this epoch. It refers to the live tensors: copy or
    save it before the next epoch begins.
    """

    number: int
    train: Scores
    valid: Scores
    best: bool
    best_number: int
    best_valid: Scores
    train_worst: Samples  # of the last batch
    train_worst_images: list[Tensor]  # (C, H, W)
    valid_samples: Samples
    state: dict[str, Any]
    note: str | None  # says that torch.compile failed, so that the trial runs without it


def make_network(config: TrialConfig, device: torch.device, init: Path | None = None) -> CRNN:
    """Creates the network with weights drawn from the config's training seed, or those of `network.init`.

    `init` is where that file lies now, by default where the config says. Layers of `network.freeze` are frozen. The
    network is in channels-last memory format, in which convolutions run about twice as fast. Raises ValueError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        network = CRNN(config)
    if config.network.init is not None:
        InitialWeights.load(config, init).copy_to(network, config.image.characters)
    freeze(network, config.network.freeze)
    network.to(device)
    return network.to(memory_format=torch.channels_last)


def make_step(config: TrialConfig, network: CRNN, optimizer: Optimizer, data: Data) -> tuple[Step, str | None]:
    """Creates the training step on the data's device, recorded as a CUDA graph or compiled as the config says.

    The second value is a sentence if the compiler failed and the step runs without it, else None.
    """
    device, training = data.device, config.training
    numeric = precision.resolve(training.precision, device)
    chosen = acceleration.resolve(training, config.steps_per_epoch * training.epochs, device, data.padded)
    shape = (training.batch_size, config.image.channels, config.image.height, config.image.widest)
    forward: Callable[..., Tensor] = network
    note = None
    if chosen.compile:
        example = torch.zeros(shape, dtype=torch.uint8, device=device)
        forward, note = acceleration.compiled(network, example, numeric, data.folder / "compiled")
    elif chosen.graph == "network":
        acceleration.record_network(network, torch.zeros(shape, dtype=torch.uint8, device=device), numeric)
    recorded = chosen.graph == "step"
    parameters = list(network.parameters())

    def step(images: Tensor, labels: Tensor, widths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with precision.autocast(device, numeric):
            logits = forward(images) if widths is None else forward(images, widths)  # (T, N, K)
        steps = network.time_steps(widths)
        losses = ctc.recordable_ctc_losses(logits, labels) if recorded else ctc.ctc_losses(logits, labels, steps)
        optimizer.zero_grad()
        ctc.mean_per_character(losses, labels).backward()
        if config.optimizer.gradient_clip is not None:
            nn.utils.clip_grad_norm_(parameters, config.optimizer.gradient_clip)
        optimizer.step()
        return losses.detach(), ctc.best_path(logits.detach(), steps)

    return (acceleration.RecordedStep(step, network, optimizer) if recorded else step), note


def train(
    config: TrialConfig,
    network: CRNN,
    data: Data,
    log: Log = lambda step, values: None,
    resume_from: Mapping[str, Any] | None = None,
    average: AveragedWeights | None = None,
) -> Iterator[Epoch]:
    """Trains the network in place and yields after each epoch. Updates `average` at each step.

    Logged steps count from 1. Raises Diverged if the loss becomes NaN or infinite.
    """
    optimizer = make_optimizer(network.parameters(), config.optimizer)
    steps_per_epoch, epochs = config.steps_per_epoch, config.training.epochs
    steps = steps_per_epoch * epochs
    best_number, best = 0, Scores(error_rate=math.inf, loss=math.inf)
    first = 1
    if resume_from is not None:
        network.load_state_dict(resume_from["network"])
        optimizer.load_state_dict(resume_from["optimizer"])
        if average is not None:
            average.load_state_dict(resume_from["average"])
        first = resume_from["epoch"] + 1
        best_number, best = resume_from["best_number"], Scores(resume_from["best"])
    take_step, note = make_step(config, network, optimizer, data)

    for number in range(first, epochs + 1):
        # Dropout draws from torch's global generator. Seeded for each epoch, its state need not be saved.
        torch.manual_seed(derive(config.training.seed, number, 0))
        network.train()
        running = RunningScores(log)
        step = (number - 1) * steps_per_epoch
        for batch in data.train_batches(number):
            rate = config.optimizer.lr * config.schedule.factor(step, steps)
            set_rate(optimizer, rate)
            losses, paths = take_step(*batch)
            if average is not None:
                average.update()
            step += 1
            running.add(losses, paths, batch.labels)
            if is_logged(step, steps_per_epoch, epochs):
                running.end_window(step, rate)

        trained, last_batch = running.end_epoch(number)
        numeric = precision.resolve(config.training.precision, data.device)
        validated, valid_samples = evaluate(network, data.batches(data.valid), numeric)
        is_best = (validated.error_rate, validated.loss) < (best.error_rate, best.loss)
        if is_best:
            best_number, best = number, validated
        train_worst = last_batch.worst()
        yield Epoch(
            number=number,
            train=trained,
            valid=validated,
            best=is_best,
            best_number=best_number,
            best_valid=best,
            train_worst=train_worst,
            train_worst_images=pictures([batch], train_worst.rows.tolist()),
            valid_samples=valid_samples,
            state={
                "epoch": number,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": None if average is None else average.state_dict(),
                "best_number": best_number,
                "best": dict(best),
            },
            note=note,
        )


def is_logged(step: int, steps_per_epoch: int, epochs: int) -> bool:
    """Whether a window of steps ends at `step` and is logged.

    There are at most LOG_POINTS windows, evenly spread, and none extends over the end of an epoch.
    """
    epoch, step_in_epoch = divmod(step - 1, steps_per_epoch)
    if epochs > LOG_POINTS:
        return step_in_epoch + 1 == steps_per_epoch and (epoch + 1) % math.ceil(epochs / LOG_POINTS) == 0
    every = math.ceil(steps_per_epoch / (LOG_POINTS // epochs))
    return (step_in_epoch + 1) % every == 0 or step_in_epoch + 1 == steps_per_epoch
