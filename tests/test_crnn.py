from pathlib import Path

import pytest
import torch

from model.config import NetworkConfig, TrialConfig
from model.network.crnn import CRNN
from sweep.config import read_trial

CONFIGS = Path(__file__).parent.parent / "configs"


def test_notebooks_settings_give_its_parameter_count_and_shapes() -> None:
    config = read_trial(CONFIGS / "captcha_break.yaml")
    network = CRNN(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_417_541
    assert network(torch.zeros(2, 3, 64, 192)).shape == (12, 2, 37)
    assert config.steps_per_epoch * 40 * 128 == 40 * 128_000


@pytest.mark.parametrize(("width", "color", "channels"), [(96, "rgb", 3), (131, "grey", 1)])
def test_time_steps_are_those_of_the_network_itself(width: int, color: str, channels: int) -> None:
    config = TrialConfig.model_validate({"captcha": {"width": width, "color": color}})
    logits = CRNN(config)(torch.zeros(1, channels, 64, width))
    assert logits.shape == (config.time_steps, 1, 37)


def test_pooling_before_the_relu_gives_the_logits_and_gradients_of_pooling_after_it() -> None:
    torch.manual_seed(0)
    network = CRNN(TrialConfig())
    before = list(network.cnn.named_children())
    usual = torch.nn.Sequential()
    for name, module in before:
        if name.startswith("relu"):
            (pool,) = (module for other, module in before if other == f"pool{name[4]}")
            usual.extend([module, pool])
        elif not name.startswith("pool"):
            usual.append(module)
    found = []
    for cnn in (network.cnn, usual):
        network.cnn = cnn
        network.zero_grad()
        logits = network(torch.randint(256, (4, 3, 64, 192), generator=torch.Generator().manual_seed(0)) / 255)
        logits.square().mean().backward()
        found.append([logits.detach(), *(parameter.grad for parameter in network.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_fast_config_is_the_notebooks_task_and_network_with_twice_the_time_steps() -> None:
    notebook, fast = read_trial(CONFIGS / "captcha_break.yaml"), read_trial(CONFIGS / "captcha_break_fast.yaml")
    sizes = [sum(parameter.numel() for parameter in CRNN(config).parameters()) for config in (notebook, fast)]
    assert sizes == [3_417_541] * 2
    assert (notebook.time_steps, fast.time_steps) == (12, 24)
    assert notebook.captcha == fast.captcha
    assert fast.data.valid_images == 50_000


def test_bytes_and_floats_of_the_same_image_read_the_same() -> None:
    network = CRNN(TrialConfig()).eval()
    images = torch.randint(256, (2, 3, 64, 192), dtype=torch.uint8)
    assert torch.allclose(network(images), network(images / 255), atol=1e-5)


def test_standardised_input_ignores_brightness_and_contrast() -> None:
    network = CRNN(TrialConfig()).eval()
    images = torch.rand(1, 3, 64, 192)
    assert torch.allclose(network(images), network(images * 0.5 + 0.2), atol=1e-3)
    plain = CRNN(TrialConfig(network=NetworkConfig(standardize=False))).eval()
    assert not torch.allclose(plain(images), plain(images * 0.5 + 0.2), atol=1e-3)


def test_forget_gates_start_open_and_recurrent_weights_orthogonal() -> None:
    lstm = CRNN(TrialConfig()).lstm
    _, forget, _, _ = (lstm.bias_ih_l0 + lstm.bias_hh_l0).chunk(4)
    assert torch.equal(forget, torch.ones_like(forget))
    for gate in lstm.weight_hh_l0.chunk(4):
        assert torch.allclose(gate @ gate.T, torch.eye(64), atol=1e-5)
