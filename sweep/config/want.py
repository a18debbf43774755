"""The file want.yaml in a sweep's folder, which changes how wide the sweep is while it runs."""

from pathlib import Path

from pydantic import ValidationError

from model.config.section import Positive, Section
from sweep.config.errors import ConfigError, sentences
from sweep.config.yaml_text import read_mapping

WANT = "want.yaml"


class Want(Section):
    """`trials`: how many trials to search, in place of `search.trials`. `at_once`: how many may run at the same time,
    in place of `search.max_concurrent`."""

    trials: Positive | None = None
    at_once: Positive | None = None


def read_want(path: Path) -> Want:
    """Raises ConfigError."""
    try:
        return Want.model_validate(read_mapping(path, Want.model_fields))
    except ValidationError as error:
        raise ConfigError([f"{path}: {sentence}" for sentence in sentences(error, Want)]) from None
