"""Sweeps that are copied to a storage while they run, and go on from there. The storage is a real S3 server."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from sweep.execution.mirror import Mirror
from sweep.execution.storage import Storage
from sweep.run import main
from sweep.search.records import TrialRecord
from tests.processes import SETTINGS, LocalSweep, StartLocal, sets, wait_for
from tests.results import assert_curves_without_scars, assert_nothing_left_over, curves, decided, runs

FEW: dict[str, Any] = {"search__trials": 2, "training__epochs": 3, "data__train_images": 96}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Server:
    """An S3 server with one bucket, and what is in it, as another client sees it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(self.port)]
        with (folder / "server.txt").open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)
        wait_for(lambda: answers(self.port))
        address = f"http://127.0.0.1:{self.port}"
        keys = {"aws_access_key_id": "me", "aws_secret_access_key": "SECRET", "region_name": "us-east-1"}
        self.client = boto3.client("s3", endpoint_url=address, **keys)
        self.client.create_bucket(Bucket="bucket")

    def uri(self, name: str, port: int | None = None) -> str:
        place = f"endpoint_override=127.0.0.1:{port or self.port}&scheme=http&region=us-east-1"
        return f"s3://me:SECRET@bucket/{name}?{place}"

    def names(self, name: str) -> list[str]:
        # pyarrow makes an empty object, whose name ends with a slash, for the folder of each file that it deletes.
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{name}/")
        keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
        return [key.removeprefix(f"{name}/") for key in keys if not key.endswith("/")]

    def files(self, name: str) -> dict[str, bytes]:
        def contents(key: str) -> bytes:
            return bytes(self.client.get_object(Bucket="bucket", Key=f"{name}/{key}")["Body"].read())

        return {key: contents(key) for key in self.names(name)}


def answers(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.process.kill()
    server.process.wait()


class Proxy:
    """Passes connections on to a server until it is closed; then the port refuses them until it is opened again."""

    def __init__(self, server: int) -> None:
        self.server, self.port = server, free_port()
        self.open()

    def open(self) -> None:
        self._sockets: list[socket.socket] = [socket.create_server(("127.0.0.1", self.port))]
        threading.Thread(target=self._accept, args=(self._sockets[0],), daemon=True).start()

    def close(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                pair = [listening.accept()[0], socket.create_connection(("127.0.0.1", self.server))]
                self._sockets += pair
                for one, other in (pair, pair[::-1]):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)


def files_here(root: Path) -> dict[str, bytes]:
    """All files of a sweep that another machine can use: not locks, Ray's own state, and links."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in found.items() if not name.startswith(("ray/", "top/"))}


def assert_equal(there: dict[str, bytes], root: Path) -> None:
    here = files_here(root)
    assert {"sweep.yaml", "study.db", "leaderboard.csv", "report.html", "best.pt", "best.yaml", "sweep.log"} <= set(
        here
    )
    assert {name for name in {*there, *here} if there.get(name) != here.get(name)} == set()


@pytest.mark.parametrize("scheme", ["s3", "file", "memory"])  # an object store, a disk, and one that fsspec alone has
def test_a_storage_gives_back_what_it_was_given(scheme: str, server: Server, tmp_path: Path) -> None:
    uri = {"s3": server.uri("given"), "file": f"file://{tmp_path}/a%20b/c", "memory": "memory://given/it"}[scheme]
    storage = Storage.open("--sync-to", uri)
    assert storage.there == set()
    assert storage.stamp("x/y") is None
    for data in (b"first", b"the second is longer", b""):
        storage.put("x/y", data)
        assert storage.read("x/y") == data
    storage.put("z", b"1")
    assert Storage.open("--sync-to", uri).there == {"x/y", "z"}
    storage.remove("x/y")
    storage.remove("x/y")
    assert set(storage.names()) == {"z"}


def test_what_the_study_and_checkpoints_speak_of_is_uploaded_before_them(tmp_path: Path) -> None:
    """So that a copy can go on whenever the sweep is killed."""
    order: list[str] = []

    class Recorded(Storage):
        def put(self, name: str, data: bytes) -> None:
            order.append(name)
            super().put(name, data)

        def remove(self, name: str) -> None:
            order.append(f"without {name}")
            super().remove(name)

    def write(name: str) -> None:
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()

    def study() -> bytes:
        write("trials/0000/0_late")  # a trial goes on while the study is read
        return b"study"

    uri = f"file://{tmp_path}/copy"
    Storage.open("--sync-to", uri).put("trials/0000/epoch_0001.pt", b"")
    for name in ("trials/0000/epoch_0002.pt", "tensorboard/0000/events", "trials/0000/best.pt"):
        write(name)
    assert Mirror(Recorded.open("--sync-to", uri), tmp_path / "root", study, print).finish(60) is None
    assert order[:3] == ["tensorboard/0000/events", "trials/0000/0_late", "trials/0000/best.pt"]
    assert order[3:6] == ["trials/0000/epoch_0002.pt", "study.db", "without trials/0000/epoch_0001.pt"]


def test_the_copy_of_a_new_sweep_can_go_on_before_any_trial_is_in_it(tmp_path: Path) -> None:
    order: list[str] = []

    class Recorded(Storage):
        def put(self, name: str, data: bytes) -> None:
            order.append(name)
            super().put(name, data)

    (tmp_path / "root" / "tensorboard" / "_sweep").mkdir(parents=True)
    for name in ("sweep.yaml", "tensorboard/_sweep/events"):
        (tmp_path / "root" / name).touch()
    storage = Recorded.open("--sync-to", f"file://{tmp_path}/copy")
    assert Mirror(storage, tmp_path / "root", lambda: b"study", print).finish(60) is None
    assert order == ["study.db", "sweep.yaml", "tensorboard/_sweep/events"]


def test_the_study_is_uploaded_with_the_files_of_all_trials_that_run(tmp_path: Path) -> None:
    """It has a trial's epoch before anybody hears of that."""
    root, copy, study = tmp_path / "root", tmp_path / "copy", [b"0"]
    records = [TrialRecord(number, f"000{number}", {}) for number in range(2)]
    for record in records:
        (root / "trials" / record.name).mkdir(parents=True)
    mirror = Mirror(Storage.open("--sync-to", f"file://{copy}"), root, lambda: study[0], print)
    for record in records:
        mirror.started(record)
    (root / "trials" / "0000" / "first").touch()
    mirror.reported(records[0])
    wait_for((copy / "trials" / "0000" / "first").exists)
    (root / "trials" / "0001" / "second").touch()
    study[0] = b"1"
    mirror.reported(records[0])
    wait_for(lambda: (copy / "study.db").read_bytes() == b"1")
    assert (copy / "trials" / "0001" / "second").exists()
    assert mirror.finish(60) is None


@pytest.fixture(scope="module")
def ended(server: Server, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep that has ended, and is in the storage as `ended`."""
    outputs = tmp_path_factory.mktemp("ended")
    few = {key.replace("__", "."): value for key, value in FEW.items()}
    places = ["--output-dir", str(outputs), "--cache-dir", str(cache), "--name", "ended"]
    values = sets({**SETTINGS, **few, "search.trials": 1})
    code, printed = LocalSweep(outputs / "printed.txt", *places, *values, "--sync-to", server.uri("ended")).wait()
    assert code == 0, printed
    return outputs / "ended"


def test_at_the_end_a_sweeps_folder_and_its_copy_are_equal(ended: Path, server: Server) -> None:
    assert_equal(server.files("ended"), ended)
    assert_nothing_left_over(ended)
    assert "SECRET" not in (ended / "sweep.log").read_text() + (ended.parent / "printed.txt").read_text()


def test_tensorboard_reads_the_copy(ended: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "me"), ("SECRET_ACCESS_KEY", "SECRET"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    printed = Storage("s3://bucket/ended", None, "bucket/ended").notes[-1]
    (folder,) = re.findall(r"tensorboard --logdir (\S+) \(with boto3\)", printed)
    found = EventMultiplexer().AddRunsFromDirectory(folder).Reload()
    assert set(found.Runs()) == set(runs(ended))
    assert {run: found.Scalars(run, "epoch/loss") for run in found.Runs() if run != "_sweep"} == {
        run: events.Scalars("epoch/loss") for run, events in runs(ended).items() if run != "_sweep"
    }


def test_another_disk_can_be_the_storage(local: StartLocal, tmp_path: Path) -> None:
    """Also one that has a part of the sweep, because the first upload was cut."""
    code, printed = local("disk", "--sync-to", f"file://{tmp_path}/a%20b/copy", **FEW).wait()
    assert code == 0, printed
    assert_equal(files_here(tmp_path / "a b" / "copy"), tmp_path / "disk")
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "disk" / "trials", cut / "trials")
    shutil.copy(tmp_path / "disk" / "sweep.yaml", cut)
    resume = ["--local", "--quiet", "--resume", str(tmp_path / "disk")]
    assert main([*resume, "--sync-to", f"file://{cut}"]) == 0
    assert_equal(files_here(cut), tmp_path / "disk")
    (cut / "study.db").unlink()
    (cut / "sweep.yaml").write_text("another sweep's")
    assert main([*resume, "--sync-to", f"file://{cut}"]) == 2


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_goes_on_from_its_copy_on_another_machine(
    arguments_in: Callable[..., list[str]], server: Server, tmp_path: Path
) -> None:
    """With `--resume URI`, or with the same command as at first."""
    uri, draw = server.uri("killed"), random.Random(1)

    def begun(machine: str, *options: str) -> LocalSweep:
        return LocalSweep(tmp_path / f"{machine}.txt", *arguments_in(tmp_path / machine, "killed", **FEW), *options)

    code, printed = begun("whole").wait()
    assert code == 0, printed
    sweep = begun("machine0", "--resume", "--sync-to", uri)
    for kills in (1, 2, 3):
        wait_for(lambda: "study.db" in server.names("killed"))
        sweep.process.join(draw.uniform(0, 1))
        if sweep.process.exitcode is not None:
            break
        sweep.kill()
        root = tmp_path / f"machine{kills}" / "killed"
        again = kills % 2 == 0
        sweep = begun(f"machine{kills}", "--resume", "--sync-to", uri) if again else resumed(uri, root.parent)
    code, printed = sweep.wait()
    assert code == 0, printed
    assert_equal(server.files("killed"), root)
    assert_curves_without_scars(root)
    assert decided(root) == decided(tmp_path / "whole" / "killed")
    assert curves(root) == curves(tmp_path / "whole" / "killed")


def resumed(uri: str, outputs: Path, *options: str) -> LocalSweep:
    return LocalSweep(outputs.with_suffix(".txt"), "--resume", uri, "--output-dir", str(outputs), *options)


@pytest.mark.slow
def test_a_storage_that_hangs_or_is_away_makes_the_sweep_go_on_and_upload_later(
    local: StartLocal, server: Server, tmp_path: Path
) -> None:
    proxy, root = Proxy(server.port), tmp_path / "away"
    sweep = local("away", "--sync-to", server.uri("away", proxy.port), **FEW)
    wait_for(lambda: "study.db" in server.names("away"))
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: list(root.glob("trials/0001_*/best.pt")))
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    proxy.close()
    wait_for((root / "report.html").exists)
    for sentence in ("can't be written: ", "uploading the last files"):
        wait_for(lambda sentence=sentence: sentence in sweep.output.read_text())  # type: ignore[misc]
    assert sweep.process.exitcode is None
    assert "report.html" not in server.names("away")
    proxy.open()
    code, printed = sweep.wait()
    proxy.close()
    assert code == 0, printed
    assert printed.count("can't be written: ") == 1
    assert "failed" not in printed
    assert_equal(server.files("away"), root)


def test_an_interrupted_sweep_uploads_what_there_is(local: StartLocal, server: Server, tmp_path: Path) -> None:
    sweep = local("cut", "--sync-to", server.uri("cut"), **{**FEW, "training__epochs": 50})
    wait_for(lambda: any("epoch_" in name for name in server.names("cut")))
    os.kill(sweep.process.pid, signal.SIGINT)
    code, printed = sweep.wait()
    assert code == 130, printed
    assert f"--sync-to '{server.uri('cut').replace('SECRET', '***')}'" in printed
    assert_equal(server.files("cut"), tmp_path / "cut")


@pytest.mark.slow
def test_a_sweep_that_goes_on_elsewhere_is_not_overwritten_by_the_one_before(
    local: StartLocal, ended: Path, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy, older = Proxy(server.port), tmp_path / "older" / "twice"
    first = local(
        "twice",
        "--sync-to",
        server.uri("twice", proxy.port),
        **{**FEW, "training__epochs": 12, "data__train_images": 480},
    )
    wait_for(lambda: any("epoch_" in name for name in server.names("twice")))
    wait_for(lambda: "study.db" in server.names("twice"))
    proxy.close()  # the first machine is cut off, and trains on
    for name, data in server.files("twice").items():
        (older / name).parent.mkdir(parents=True, exist_ok=True)
        (older / name).write_bytes(data)
    code, printed = resumed(server.uri("twice"), tmp_path / "elsewhere").wait()
    assert code == 0, printed
    there = server.files("twice")
    proxy.open()
    code, printed = first.wait()
    proxy.close()
    assert code == 130, printed
    assert "another command goes on with this sweep" in printed
    for root, why in (
        (older, "is further there; to go on with it"),
        (ended, "it holds another sweep"),
    ):
        assert main(["--local", "--resume", str(root), "--sync-to", server.uri("twice")]) == 2
        assert why in capfd.readouterr().err
    assert server.files("twice") == there
    assert_equal(there, tmp_path / "elsewhere" / "twice")


def test_a_folder_that_differs_from_the_storage_is_not_overwritten(
    ended: Path, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "ended"
    shutil.copytree(ended, root, symlinks=True)
    (root / "best.yaml").write_text("other\n")
    before = files_here(root)
    assert main(["--resume", server.uri("ended"), "--output-dir", str(tmp_path), "--local"]) == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith(f"--resume: {root} is there and differs from the storage in best.yaml; to go on with the")
    assert files_here(root) == before
    assert list(tmp_path.iterdir()) == [root]


def test_a_folder_that_equals_the_storage_goes_on(ended: Path, server: Server, tmp_path: Path) -> None:
    shutil.copytree(ended, tmp_path / "here" / "ended", symlinks=True)
    code, printed = resumed(server.uri("ended"), tmp_path / "here").wait()
    assert code == 0, printed
    assert "nothing is left to do" in printed
    assert_equal(server.files("ended"), tmp_path / "here" / "ended")


NOWHERE = "endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("s3://me:SECRET@none/x?{server}", "The specified bucket does not exist"),
        pytest.param(f"s3://me:SECRET@bucket/x?{NOWHERE}", "Could not connect to server", marks=pytest.mark.slow),
        ("s3://me:SECRET@bucket/x?color=red", "Unexpected query parameter in S3 URI: 'color'"),
        ("s3://me:SECRET@bucket/a b", "Cannot parse URI: 's3://me:***@bucket/a b'"),
        ("s3://me:SECRET@bucket/ended?{server}", "it holds a sweep; to go on with that: --resume and this URI"),
        ("s3://me:SECRET@bucket?{server}", "files, such as"),
        ("nosuch://bucket/x", "Protocol not known: nosuch"),
        ("az://container/x", "a package is missing: Install adlfs"),
        ("bucket/x", "must be a URI such as s3://bucket/NAME"),
        ("s3://", "must be a URI such as s3://bucket/NAME"),
        ("file://{outputs}", "must be apart from the sweep's folder"),
        ("file://{outputs}/x/copy", "must be apart from the sweep's folder"),
        ("file:///proc/self/x", "/proc/self/x"),
    ],
)
def test_a_storage_that_cannot_be_used_is_a_sentence_before_anything_starts(
    uri: str, why: str, ended: Path, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    there, outputs = server.files("ended"), tmp_path / "outputs"
    uri = uri.format(server=server.uri("").partition("?")[2], outputs=outputs)
    begin = time.monotonic()
    code = main(["--local", "--name", "x", "--output-dir", str(outputs), "--sync-to", uri])
    assert code == 2
    assert time.monotonic() - begin < 30  # ten seconds on a machine that is not busy
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith("--sync-to: must be ")
    assert why in error
    assert "SECRET" not in error
    assert not outputs.exists()
    assert server.files("ended") == there


@pytest.mark.parametrize(
    ("uri", "options", "why"),
    [
        ("s3://me:SECRET@bucket/none?{server}", [], "there is no sweep.yaml in it"),
        ("s3://me:SECRET@bucket/evil?{server}", [], "it holds '../../evil.txt'"),
        pytest.param(f"s3://me:SECRET@bucket/x?{NOWHERE}", [], "Could not connect to server", marks=pytest.mark.slow),
        ("s3://me:SECRET@bucket/ended?{server}", ["--name", "x"], "cannot be changed by --name"),
    ],
)
def test_what_cannot_be_resumed_is_a_sentence(
    uri: str, options: list[str], why: str, ended: Path, server: Server, tmp_path: Path, capfd: Any
) -> None:
    for key in ("sweep.yaml", "../../evil.txt"):
        server.client.put_object(Bucket="bucket", Key=f"evil/{key}", Body=b"seed: 1")
    uri = uri.format(server=server.uri("").partition("?")[2])
    outputs = tmp_path / "a" / "b" / "outputs"
    assert main(["--local", "--resume", uri, "--output-dir", str(outputs), *options]) == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert re.match("--resume: ", error)
    assert why in error
    assert list(tmp_path.iterdir()) == []
