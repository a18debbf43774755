"""The GPU's code as far as a machine without one can run it, with tensors that have a device and no values."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import TrialConfig
from model.data.batches import Data
from model.data.pools import ensure_pools
from model.network import ctc
from model.network.crnn import CRNN
from model.system import device
from model.training import acceleration, precision
from model.training.averaging import AveragedWeights
from model.training.evaluation import evaluate
from model.training.optimizers import make_optimizer
from model.training.running_scores import RunningScores
from model.training.scores import Scores
from sweep.benchmark.worker import Lane, Measures
from sweep.config import QUICKSTART, load
from sweep.config.workplace import Workplace
from sweep.execution.trial import Trial, keep_to_share
from sweep.machine.resources import this_machine
from sweep.search.records import TrialRecord
from tests.fake_gpu import GPU, fake_tensors
from tests.processes import TINY

# With a network on a GPU that is not there, torch crashed in processes that had run many other tests before.
OWN_PROCESS = pytest.mark.own_process

Make = Callable[..., TrialConfig]
AUGMENTED = {"training.augmentation.shift": 2, "training.augmentation.color": 0.2}


@pytest.fixture
def config(tiny: Make, cache: Path) -> TrialConfig:
    config = tiny(AUGMENTED)
    ensure_pools(config, cache, workers=1)
    return config


def test_a_pool_lies_on_the_gpu_and_gives_augmented_batches_there(
    config: TrialConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_tensors(monkeypatch):
        data = Data(config, cache, GPU)
        batches = list(data.train_batches(1))
        validation = list(data.batches(data.valid))
    assert data.train[0].images.device.type == "cuda"
    assert [tuple(batch.images.shape) for batch in batches] == [(16, 3, 32, 64)] * 6
    assert {batch.images.device.type for batch in batches} == {"cuda"}
    assert {batch.labels.device.type for batch in batches} == {"cpu"}, "cuDNN's CTC takes the labels from the host"
    assert [len(batch) for batch in validation] == [40], "a GPU evaluates more at once than it trains with"


def test_images_that_do_not_fit_on_the_gpu_travel_from_pinned_memory(
    config: TrialConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[int] = []

    def pin(images: Tensor) -> Tensor:
        pinned.append(len(images))
        return images

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    with fake_tensors(monkeypatch, free_bytes=0):
        data = Data(config, cache, GPU)
        images = next(data.train_batches(1)).images
    assert data.valid[0].images.device.type == "cpu"
    assert images.device.type == "cuda"
    assert pinned == [16]


@pytest.mark.parametrize(("place", "pinned"), [(GPU, True), (torch.device("cpu"), False)])
def test_a_streams_batches_are_pinned_for_a_gpu(
    tiny: Make, cache: Path, monkeypatch: pytest.MonkeyPatch, place: torch.device, pinned: bool
) -> None:
    config = tiny({"data.source": "stream"})
    ensure_pools(config, cache, workers=1)
    asked: dict[str, Any] = {}

    def loader(source: Any, **options: Any) -> list[Any]:
        asked.update(options)
        return []

    monkeypatch.setattr("model.data.batches.DataLoader", loader)
    with fake_tensors(monkeypatch):
        assert list(Data(config, cache, place).train_batches(1)) == []
    assert asked["pin_memory"] is pinned


@pytest.mark.slow
@OWN_PROCESS
@pytest.mark.parametrize("encoder", ["lstm", "none"])  # tensors without values crash in a GRU and in attention
def test_padded_images_are_read_on_the_gpu_by_each_encoder(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    config = tiny({"network.encoder": encoder})
    widths = torch.full((4,), 48)
    with fake_tensors(monkeypatch):
        with GPU:
            network = CRNN(config)
        images = torch.empty(4, 3, 32, 64, dtype=torch.uint8, device=GPU)
        logits = network(images, widths)
        steps = network.time_steps(widths)
        paths = ctc.best_path(logits.detach(), steps)
    assert logits.shape[:2] == (8, 4)
    assert {logits.device.type, paths.device.type} == {"cuda"}
    assert steps is not None
    assert steps.device.type == "cpu", "the loss takes the steps from the host"
    assert acceleration.resolve(config.training, 1000, GPU, padded=True).graph is None


@pytest.mark.slow
@OWN_PROCESS
def test_a_step_on_the_gpu_takes_each_argument_from_where_it_must_lie(
    config: TrialConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def loss(log_probabilities: Tensor, targets: Tensor, **arguments: Any) -> Tensor:
        asked.update(arguments, log_probabilities=log_probabilities, targets=targets)
        return log_probabilities.new_empty(log_probabilities.shape[1])

    monkeypatch.setattr(F, "ctc_loss", loss)
    with fake_tensors(monkeypatch):
        with GPU:  # fake modules can't be moved
            network = CRNN(config)
        data = Data(config, cache, GPU)
        images, labels, _ = next(data.train_batches(1))
        logits = network(images)
        losses = ctc.ctc_losses(logits, labels)
        mean = ctc.mean_per_character(losses, labels)
        recordable = ctc.recordable_ctc_losses(logits, labels.to(GPU))
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer = make_optimizer(network.parameters(), config.optimizer)
        optimizer.step()
        average = AveragedWeights(network, steps=100)
        average.update()
        paths = ctc.best_path(logits.detach())
    assert (asked["targets"].device.type, asked["targets"].dtype) == ("cpu", torch.int32)
    assert asked["input_lengths"].device.type == asked["target_lengths"].device.type == "cpu"
    assert asked["log_probabilities"].dtype == torch.float32
    on_gpu = (logits, losses, mean, recordable, paths, optimizer.state[network.fc.weight]["exp_avg"])
    assert {tensor.device.type for tensor in on_gpu} == {"cuda"}
    assert {value.device.type for value in average.state_dict()["network"].values()} == {"cuda"}
    assert recordable.requires_grad


class _Event:
    """What `torch.Event` is to a GPU that has done everything."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda"
        self.recorded = self.waited = False

    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded
        self.waited = True


@pytest.mark.slow
@OWN_PROCESS
def test_evaluation_leaves_readings_and_losses_on_the_host(
    config: TrialConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "ctc_loss", lambda log_probabilities, *_, **__: log_probabilities.new_empty(40))
    scored: list[torch.device] = []
    monkeypatch.setattr(
        "model.training.evaluation.scores_of",
        lambda readings: scored.extend(part.device for part in vars(readings).values()),
    )
    with fake_tensors(monkeypatch):
        with GPU:
            network = CRNN(config)
        data = Data(config, cache, GPU)
        _, samples = evaluate(network, data.batches(data.valid), "float32")
    assert [place.type for place in scored] == ["cpu"] * 3
    assert samples.decoded.device.type == "cpu"


def test_a_windows_figures_are_logged_when_the_next_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Event", _Event)
    scores = Scores(loss=1.0, error_rate=0.5)
    monkeypatch.setattr("model.training.running_scores.scores_of", lambda readings, by_window: scores)
    logged: list[int] = []
    with fake_tensors(monkeypatch):
        running = RunningScores(lambda step, values: logged.append(step))
        seen = []
        for step in (1, 2, 3):
            batch = torch.empty(4, device=GPU), torch.empty(4, 6, dtype=torch.uint8, device=GPU)
            running.add(*batch, torch.empty(4, 2, dtype=torch.uint8))
            running.end_window(step, rate=0.1)
            seen.append(list(logged))
        running.flush()
    assert seen == [[], [1], [1, 2]]
    assert logged == [1, 2, 3]


def test_a_trial_gets_the_accelerator_that_torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    found: torch.device | None = torch.device("xpu", 0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda index: "a card")
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda: True)
    machine = this_machine()
    assert (machine.gpus, machine.gpu_name) == (2, "a card")
    assert device.pick(0.5) == torch.device("xpu")
    assert device.pick(0) == torch.device("cpu")
    assert precision.resolve("auto", torch.device("xpu")) == "bfloat16"
    found = torch.device("mps")
    assert this_machine().gpus == 0, "torch has no CTC loss on Apple's GPUs"
    with pytest.raises(RuntimeError, match=r"resources\.gpus"):
        device.pick(1)


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_is_chosen_where_the_gpu_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], native: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.resolve("auto", GPU) == ("bfloat16" if native else "float32")


def test_a_share_of_a_gpu_limits_memory_and_none_hides_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: GPU)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    keep_to_share(0.25)
    keep_to_share(2)
    assert limits == [0.25]
    keep_to_share(0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_warming_up_runs_a_convolution_an_lstm_and_their_backward_passes() -> None:
    with torch.profiler.profile() as profile:
        device.warm_up(torch.device("cpu"))
    ran = {event.key for event in profile.key_averages()}
    assert {"aten::conv2d", "aten::lstm", "aten::convolution_backward"} <= ran


@pytest.fixture
def gpu_that_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the GPU; the values are the CPU's."""
    asked: list[str] = []
    monkeypatch.setattr(device, "pick", lambda gpus: torch.device("cpu"))
    monkeypatch.setattr(device, "warm_up", lambda place: asked.append("warm_up"))
    monkeypatch.setattr(device, "free_bytes", lambda place: 8_000_000)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: asked.append("empty_cache"))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: asked.append("synchronize"))
    monkeypatch.setattr(torch.accelerator, "max_memory_reserved", lambda: 2_000_000)
    return asked


def test_a_trial_on_a_gpu_warms_it_up_before_it_trains_and_gives_its_memory_back(
    config: TrialConfig, cache: Path, tmp_path: Path, gpu_that_computes_on_the_cpu: list[str]
) -> None:
    sweep = load(QUICKSTART, {**TINY, "data.cache": str(cache), "confirm": None, "training.epochs": 1})
    ensure_pools(sweep, cache, workers=1)
    workplace = Workplace(tmp_path, cache, threads=1, gpus=0.5)
    trial = Trial(sweep, workplace, TrialRecord(0, "0000", {"optimizer.lr": 1e-3}))
    assert trial.step()["state"] == "completed"
    assert gpu_that_computes_on_the_cpu == ["warm_up"]
    trial.close()
    assert gpu_that_computes_on_the_cpu == ["warm_up", "empty_cache"]


def test_what_is_measured_on_a_gpu_waits_for_it_and_counts_its_memory(
    config: TrialConfig, cache: Path, tmp_path: Path, gpu_that_computes_on_the_cpu: list[str]
) -> None:
    measures = Measures(Lane(config, cache, tmp_path, threads=1, gpu=True, cpus=(), averages=False))
    assert gpu_that_computes_on_the_cpu == ["warm_up"]
    assert measures.rate("bare", 0) > 0
    assert gpu_that_computes_on_the_cpu[1:] == ["synchronize"] * 2
    found = measures.memory()
    assert (found.device, found.device_left) == (2, 8)
    assert found.fitting == 5
    assert list(measures.memory_parts()) == [
        "torch and its libraries",
        "the GPU's context and libraries",
        "training",
    ]
