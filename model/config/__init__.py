"""The config of one trial: captchas and data set, network, optimiser, schedule and training."""

from model.config.data import CaptchaConfig, DataConfig
from model.config.images import ImagesConfig, ImageSection
from model.config.network import NetworkConfig
from model.config.override import override, split_at_dots
from model.config.schedules import AnySchedule, Schedule
from model.config.section import Positive, Section, Seed, is_no_unicode, shown, shown_path, unusable_path
from model.config.tagged import Tagged, members, tagged_sections
from model.config.trial import AugmentationConfig, OptimizerConfig, TrainingConfig, TrialConfig

__all__ = [
    "AnySchedule",
    "AugmentationConfig",
    "CaptchaConfig",
    "DataConfig",
    "ImageSection",
    "ImagesConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "Positive",
    "Schedule",
    "Section",
    "Seed",
    "Tagged",
    "TrainingConfig",
    "TrialConfig",
    "is_no_unicode",
    "members",
    "override",
    "shown",
    "shown_path",
    "split_at_dots",
    "tagged_sections",
    "unusable_path",
]
