"""What only a GPU can show."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model import ctc
from model.augmentation import augment
from model.config import AugmentationConfig, TrialConfig, override
from model.data import Data
from model.pools import ensure_pools
from model.training import make_network, train
from tests.processes import TINY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

GPU = torch.device("cuda")
TEN_STEPS = {**TINY, "data.train_images": 160, "training.epochs": 1, "training.precision": "float32"}


@pytest.fixture
def weights(cache: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """Those after ten steps."""

    def of(**settings: bool) -> dict[str, torch.Tensor]:
        values = {**TEN_STEPS, **{f"training.{key}": value for key, value in settings.items()}}
        config = TrialConfig.model_validate(override(TrialConfig().model_dump(), values))
        ensure_pools(config, cache, workers=1)
        network = make_network(config, GPU)
        list(train(config, network, Data(config, cache, GPU)))
        return network.state_dict()

    return of


def test_ten_steps_with_a_graph_give_the_weights_that_they_give_without(
    weights: Callable[..., dict[str, torch.Tensor]],
) -> None:
    torch.testing.assert_close(weights(cuda_graph=True), weights(cuda_graph=False), rtol=1e-2, atol=1e-4)


def test_loss_decoding_and_augmentation_never_wait_for_the_device() -> None:
    logits = torch.randn(6, 16, 5, device=GPU, requires_grad=True)
    labels = torch.randint(1, 5, (16, 2), dtype=torch.uint8)
    images = torch.zeros(16, 3, 32, 64, dtype=torch.uint8, device=GPU)
    changes, generator = AugmentationConfig(shift=2, color=0.2), torch.Generator()
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
        "import torch; from sweep.trial import keep_to_share; keep_to_share(0.25); "
        "torch.empty(int(0.3 * torch.cuda.get_device_properties(0).total_memory), dtype=torch.uint8, device='cuda')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "OutOfMemoryError" in done.stderr
