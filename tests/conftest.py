import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import TrialConfig, override
from model.data import Data
from model.pools import ensure_pools

REPOSITORY = Path(__file__).resolve().parent.parent
QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"

# Small enough for a test, and still the real thing: real captchas, the whole network's shape.
TINY = {
    "captcha.characters": "0123",
    "captcha.length": 2,
    "captcha.width": 64,
    "captcha.height": 32,
    "captcha.render_scale": 2,
    "data.train_images": 96,
    "data.valid_images": 40,
    "network.channels": [8, 8],
    "network.pools": [4, [4, 2]],
    "network.lstm_size": 16,
    "training.epochs": 3,
    "training.batch_size": 16,
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny() -> Callable[..., TrialConfig]:
    return lambda values=None: TrialConfig.model_validate(override({}, {**TINY, **(values or {})}))


@pytest.fixture
def tiny_data(cache: Path) -> Callable[[TrialConfig], Data]:
    def make(config: TrialConfig) -> Data:
        ensure_pools(config, cache, workers=1)
        return Data(config, cache, torch.device("cpu"))

    return make


@pytest.fixture(scope="session")
def sweep(cache: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m sweep.run` on the quickstart, shrunk."""

    def run(outputs: Path, *arguments: str, settings: dict[str, Any] | None = None) -> Any:
        values = {**TINY, "search.trials": 3, "search.early_stopping": "none", **(settings or {})}
        sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "sweep.run", "--output-dir", str(outputs), "--cache-dir", str(cache)]
        return subprocess.run([*command, *sets, *arguments], capture_output=True, text=True, timeout=240, check=False)

    return run


def leaderboard(root: Path) -> list[dict[str, str]]:
    with (root / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))
