"""A real TensorBoard, asked over HTTP as its page does."""

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.processes import wait_for
from tests.results import curves


class Board:
    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, route: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.address}/data/{route}?{urlencode(query)}", timeout=20) as answer:
            return json.load(answer)

    def runs(self) -> list[str]:
        try:
            return list(self.get("runs"))
        except OSError:
            return []

    def curves(self) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """Every scalar point of every run, as `tests.results.curves`."""
        tags = self.get("plugin/scalars/tags")
        return {
            (run, tag): [(step, value) for _, step, value in self.get("plugin/scalars/scalars", run=run, tag=tag)]
            for run in tags
            for tag in tags[run]
            if run != "_sweep"
        }

    def wait_for_all_of(self, root: Path) -> None:
        """Until it has read every point of a finished sweep: a page asks once, when it opens."""
        written = {key: len(points) for key, points in curves(root).items()}
        wait_for(lambda: {key: len(points) for key, points in self.curves().items()} == written)

    def hparams(self, route: str, **body: Any) -> Any:
        data = json.dumps({"experimentName": "", **body}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/data/plugin/hparams/{route}", data, headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def sessions(self, *columns: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of the HParams table."""
        statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        body = {"allowedStatuses": statuses, "sliceSize": 100, "colParams": list(columns)}
        return list(self.hparams("session_groups", **body)["sessionGroups"])


@contextmanager
def serve(logdir: Path, *options: str) -> Iterator[Board]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
    with subprocess.Popen(
        [*command, "--port", str(port), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            board = Board(f"http://127.0.0.1:{port}")
            wait_for(board.runs)
            yield board
        finally:
            server.terminate()
