"""The config of a sweep: its sections, the search space, YAML files and overrides, and error sentences."""

from sweep.config.errors import ConfigError, sentences
from sweep.config.load import (
    CONFIGS,
    OWN_IMAGES,
    QUICKSTART,
    blaming,
    load,
    parse_settings,
    read_trial,
    split_at_commas,
)
from sweep.config.space import Parameter, Space, Value, completed, plain, tupled, walk
from sweep.config.sweep import Asha, ConfirmConfig, Median, NoStopping, ResourcesConfig, SearchConfig, SweepConfig

__all__ = [
    "CONFIGS",
    "OWN_IMAGES",
    "QUICKSTART",
    "Asha",
    "ConfigError",
    "ConfirmConfig",
    "Median",
    "NoStopping",
    "Parameter",
    "ResourcesConfig",
    "SearchConfig",
    "Space",
    "SweepConfig",
    "Value",
    "blaming",
    "completed",
    "load",
    "parse_settings",
    "plain",
    "read_trial",
    "sentences",
    "split_at_commas",
    "tupled",
    "walk",
]
