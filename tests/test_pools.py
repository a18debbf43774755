import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.config import TrialConfig, override
from model.data import pool_file
from model.data.alphabet import Alphabet
from model.data.batches import Data
from model.data.captchas import render
from model.data.pools import ensure_pools, open_pool, pool_specs
from sweep.wording.faults import NO_SPACE, surroundings
from tests.processes import TINY

CONFIG = TrialConfig.model_validate(override({}, {**TINY, "data.train_images": 40, "data.valid_images": 10}))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.pool")}


def test_a_pool_holds_the_images_and_texts_of_its_split(tmp_path: Path) -> None:
    assert ensure_pools(CONFIG, tmp_path, workers=1) is True
    for spec in pool_specs(CONFIG):
        pool = open_pool(spec, tmp_path)
        assert pool is not None
        for index in (0, len(pool) - 1):
            image, text = render(CONFIG.drawn, 0, spec.split, index)
            assert np.array_equal(pool.images[index], image)
            assert Alphabet("0123").decode(pool.labels[index].tolist()) == text


def test_the_second_sweep_renders_nothing_and_two_workers_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    ensure_pools(CONFIG, tmp_path / "one", workers=1)
    before = files(tmp_path / "one")
    assert ensure_pools(CONFIG, tmp_path / "one", workers=1) is False
    ensure_pools(CONFIG, tmp_path / "two", workers=2)
    assert files(tmp_path / "two") == before
    assert len(before) == 2


def test_a_pool_is_found_only_by_what_determines_it() -> None:
    def names(values: dict[str, object]) -> set[str]:
        return {spec.name for spec in pool_specs(TrialConfig.model_validate(override({}, TINY | values)))}

    assert names({}) == names({"optimizer.lr": 0.5, "training.seed": 3})
    for changed in ({"data.seed": 1}, {"captcha.characters": "0124"}, {"captcha.color": "grey"}):
        assert not names({}) & names(changed)
    assert len(names({}) & names({"data.train_images": 97})) == 1  # validation stays


@pytest.mark.parametrize("damage", ["header", "short", "empty", "gone", "body"])
def test_a_damaged_pool_is_rendered_again(tmp_path: Path, damage: str) -> None:
    ensure_pools(CONFIG, tmp_path, workers=1)
    before = files(tmp_path)
    (spec,) = (spec for spec in pool_specs(CONFIG) if spec.split == "valid")
    path, data = tmp_path / spec.name, before[spec.name]
    flipped = data[:9000] + bytes([data[9000] ^ 1]) + data[9001:]
    damaged = {"header": b"x" + data[1:], "short": data[:-1], "empty": b"", "body": flipped}
    path.write_bytes(damaged[damage]) if damage in damaged else path.unlink()
    if damage != "body":  # trials check the header and the size; what reads all the file is done once for a sweep
        with pytest.raises(FileNotFoundError, match=spec.name):
            Data(CONFIG, tmp_path, torch.device("cpu"))
    assert ensure_pools(CONFIG, tmp_path, workers=1) is True
    assert files(tmp_path) == before


def _render(folder: Path, barrier: object, rendered: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    rendered.put(ensure_pools(CONFIG, folder, workers=1))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_two_sweeps_that_start_at_once_render_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, rendered = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_render, args=(tmp_path, barrier, rendered)) for _ in range(2)]
    for process in processes:
        process.start()
    assert sorted(rendered.get(timeout=180) for _ in processes) == [False, True]
    for process in processes:
        process.join()
    assert {path.name for path in tmp_path.iterdir()} == {*files(tmp_path), "render.lock"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streams_first_epoch_is_the_pools_images_and_its_second_is_new(tmp_path: Path, workers: int) -> None:
    ensure_pools(CONFIG, tmp_path, workers=1)
    streamed = TrialConfig.model_validate(override(CONFIG.model_dump(), {"data.source": "stream"}))
    stream = Data(streamed, tmp_path, torch.device("cpu"), workers)
    first, second = (torch.cat([batch.images for batch in stream.train_batches(epoch)]) for epoch in (1, 2))
    pool = open_pool(pool_specs(CONFIG)[0], tmp_path)
    assert pool is not None
    assert np.array_equal(first.numpy(), pool.images[: len(first)])
    assert len(first) == 32
    assert np.array_equal(second[0].numpy(), render(CONFIG.drawn, 0, "train", 40)[0])


def test_an_epoch_shows_each_image_at_most_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    ensure_pools(CONFIG, tmp_path, workers=1)
    data = Data(CONFIG, tmp_path, torch.device("cpu"))
    epochs = [torch.cat([batch.images for batch in data.train_batches(epoch)]) for epoch in (1, 2, 1)]
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    assert len({image.numpy().tobytes() for image in epochs[0]}) == 32


def test_images_that_need_more_than_is_free_are_refused_before_any_of_it_is_taken(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    huge = TrialConfig.model_validate(
        override(CONFIG.model_dump(), {"captcha.width": 2048, "captcha.height": 2048, "data.train_images": 10**8})
    )
    with pytest.raises(OSError, match="the images need") as caught:
        ensure_pools(huge, tmp_path, workers=1)
    assert surroundings(caught.value) == NO_SPACE
    assert [path.name for path in tmp_path.iterdir()] == ["render.lock"]
    assert shutil.disk_usage(tmp_path).free > free / 2


@pytest.mark.slow
def test_a_script_that_forgets_to_guard_its_main_part_is_told_so_instead_of_waiting_for_ever(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from tests.test_pools import CONFIG, ensure_pools\n"
        f"ensure_pools(CONFIG, Path({str(tmp_path / 'pools')!r}), workers=1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert result.returncode == 1
    assert "if __name__ == '__main__':" in result.stderr


def test_a_pool_that_is_cut_between_the_look_at_its_size_and_its_mapping_counts_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_pools(CONFIG, tmp_path, workers=1)
    spec, mapped = pool_specs(CONFIG)[0], pool_file.mapped

    def cut_and_map(path: Path, *arguments: Any) -> Any:
        os.truncate(path, 5000)
        return mapped(path, *arguments)

    monkeypatch.setattr(pool_file, "mapped", cut_and_map)
    assert open_pool(spec, tmp_path) is None
