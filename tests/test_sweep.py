"""Whole sweeps through `python -m sweep.run`, on Ray and in this process, and what they leave behind."""

import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from model.reading.recognizer import Recognizer
from sweep.config import load
from tests.board import serve
from tests.conftest import REPOSITORY
from tests.processes import wait_for
from tests.results import decided, leaderboard, runs

Run = Callable[..., subprocess.CompletedProcess[str]]

SPACE = "{optimizer.lr: {loguniform: [1e-3, 3e-2]}, schedule.name: {choice: [constant, step, cosine, onecycle]}}"
SETTINGS = {"search.space": SPACE, "search.trials": 4, "search.max_concurrent": 2}


@pytest.fixture(scope="module")
def ray_sweep(sweep: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    outputs = tmp_path_factory.mktemp("runs")
    result = sweep(outputs, "--name", "ray", settings=SETTINGS)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return outputs / "ray", result.stdout


def test_a_sweep_leaves_the_promised_files(ray_sweep: tuple[Path, str]) -> None:
    root, _ = ray_sweep
    names = {row["trial"] for row in leaderboard(root)}
    assert len(names) == 4
    assert {path.name for path in root.iterdir()} == {
        "sweep.yaml", "tensorboard", "trials", "ray", "study.db", "leaderboard.csv", "best.yaml", "best.pt",
        "sweep.log", "report.html", "top", "machine.json",
    }  # fmt: skip
    assert {path.name for path in (root / "tensorboard").iterdir()} == {*names, "_sweep"}
    assert {path.name for path in (root / "trials").iterdir()} == names
    for name in names:
        assert {path.name for path in (root / "trials" / name).iterdir()} == {"config.yaml", "best.pt"}


def test_the_leaderboard_is_ranked_and_complete(ray_sweep: tuple[Path, str]) -> None:
    rows = leaderboard(ray_sweep[0])
    assert list(rows[0]) == [
        "rank", "trial", "state", "optimizer.lr", "schedule.name",
        "epochs", "error_rate", "cer", "loss", "best_epoch", "seconds", "error",
    ]  # fmt: skip
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    errors = [float(row["error_rate"]) for row in rows]
    assert errors == sorted(errors)
    assert {row["state"] for row in rows} == {"completed"}
    assert all(row["epochs"] == "3" for row in rows)


def test_tensorboard_has_exactly_two_runs_per_trial_with_every_tag(ray_sweep: tuple[Path, str]) -> None:
    root, _ = ray_sweep
    found = runs(root)
    names = [row["trial"] for row in leaderboard(root)]
    assert set(found) == {"_sweep", *names, *(f"{name}/train" for name in names)}
    epoch = {"epoch/loss", "epoch/acc", "epoch/error_rate", "epoch/cer"}
    for name in names:
        tags = found[name].Tags()
        batch = {"train/loss", "train/acc", "train/error_rate", "train/lr"}
        assert set(tags["scalars"]) == epoch | batch | {"best/error_rate"}
        assert set(tags["images"]) == {"valid/badcase", "train/badcase"}
        assert tags["graph"] is True
        assert "config/text_summary" in tags["tensors"]
        assert set(found[f"{name}/train"].Tags()["scalars"]) == epoch
        for run, tag in [(name, t) for t in tags["scalars"]] + [(f"{name}/train", t) for t in epoch]:
            steps = [event.step for event in found[run].Scalars(tag)]
            assert steps == ([1, 2, 3] if tag.startswith(("epoch", "best")) else list(range(1, 19)))
        assert [event.step for event in found[name].Images("valid/badcase")] == [1, 2, 3]
    sweep_tags = found["_sweep"].Tags()
    assert sweep_tags["scalars"] == ["sweep/best_error_rate"]
    assert sweep_tags["images"] == ["sweep/error_over_learning_rate", "sweep/badcase"]
    assert "leaderboard/text_summary" in sweep_tags["tensors"]
    assert [event.step for event in found["_sweep"].Scalars("sweep/best_error_rate")] == [1, 2, 3, 4]


def test_event_files_and_leaderboard_tell_the_same(ray_sweep: tuple[Path, str]) -> None:
    root, _ = ray_sweep
    found = runs(root)
    for row in leaderboard(root):
        errors = [event.value for event in found[row["trial"]].Scalars("epoch/error_rate")]
        best = [event.value for event in found[row["trial"]].Scalars("best/error_rate")]
        assert best == [min(errors[: index + 1]) for index in range(3)]
        assert best[-1] == pytest.approx(float(row["error_rate"]))
        assert errors[int(row["best_epoch"]) - 1] == best[-1]
        rates = [event.value for event in found[row["trial"]].Scalars("train/lr")]
        assert max(rates) == pytest.approx(float(row["optimizer.lr"]), rel=0.05)


def test_badcases_are_pictures_of_sixteen_captchas(ray_sweep: tuple[Path, str]) -> None:
    found = runs(ray_sweep[0])
    name = leaderboard(ray_sweep[0])[0]["trial"]
    for tag in ("valid/badcase", "train/badcase"):
        image = Image.open(BytesIO(found[name].Images(tag)[-1].encoded_image_string))
        assert image.size == (4 * 204, 4 * (96 + 58))
        assert len(image.convert("RGB").getcolors(2**24) or []) > 100


def test_the_winner_loads_repeats_and_predicts(ray_sweep: tuple[Path, str], tmp_path: Path) -> None:
    root, _ = ray_sweep
    winner = leaderboard(root)[0]
    best = load(root / "best.yaml")
    assert best.optimizer.lr == float(winner["optimizer.lr"])
    assert best.schedule.name == winner["schedule.name"]
    assert best.trial() == Recognizer.from_checkpoint(root / "best.pt").config
    assert load(root / "sweep.yaml").search == best.search
    images = tmp_path / "images"
    draw = [sys.executable, "-m", "model.captchas", str(images), "--count", "3", "--config", str(root / "best.yaml")]
    subprocess.run(draw, check=True, capture_output=True)
    read = [sys.executable, "-m", "model.predict", str(root / "best.pt"), str(images)]
    lines = subprocess.run(read, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path) for path in sorted(images.iterdir())]
    for line in lines:
        _, text, confidence = line.split("\t")
        assert set(text) <= set("0123")
        assert 0 <= float(confidence) <= 1


def test_predictions_match_the_validation_score(ray_sweep: tuple[Path, str], cache: Path) -> None:
    import torch

    from model.data.batches import Data
    from model.training.evaluation import evaluate

    root, _ = ray_sweep
    recognizer = Recognizer.from_checkpoint(root / "best.pt")
    data = Data(recognizer.config, cache, torch.device("cpu"))
    scores, _ = evaluate(recognizer.network, data.batches(data.valid), "bfloat16")
    assert scores.error_rate == pytest.approx(float(leaderboard(root)[0]["error_rate"]), abs=0.06)


def test_the_terminal_tells_what_happens_in_order(ray_sweep: tuple[Path, str]) -> None:
    root, printed = ray_sweep
    logdir = f"tensorboard --logdir {root / 'tensorboard'}"
    names = [row["trial"] for row in leaderboard(root)]
    positions = [
        printed.index(part)
        for part in (
            "searched", "optimizer.lr", "trials       4", "at once      2", "device", "writes to", logdir,
            "0000 completed", "rank", names[0], "best.yaml", "best.pt", "smoothing=0",
        )
    ]  # fmt: skip
    assert positions == sorted(positions)
    assert printed.count(" completed") == 8  # a line each, and a row each
    assert not [word for word in ("ray", "Warning", "WARN") if word in printed.replace(str(root), "")]


def test_hparams_over_http_are_one_finished_row_per_trial(ray_sweep: tuple[Path, str]) -> None:
    rows = {row["trial"]: row for row in leaderboard(ray_sweep[0])}
    tags = ["epoch/error_rate", "best/error_rate", "epoch/cer", "epoch/loss"]
    with serve(ray_sweep[0] / "tensorboard") as board:
        wait_for(lambda: len(board.runs()) == 9)
        experiment = board.hparams("experiment")
        columns = [{"hparam": "optimizer.lr"}, *({"metric": {"group": "", "tag": tag}} for tag in tags)]
        groups = {group["name"]: group for group in board.sessions(*columns)}
    assert {info["name"] for info in experiment["hparamInfos"]} == {"optimizer.lr", "schedule.name"}
    assert [info["name"]["tag"] for info in experiment["metricInfos"]] == tags
    assert set(groups) == set(rows)
    for name, group in groups.items():
        (session,) = group["sessions"]
        assert session["status"] == "STATUS_SUCCESS"
        assert group["hparams"]["optimizer.lr"] == pytest.approx(float(rows[name]["optimizer.lr"]))
        assert group["hparams"]["schedule.name"] == rows[name]["schedule.name"]
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        assert values["best/error_rate"] == pytest.approx(float(rows[name]["error_rate"]))
        assert set(values) == set(tags)


STOPPING = {**SETTINGS, "search.early_stopping": "{name: asha, grace_epochs: 1}", "search.max_concurrent": 1}


@pytest.mark.slow
def test_local_mode_repeats_ray_bit_for_bit_and_itself(sweep: Run, tmp_path: Path) -> None:
    assert sweep(tmp_path, "--name", "ray", settings=STOPPING).returncode == 0
    assert sweep(tmp_path, "--name", "local", "--local", settings=STOPPING).returncode == 0
    assert decided(tmp_path / "ray") == decided(tmp_path / "local")
    assert {row["state"] for row in decided(tmp_path / "local")} == {"completed", "stopped"}
    ours, theirs = runs(tmp_path / "ray"), runs(tmp_path / "local")
    assert set(ours) == set(theirs)
    for run, events in ours.items():
        for tag in events.Tags()["scalars"]:
            expected = [(event.step, event.value) for event in theirs[run].Scalars(tag)]
            assert [(event.step, event.value) for event in events.Scalars(tag)] == expected


@pytest.mark.slow
def test_local_trials_that_take_turns_train_as_they_do_alone(sweep: Run, tmp_path: Path) -> None:
    alone = {**SETTINGS, "search.searcher": "random", "search.max_concurrent": 1, "network.dropout": 0.2}
    assert sweep(tmp_path, "--name", "alone", "--local", settings=alone).returncode == 0
    turns = {**alone, "search.max_concurrent": 3}
    assert sweep(tmp_path, "--name", "turns", "--local", settings=turns).returncode == 0
    assert decided(tmp_path / "alone") == decided(tmp_path / "turns")


def test_one_given_trial_leaves_the_same_files(sweep: Run, tmp_path: Path) -> None:
    result = sweep(tmp_path, "--name", "one", "--local", "--trial", "optimizer.lr=1e-3,schedule.name=cosine")
    assert result.returncode == 0, result.stderr
    (row,) = leaderboard(tmp_path / "one")
    assert row["trial"] == "0000_lr=1.0e-03_schedule=cosine"
    assert set(runs(tmp_path / "one")) == {"_sweep", row["trial"], f"{row['trial']}/train"}
    assert (tmp_path / "one" / "best.pt").exists()


@pytest.mark.parametrize("mode", ["--local", pytest.param("--verbose", marks=pytest.mark.slow)])
def test_a_diverging_and_a_failing_trial_are_told_and_the_others_go_on(sweep: Run, tmp_path: Path, mode: str) -> None:
    space = "{optimizer.lr: {grid: [1e-2, 1e30]}, network.encoder.size: {grid: [8, 1000000000]}}"
    plain = {"search.space": space, "search.searcher": "grid", "search.trials": 4}
    settings = {**plain, "optimizer.name": "sgd", "optimizer.gradient_clip": "null"}
    result = sweep(tmp_path, "--name", "x", mode, settings=settings)
    assert result.returncode == 1
    rows = leaderboard(tmp_path / "x")
    assert [row["state"] for row in rows] == ["completed", "failed", "diverged", "failed"]
    assert "Traceback" not in result.stdout + result.stderr
    failed = rows[1]
    assert failed["error"]
    assert failed["error"] in result.stdout
    assert "loss was" in rows[2]["error"]


def test_streamed_captchas_train_without_a_training_pool(sweep: Run, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    settings = {"data.source": "stream", "search.trials": 1, "training.epochs": 2}
    result = sweep(tmp_path, "--name", "s", "--local", "--cache-dir", str(cache), settings=settings)
    assert result.returncode == 0, result.stderr
    assert [path.name.split("-")[0] for path in cache.glob("*.pool")] == ["valid"]
    assert leaderboard(tmp_path / "s")[0]["epochs"] == "2"


def test_a_finished_name_is_not_given_again(sweep: Run, ray_sweep: tuple[Path, str]) -> None:
    root, _ = ray_sweep
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    result = sweep(root.parent, "--name", "ray", settings=SETTINGS)
    assert result.returncode == 2
    assert "--name" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_tensorboard_is_served_on_this_machine_alone_while_the_sweep_runs(sweep: Run, tmp_path: Path) -> None:
    result = sweep(tmp_path, "--name", "t", "--local", "--tensorboard", settings={"search.trials": 1})
    assert result.returncode == 0, result.stderr
    assert "TensorBoard is on http://127.0.0.1:" in result.stdout
    assert "http://127.0.0.1:" in result.stdout.splitlines()[-1]


def test_quiet_prints_the_result_alone(sweep: Run, tmp_path: Path) -> None:
    result = sweep(tmp_path, "--name", "q", "--local", "--quiet", settings={"search.trials": 1})
    assert len(result.stdout.strip().splitlines()) == 4
    assert "best 0000" in result.stdout


@pytest.mark.slow
def test_the_notebooks_recipe_starts_and_trains_on_a_cpu(tmp_path: Path) -> None:
    from sweep.run import main

    few = ["data.train_images=8", "data.valid_images=8", "training.batch_size=4", "training.epochs=2"]
    sets = [part for value in few for part in ("--set", value)]
    notebook = str(REPOSITORY / "configs" / "captcha_break.yaml")
    arguments = ["--config", notebook, "--output-dir", str(tmp_path), "--name", "n", "--local"]
    assert main([*arguments, "--quiet", "--cache-dir", str(tmp_path / "cache"), *sets]) == 0
    assert leaderboard(tmp_path / "n")[0]["epochs"] == "2"
