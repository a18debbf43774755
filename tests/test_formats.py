"""Old names and formats: what an earlier version wrote is read, or refused in one sentence."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import TrialConfig, override
from model.config.format import FORMAT
from model.config.renamed import RENAMED, renamed
from model.network.crnn import CRNN
from model.reading.recognizer import Recognizer
from model.training import checkpoints
from sweep.config import ConfigError, load
from sweep.report import main as report
from sweep.run import main
from tests.conftest import QUICKSTART
from tests.processes import TINY, StartLocal
from tests.results import leaderboard


@pytest.mark.parametrize("old", RENAMED)
def test_a_key_under_its_old_name_is_read_in_a_config_a_setting_a_space_and_a_trial(tmp_path: Path, old: str) -> None:
    values = ["x", "y"] if old == "data.path" else [3, 4]
    section, key = old.split(".")
    searchable = section == "network"
    config: dict[str, Any] = {section: {key: values[0]}, "search": {"space": {"optimizer.lr": {"grid": [0.1, 0.2]}}}}
    if searchable:
        config["search"] = {"space": {old: {"grid": values}}, "points": [{old: values[1]}]}
    file = tmp_path / "old.yaml"
    file.write_text(json.dumps(config))
    told: list[str] = []
    sweep = load(file, {old: values[1]}, tell=told.append)
    assert told == [f"{old} is now {RENAMED[old]}"]
    tree: Any = sweep.model_dump()
    for name in RENAMED[old].split("."):
        tree = tree[name]
    assert tree == values[1]
    if searchable:
        assert list(sweep.search.space) == [RENAMED[old]]
        assert sweep.search.points == ({RENAMED[old]: values[1]},)
        one = load(file, trial={old: values[1]}, tell=told.append)
        assert list(one.search.space) == [RENAMED[old]]


def test_present_names_are_told_to_nobody() -> None:
    told: list[str] = []
    load(QUICKSTART, {"network.encoder.size": 32}, tell=told.append)
    assert told == []


def test_an_old_name_beside_the_encoders_name_alone_belongs_to_that_encoder() -> None:
    tree = {"network": {"encoder": "gru", "lstm_size": 24}}
    assert renamed(tree) == {"network": {"encoder": {"name": "gru", "size": 24}}}
    assert tree == {"network": {"encoder": "gru", "lstm_size": 24}}


def test_a_misspelt_value_under_an_old_name_is_told_with_both_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--set", "network.lstm_size=many", "--dry-run"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "network.lstm_size is now network.encoder.size"
    assert second == "--set: network.encoder.size must be a whole number, got 'many'"


def test_weights_of_format_1_are_read_as_they_were(tmp_path: Path) -> None:
    config = TrialConfig.model_validate(override({}, {**TINY, "network.encoder.layers": 2}))
    network = CRNN(config)
    old = {name.replace("encoder.", "lstm."): weight for name, weight in network.state_dict().items()}
    tree = config.model_dump(mode="json")
    encoder = tree["network"].pop("encoder")
    tree["network"] |= {"lstm_size": encoder["size"], "lstm_layers": encoder["layers"]}
    torch.save({"network": old, "config": tree, "epoch": 3}, tmp_path / "best.pt")
    recognizer = Recognizer.from_checkpoint(tmp_path / "best.pt")
    assert recognizer.config == config
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    assert torch.equal(recognizer.network(images), network.eval()(images))


def test_a_checkpoint_of_a_newer_format_is_refused_in_a_sentence(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "best.pt", {"network": {}, "format": FORMAT + 1})
    with pytest.raises(ValueError, match=f"format must be at most {FORMAT}, got {FORMAT + 1}"):
        checkpoints.load(tmp_path / "best.pt")


@pytest.fixture
def ended(local: StartLocal, tmp_path: Path) -> Path:
    sweep = local("r", search__trials=2, training__epochs=1, search__early_stopping="none")
    code, printed = sweep.wait()
    assert code == 0, printed
    return tmp_path / "r"


def as_format_1(root: Path) -> None:
    """Rewrites a sweep's files as version 0.1.0 left them: no numbers of a format, scores beside the other keys."""
    file = root / "sweep.yaml"
    file.write_text(file.read_text().replace(f"format: {FORMAT}\n", ""))
    with closing(sqlite3.connect(root / "study.db")) as connection, connection:
        connection.execute("DELETE FROM study_user_attributes")
        rows = connection.execute("SELECT trial_user_attribute_id, value_json FROM trial_user_attributes").fetchall()
        assert len(rows) == 2
        for number, text in rows:
            record = json.loads(text)
            scores = record.pop("scores")
            record |= {name: scores[name] for name in ("error_rate", "cer", "loss")}
            update = "UPDATE trial_user_attributes SET value_json = ? WHERE trial_user_attribute_id = ?"
            connection.execute(update, (json.dumps(record), number))


def test_a_sweep_of_format_1_is_reported_and_refused_to_be_resumed(
    ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = leaderboard(ended)
    as_format_1(ended)
    assert report([str(ended)]) == 0
    page = (ended / "report.html").read_text()
    for row in before:
        assert f"{100 * float(row['error_rate']):.2f} %" in page
        assert f"{100 * float(row['cer']):.2f} %" in page
    capsys.readouterr()
    files = {path: path.read_bytes() for path in ended.rglob("*") if path.is_file()}
    assert main(["--resume", str(ended), "--trials", "3", "--local"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f"sweep.yaml: format must be {FORMAT} to be resumed, got 1" in sentence
    assert {path: path.read_bytes() for path in ended.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("where", ["sweep.yaml", "study.db"])
def test_a_sweep_of_a_newer_format_is_refused_in_a_sentence(
    ended: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    if where == "sweep.yaml":
        file = ended / "sweep.yaml"
        file.write_text(file.read_text().replace(f"format: {FORMAT}\n", f"format: {FORMAT + 1}\n"))
    else:
        with closing(sqlite3.connect(ended / "study.db")) as connection, connection:
            change = "UPDATE study_user_attributes SET value_json = ? WHERE key = 'format'"
            assert connection.execute(change, (str(FORMAT + 1),)).rowcount == 1
    for command in (lambda: main(["--resume", str(ended), "--local"]), lambda: report([str(ended)])):
        assert command() == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert where in sentence
        assert "format must be" in sentence


def test_format_1_is_read_as_a_config_and_written_in_the_present_one(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("format: 1\nnetwork: {lstm_size: 24}\nsearch: {space: {optimizer.lr: {grid: [0.1]}}}\n")
    written = load(file).yaml
    assert f"format: {FORMAT}\n" in written
    assert "lstm_size" not in written
    file.write_text("format: 0\nsearch: {space: {optimizer.lr: {grid: [0.1]}}}\n")
    with pytest.raises(ConfigError, match=f"format must be at most {FORMAT}"):
        load(file)
