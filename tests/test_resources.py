from pathlib import Path

import pytest

from sweep.config import SweepConfig, load
from sweep.resources import Machine, allot, recommend, trials_per_gpu
from sweep.run import QUICKSTART

MACHINE = Machine(cpus=16, gpus=2, gpu_name="a card")


def config(cache: Path, batch_size: int = 32) -> SweepConfig:
    return load(QUICKSTART, {"data.path": str(cache), "training.batch_size": batch_size})


def test_a_gpu_is_shared_as_the_benchmark_recommended_for_this_network_on_this_card(tmp_path: Path) -> None:
    ours, other = config(tmp_path, batch_size=32), config(tmp_path, batch_size=64)
    assert allot(ours, MACHINE, trials=100, local=False).gpus == 1 / 4
    recommend(ours, "a card", trials=8)
    allotment = allot(ours, MACHINE, trials=100, local=False)
    assert (allotment.gpus, allotment.at_once, allotment.cpus) == (1 / 8, 16, 1.0)
    assert trials_per_gpu(other, "a card") == 4
    assert trials_per_gpu(ours, "another card") == 4


@pytest.mark.parametrize("content", ["", "[]", '{"trials": "many"}', "\0"])
def test_a_damaged_recommendation_counts_as_none(tmp_path: Path, content: str) -> None:
    recommend(config(tmp_path), "a card", trials=8)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert trials_per_gpu(config(tmp_path), "a card") == 4
