"""What only a GPU can show: that what is recorded and compiled trains alike, and what a user does there."""

import csv
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from model.config import AugmentationConfig, TrialConfig, override
from model.data.augmentation import augment
from model.data.batches import Data
from model.data.pools import ensure_pools
from model.network import ctc
from model.reading.recognizer import Recognizer
from model.training.loop import make_network, train
from tests.processes import TINY, UNCONFIRMED, Sweep, resume, saved, sets, wait_for

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

GPU = torch.device("cuda")
TEN_STEPS = {**TINY, "data.train_images": 160, "training.epochs": 1, "training.precision": "float32"}


@pytest.fixture
def weights(cache: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """Those after ten steps."""

    def of(**settings: Any) -> dict[str, torch.Tensor]:
        values = {**TEN_STEPS, **{f"training.{key}": value for key, value in settings.items()}}
        config = TrialConfig.model_validate(override(TrialConfig().model_dump(), values))
        ensure_pools(config, cache, workers=1)
        network = make_network(config, GPU)
        list(train(config, network, Data(config, cache, GPU)))
        return network.state_dict()

    return of


@pytest.mark.parametrize(
    "settings",
    [{"cuda_graph": "network"}, {"cuda_graph": "step"}, {"compile": True}, {"cuda_graph": "step", "compile": True}],
    ids=str,
)
def test_ten_steps_give_the_weights_that_plain_ones_give(
    weights: Callable[..., dict[str, torch.Tensor]], settings: dict[str, Any]
) -> None:
    torch.testing.assert_close(weights(**settings), weights(cuda_graph=False), rtol=1e-2, atol=1e-4)


def test_the_kernels_losses_and_gradients_are_those_of_the_cpu_and_deterministic() -> None:
    logits = torch.randn(24, 64, 37)
    labels = torch.randint(1, 4, (64, 8), dtype=torch.uint8)  # few characters: many repeats
    labels[torch.arange(8) >= torch.arange(64)[:, None] % 9] = 0  # empty and full labels among them
    found = []
    for device in ("cpu", "cuda", "cuda"):
        there = logits.to(device, copy=True).requires_grad_()
        losses = ctc.recordable_ctc_losses(there, labels.to(device))
        ctc.mean_per_character(losses, labels).backward()
        assert there.grad is not None
        found.append((losses.detach().cpu(), there.grad.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(one, again) for one, again in zip(found[1], found[2], strict=True))


def test_loss_decoding_and_augmentation_never_wait_for_the_device() -> None:
    logits = torch.randn(6, 16, 5, device=GPU, requires_grad=True)
    labels = torch.randint(1, 5, (16, 2), dtype=torch.uint8)
    images = torch.zeros(16, 3, 32, 64, dtype=torch.uint8, device=GPU)
    changes = AugmentationConfig(shift=2, **dict.fromkeys(AugmentationConfig.model_fields.keys() - {"shift"}, 0.2))
    generator = torch.Generator()
    augment(images, changes, generator)  # loads the libraries
    ctc.ctc_loss(logits, labels).backward()  # loads cuDNN
    torch.cuda.set_sync_debug_mode("error")
    try:
        ctc.ctc_loss(logits, labels).backward()
        ctc.greedy_decode(logits.detach())
        augment(images, changes, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_loss_and_its_gradient_are_those_of_the_cpu() -> None:
    logits = torch.randn(6, 16, 5)
    labels = torch.randint(1, 5, (16, 2), dtype=torch.uint8)
    labels[::3, 1] = 0  # shorter ones among them
    found = []
    for device in ("cpu", "cuda"):
        there = logits.to(device, copy=True).requires_grad_()
        loss = ctc.ctc_loss(there, labels)
        loss.backward()
        assert there.grad is not None
        found.append((loss.detach().cpu(), there.grad.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_a_trial_that_takes_more_than_its_share_of_the_memory_is_refused_it() -> None:
    script = (
        "import torch; from sweep.execution.trial import keep_to_share; keep_to_share(0.25); "
        "torch.empty(int(0.3 * torch.cuda.get_device_properties(0).total_memory), dtype=torch.uint8, device='cuda')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "OutOfMemoryError" in done.stderr


ON_A_GPU = {
    **TINY,
    **UNCONFIRMED,
    "search.space": "{optimizer.lr: {grid: [1e-2, 3e-3]}}",
    "search.searcher": "grid",
    "search.early_stopping": "none",
    "resources.gpus": 0.5,
}


def states(root: Path) -> list[str]:
    with (root / "leaderboard.csv").open() as file:
        return [row["state"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("options", [[], ["--local"]], ids=["Ray", "local"])
@pytest.mark.parametrize("source", ["pool", "stream"])
@pytest.mark.parametrize("graph", ["auto", "step"])
def test_two_trials_share_the_gpu_without_a_warning(
    tmp_path: Path, cache: Path, options: list[str], source: str, graph: str
) -> None:
    settings = {**ON_A_GPU, "data.source": source, "training.cuda_graph": graph}
    places = ["--output-dir", str(tmp_path), "--cache-dir", str(cache), "--name", "x"]
    command = [sys.executable, "-m", "sweep.run", *places, *sets(settings), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert states(tmp_path / "x") == ["completed", "completed"]


def test_a_killed_sweep_goes_on_and_its_winner_is_confirmed_and_reads_alike_on_gpu_and_cpu(
    tmp_path: Path, cache: Path
) -> None:
    settings = {**ON_A_GPU, "training.epochs": 20, "data.train_images": 960, "confirm": "{top: 1, seeds: 1}"}
    places = ["--output-dir", str(tmp_path), "--cache-dir", str(cache), "--name", "x"]
    sweep = Sweep(*places, *sets(settings))
    root = tmp_path / "x"
    wait_for(lambda: saved(root, 1), 120)
    sweep.process.send_signal(signal.SIGKILL)
    sweep.process.wait()
    code, printed = resume(root)
    assert code == 0, printed
    assert states(root) == ["completed"] * 3
    subprocess.run(
        [sys.executable, "-m", "model.captchas", tmp_path / "images", "--config", root / "best.yaml"], check=True
    )
    recognizer = Recognizer.from_checkpoint(root / "best.pt")
    images = torch.stack([recognizer.prepare(Image.open(file)) for file in sorted((tmp_path / "images").iterdir())])
    on_cpu = [text for text, _ in recognizer.read(images)]
    recognizer.network.to(GPU)
    assert [text for text, _ in recognizer.read(images.to(GPU))] == on_cpu


def test_a_trial_that_runs_out_of_memory_is_tried_again_alone_and_the_other_ends(tmp_path: Path, cache: Path) -> None:
    large = {"training.batch_size": "{grid: [16, 4096]}"}
    space = "{" + ", ".join(f"{key}: {value}" for key, value in large.items()) + "}"
    settings = {**ON_A_GPU, "search.space": space, "data.train_images": 4096, "network.channels": [2048, 2048]}
    places = ["--output-dir", str(tmp_path), "--cache-dir", str(cache), "--name", "x"]
    code, printed = Sweep(*places, *sets({**settings, "training.epochs": 1})).wait(400)
    assert code == 1, printed
    assert sorted(states(tmp_path / "x")) == ["completed", "failed"]
    assert "OutOfMemory" in printed
