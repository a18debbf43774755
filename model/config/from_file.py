"""Reads a config file, for the commands of this package."""

from importlib.metadata import entry_points
from pathlib import Path

from model.config.trial import TrialConfig


def read_config(path: Path) -> TrialConfig:
    """The trial config of a YAML file. Raises ValueError and OSError.

    The reader is an entry point, registered by `sweep`, so that this package depends on neither YAML nor `sweep`.
    """
    (reader,) = entry_points(group="crnn_sweep.config_reader")
    config: TrialConfig = reader.load()(path)
    return config
