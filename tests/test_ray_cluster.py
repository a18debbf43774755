import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from sweep.machine.private_folder import private_folder
from sweep.run import main
from tests.conftest import REPOSITORY
from tests.processes import Start, Sweep, resume_local, saved, title, wait_for
from tests.results import assert_curves_without_scars, leaderboard

STUCK = """
import os, threading
from sweep.execution.ray_cluster import OwnCluster, ray

ray.shutdown = threading.Event().wait
cluster = OwnCluster(1)
cluster.wait()
cluster.close()
print("closed", flush=True)
os._exit(0)
"""


LONG = {"training__epochs": 20, "search__trials": 2, "search__early_stopping": "none"}


@pytest.mark.slow
def test_a_ray_that_does_not_end_does_not_keep_the_sweep_from_ending() -> None:
    command = [sys.executable, "-c", STUCK]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=180)
    assert done.stdout == "closed\n"


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for temporary files, with a name that is short enough for Ray's sockets."""
    tmp_path_factory.getbasetemp()  # made now, because it would be made in this folder, and go with it
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    shutil.rmtree(folder)


def test_only_what_this_program_made_is_removed_from_the_temporary_folder(temporary: Path) -> None:
    parent = temporary / f"crnn-sweep-{os.geteuid()}"
    parent.mkdir(mode=0o700)
    precious = [temporary / "crnn-sweep-main", temporary / "crnn-sweep-0123abcd", parent / "runs", parent / "0123abcd2"]
    for folder in precious:
        (folder / "runs").mkdir(parents=True)
        (folder / "runs" / "best.pt").write_text("precious")
    (temporary / "crnn-sweep-0123abcd.lock").touch()
    (parent / "01234567").symlink_to(precious[0])
    left_by_killed = parent / "deadbeef"
    (left_by_killed / "ray" / "session").mkdir(parents=True)
    with private_folder() as first, private_folder() as second:
        assert first.is_dir()
        assert second.is_dir()
        assert not left_by_killed.exists()
    assert not first.exists()
    assert [(folder / "runs" / "best.pt").read_text() for folder in precious] == ["precious"] * 4
    assert (parent / "01234567").is_symlink()


def test_a_sweep_leaves_nothing_in_the_temporary_folder(temporary: Path) -> None:
    with private_folder() as folder:
        (folder / "session").mkdir()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "made", [lambda path: path.mkdir(mode=0o755), lambda path: path.symlink_to("/tmp"), Path.touch]
)
def test_a_temporary_folder_that_others_can_enter_or_that_is_none_is_refused(
    temporary: Path, made: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = temporary / f"crnn-sweep-{os.geteuid()}"
    made(parent)
    before = parent.lstat()
    assert main(["--output-dir", str(tmp_path / "runs"), "--cache-dir", str(tmp_path / "cache")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"TMPDIR: no folder for Ray in '{parent}': ")
    assert message.count("\n") == 1
    assert parent.lstat().st_mtime == before.st_mtime
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_nobody_else_can_enter_rays_temporary_folder(start: Start, temporary: Path, tmp_path: Path) -> None:
    sweep = start("r", **LONG)
    wait_for(lambda: saved(tmp_path / "r", 1))
    parent = temporary / f"crnn-sweep-{os.geteuid()}"
    assert stat.S_IMODE(parent.stat().st_mode) == 0o700
    assert list(parent.glob("*/ray/session_*/sockets/raylet"))
    sweep.kill()
    (left,) = parent.iterdir()
    with private_folder():
        assert not left.exists()


@pytest.mark.slow
def test_under_uv_run_ray_uploads_nothing_and_trials_run_in_the_environment_of_the_sweep(
    arguments: Callable[..., list[str]], temporary: Path, tmp_path: Path
) -> None:
    """`uv run --active` takes this environment as it is: `--no-sync` keeps it from being changed."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert uv is not None
    command = [uv, "run", "--active", "--no-sync", "python", "-m", "sweep.run", *arguments("r", **LONG)]
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True)
    try:
        wait_for(lambda: process.poll() is not None or saved(tmp_path / "r", 1))
        assert process.poll() is None
        family = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in family if "ray::" in title(child)]
        assert workers
        assert {worker.cwd() for worker in workers} == {str(REPOSITORY)}
        assert list(temporary.rglob("_ray_pkg_*")) == []
        assert not [child for child in family if child.name() == "uv"]
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(120) == 130
        assert psutil.wait_procs(family, timeout=20)[1] == []
    finally:
        process.kill()


@pytest.mark.parametrize("given", ["", "  "])
def test_an_empty_token_counts_as_none(given: str) -> None:
    code = "import os, sweep.execution.ray_cluster; print(len(os.environ['RAY_AUTH_TOKEN']))"
    environment = {**os.environ, "RAY_AUTH_TOKEN": given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "64\n"


@pytest.mark.namespaces
def test_without_loopback_a_sentence_names_local(tmp_path: Path) -> None:
    command = ["unshare", "--net", "--map-root-user", sys.executable, "-m", "sweep.run", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "127.0.0.1: Network is unreachable" in done.stderr
    assert "--local" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


ON_WINDOWS = """
import signal, sys

del signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP  # Windows has none of these
sys.modules["fcntl"] = None
import sweep.run

sys.platform = "win32"
sys.exit(sweep.run.main([]))
"""


def test_on_windows_a_sentence_says_where_it_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ON_WINDOWS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "crnn-sweep does not run on Windows; it runs on Linux, also in WSL\n"


def own(sweep: Sweep, name: str) -> list[psutil.Process]:
    """Ray's own processes of that name."""
    return [process for process in sweep.family() if process.name() == name]


def kill_raylet(sweep: Sweep) -> None:
    (process,) = own(sweep, "raylet")
    process.kill()


def terminate_raylet(sweep: Sweep) -> None:
    """As `ray stop` does first: it says goodbye to the driver, which Ray's C++ answers otherwise than a lost raylet."""
    (process,) = own(sweep, "raylet")
    process.terminate()


def kill_server(sweep: Sweep) -> None:
    (process,) = own(sweep, "gcs_server")
    process.kill()


def terminate_group(sweep: Sweep) -> None:
    """As `timeout` and a closing session do."""
    os.killpg(sweep.process.pid, signal.SIGTERM)


def terminate_all(sweep: Sweep) -> None:
    """As systemd and Slurm do, who know all processes of a job."""
    for process in [*sweep.family(), psutil.Process(sweep.process.pid)]:
        process.terminate()


def assert_interrupted(sweep: Sweep, family: list[psutil.Process]) -> str:
    """With the command that goes on, soon, nothing of Ray's on the terminal, and no process left."""
    code, printed = sweep.wait(30)
    assert code == 130, printed
    assert "to go on: python -m sweep.run --resume" in printed
    assert not [word for word in ("Traceback", "raylet)", "core_worker", "rpc_client", "***") if word in printed], (
        printed
    )
    assert psutil.wait_procs(family, timeout=10)[1] == []
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("end", [kill_raylet, terminate_raylet, kill_server, terminate_group, terminate_all])
def test_a_sweep_that_loses_ray_or_is_told_to_end_writes_its_report_and_goes_on(
    start: Start, tmp_path: Path, end: Callable[[Sweep], None]
) -> None:
    root = tmp_path / "r"
    sweep = start("r", search__max_failures=0, **LONG)
    wait_for(lambda: saved(root, 2))
    family = sweep.family()
    end(sweep)
    assert_interrupted(sweep, family)
    assert {row["state"] for row in leaderboard(root)} == {"interrupted"}
    assert (root / "report.html").exists()
    code, printed = resume_local(root, "--quiet").wait()
    assert code == 0, printed
    assert {row["state"] for row in leaderboard(root)} == {"completed"}
    assert_curves_without_scars(root)


@pytest.mark.slow
@pytest.mark.parametrize(("end", "seconds"), [(kill_server, 0), (terminate_group, 0), (terminate_group, 1)])
def test_a_sweep_that_loses_ray_or_is_told_to_end_while_ray_starts_says_how_to_go_on(
    start: Start, tmp_path: Path, end: Callable[[Sweep], None], seconds: float
) -> None:
    sweep = start("r", **LONG)
    wait_for(lambda: own(sweep, "raylet") and (tmp_path / "r" / "sweep.yaml").exists())
    time.sleep(seconds)
    family = sweep.family()
    end(sweep)
    assert_interrupted(sweep, family)


# A sweep whose process NAME of Ray's is killed when Ray's C++ has connected to it, and waits for its answer.
LOST_IN_THE_JOIN = """
import pathlib, subprocess, sys, time
import psutil
from sweep.execution import ray_cluster
from sweep.run import command

name, sweep_yaml = sys.argv[1], pathlib.Path(sys.argv[2])
del sys.argv[1:3]
join = ray_cluster.ray._raylet.CoreWorker

def lose(*arguments, **options):
    while not sweep_yaml.exists():
        time.sleep(0.01)
    (lost,) = [child for child in psutil.Process().children() if child.name() == name]
    lost.suspend()
    subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {lost.pid}"])
    return join(*arguments, **options)

ray_cluster.ray._raylet.CoreWorker = lose
sys.exit(command())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_sweep_that_loses_ray_while_rays_own_code_joins_it_says_how_to_go_on_and_goes_on(
    arguments: Callable[..., list[str]], temporary: Path, tmp_path: Path, name: str
) -> None:
    root = tmp_path / "r"
    few = arguments("r", training__epochs=2, search__trials=2, search__early_stopping="none")
    sweep = Sweep(*few, program=["-c", LOST_IN_THE_JOIN, name, str(root / "sweep.yaml")])
    wait_for(lambda: own(sweep, name) or sweep.process.poll() is not None)
    family = sweep.family()
    assert f"Ray's own process {name} has ended" in assert_interrupted(sweep, family)
    assert list(temporary.iterdir()) == []
    code, printed = resume_local(root, "--quiet").wait()
    assert code == 0, printed
    assert {row["state"] for row in leaderboard(root)} == {"completed"}
    assert_curves_without_scars(root)


# A sweep whose main thread asks Ray's server (GCS) in Ray's C++, where no signal's handler runs, when it is killed.
LOST_IN_A_QUESTION = """
import pathlib, sys
import psutil
from sweep.execution import ray_cluster
from sweep.run import command

root = pathlib.Path(sys.argv.pop(1))
wait = ray_cluster.ray.wait

def lose(*arguments, **options):
    if list(root.glob("trials/*/epoch_*2.pt")):
        (server,) = [child for child in psutil.Process().children() if child.name() == "gcs_server"]
        server.kill()
        ray_cluster.ray._private.worker.global_worker.gcs_client.internal_kv_get(b"any", None, timeout=600)
    return wait(*arguments, **options)

ray_cluster.ray.wait = lose
sys.exit(command())
"""


@pytest.mark.slow
def test_a_sweep_that_loses_ray_while_rays_own_code_asks_it_leaves_no_process_and_no_file(
    arguments: Callable[..., list[str]], temporary: Path, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    sweep = Sweep(*arguments("r", **LONG), program=["-c", LOST_IN_A_QUESTION, str(root)])
    wait_for(lambda: saved(root, 1))
    family = sweep.family()
    assert_interrupted(sweep, family)
    assert list(temporary.glob("crnn-sweep-*")) == []


@pytest.mark.slow
def test_a_trial_that_loses_its_process_twice_in_a_moment_is_failed_and_the_others_complete(
    start: Start, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    sweep = start("r", "--verbose", training__epochs=20, search__trials=3, search__early_stopping="none")
    wait_for(lambda: saved(root, 1, "0000*"))
    killed: set[psutil.Process] = set()

    def kill_who_trains_it() -> bool:
        for process in sweep.workers():
            with suppress(psutil.NoSuchProcess):
                if any(Path(file.path).name.startswith("0000_") for file in process.open_files()):
                    process.kill()
                    killed.add(process)
        return sweep.process.poll() is not None or len(killed) == 2

    wait_for(kill_who_trains_it)
    code, printed = sweep.wait()
    assert code == 1, printed
    assert printed.count("its process was lost") == 2
    assert sorted(row["state"] for row in leaderboard(root)) == ["completed", "completed", "failed"]


@pytest.mark.slow
def test_a_pool_that_is_cut_while_processes_read_it_halts_the_sweep_and_fails_no_trial(
    start: Start, tmp_path: Path
) -> None:
    root, cache = tmp_path / "r", tmp_path / "cache"
    sweep = start("r", "--cache-dir", str(cache), search__max_failures=0, **LONG)
    wait_for(lambda: saved(root, 1))
    for pool in cache.glob("train*.pool"):
        os.truncate(pool, 5000)
    printed = assert_interrupted(sweep, sweep.family())
    assert ".pool was cut while it was read" in printed
    assert {row["state"] for row in leaderboard(root)} == {"interrupted"}
    code, printed = resume_local(root, "--quiet").wait()
    assert code == 0, printed
    assert {row["state"] for row in leaderboard(root)} == {"completed"}
    assert_curves_without_scars(root)


@pytest.mark.slow
def test_a_machine_whose_memory_others_fill_costs_no_trial(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")  # Ray would take this machine for full
    code, printed = start("r", training__epochs=2, search__trials=2).wait()
    assert code == 0, printed
    assert "lost" not in printed
