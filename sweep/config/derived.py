"""Settings that follow from a user's own images where the config does not give them.

Which keys a config gives is known from pydantic's `model_fields_set`; `values` computes the others.

What came out with one trial at a learning rate of 6e-3 with one cycle, on images of a renderer that is not ours:
2,000 codes of 3 to 6 of 32 characters, 48 epochs: 2.9 % of 204 validation texts wrong; the plateau was left in the
twelfth epoch. 5,000 words of 3 to 12 letters of 52, 20 epochs: 7.6 % of 499. 300 codes, 100 epochs: nothing is read in
validation, while 89 % of the training texts are; with strong augmentation nothing is read at all; with `network.init`
from drawn captchas of the same characters, 3 % of 31 texts are wrong. 12,000 lines of 2 to 6 of 3,000 characters, of
which each is there a dozen times: nothing is read after 16 epochs, nor after 9 at 1.5e-3 with an LSTM of 128. 50,000
lines of 1 or 2 of them, 3e-3 with an LSTM of 128, the 19 epochs that follow from the alphabet: the plateau was left
after some 4,000 steps; 32 % of 2,525 single characters are read wrong and 96 % of 2,403 pairs, of which 31 % are wrong
in training: 3,000 characters need more pairs than that.
"""

import math
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from model.config import override
from model.data.image_facts import Facts
from model.data.own_images import fitted_sections
from sweep.config.errors import ConfigError, sentences
from sweep.config.sweep import SweepConfig

_BATCH = 32
_STEPS, _CHARACTERS = 2400, 32  # training steps of a trial, for so many characters or fewer
_EPOCHS = (4, 100)


def _pools(config: SweepConfig, facts: Facts) -> Any:
    """Halves the height in each block as long as rows are left, and the width until `facts.pooling` is reached."""
    assert config.images is not None
    rows, columns, pools = config.images.height, facts.pooling, []
    for _ in config.network.channels:
        down, across = (2 if rows >= 2 else 1), (2 if columns >= 2 else 1)
        pools.append((down, across))
        rows, columns = rows // down, columns // across
    return tuple(pools)


def _batch_size(config: SweepConfig, facts: Facts) -> int:
    """A tenth of the images at most, a power of two."""
    return int(min(_BATCH, 2 ** math.floor(math.log2(max(1, facts.counts["train"] / 10)))))


def _epochs(config: SweepConfig, facts: Facts) -> int:
    """The plateau lasts longer with more characters: the steps grow with the square root of their number."""
    batch = (
        config.training.batch_size if "batch_size" in config.training.model_fields_set else _batch_size(config, facts)
    )
    least, most = _EPOCHS
    steps = _STEPS * math.sqrt(max(1, len(facts.settings["characters"]) / _CHARACTERS))
    return max(least, min(most, math.ceil(steps / max(1, facts.counts["train"] // batch))))


def _grace_epochs(config: SweepConfig, facts: Facts) -> int:
    """A third of the epochs: long enough for most networks to leave CTC's all-blank plateau."""
    epochs = config.training.epochs if "epochs" in config.training.model_fields_set else _epochs(config, facts)
    return max(1, epochs // 3)


_DERIVED: dict[str, Callable[[SweepConfig, Facts], Any]] = {
    "network.pools": _pools,
    "training.batch_size": _batch_size,
    "training.epochs": _epochs,
    "search.early_stopping.grace_epochs": _grace_epochs,
}


def values(config: SweepConfig, facts: Facts) -> dict[str, Any]:
    """Dotted path → value of each setting that the config leaves open."""
    found = {}
    for path, choose in _DERIVED.items():
        section: Any = config
        *names, key = path.split(".")
        for name in names:
            section = getattr(section, name)
        if key in type(section).model_fields and key not in section.model_fields_set:
            found[path] = choose(config, facts)
    return found


def fitted(config: SweepConfig, facts: Facts, chosen: dict[str, Any]) -> SweepConfig:
    """The config with what was found in the images, and with the `chosen` values. Raises ConfigError."""
    tree = config.model_copy(update=fitted_sections(config, facts)).model_dump()
    try:
        return SweepConfig.model_validate(override(tree, chosen, SweepConfig))
    except ValidationError as error:
        raise ConfigError(sentences(error, SweepConfig)) from None
