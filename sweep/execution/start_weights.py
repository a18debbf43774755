"""Checks `network.init` and `network.freeze` against the networks of a sweep before anything starts."""

from collections.abc import Iterator
from pathlib import Path

import torch

from model.config import TrialConfig, override, shown
from model.network.crnn import CRNN
from model.system.files import replace_file
from model.training.freezing import freeze
from model.training.initial_weights import InitialWeights
from sweep.config import ConfigError, SweepConfig, named_files, walk


def check(config: SweepConfig, root: Path | None) -> list[str]:
    """Returns lines that say which weights are kept and which are frozen. Raises ConfigError.

    Checks the base config and each listed value and end of an interval in the search space; `root` is the folder of a
    sweep to be resumed.
    """
    init, notes, problems = None, [], []
    try:
        if config.network.init is not None:
            init = InitialWeights.load(config, named_files.weights_file(config, root))
            notes.append(f"  starts from  {config.network.init}: {init.summary(config.image.characters)}")
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    for where, trial in _networks(config):
        if init is None and not trial.network.freeze:
            continue
        with torch.device("meta"):  # shapes only, without memory
            network = CRNN(trial)
        try:
            if init is not None:
                init.check(network)
            freeze(network, trial.network.freeze)
        except ValueError as error:
            problems.append(f"{where}{error}")
        if not where and trial.network.freeze:
            weights = list(network.parameters())
            frozen = sum(weight.numel() for weight in weights if not weight.requires_grad)
            total = sum(weight.numel() for weight in weights)
            notes.append(f"  frozen       {', '.join(trial.network.freeze)}: {frozen:,} of {total:,} weights")
    if problems:
        raise ConfigError(problems)
    return notes


def _networks(config: SweepConfig) -> Iterator[tuple[str, TrialConfig]]:
    """The base config, and one for each value of the search space that changes the network, with what to blame."""
    base = config.trial()
    yield "", base
    for path, parameter, given in walk(config.search.space):
        if path.startswith("network."):
            for value in parameter.options or parameter.bounds or ():
                trial = TrialConfig.model_validate(override(base.model_dump(), {**given, path: value}))
                yield f"search.space.{path} with {shown(value)}: ", trial


def keep_copy(config: SweepConfig, root: Path) -> None:
    """Copies the weights into the sweep's folder, so that the sweep goes on when the original has changed or gone."""
    if config.network.init is not None:
        source = named_files.weights_file(config, root)
        if source != root / named_files.COPY:
            replace_file(root / named_files.COPY, source.read_bytes())
