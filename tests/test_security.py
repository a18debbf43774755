"""What strangers send can't run code or write elsewhere, and what listens lets nobody in."""

import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from model.predict import main as predict
from sweep.run import main
from sweep.search.records import trial_name
from tests.processes import Start, saved, title, wait_for


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def test_a_malicious_checkpoint_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"network": Malicious(tmp_path / "owned"), "config": {}}, tmp_path / "evil.pt")
    assert predict([str(tmp_path / "evil.pt"), str(tmp_path)]) == 2
    assert "evil.pt: this is no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "yaml",
    [
        "captcha: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [OWNED]]",
        "captcha: !!python/object/new:os.system ['touch OWNED']",
        "captcha: !!python/name:os.system",
        "captcha: !anything {}",
    ],
)
def test_a_malicious_config_runs_nothing(tmp_path: Path, yaml: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text(yaml.replace("OWNED", str(tmp_path / "owned")))
    assert main(["--config", str(file), "--output-dir", str(tmp_path / "runs")]) == 2
    assert str(file) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["evil.yaml"]


@pytest.mark.parametrize("value", ["../../etc", "/etc", "a\\b", "\0", "new\nline", "$(touch x)", "ä", ("..", "/x")])
def test_a_trials_name_holds_nothing_that_leaves_its_folder(value: Any) -> None:
    name = trial_name(7, {"schedule.name": value, "optimizer.lr": 1e-3})
    assert re.fullmatch(r"0007_[A-Za-z0-9._=+-]{1,75}", name)
    assert name.endswith("_lr=1.0e-03")


@pytest.mark.parametrize("path", ["../elsewhere", "a/../../elsewhere", "~/elsewhere"])
def test_a_configs_image_folder_does_not_climb_out(
    tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--set", f"data.cache={path}", "--output-dir", str(tmp_path / "runs")]) == 2
    message = capsys.readouterr().err
    assert "data.cache" in message
    assert path in message
    assert list(tmp_path.iterdir()) == []


def listening(process: psutil.Process) -> dict[int, str]:
    """Port → address, of a process and all below it."""
    found = {}
    for member in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            for connection in member.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr.port] = connection.laddr.ip
    return found


@pytest.mark.slow
def test_tensorboard_listens_on_this_machine_alone_and_ray_lets_in_only_who_has_the_token(
    start: Start, tmp_path: Path
) -> None:
    sweep = start("r", "--tensorboard", training__epochs=2000, search__early_stopping="none")
    wait_for(lambda: saved(tmp_path / "r", 1))
    driver = psutil.Process(sweep.process.pid)
    boards = [child for child in driver.children() if "tensorboard/server.py" in title(child)]
    assert [set(listening(board).values()) for board in boards] == [{"127.0.0.1"}]
    (gcs,) = [child for child in driver.children(recursive=True) if "/gcs_server " in title(child)]
    (port,) = [c.laddr.port for c in gcs.net_connections("tcp") if c.status == psutil.CONN_LISTEN and is_grpc(c)]
    right = gcs.environ()["RAY_AUTH_TOKEN"]
    assert "got in" in knock(port, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": right})
    assert "got in" not in knock(port, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
    assert "got in" not in knock(port, {})
    sweep.press_ctrl_c()
    assert sweep.wait(15)[0] == 130


def knock(port: int, token: dict[str, str]) -> str:
    """What a program prints that tries to join; Ray itself tries again for longer than we wait."""
    code = f"import ray; ray.init('127.0.0.1:{port}', logging_level='ERROR'); print('got in', ray.nodes())"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | token
    command = ["timeout", "--signal=KILL", "20", sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def is_grpc(connection: Any) -> bool:
    """Ray's own protocol begins with HTTP/2's settings."""
    with socket.create_connection(("127.0.0.1", connection.laddr.port), timeout=5) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        return client.recv(9)[3:4] == b"\x04"
