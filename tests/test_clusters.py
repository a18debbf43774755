"""Sweeps on a Ray cluster that others have started: joined, refused, left running, and lost."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from sweep.run import main
from tests.processes import Start, Sweep, saved, title, wait_for
from tests.results import assert_curves_without_scars, leaderboard

TOKEN = "0123456789abcdef" * 4
LONG = {"training__epochs": 2000, "search__trials": 2, "search__early_stopping": "none"}
TWO = {"training__epochs": 30, "search__trials": 2, "search__early_stopping": "none"}
FEW = {"training__epochs": 2, "search__trials": 3, "search__early_stopping": "none"}


class Cluster:
    """A Ray cluster of nodes on this machine, by `ray start`, with ports and temporary folders of its own."""

    def __init__(self, folder: Path, token: str) -> None:
        self.folder, self.port = folder, 0
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        self.nodes: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add_head(self) -> None:
        def options() -> list[str]:
            self.port = free_port()
            return ["--head", f"--port={self.port}", f"--temp-dir={self.folder}", "--include-dashboard=false"]

        self._add(options)

    def add_node(self, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        return self._add(lambda: [f"--address={self.address}"], before)

    def _add(self, options: Callable[[], list[str]], before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Starts a node and waits until it is up. Tries again if it has ended: on a busy machine `ray start` may give
        up after 30 seconds, which nothing changes."""
        ray, output = str(Path(sys.executable).parent / "ray"), self.folder / f"node{len(self.nodes)}.txt"
        for _ in range(5):
            command = [*before, ray, "start", *options(), "--num-cpus=1", "--disable-usage-stats", "--block"]
            with output.open("w") as file:
                node = subprocess.Popen(
                    command, env=self.environment, stdout=file, stderr=file, cwd=self.folder, start_new_session=True
                )
            self.nodes.append(node)
            wait_for(lambda node=node: node.poll() is not None or "will now block" in output.read_text())  # type: ignore[misc]
            if node.poll() is None:
                return node
            self.nodes.remove(node)
        raise AssertionError(output.read_text())

    def asked(self, code: str) -> str:
        """What a program prints that has joined the cluster."""
        start = f"import ray; ray.init('{self.address}', logging_level='CRITICAL', log_to_driver=False); "
        done = subprocess.run(
            [sys.executable, "-c", start + code],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
        return done.stdout

    def living_actors(self) -> str:
        states = "[actor['State'] for actor in actors().values()]"
        return self.asked(f"from ray._private.state import actors; print({states}.count('ALIVE'))").strip()

    def end(self, node: subprocess.Popen[bytes]) -> None:
        """As a machine that loses its power: everything of the node at once."""
        family = (
            [process for process in psutil.Process(node.pid).children(recursive=True)] if node.poll() is None else []
        )
        for process in [*family, node]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        psutil.wait_procs(family, timeout=20)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def started(token: str = TOKEN) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))  # short enough for Ray's sockets
    cluster = Cluster(folder, token)
    try:
        cluster.add_head()
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            cluster.end(node)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from started()


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """One that a test may damage."""
    yield from started()


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which nobody has said anything of Ray, with an empty home."""
    folder = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    return folder


def put_into_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)


def put_into_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "token").write_text(TOKEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))


def put_into_variable(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


@pytest.mark.cluster
def test_an_interrupted_sweep_leaves_the_cluster_running_without_its_actors_and_goes_on_there(
    cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch, start: Start, tmp_path: Path
) -> None:
    put_into_file(home, monkeypatch)
    sweep = start("r", "--address", cluster.address, training__epochs=12, search__trials=2)
    wait_for(lambda: saved(tmp_path / "r", 1))
    sweep.press_ctrl_c()
    code, printed = sweep.wait(60)
    assert code == 130, printed
    assert f"--address {cluster.address}" in printed
    wait_for(lambda: cluster.living_actors() == "0")
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    code, printed = start("r", "--resume", "--address", "auto", training__epochs=12, search__trials=2).wait()
    assert code == 0, printed
    assert_curves_without_scars(tmp_path / "r")
    assert wait_for(lambda: cluster.living_actors()) == "0"


@pytest.mark.cluster
@pytest.mark.parametrize("put", [put_into_path, put_into_variable])
def test_the_token_is_found_where_ray_looks_for_it(
    cluster: Cluster,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: Start,
    tmp_path: Path,
    put: Callable[..., None],
) -> None:
    put(home, monkeypatch)
    code, printed = start("r", "--address", cluster.address, **{**FEW, "search__trials": 1}).wait()
    assert code == 0, printed
    assert len(leaderboard(tmp_path / "r")) == 1


def trained_at_once(root: Path) -> int:
    """The number of unfinished trials that have a checkpoint."""
    return len({path.parent for path in root.glob("trials/*/epoch_*.pt")})


OTHER_VERSION = """
import json
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
told = json.loads(_internal_kv_get("CLUSTER_METADATA", namespace="cluster"))
told["{key}"] = "{value}"
_internal_kv_put("CLUSTER_METADATA", json.dumps(told), overwrite=True, namespace="cluster")
"""


def refused(address: str, outputs: Path, environment: Mapping[str, str] = {}, before: tuple[str, ...] = ()) -> str:
    """The sentence with which the command ends, within ten seconds on a quiet machine; nothing is on disk."""
    command = [*before, sys.executable, "-m", "sweep.run", "--address", address]
    command += ["--output-dir", str(outputs), "--cache-dir", str(outputs / "cache")]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=40, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("--address: ")
    assert done.stderr.count("\n") == 1
    assert not outputs.exists()
    return done.stderr


@pytest.mark.cluster
def test_what_cannot_be_joined_is_said_in_a_sentence(cluster: Cluster, home: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "runs"
    assert "needs a token" in refused(cluster.address, outputs)
    assert "needs a token" in refused(cluster.address, outputs, {"RAY_AUTH_MODE": "token"})
    assert "refuses the token in RAY_AUTH_TOKEN" in refused(cluster.address, outputs, {"RAY_AUTH_TOKEN": "wrong"})
    nobody = f"127.0.0.1:{free_port()}"
    assert f"'{nobody}': no Ray answers there" in refused(nobody, outputs)
    assert "no Ray answers there" in refused("auto", outputs, {"RAY_ADDRESS": nobody})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "no Ray answers there" in refused(f"127.0.0.1:{silent.getsockname()[1]}", outputs)


@pytest.mark.cluster
@pytest.mark.parametrize(("key", "value"), [("ray_version", "2.55.0"), ("python_version", "3.9.1")])
def test_a_cluster_of_another_version_is_refused_with_both_versions(
    own_cluster: Cluster, home: Path, tmp_path: Path, key: str, value: str
) -> None:
    own_cluster.asked(OTHER_VERSION.format(key=key, value=value).replace("\n", "; ").strip("; "))
    said = refused(own_cluster.address, tmp_path / "runs", {"RAY_AUTH_TOKEN": TOKEN})
    assert value in said
    assert "must be a cluster with Ray" in said


@pytest.mark.cluster
@pytest.mark.namespaces
def test_a_machine_that_is_no_node_of_the_cluster_is_told_so(cluster: Cluster, home: Path, tmp_path: Path) -> None:
    """In a namespace of its own it sees none of the cluster's processes."""
    apart = ("unshare", "--pid", "--fork", "--mount-proc")
    said = refused(cluster.address, tmp_path / "runs", {"RAY_AUTH_TOKEN": TOKEN}, apart)
    assert "this machine is no node of the Ray cluster" in said


@pytest.mark.cluster
@pytest.mark.namespaces
def test_a_node_without_the_sweeps_folder_is_found_before_anything_starts(
    own_cluster: Cluster, home: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_variable(home, monkeypatch)
    apart = own_cluster.add_node(before=hiding(tmp_path))
    code, printed = start("r", "--address", own_cluster.address, **FEW).wait()
    assert code == 2, printed
    assert printed.count("ready") == 1
    assert printed.count("missing") == 1
    assert f"does not have the folder {tmp_path}" in printed
    storage = f"file://{tmp_path}/storage"
    code, printed = start("r", "--address", own_cluster.address, "--storage", storage, **FEW).wait()
    assert code == 2, printed
    assert f"does not have the storage {storage} (--storage), which all nodes must share" in printed
    shutil.rmtree(tmp_path / "storage")
    assert not [path for path in tmp_path.iterdir() if path.name == "r" or path.name.startswith(".crnn-sweep")]
    own_cluster.end(apart)
    own_cluster.nodes.remove(apart)


@pytest.mark.cluster
@pytest.mark.namespaces
def test_a_node_that_joins_without_the_sweeps_folder_gets_no_trials_and_the_sweep_goes_on(
    own_cluster: Cluster, home: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_variable(home, monkeypatch)
    own_cluster.add_node()
    sweep = start("r", "--address", own_cluster.address, **{**LONG, "search__trials": 3})
    root = tmp_path / "r"
    wait_for(lambda: trained_at_once(root) == 2)  # on one CPU each
    own_cluster.add_node(before=hiding(tmp_path))
    wait_for(lambda: "until that is mended it gets no trials" in (root / "sweep.log").read_text())
    own_cluster.end(own_cluster.nodes[1])
    wait_for(lambda: "will be tried again" in (root / "sweep.log").read_text())
    own_cluster.add_node()
    wait_for(lambda: "has joined: 1 CPUs" in (root / "sweep.log").read_text())
    wait_for(lambda: "goes on after epoch" in (root / "sweep.log").read_text())
    sweep.press_ctrl_c()
    code, printed = sweep.wait(60)
    assert code == 130, printed
    assert printed.count("gets no trials") == 1
    assert f"does not have the folder {root} (--output-dir)" in printed
    assert printed.count("will be tried again") == 1  # no trial was placed on the node that lacks the folder
    assert not list(root.glob(".crnn-sweep*"))


def hiding(folder: Path) -> tuple[str, ...]:
    """The start of a command that sees an empty folder in this one's place."""
    return "unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {folder} && exec "$@"', "sh"


@pytest.mark.cluster
def test_a_sweep_uses_a_node_that_joins_and_ends_with_its_report_when_the_cluster_is_lost(
    own_cluster: Cluster, home: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_variable(home, monkeypatch)
    sweep = start("r", "--address", own_cluster.address, **LONG)
    wait_for(lambda: trained_at_once(tmp_path / "r") == 1)
    own_cluster.add_node()
    wait_for(lambda: trained_at_once(tmp_path / "r") == 2)  # on one CPU each
    own_cluster.end(own_cluster.nodes[0])
    code, printed = sweep.wait(60)
    assert code == 130, printed
    assert "has ended" in printed
    assert "to go on: python -m sweep.run --resume" in printed
    assert (tmp_path / "r" / "report.html").exists()


def assert_tried_again(sweep: Sweep, root: Path, why: str) -> None:
    """One of the two trials was lost, went on from its last epoch, and both ended whole."""
    code, printed = sweep.wait(120)
    assert code == 0, printed
    assert printed.count(f"{why}; will be tried again") == 1
    assert printed.count("goes on after epoch") == 1
    assert [row["state"] for row in leaderboard(root)] == ["completed"] * 2
    assert_curves_without_scars(root)


@pytest.mark.cluster
def test_the_trials_of_a_dead_node_go_on_elsewhere_from_their_last_epoch(
    own_cluster: Cluster, home: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_variable(home, monkeypatch)
    second = own_cluster.add_node()
    sweep = start("r", "--address", own_cluster.address, **TWO, search__max_failures=0)
    wait_for(lambda: trained_at_once(tmp_path / "r") == 2)  # on one CPU each
    own_cluster.end(second)
    assert_tried_again(sweep, tmp_path / "r", "its node was lost")


def stopped_in_its_epoch(node: subprocess.Popen[bytes]) -> psutil.Process:
    """Waits until a node's process begins to train a trial, and suspends the process before the end of its epoch."""

    def found() -> list[psutil.Process]:
        family = psutil.Process(node.pid).children(recursive=True)
        return [process for process in family if title(process).startswith("ray::ResourceTrainable.train")]

    (process,) = wait_for(found)
    process.suspend()
    return process


@pytest.mark.cluster
def test_a_lost_node_and_a_lost_process_are_told_apart_also_in_the_first_epoch_on_a_node(
    own_cluster: Cluster, home: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_variable(home, monkeypatch)
    second, log = own_cluster.add_node(), tmp_path / "r" / "sweep.log"
    sweep = start("r", "--address", own_cluster.address, **LONG, search__max_failures=0)
    stopped_in_its_epoch(second)
    own_cluster.end(second)
    wait_for(lambda: "its node was lost; will be tried again" in log.read_text())
    stopped_in_its_epoch(own_cluster.add_node()).kill()
    wait_for(lambda: "its process was lost: killed" in log.read_text())
    sweep.press_ctrl_c()
    code, printed = sweep.wait(60)
    assert code == 130, printed
    assert sorted(row["state"] for row in leaderboard(tmp_path / "r")) == ["failed", "interrupted"]


@pytest.mark.cluster
def test_a_trial_leaves_a_node_that_is_told_to_end_after_its_epoch(
    cluster: Cluster, home: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_variable(home, monkeypatch)
    node = cluster.add_node()
    sweep = start("r", "--address", cluster.address, **TWO, search__max_failures=0)
    wait_for(lambda: trained_at_once(tmp_path / "r") == 2)  # on one CPU each
    node.terminate()  # Ray drains the node for half a minute, or until nothing runs on it
    assert_tried_again(sweep, tmp_path / "r", "its node is about to end")
    node.wait()


def overwrite(path: Path, text: str) -> None:
    """Writes a text of the file's size in its place, so that nobody reads an empty file meanwhile."""
    with path.open("r+") as file:
        file.write(text)


@pytest.mark.cluster
@pytest.mark.namespaces
def test_a_trial_that_a_nodes_memory_monitor_ends_is_tried_again_and_the_others_go_on(
    cluster: Cluster, home: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_variable(home, monkeypatch)
    memory = tmp_path / "meminfo"  # what this one node sees of the machine's
    plenty = Path("/proc/meminfo").read_text()
    short = re.sub(r"(?<=MemAvailable:)( +)(\d+)", lambda found: f"{1000:>{len(found[0])}}", plenty)
    memory.write_text(plenty)
    see = f'mount --bind {memory} /proc/meminfo && exec "$@"'
    node = cluster.add_node(before=("unshare", "--mount", "sh", "-c", see, "sh"))
    sweep = start("r", "--address", cluster.address, **TWO)
    wait_for(lambda: trained_at_once(tmp_path / "r") == 2)  # on one CPU each
    overwrite(memory, short)
    wait_for(lambda: "will be tried again" in (tmp_path / "r" / "sweep.log").read_text())
    overwrite(memory, plenty)
    assert_tried_again(sweep, tmp_path / "r", "its process was lost: Ray ended it, because memory ran low")
    cluster.end(node)


def test_addresses_that_no_sweep_can_use_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, said in (
        (["--address", "ray://head:10001"], "ray job submit"),
        (["--address", "head"], "must be local, auto or HOST:PORT, got 'head'"),
        (["--address", "head:0"], "HOST:PORT"),
        (["--address", "head:6379", "--local"], "--local"),
        (["--address", ""], "HOST:PORT"),
    ):
        assert main([*options, "--output-dir", str(tmp_path / "runs")]) == 2
        message = capsys.readouterr().err
        assert said in message
        assert message.count("\n") == 1
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert main(["--address", "auto", "--output-dir", str(tmp_path / "runs")]) == 2
    assert "RAY_ADDRESS='ray://head:10001'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
