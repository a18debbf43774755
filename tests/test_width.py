"""The file want.yaml widens and narrows a sweep while it runs."""

import time
from pathlib import Path

import pytest

from sweep.config import QUICKSTART, load
from sweep.execution.width import Width
from sweep.run import main
from sweep.search.search import Search
from sweep.terminal.terminal import Terminal
from tests.processes import Start, StartLocal, resume_local, saved, wait_for
from tests.results import assert_curves_without_scars, leaderboard

LONG = {"training.epochs": 40, "search.trials": 2, "search.early_stopping": "none"}


def want(root: Path, text: str) -> None:
    (root / "want.yaml").write_text(text)


def begun(root: Path) -> list[str]:
    return sorted(path.name[:4] for path in root.glob("trials/*"))


def test_a_running_sweep_is_widened_and_narrowed_again(local: StartLocal, tmp_path: Path) -> None:
    root = tmp_path / "r"
    sweep = local("r", **{**LONG, "training.epochs": 2000})
    wait_for(lambda: begun(root) == ["0000"])
    want(root, "trials: 4\nat_once: 3\n")
    wait_for(lambda: begun(root) == ["0000", "0001", "0002"])
    assert "want.yaml: 4 trials, at most 3 at once" in sweep.output.read_text()
    want(root, "trials: 1\n")
    wait_for(lambda: "want.yaml: 3 trials, as many at once as before" in sweep.output.read_text())
    time.sleep(0.5)
    assert begun(root) == ["0000", "0001", "0002"]


@pytest.mark.slow
@pytest.mark.parametrize(("fixture", "epochs"), [("local", 30), ("start", 120)], ids=["local", "Ray"])
def test_a_narrowed_sweep_pauses_the_latest_trials_and_goes_on_with_them(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, epochs: int
) -> None:
    root, log = tmp_path / "r", tmp_path / "r" / "sweep.log"
    settings = {"training.epochs": epochs, "search.trials": 3, "search.max_concurrent": 3, "data.train_images": 96}
    sweep = request.getfixturevalue(fixture)("r", "--set=resources.cpus=0.5", **{**LONG, **settings})
    wait_for(lambda: len({path.parent for path in saved(root, 1)}) == 3)
    want(root, "at_once: 1")
    wait_for(lambda: log.read_text().count("pauses after epoch") == 2)
    newest = max(int(path.stem.removeprefix("epoch_")) for path in saved(root, 1, "0000_*"))
    wait_for(lambda: saved(root, newest + 2, "0000_*"))
    assert "goes on after epoch" not in log.read_text()
    (root / "want.yaml").unlink()
    code, printed = sweep.wait()
    assert code == 0, printed
    assert [printed.count(f"000{number} goes on after epoch") for number in range(3)] == [0, 1, 1]
    assert [row["state"] for row in leaderboard(root)] == ["completed"] * 3
    assert_curves_without_scars(root)


def test_a_sweep_that_has_ended_goes_on_with_as_many_trials_as_want_yaml_says(
    local: StartLocal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, few = tmp_path / "r", {**LONG, "training.epochs": 1, "data.train_images": 32}
    code, printed = local("r", **few).wait()
    assert code == 0, printed
    want(root, "{trials: 3}")
    code, printed = resume_local(root).wait()
    assert code == 0, printed
    assert [row["state"] for row in leaderboard(root)] == ["completed"] * 3
    assert main(["--resume", str(root), "--trials", "5", "--local"]) == 2
    assert capsys.readouterr().err == (
        f"--trials: cannot be used beside {root / 'want.yaml'}, which says how many trials\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trials: many", "want.yaml: trials must be a whole number, got 'many'"),
        ("at_once: 0", "want.yaml: at_once must be at least 1, got 0"),
        ("trail: 4", "want.yaml: trail is an unknown key"),
        ("- 4", "want.yaml: it holds a list"),
        ("trials: [", "want.yaml: this is no YAML"),
        ("", "want.yaml: it is empty"),
    ],
)
def test_a_wrong_file_is_said_once_and_changes_nothing(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(QUICKSTART, {"search.trials": 7})
    search = Search(config, None)
    width = Width(tmp_path, search, Terminal(config, tmp_path, resume=""), at_once=2)
    want(tmp_path, "{trials: 5, at_once: 3}")
    assert (width.at_once(), search.trials) == (3, 5)
    (tmp_path / "want.yaml").unlink()
    want(tmp_path, text)
    assert [width.at_once() for _ in range(3)] == [3] * 3
    assert search.trials == 5
    printed = capsys.readouterr().out
    assert printed.count(said) == 1
    assert printed.count("the sweep goes on as before") == 1


@pytest.mark.slow
def test_a_sweep_on_ray_runs_as_many_at_once_as_want_yaml_says_and_as_there_is_room_for(
    start: Start, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    sweep = start("r", "--set=resources.cpus=0.5", "--set=search.max_concurrent=1", **{**LONG, "training.epochs": 2000})
    wait_for(lambda: begun(root) == ["0000"])
    want(root, "{trials: 9, at_once: 3}")
    wait_for(lambda: len(begun(root)) == 3)
    assert sweep.process.poll() is None
