"""What the terminal prints is what was meant, whatever paths and messages hold, and its commands can be pasted."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sweep.config import load
from sweep.search.records import TrialRecord
from sweep.terminal.terminal import Terminal, as_argument
from tests.conftest import QUICKSTART, REPOSITORY

HOSTILE = ["runs [old]", "[/x]", "[bold]b[/bold]", ":smile:", "back\\[slash]\\", "[link=http://x]y[/link]", "a  b"]


@pytest.mark.parametrize("text", HOSTILE)
def test_paths_values_and_messages_are_printed_and_logged_as_they_are(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sweep")
    terminal = Terminal(load(QUICKSTART, {}), tmp_path, resume=f"go on {text}")
    record = TrialRecord(3, "0003", {"optimizer.lr": 1e-3}, error=f"ValueError: {text}", note=text, state="failed")
    terminal.say(text)
    terminal.released(record)
    terminal.reported(record)
    terminal.ended(record)
    terminal.serves_no_more(text)
    terminal.cut(text)
    printed = capsys.readouterr().out
    assert printed.count(text) == caplog.text.count(text) == 7
    assert printed.splitlines()[0] == text


def test_a_trial_on_the_plateau_is_named_at_the_rung_and_when_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sweep")
    stopping = {"name": "asha", "grace_epochs": 2, "reduction_factor": 2}
    terminal = Terminal(load(QUICKSTART, {"search.early_stopping": stopping}), tmp_path, resume="")
    scores = {"error_rate": 1.0, "cer": 1.0, "loss": 2.654}
    for epoch, blank in ((1, 1.0), (2, 1.0), (3, 1.0)):
        record = TrialRecord(3, "0003", {}, scores=scores, epochs=epoch, blank_share=blank)
        terminal.reported(record)
    terminal.ended(replace(record, state="stopped"))
    left = TrialRecord(4, "0004", {}, scores={**scores, "error_rate": 0.9}, epochs=2, blank_share=0.0)
    terminal.reported(left)
    terminal.ended(replace(left, state="completed"))
    told = "still on the all-blank plateau after epoch 2: nothing is read in 100.00 % of the validation images"
    for text in (capsys.readouterr().out, caplog.text):
        assert text.count(f"0003 {told}, lowest loss 2.654") == 1
        assert text.count("plateau") == 2
        (end,) = [line for line in text.splitlines() if "stopped" in line and "0003" in line]
        assert end.endswith("on the all-blank plateau")


@pytest.mark.parametrize(
    "name", [*HOSTILE, "it's", "my runs", "-x", "~", "~root", "été 日本", "$HOME `id`", "a;b&c", "*"]
)
def test_a_path_pasted_into_a_shell_is_one_argument_that_names_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    for path in (tmp_path / name, Path("/elsewhere") / name):
        printed = subprocess.run(["bash", "-c", f"printf '%s\\n' {as_argument(path)}"], capture_output=True, check=True)
        (argument,) = os.fsdecode(printed.stdout).splitlines()
        assert tmp_path / argument == path
        assert not argument.startswith(("-", "~"))


@pytest.mark.slow
def test_every_command_that_a_sweep_prints_can_be_pasted(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    place = "-[/x] it's :smile: [old]"
    (tmp_path / place).mkdir(parents=True)
    words = arguments("r", search__trials=1, training__epochs=1)
    words[words.index("--output-dir") + 1] = f"./{place}"
    done = subprocess.run(
        [sys.executable, "-m", "sweep.run", "--local", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"writes to    {place}/r\n" in done.stdout
    commands = [line for line in done.stdout.splitlines() if "--logdir" in line or "model.predict" in line]
    assert len(commands) == 3
    for command in commands:
        script = f'set -- {command.split("  ")[-1]}; for word; do case $word in ./-*) ls -d "$word";; esac; done'
        found = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert found.strip() in (f"./{place}/r/tensorboard", f"./{place}/r/best.pt")
