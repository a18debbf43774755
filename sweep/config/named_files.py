"""Files that a config names and that determine its trials: fonts, and weights to start from.

A sweep writes their SHA-256 into sweep.yaml, so that a resume refuses other contents under the same name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.config import shown_path
from model.data.captchas import checked_fonts
from model.data.pools import missing_pools
from model.system.files import reason, sha256
from sweep.config.errors import ConfigError
from sweep.config.sweep import SweepConfig

COPY = "init.pt"  # in the sweep's folder: the weights that `network.init` named when the sweep began


def forget_digests(settings: dict[str, Any]) -> dict[str, Any]:
    """Adds to the settings of `--set` that a file which they name may have any contents."""
    digests = {f"{key}_sha256": None for key in ("captcha.fonts", "network.init") if key in settings}
    return {**digests, **settings}


def pinned(config: SweepConfig, root: Path | None = None) -> SweepConfig:
    """The config with the digests of the files that it names, for a new sweep, or one to be resumed in `root`.

    Raises ConfigError if a file can't be read or has other contents than the config says, or if a font can't draw the
    characters.
    """
    problems: list[str] = []
    fonts = _tried(_fonts, config, problems)
    init = _tried(lambda config: _init(config, root), config, problems)
    if problems:
        raise ConfigError(problems)
    captcha = None if config.captcha is None else config.captcha.model_copy(update={"fonts_sha256": fonts})
    network = config.network.model_copy(update={"init_sha256": init})
    return config.model_copy(update={"captcha": captcha, "network": network})


def _tried(find: Callable[[SweepConfig], Any], config: SweepConfig, problems: list[str]) -> Any:
    try:
        return find(config)
    except ValueError as error:
        problems.append(str(error))


def _fonts(config: SweepConfig) -> tuple[str, ...] | None:
    captcha = config.captcha
    if captcha is None or captcha.fonts is None:
        return None
    # Rendered images need their fonts no more, so that a sweep goes on without them.
    rendered = captcha.fonts_sha256 is not None and config.data.source == "pool" and config.data.cache is not None
    if rendered and not missing_pools(config, Path(str(config.data.cache)), test=config.confirm is not None):
        return captcha.fonts_sha256
    return checked_fonts(captcha)


def _init(config: SweepConfig, root: Path | None) -> str | None:
    return None if config.network.init is None else sha256(weights_file(config, root))


def weights_file(config: SweepConfig, root: Path | None = None) -> Path:
    """The file with the weights to start from: the copy in the sweep's folder, else the one that the config names.

    Raises ValueError if none can be read, or if the config has the digest of the weights and none has it.
    """
    network = config.network
    named = Path(str(network.init))
    problem = ""
    for file in (named,) if root is None else (root / COPY, named):
        try:
            if network.init_sha256 in (None, sha256(file)):
                return file
            problem = "it has other contents than network.init_sha256 says"
        except OSError as error:
            problem = reason(error)
    raise ValueError(f"network.init must be a recogniser's best.pt, got {shown_path(network.init)}: {problem}")
