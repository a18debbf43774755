from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from model.config import NetworkConfig, TrialConfig, members, override
from model.config.encoders import AnyEncoder, TransformerEncoder
from model.network import ctc
from model.network.crnn import CRNN
from model.training import checkpoints
from model.training.loop import make_network
from sweep.config import read_trial
from tests.processes import TINY

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
    lstm = CRNN(TrialConfig()).encoder
    _, forget, _, _ = (lstm.bias_ih_l0 + lstm.bias_hh_l0).chunk(4)
    assert torch.equal(forget, torch.ones_like(forget))
    for gate in lstm.weight_hh_l0.chunk(4):
        assert torch.allclose(gate @ gate.T, torch.eye(64), atol=1e-5)


ENCODERS = members(AnyEncoder)


def with_encoder(name: str) -> TrialConfig:
    base = override({}, TINY)
    return TrialConfig.model_validate({**base, "network": {**base["network"], "encoder": name}})


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_gives_logits_of_the_same_shape_and_learns_and_repeats(name: str) -> None:
    config = with_encoder(name)
    images = torch.randint(0, 256, (8, 3, 32, 64), dtype=torch.uint8)
    labels = torch.randint(1, 5, (8, 2), dtype=torch.uint8)

    def losses() -> list[float]:
        network = make_network(config, torch.device("cpu"))
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        torch.manual_seed(0)
        found = []
        for _ in range(30):
            logits = network(images)
            assert logits.shape == (config.time_steps, 8, 5)
            loss = ctc.mean_per_character(ctc.ctc_losses(logits, labels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    first = losses()
    assert first[-1] < first[0] / 2
    assert losses() == first


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoders_outputs_are_as_many_as_it_says_and_it_is_saved_and_read(name: str, tmp_path: Path) -> None:
    config = with_encoder(name)
    features = torch.rand(7, 3, 20)  # (T, N, features)
    outputs = config.network.encoder.build(20)(features)
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    assert outputs.shape == (7, 3, config.network.encoder.outputs(20))
    network = CRNN(config).eval()
    state = {"network": network.state_dict(), "config": config.model_dump(mode="json")}
    checkpoints.save(tmp_path / "best.pt", state)
    found, again = checkpoints.load_network(tmp_path / "best.pt")
    images = torch.rand(2, 3, 32, 64)
    assert found == config
    assert torch.equal(again.eval()(images), network(images))


def test_a_transformer_knows_where_in_the_text_a_column_stands() -> None:
    encoder = TransformerEncoder(dropout=0.0).build(20).eval()
    features = torch.rand(6, 1, 20)
    swapped = features[[1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(encoder(features)[[1, 0, 2, 3, 4, 5]], encoder(swapped), atol=1e-3)


def test_gru_gates_start_orthogonal() -> None:
    config = TrialConfig.model_validate({"network": {"encoder": "gru"}})
    for gate in CRNN(config).encoder.weight_hh_l0.chunk(3):
        assert torch.allclose(gate @ gate.T, torch.eye(64), atol=1e-5)


def test_heads_that_do_not_divide_a_transformers_size_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"network\.encoder\.size must be a multiple of twice"):
        TrialConfig.model_validate({"network": {"encoder": {"name": "transformer", "size": 50}}})
