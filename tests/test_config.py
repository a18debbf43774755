from pathlib import Path
from typing import Any

import pytest

from model.config import SCHEDULE_SECTIONS, ConstantSchedule, TrialConfig, override
from sweep.config import ConfigError, Parameter, load, parse_settings
from sweep.run import main
from tests.conftest import QUICKSTART, REPOSITORY

CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))

# (--set, what the sentence must name)
BROKEN_VALUES = [
    ("optimizer.lr=0", ["optimizer.lr", "0 is not allowed", "greater than 0"]),
    ("optimizer.lr=-1e-3", ["optimizer.lr", "-0.001", "greater than 0"]),
    ("optimizer.lr=.nan", ["optimizer.lr", "nan", "finite"]),
    ("optimizer.lrr=1", ["optimizer.lrr", "unknown key", "did you mean lr?"]),
    ("confirm=5", ["--set", "confirm", "5 is not allowed", "mapping", "top, seeds"]),
    ("captcha=5", ["captcha", "5 is not allowed", "mapping", "characters"]),
    ("nonsense=1", ["nonsense", "unknown key", "captcha"]),
    ("training.epochs=three", ["training.epochs", "'three'", "integer"]),
    ("training.epochs=1.5", ["training.epochs", "1.5", "integer"]),
    ("schedule.warmup=None", ["--set", "schedule.warmup", "'None'", "number"]),
    ("search.early_stopping={grace_epochs: 0}", ["search.early_stopping.grace_epochs", "0"]),
    ("schedule.name=cosin", ["schedule.name", "'cosin'", "'cosine'"]),
    ("search.searcher=bayes", ["search.searcher", "'bayes'", "'tpe'"]),
    ("search.early_stopping=hyperband", ["search.early_stopping.name", "'hyperband'", "'asha'"]),
    ("captcha.length=9", ["network.pools", "T = 12", "17"]),
    ("captcha.characters=aa", ["captcha.characters", "'aa'", "different"]),
    ("captcha.length=[3, 2]", ["captcha.length", "[3, 2]"]),
    ("network.channels=[8]", ["network.pools", "5 entries", "1 blocks"]),
    ("training.batch_size=9999", ["training.batch_size", "9999", "data.train_images"]),
    ("search.space={}", ["search.space", "{}", "at least 1"]),
    ("search.space={optimizer.lr: {loguniform: [0.1, 0.01]}}", ["search.space.optimizer.lr", "[0.1, 0.01]"]),
    ("search.space={optimizer.lr: {loguniform: [0, 1]}}", ["search.space.optimizer.lr", "above 0"]),
    ("search.space={optimizer.lr: {normal: [0, 1]}}", ["search.space.optimizer.lr.normal", "loguniform"]),
    ("search.space={optimizer.lr: {}}", ["search.space.optimizer.lr", "exactly one"]),
    ("search.space={optimizer.rate: {uniform: [0, 1]}}", ["search.space.optimizer.rate", "unknown key"]),
    ("search.space={optimizer.lr: {uniform: [0, 1]}}", ["search.space.optimizer.lr", "greater than 0"]),
    ("search.space={schedule.name: {choice: [cosine, tangent]}}", ["search.space.schedule.name", "'tangent'"]),
    ("search.space={training.epochs: {int: [1, 3]}}", ["search.space.training.epochs", "not searchable"]),
    ("search.space={captcha.width: {int: [96, 128]}}", ["search.space.captcha.width", "not searchable"]),
    ("search.searcher=grid", ["search.space.optimizer.lr", "grid"]),
    ("search.searcher=cmaes", ["search.searcher", "'cmaes'"]),
    ("search.points=[{optimizer.lr: 5}]", ["search.points", "optimizer.lr", "5"]),
    ("resources.gpus=1.5", ["resources.gpus", "1.5"]),
    ("resources.gpus=64", ["resources.gpus", "64", "this machine has"]),
    ("resources.cpus=4096", ["resources.cpus", "4096", "this machine has"]),
]


@pytest.mark.parametrize(("setting", "named"), BROKEN_VALUES, ids=[setting for setting, _ in BROKEN_VALUES])
def test_a_wrong_value_is_answered_in_a_sentence_before_anything_is_written(
    setting: str, named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--set", setting, "--output-dir", str(tmp_path / "runs")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    for part in named:
        assert part in printed.err
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "it is empty"),
        ("[1, 2]", "it holds a list"),
        ("captcha: {length: 4", "no YAML in line"),
        ("training: {epochs: 1}\ntraining: {epochs: 2}", "no YAML"),
        ("captcha: !!python/object/apply:os.system ['touch owned']", "no YAML"),
        ("\x00\x01", "no YAML"),
        ("training: {epochs: 2}", "search: is missing"),
    ],
)
def test_an_unusable_file_is_named(text: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert main(["--config", str(file), "--output-dir", str(tmp_path / "runs")]) == 2
    message = capsys.readouterr().err
    assert str(file) in message
    assert named in message
    assert list(tmp_path.iterdir()) == [file]


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(QUICKSTART, {"optimizer.lr": -1, "training.epochs": "x", "captcha.widht": 3})
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "captcha.widht",
        "optimizer.lr",
        "training.epochs",
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config", "/nowhere/x.yaml"], ["/nowhere/x.yaml", "cannot be read"]),
        (["--output-dir", "/dev/null/runs"], ["--output-dir", "/dev/null/runs", "cannot be written"]),
        (["--cache-dir", "/dev/null/cache"], ["--cache-dir", "/dev/null/cache", "cannot be written"]),
        (["--name", "a/b"], ["--name", "'a/b'"]),
        (["--name", ".."], ["--name", "'..'"]),
        (["--name", "there"], ["--name", "'there'", "exists already"]),
        (["--set", "optimizer.lr"], ["--set", "optimizer.lr", "PATH=VALUE"]),
        (["--set", "optimizer.lr=[1"], ["--set", "optimizer.lr", "no YAML"]),
        (["--trial", "optimizer.lr=-1"], ["--trial", "optimizer.lr", "-1"]),
        (["--trial", "schedule.name=foo"], ["--trial", "schedule.name", "'foo'"]),
    ],
)
def test_a_wrong_option_is_answered_in_a_sentence(
    arguments: list[str], named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    cache = ["--cache-dir", str(tmp_path / "cache")]
    assert main(["--output-dir", str(tmp_path), *cache, *arguments]) == 2
    message = capsys.readouterr().err
    for part in named:
        assert part in message
    assert {path.name for path in tmp_path.iterdir()} <= {"there", "cache"}
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_config_loads_repeats_itself_and_dry_runs(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(file)
    (tmp_path / "again.yaml").write_text(config.yaml)
    assert load(tmp_path / "again.yaml") == config
    assert main(["--config", str(file), "--dry-run", "--output-dir", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    assert "optimizer.lr" in printed
    assert "0000_lr=" in printed
    assert not (tmp_path / "runs").exists()


def test_there_are_configs() -> None:
    assert {"quickstart.yaml", "captcha_break.yaml"} <= {file.name for file in CONFIGS}


def test_a_new_schedule_leaves_the_old_ones_parameters_behind_and_keeps_the_shared_ones() -> None:
    base = {"schedule": {"name": "step", "gamma": 0.5, "warmup": 0.1}, "training": {"epochs": 2}}
    changed = override(base, {"schedule.name": "cosine", "schedule.final": 0.2})
    assert changed["schedule"] == {"name": "cosine", "final": 0.2, "warmup": 0.1}
    assert base["schedule"]["gamma"] == 0.5
    assert TrialConfig.model_validate(changed).schedule.warmup == 0.1


@pytest.mark.parametrize("base", sorted(SCHEDULE_SECTIONS))
@pytest.mark.parametrize("name", sorted(SCHEDULE_SECTIONS))
def test_a_searched_schedule_has_its_own_defaults_whatever_the_base_has(tmp_path: Path, base: str, name: str) -> None:
    config = load(QUICKSTART, {"schedule.name": base, "search.space": {"schedule.name": {"choice": [base, name]}}})
    (tmp_path / "sweep.yaml").write_text(config.yaml)
    for sweep in (config, load(tmp_path / "sweep.yaml")):
        assert sweep.with_values({"schedule.name": name}).schedule == SCHEDULE_SECTIONS[name]()


def test_settings_take_the_type_of_what_they_replace() -> None:
    settings = parse_settings("--set", ["optimizer.lr=3e-4", "captcha.characters=0123", "network.pools=[2, [2, 1]]"])
    assert settings == {"optimizer.lr": 3e-4, "captcha.characters": "0123", "network.pools": [2, [2, 1]]}


def test_a_parameters_distribution_reads_as_it_was_written() -> None:
    for written in (
        {"loguniform": [1e-4, 0.1]},
        {"int": [1, 3]},
        {"choice": [1, 2.5, "x"]},
        {"grid": [True, False]},
        {"choice": {"a": {}, "b": {"optimizer.lr": {"grid": [1, 2]}}}},
    ):
        dumped: Any = Parameter.model_validate(written).model_dump()
        assert dumped == written
        assert Parameter.model_validate(dumped) == Parameter.model_validate(written)


def test_a_parameter_of_the_schedule_may_be_set_alone() -> None:
    assert load(QUICKSTART, {"schedule.warmup": 0.1}).schedule == ConstantSchedule(warmup=0.1)
    assert load(QUICKSTART, {"search.early_stopping": {"grace_epochs": 3}}).search.early_stopping.name == "asha"
