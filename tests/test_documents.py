"""The documents are true: every command and every piece of code in them runs, every link and every key is there."""

import importlib
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from model.captchas import main as draw_samples
from sweep.config import Parameter, load
from sweep.run import main as run_sweep
from tests import config_keys, ground_truth, replay
from tests.conftest import REPOSITORY
from tests.processes import TINY, sets
from tests.test_own_images import CODES, folder_of

DOCUMENTS = [
    REPOSITORY / name
    for name in (
        "README.md",
        "configs/README.md",
        "model/README.md",
        "sweep/README.md",
        "tests/README.md",
        ".github/CONTRIBUTING.md",
    )
]
CI = (REPOSITORY / ".ci" / "run").read_text()
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def parts(document: Path) -> Iterator[tuple[str | None, str]]:
    """Each code block with its language, which may be "", and the text between them with None."""
    language: str | None = None
    lines: list[str] = []
    for line in document.read_text().splitlines():
        if fence := re.match(r" *```(\w*)$", line):
            yield language, textwrap.dedent("\n".join(lines)) + "\n"
            language, lines = (fence[1] if language is None else None), []
        else:
            lines.append(line)
    yield language, "\n".join(lines)


def blocks(document: Path, language: str) -> list[str]:
    return [text for written, text in parts(document) if written == language]


def commands(document: Path) -> Iterator[str]:
    """Of shell blocks each line; of running text what begins like a command."""
    for language, text in parts(document):
        if language == "sh":
            yield from text.splitlines()
        elif language is None:
            yield from re.findall(r"`((?:python -m|pytest|pip|uv|nvidia-|echo|\.ci/run)[^`]*)`", text)


def all_commands() -> list[str]:
    """Each once, also if it is sometimes written without the environment's folder."""
    found = [command for document in DOCUMENTS for command in commands(document)]
    return [each for each in dict.fromkeys(found) if f".venv/bin/{each}" not in found]


COMMANDS = all_commands()

# What can't run here, and why.
NOT_RUN = {
    r"python3 -m venv .* && \.venv/bin/pytest": "it is what .ci/run runs, and with it this test",
    r"\.ci/run": "it runs this test",
    r"\.venv/bin/(ruff|mypy)\b.*": ".ci/run runs it after the tests",
    r"pip install \.": "test_packaging.py builds the wheel that it installs, without the network",
    r"\.venv/bin/pip install -q pre-commit .*": "it installs Git hooks, from the network; a test compares them with CI",
    r"uv venv && uv pip install -e '\.\[test\]'": "uv is another program; the package and its extra are pip's",
    r"uv run python -m sweep\.run": "test_ray_cluster.py runs it",
    r"python -m tests\.many_nodes .*": "test_many_nodes.py runs it, with fewer trials",
    r"nvidia-cuda-mps-control -d": "it takes an NVIDIA driver",
    r"echo quit \| nvidia-cuda-mps-control": "it takes an NVIDIA driver",
}


def is_run(command: str) -> bool:
    return not any(re.fullmatch(pattern, command) for pattern in NOT_RUN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with two small sweeps that have ended, a recogniser and images to read."""
    root = tmp_path_factory.mktemp("documents")
    few = {"data.train_images": 16, "data.valid_images": 8, "data.test_images": 8, "training.epochs": 2}
    settings = {**TINY, **few, "search.trials": 2, "search.early_stopping": "none", "confirm": "{top: 1, seeds: 1}"}
    places = ["--output-dir", str(root / "runs"), "--cache-dir", str(root / "runs" / "cache"), "--local", "--quiet"]
    for seed, name in enumerate(("NAME", "OTHER")):
        assert run_sweep([*places, "--name", name, *sets(settings), f"--set=search.seed={seed}"]) == 0
    (root / "runs" / "alone").mkdir()
    (root / "runs" / "alone" / "best.pt").write_bytes((root / "runs" / "NAME" / "best.pt").read_bytes())
    assert draw_samples([str(root / "samples"), "--count", "2"]) == 0
    folder_of(CODES, root / "FOLDER")
    return root


def python(command: str, *more: str) -> int:
    """Runs `python -m MODULE …` in this process, which has imported what takes seconds."""
    _, _, module, *arguments = shlex.split(command)
    code: int = importlib.import_module(module).main([*arguments, *more])
    return code


def dry(command: str, captured: pytest.CaptureFixture[str]) -> None:
    """A search: all but the search itself."""
    assert python(command, "--dry-run", "--cache-dir", "runs/cache") == 0
    assert "trials over" in captured.readouterr().out


def resumed(command: str, captured: pytest.CaptureFixture[str]) -> None:
    """With Ray it is the same command, and takes longer."""
    assert python(command, "--local") == 0
    assert "best" in captured.readouterr().out


def done(command: str, captured: pytest.CaptureFixture[str]) -> None:
    assert python(command) == 0
    assert captured.readouterr().out


def refused(command: str, captured: pytest.CaptureFixture[str]) -> None:
    """The benchmark: its options are taken, then a broken value ends it. test_bench.py measures for minutes."""
    assert python(command, "--set", "optimizer.lr=0") == 2
    assert captured.readouterr().err == "--set: optimizer.lr must be above 0, got 0\n"


def quickstart(command: str, captured: pytest.CaptureFixture[str]) -> None:
    """Its installation is that of the command for the tests, which CI runs, without their extra."""
    install, run = command.rsplit(" && ", 1)
    assert install == first_commands()[1].rsplit(" && ", 1)[0].replace("'.[test]'", ".")
    dry(run, captured)


def inspected(command: str, captured: pytest.CaptureFixture[str]) -> None:
    """A server: it reads the folder and ends, instead of serving it."""
    inspect = [sys.executable, "-m", "tensorboard.main", *shlex.split(command)[1:], "--inspect"]
    result = subprocess.run(inspect, capture_output=True, text=True, timeout=120, check=True)
    assert "best/error_rate" in result.stdout


def collected(command: str, captured: pytest.CaptureFixture[str]) -> None:
    """Tests: there are some that it would run."""
    options = ["--collect-only", "-q", "-n0", "-p", "no:cacheprovider"]
    collect = [sys.executable, "-m", "pytest", *shlex.split(command)[1:], *options]
    result = subprocess.run(collect, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def replayed(command: str, captured: pytest.CaptureFixture[str]) -> None:
    """One replay for each search instead of 100: the same table as in the document, with other figures."""
    replay.main(replays=1)
    printed = captured.readouterr().out.splitlines()[1:]
    document = (REPOSITORY / "sweep" / "README.md").read_text().splitlines()
    start = document.index(printed[0])
    table = document[start : document.index("", start)]
    assert [row.split("|")[1] for row in printed] == [row.split("|")[1] for row in table]


def recorded(command: str, captured: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ground_truth, "FILE", Path("truth.csv"))
        ground_truth.main(Path(command.split()[-1]))
    assert len(Path("truth.csv").read_text().splitlines()) > 2
    Path("truth.csv").unlink()


def pictured(command: str, captured: pytest.CaptureFixture[str]) -> None:
    from tests import pictures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "IMAGES", Path("samples"))
        patch.setattr(sys, "argv", command.split()[2:])
        pictures.main()
    assert captured.readouterr().out.count(" kB") == 2


def keys_printed(command: str, captured: pytest.CaptureFixture[str]) -> None:
    config_keys.main()
    assert "`optimizer.lr`" in captured.readouterr().out


Way = Callable[[str, pytest.CaptureFixture[str]], None]
# The first that matches. Marks are those of what it costs.
WAYS: list[tuple[str, Way, list[Any]]] = [
    (r"python3 -m venv .* -m sweep\.run$", quickstart, []),
    (r"\S*python -m sweep\.run .*--resume", resumed, []),
    (r"\S*python -m sweep\.run\b", dry, []),
    (r"\S*python -m sweep\.bench\b", refused, []),
    (r"\S*python -m (sweep\.report|model\.captchas|model\.images|model\.predict) ", done, []),
    (r"\S*python -m tests\.replay$", replayed, []),
    (r"\S*python -m tests\.ground_truth ", recorded, []),
    (r"\S*python -m tests\.config_keys$", keys_printed, []),
    (r"\S*python -m tests\.pictures ", pictured, [pytest.mark.browser]),
    (r"\S*tensorboard --logdir ", inspected, []),
    (r"\S*pytest\b", collected, [pytest.mark.slow]),
]


def way(command: str) -> tuple[Way, list[Any]]:
    for pattern, function, marks in WAYS:
        if re.match(pattern, command):
            return function, marks
    raise ValueError(f"tests/test_documents.py has no way to run {command!r}, and no reason why it can't")


def first_commands() -> list[str]:
    return [block.strip() for block in blocks(REPOSITORY / "README.md", "sh")[:2]]


@pytest.mark.parametrize(
    "command", [pytest.param(command, marks=way(command)[1], id=command) for command in COMMANDS if is_run(command)]
)
def test_a_documented_command_runs(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    way(command)[0](command, capsys)


def test_the_commands_that_no_test_runs_are_in_a_document_and_ci_runs_those_that_it_can() -> None:
    for pattern in NOT_RUN:
        assert [command for command in COMMANDS if re.fullmatch(pattern, command)], pattern
    assert first_commands()[1] == re.search(r".*pytest$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)[0]  # type: ignore[index]
    for command in COMMANDS:
        if re.match(r"\.venv/bin/(ruff|mypy)\b", command):
            assert f"\n{command} ||" in CI


def test_git_ignores_what_the_documented_commands_leave() -> None:
    left = [
        "runs/NAME/sweep.yaml",
        "bench.json",
        "bad_images.csv",
        "samples/0123_0.png",
        ".ci/screenshots/page.png",
        ".venv/bin/python",
    ]
    for path in left:
        ignored = subprocess.run(["git", "check-ignore", "--no-index", "-q", path], cwd=REPOSITORY, check=False)
        assert ignored.returncode == 0, path


@pytest.mark.slow  # the processes that render import the example, and with it torch
def test_the_code_in_models_document_trains_and_reads(folder: Path, tmp_path: Path) -> None:
    train, look, read = blocks(REPOSITORY / "model" / "README.md", "python")
    small = train.replace("4_000", "64").replace("1_000", "16").replace('"epochs": 6', '"epochs": 2')
    assert small.count("64") == 1
    for name in ("samples", "FOLDER"):
        (tmp_path / name).symlink_to(folder / name)
    printed = []
    for name, code in (("train.py", small), ("read.py", read), ("look.py", look)):
        (tmp_path / name).write_text(code)
        environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
        command = [sys.executable, name]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.splitlines())
    assert [line.partition(":")[0] for line in printed[0]] == ["epoch 1", "epoch 2"]
    assert printed[2][1].startswith("images: ")
    assert {line.split()[0] for line in printed[1]} == {path.name for path in (folder / "samples").iterdir()}


@pytest.mark.parametrize("block", blocks(REPOSITORY / "configs" / "README.md", "yaml"))
def test_a_documented_config_loads(block: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(block)
    assert load(tmp_path / "config.yaml").search.space


def test_the_documented_keys_types_and_defaults_are_those_of_the_schema() -> None:
    text = (REPOSITORY / "configs" / "README.md").read_text()
    keys = text[text.index("## Keys") : text.index("## The search space")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in keys.splitlines() if line.startswith("| `")]
    documented = {key: (kind, default) for key, kind, default, _ in rows}
    assert documented == config_keys.rows()
    assert len(rows) == len(documented)
    assert all(meaning for *_, meaning in rows)


def test_the_documented_distributions_schedules_and_configs_are_those_that_there_are() -> None:
    text = (REPOSITORY / "configs" / "README.md").read_text()

    def first_cells(heading: str) -> list[str]:
        section = text[text.index(heading) :].split("\n## ")[0]
        return re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)

    names = {name for key, (kind, _) in config_keys.rows().items() if key == "`schedule.name`" for name in kind.split()}
    assert first_cells("## The search space") == [f.alias or name for name, f in Parameter.model_fields.items()]
    assert {f"`{name}`" for name in first_cells("## Schedules")} == {name.strip(",") for name in names}
    files = {file.name for file in (REPOSITORY / "configs").glob("*.yaml")}
    assert set(first_cells("# Configs")) == files


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_and_pictures_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, target


def test_readme_is_short_and_its_tree_shows_what_is_there() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    tree = blocks(REPOSITORY / "README.md", "")[-1]
    above = Path()
    for line in tree.splitlines():
        name = line.split()[0]
        path = above / name if line.startswith("  ") else Path(name)
        above = above if line.startswith("  ") else path
        assert (REPOSITORY / path).exists(), f"{path}: move the line with the folder"
    listed = {line.split()[0].strip("/") for line in tree.splitlines()}
    folders = [path for package in ("model", "sweep") for path in (REPOSITORY / package).iterdir() if path.is_dir()]
    unlisted = {path.name for path in folders} - listed - {"__pycache__", "configs"}
    assert unlisted == set(), "each folder has a line in README's tree"


@pytest.mark.parametrize("package", ["model", "sweep"])
def test_a_packages_document_names_its_folders_and_commands(package: str) -> None:
    text = (REPOSITORY / package / "README.md").read_text()
    table = "\n".join(re.findall(r"^\|.*", text[: text.index("\n## ")], re.MULTILINE))
    named = set(re.findall(r"`(\w+)/`", table)) | set(re.findall(r"`(\w+\.py)`", table))
    there = {path.name for path in (REPOSITORY / package).iterdir()}
    assert named - there == set()
    commands = {name for name in there if name.endswith(".py") and not name.startswith("_")}
    assert commands - named == set(), "a file directly in a package is a command"


def test_every_test_file_is_in_the_tests_document() -> None:
    text = (REPOSITORY / "tests" / "README.md").read_text()
    files = {path.name for path in (REPOSITORY / "tests").rglob("test_*.py")}
    assert files - set(re.findall(r"`(test_\w+\.py)`", text)) == set()
    assert set(re.findall(r"`(test_\w+\.py)`", text)) - files == set()


def test_ci_runs_the_checks_on_the_oldest_and_the_newest_python() -> None:
    workflow = YAML(typ="safe").load(REPOSITORY / ".github" / "workflows" / "ci.yml")
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if step.get("run") == ".ci/run"]
    allowed = PYPROJECT["project"]["requires-python"]
    oldest, newest = job["strategy"]["matrix"]["python"]
    assert allowed == f">={oldest},<3.{int(newest.partition('.')[2]) + 1}"
    assert f"Python {oldest} to {newest}" in (REPOSITORY / "README.md").read_text()


def test_the_git_hooks_run_what_ci_runs() -> None:
    (local,) = YAML(typ="safe").load(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"] for hook in local["hooks"]]
    assert len(entries) == 3
    assert all(f"\n{entry} " in CI for entry in entries)
