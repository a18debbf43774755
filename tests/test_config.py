import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.config import AnySchedule, TrialConfig, members, override
from model.config.schedules import ConstantSchedule
from model.data.captchas import check_characters
from sweep.config import ConfigError, Parameter, load, parse_settings, split_at_commas
from sweep.run import main
from tests.conftest import QUICKSTART, REPOSITORY
from tests.test_own_images import CODES, folder_of

CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))

# (--set, what the sentence must name)
BROKEN_VALUES = [
    ("optimizer.lr=0", ["optimizer.lr must be above 0, got 0"]),
    ("optimizer.lr=-1e-3", ["optimizer.lr must be above 0, got -0.001"]),
    ("optimizer.lr=.nan", ["optimizer.lr must be a finite number, got nan"]),
    ("optimizer.lr=null", ["optimizer.lr must be a number, got null"]),
    ("optimizer.lrr=1", ["optimizer.lrr is an unknown key", "did you mean lr?"]),
    ("confirm=5", ["--set: confirm must be a mapping with the keys top, seeds, got 5"]),
    ("captcha=5", ["captcha must be a mapping", "characters", "got 5"]),
    ("search.space.optimizer.lr=5", ["search.space.optimizer.lr must be a mapping with the keys uniform", "int,"]),
    ("nonsense=1", ["nonsense is an unknown key", "captcha"]),
    ("training.epochs=0", ["--set: training.epochs must be at least 1, got 0\n"]),
    ("training.epochs=three", ["training.epochs must be a whole number, got 'three'"]),
    ("training.epochs=1.5", ["training.epochs must be a whole number, got 1.5"]),
    ("schedule.warmup=None", ["--set: schedule.warmup must be a number, got 'None'"]),
    ("search.early_stopping={grace_epochs: 0}", ["search.early_stopping.grace_epochs must be at least 1, got 0"]),
    ("schedule.name=cosin", ["schedule.name must be one of", "'cosine'", "got 'cosin'"]),
    ("search.searcher=bayes", ["search.searcher must be 'tpe', ", "got 'bayes'"]),
    ("search.early_stopping=hyperband", ["search.early_stopping.name", "'hyperband'", "'asha'"]),
    ("captcha.length=13", ["--set: network.pools", "T = 24", "25"]),
    ("captcha.length=x", ["captcha.length must be a whole number or a list, got 'x'"]),
    ("captcha.length=[0, 4]", ["--set: captcha.length.0 must be at least 1, got 0\n"]),
    ("captcha.characters=aa", ["captcha.characters", "'aa'", "different"]),
    ("captcha.characters=0中文1", ["captcha.characters must be in the font, got '中文': ", "no glyph"]),
    ("captcha.characters=ابجد", ["captcha.characters", "ا", "no glyph"]),
    ("captcha.characters=😀😃", ["captcha.characters", "😃", "no glyph"]),
    ("captcha.characters=ABАC", ["captcha.characters must look different", "U+0041", "U+0410"]),
    ("captcha.length=[3, 2]", ["captcha.length", "[3, 2]"]),
    ("captcha.length=257", ["captcha.length must be at most 256"]),
    ("captcha={width: 4096, height: 4096, render_scale: 8}", ["captcha.render_scale must give at most 16,777,216"]),
    ("network.channels=[8]", ["network.pools must have one entry for each of the 1 blocks", "got 5 entries"]),
    ("network.layers=1000000000", ["network.layers must be at most 16", "got 1000000000"]),
    ("network.encoder.layers=17", ["network.encoder.layers must be at most 16, got 17"]),
    ("network.encoder.size=1e10", ["network.encoder.size must be"]),
    ("network.kernels=999999", ["network.kernels must be at most 31", "got 999999"]),
    ("network.channels=[16, 32, 48, 64, 1000000]", ["network.channels.4 must be at most 4096, got 1000000"]),
    ("training.batch_size=9999", ["training.batch_size must be at most data.train_images (4000), got 9999"]),
    ("training.seed=18446744073709551616", ["training.seed must be below 4294967296"]),
    ("training.epochs=1000000000000", ["training.epochs must be below 2147483648"]),
    ("data.seed=-1", ["data.seed must be at least 0, got -1"]),
    ("data.train_images=1000000000000", ["data.train_images must be at most 100000000, got 1000000000000"]),
    ("data.cache=a/../b", ["data.cache must lie below the output directory or be absolute, got 'a/../b'"]),
    ("search.space={}", ["search.space must hold at least 1, got {}"]),
    ("search.space={optimizer.lr: {loguniform: [0.1, 0.01]}}", ["search.space.optimizer.lr", "[0.1, 0.01]"]),
    ("search.space={optimizer.lr: {loguniform: [0, 1]}}", ["search.space.optimizer.lr", "above 0"]),
    ("search.space={optimizer.lr: {normal: [0, 1]}}", ["search.space.optimizer.lr.normal", "loguniform"]),
    ("search.space={optimizer.lr: {uniform: [0, 1, 2]}}", ["search.space.optimizer.lr.uniform must hold at most 2"]),
    ("search.space={optimizer.lr: {}}", ["search.space.optimizer.lr must be exactly one of"]),
    ("search.space={optimizer.lr: {choice: [[1, {a: b}]]}}", ["search.space.optimizer.lr.choice", "got {a: 'b'}"]),
    ("search.space={optimizer.rate: {uniform: [0, 1]}}", ["search.space.optimizer.rate", "unknown key"]),
    ("search.space={optimizer.lr: {uniform: [0, 1]}}", ["search.space.optimizer.lr must be above 0"]),
    ("search.space={schedule.name: {choice: [cosine, tangent]}}", ["search.space.schedule.name", "'tangent'"]),
    ("search.space={training.epochs: {int: [1, 3]}}", ["search.space.training.epochs", "not searchable"]),
    ("search.space={captcha.width: {int: [96, 128]}}", ["search.space.captcha.width", "not searchable"]),
    (
        "search.space={training.seed: {int: [1, 1000000000000000000000000]}}",
        ["search.space.training.seed must be below 4294967296"],
    ),
    (
        "search.space={optimizer.lr: {choice: [1, true, 2]}}",
        ["optimizer.lr.choice", "different values, got 1 and true"],
    ),
    ("search.space={optimizer.lr: {grid: [1.0, 2, 1]}}", ["optimizer.lr.grid", "different values, got 1.0 and 1"]),
    ("search.space={training.batch_size: {choice: [8, '8']}}", ["training.batch_size must be different", "8 and '8'"]),
    ("search.searcher=grid", ["search.space.optimizer.lr", "grid"]),
    ("search.searcher=cmaes", ["search.searcher", "cmaes"]),
    ("search.points=[{optimizer.lr: 5}]", ["search.points", "optimizer.lr within loguniform 0.0001 … 0.03, got 5"]),
    ("search.points=[{optimizer.lt: 5}]", ["search.points", "got 'optimizer.lt'"]),
    (
        "search.points=[{schedule.name: constant, schedule.gamma: 0.2}]",
        ["search.points must have schedule.gamma together with schedule.name: step, got schedule.name: 'constant'"],
    ),
    (
        "search.points=[{schedule.gamma: 0.2, schedule.final: 0.1}]",
        ["schedule.final together with schedule.name: cosine, got schedule.name: 'step'"],
    ),
    ("resources.gpus=1.5", ["resources.gpus", "1.5"]),
    ("resources.gpus=64", ["--set: resources.gpus must be at most", "this machine has", "got 64"]),
    ("resources.cpus=4096", ["--set: resources.cpus must be at most", "this machine has", "got 4096"]),
]


@pytest.mark.parametrize(("setting", "named"), BROKEN_VALUES, ids=[setting for setting, _ in BROKEN_VALUES])
def test_a_wrong_value_is_answered_in_a_sentence_before_anything_is_written(
    setting: str, named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without Ray, which would start until the GPUs are counted: what is left of its C++ when it is killed at once can
    # damage the memory of the process that runs the tests.
    assert main(["--set", setting, "--output-dir", str(tmp_path / "runs"), "--local"]) == 2
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
        ("search: &a {space: *a}", "anchors and aliases"),
        ("a: &a [1]\nb: [*a, *a]", "anchors and aliases"),
        ("training: {cuda_graph: !!bool 3}", "no YAML in line 1: tags"),
        ("[" * 3000, "levels of nesting"),
        ("{a: " * 50 + "1" + "}" * 50, "levels of nesting"),
        ("x: 1\n" + "# nothing\n" * 20_000, "must be at most 100,000 bytes"),
        ("? [1, [2]]\n: 3", "no YAML"),
        ("? {a: 1}\n: 3", "no YAML"),
        ('captcha: {characters: "\\0"}', "captcha.characters"),
        ('"\\ud800": 1', "no YAML in line 1: half a surrogate pair"),
        ('"\\n\\e[31m": 1', "\\n\\x1b[31m is an unknown key"),
        (f"training: {{epochs: {'9' * 5000}}}", "training.epochs must be a whole number, got '999"),
        (f"training: {{epochs: 0x{'f' * 5000}}}", "training.epochs must be a whole number, got '0xfff"),
        ("training: {epochs: 2001-99-99}", "training.epochs must be a whole number, got '2001-99-99'"),
        ("1: 2", "1"),
        ("[1, 2]", "it holds a list"),
        ("captcha: {length: 4", "no YAML in line"),
        ("training: {epochs: 1}\ntraining: {epochs: 2}", "no YAML"),
        ("captcha: !!python/object/apply:os.system ['touch owned']", "no YAML"),
        ("\x00\x01", "no YAML"),
        ("training: {epochs: 2}", "search is missing"),
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


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_no_config(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    file = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    assert main(["--config", str(file), "--output-dir", str(tmp_path / "runs")]) == 2
    assert f"{file}: cannot be read: it is no regular file" in capsys.readouterr().err


def test_an_answer_is_short_however_many_and_long_the_mistakes_are() -> None:
    with pytest.raises(ConfigError) as many:
        load(QUICKSTART, {f"key{number}": 1 for number in range(1000)})
    lines = str(many.value).splitlines()
    assert (len(lines), lines[-1]) == (21, "… and 980 more")
    with pytest.raises(ConfigError) as long:
        load(QUICKSTART, {"k" * 100_000: 1, "search.space": {"optimizer.lr": {"grid": ["x" * 100_000]}}})
    assert all(30 < len(line) <= 301 for line in str(long.value).splitlines())


@pytest.mark.parametrize("option", ["--output-dir", "--cache-dir", "--resume", "--set data.cache"])
@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "a\0b", "\udcff", "~nosuchuser/x"])
def test_a_path_that_cannot_be_is_named(
    option: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if option.startswith("--set"):
        arguments = ["--output-dir", str(tmp_path / "runs"), "--set", f"data.cache={path}"]
    else:
        arguments = ["--output-dir", str(tmp_path / "runs"), option, path]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert option.split()[-1] in message
    assert "must" in message
    assert message.count("\n") == 1
    assert len(message) <= 301
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", ["0001_abc.PNG", "train/x.jpeg", "data.mdb"])
@pytest.mark.parametrize("option", ["--cache-dir", "--set=data.cache"])
def test_own_images_are_not_taken_for_the_cache(
    option: str, inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine" / inside
    file.parent.mkdir(parents=True)
    file.touch()
    assert main(["--output-dir", str(tmp_path / "runs"), f"{option}={tmp_path / 'mine'}"]) == 2
    message = capsys.readouterr().err
    for part in (option.removeprefix("--set="), str(tmp_path / "mine"), file.name, "own images"):
        assert part in message
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    file.rename(file.with_name("0123.pool"))
    assert main(["--dry-run", "--output-dir", str(tmp_path / "runs"), f"{option}={tmp_path / 'mine'}"]) == 0


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(QUICKSTART, {"optimizer.lr": -1, "training.epochs": "x", "captcha.widht": 3})
    assert [line.split(" ")[1] for line in str(caught.value).splitlines()] == [
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
        (["--config", "a\0b"], ["cannot be read"]),
        (["--config", "x" * 300], ["cannot be read"]),
        (["--set", "optimizer.lr"], ["--set", "optimizer.lr", "PATH=VALUE"]),
        (["--set", "optimizer.lr=[1"], ["--set", "optimizer.lr", "must be YAML"]),
        (["--set", "optimizer.lr=!!bool 3"], ["--set", "optimizer.lr", "must be YAML", "tags"]),
        (["--set", "optimizer.lr=" + "[" * 3000], ["--set", "optimizer.lr", "must be YAML", "nesting"]),
        (["--set", "optimizer.lr=" + "9" * 5000], ["--set", "optimizer.lr must be"]),
        (["--set", "optimizer.lr=2001-99-99"], ["--set", "optimizer.lr must be a number, got '2001-99-99'"]),
        (["--trial", "optimizer.lr=1e-3,network.channels=[1,2"], ["--trial", "network.channels must be YAML"]),
        (["--trial", "optimizer.lr=1e-3,network.channels=[1,2]"], ["--trial", "network.channels", "[1, 2]"]),
        (["--trial", "optimizer.lr=null"], ["--trial", "optimizer.lr must be a number, got null"]),
        (["--trial", "optimizer.lr=-1"], ["--trial", "optimizer.lr", "-1"]),
        (["--trial", "schedule.name=foo"], ["--trial", "schedule.name", "'foo'"]),
    ],
)
def test_a_wrong_option_is_answered_in_a_sentence(
    arguments: list[str], named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()  # an empty folder would be free
    cache = ["--cache-dir", str(tmp_path / "cache")]
    assert main(["--output-dir", str(tmp_path), *cache, *arguments]) == 2
    message = capsys.readouterr().err
    for part in named:
        assert part in message
    assert {path.name for path in tmp_path.iterdir()} <= {"there", "cache"}
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]


@pytest.mark.slow
def test_more_gpus_than_there_are_are_refused_also_when_ray_has_begun_to_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sweep.run", "--set", "resources.gpus=64", "--output-dir", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("--set: resources.gpus must be at most ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_config_loads_repeats_itself_and_dry_runs(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(file)
    (tmp_path / "again.yaml").write_text(config.yaml)
    assert load(tmp_path / "again.yaml") == config
    drawn = config.captcha is not None
    options = ["--dry-run", "--output-dir", str(tmp_path / "runs"), "--cache-dir", str(tmp_path / "cache")]
    options += [] if drawn else ["--images", str(folder_of(CODES, tmp_path / "images"))]
    assert main(["--config", str(file), *options]) == 0
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


@pytest.mark.parametrize("base", sorted(members(AnySchedule)))
@pytest.mark.parametrize("name", sorted(members(AnySchedule)))
def test_a_searched_schedule_has_its_own_defaults_whatever_the_base_has(tmp_path: Path, base: str, name: str) -> None:
    config = load(
        QUICKSTART, {"schedule.name": base, "search.space": {"schedule.name": {"choice": sorted({base, name})}}}
    )
    (tmp_path / "sweep.yaml").write_text(config.yaml)
    for sweep in (config, load(tmp_path / "sweep.yaml")):
        assert sweep.with_values({"schedule.name": name}).schedule == members(AnySchedule)[name]()


def test_settings_take_the_type_of_what_they_replace() -> None:
    settings = parse_settings("--set", ["optimizer.lr=3e-4", "captcha.characters=0123", "network.pools=[2, [2, 1]]"])
    assert settings == {"optimizer.lr": 3e-4, "captcha.characters": "0123", "network.pools": [2, [2, 1]]}


def test_a_searched_path_is_one_key_and_brackets_hold_commas_together() -> None:
    settings = parse_settings("--set", ["search.space.optimizer.lr={loguniform: [1e-5, 1e-2]}"])
    space = load(QUICKSTART, settings).search.space
    assert space["optimizer.lr"].bounds == (1e-5, 1e-2)
    assert list(space) == ["optimizer.lr", "schedule.name"]
    texts = split_at_commas("network.channels=[16,16,32,32,64],network.pools=[2,2,[2,1],[2,1],2],optimizer.lr=1e-3")
    trial = parse_settings("--trial", [*texts, "optimizer.gradient_clip=null"])
    config = load(QUICKSTART, trial=trial)
    values = {path: parameter.options[0] for path, parameter in config.search.space.items()}
    assert config.with_values(values).network.channels == (16, 16, 32, 32, 64)
    assert config.with_values(values).optimizer.gradient_clip is None


def test_the_whole_of_ascii_is_in_the_font_and_a_font_is_not_loaded_for_it() -> None:
    check_characters("".join(chr(code) for code in range(33, 127)))
    check_characters("αβγδабвгéüñ")
    code = f"import sys, pathlib, sweep.config; sweep.config.load(pathlib.Path({str(QUICKSTART)!r}))"
    code += "; print('PIL' in sys.modules, 'torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]


def test_a_parameters_distribution_reads_as_it_was_written() -> None:
    for written in (
        {"loguniform": [1e-4, 0.1]},
        {"int": [1, 3]},
        {"choice": [1, 2.5, "x"]},
        {"grid": [True, False]},
        {"choice": [None, 1.0, [16, [2, 1]]]},
        {"grid": [[16, 32], None]},
        {"choice": {"a": {}, "b": {"optimizer.lr": {"grid": [1, 2]}}}},
        {"choice": {None: {}, (2, 1): {"optimizer.lr": {"grid": [1, 2]}}}},
    ):
        dumped: Any = Parameter.model_validate(written).model_dump()
        assert override(dumped, {}) == written  # which writes tuples as lists
        assert Parameter.model_validate(dumped) == Parameter.model_validate(written)


def test_null_and_lists_as_choices_come_back_from_a_sweeps_own_file(tmp_path: Path) -> None:
    space = {
        "optimizer.gradient_clip": {"choice": {None: {"training.seed": {"int": [1, 2]}}, 1.0: {}}},
        "network.channels": {
            "choice": {(16, 32, 48, 64, 64): {"network.dropout": {"grid": [0.1]}}, (8, 8, 8, 8, 8): {}}
        },
        "network.pools": {"choice": [[[2, 2], 2, 2, [2, 1], [2, 1]], [2, 2, 2, 1, [2, 1]]]},
    }
    points = [{"optimizer.gradient_clip": None, "network.channels": [8, 8, 8, 8, 8]}]
    config = load(QUICKSTART, {"search.space": space, "search.points": points})
    (tmp_path / "sweep.yaml").write_text(config.yaml)
    assert load(tmp_path / "sweep.yaml") == config
    assert config.search.space["network.channels"].options[1] == (8, 8, 8, 8, 8)


def test_a_parameter_of_the_schedule_may_be_set_alone() -> None:
    assert load(QUICKSTART, {"schedule.warmup": 0.1}).schedule == ConstantSchedule(warmup=0.1)
    assert load(QUICKSTART, {"search.early_stopping": {"grace_epochs": 3}}).search.early_stopping.name == "asha"
