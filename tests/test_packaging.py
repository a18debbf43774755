"""A wheel, which is what `pip install .` installs, holds all that the commands need, wherever they are typed."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import pytest

from sweep.config import CONFIGS, load
from tests.conftest import REPOSITORY

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from a copy: in a checkout, setuptools packs what earlier builds left in build/."""
    source = tmp_path_factory.mktemp("source")
    for name in ("model", "sweep", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    # What `pip wheel --no-deps --no-build-isolation .` calls, for environments without pip, as uv makes them.
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "dist").iterdir()
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """Runs Python in an empty folder, with the packages of the wheel."""

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return python


def test_a_wheel_holds_every_file_of_the_packages_and_every_config(installed: Path) -> None:
    files = [
        path.relative_to(REPOSITORY)
        for package in ("model", "sweep")
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".md")
    ]
    configs = [Path("sweep", "configs", file.name) for file in (REPOSITORY / "configs").glob("*.yaml")]
    assert len(files) > 40
    assert len(configs) >= 4
    assert [file for file in files + configs if not (installed / file).is_file()] == []
    outside = {path.name for path in installed.iterdir()} - {"model", "sweep"}
    assert [name for name in outside if not name.endswith(".dist-info")] == []


@pytest.mark.slow
def test_the_quickstart_of_a_wheel_runs_in_an_empty_folder(run: Run, installed: Path, tmp_path: Path) -> None:
    where = run("-c", "import model, sweep; print(model.__file__, sweep.__file__)")
    assert where.stdout.split() == [str(installed / package / "__init__.py") for package in ("model", "sweep")]
    shown = run("-m", "sweep.run", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "12 trials over" in shown.stdout
    assert run("-m", "sweep.run", "--dry-run", "--config", "configs/quickstart.yaml").stdout == shown.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "module", "arguments"),
    [
        ("crnn-sweep", "sweep.run", ["--config", "nowhere"]),
        ("crnn-sweep-report", "sweep.report", ["nowhere"]),
        ("crnn-sweep-bench", "sweep.bench", ["--config", "nowhere"]),
    ],
)
def test_a_console_script_answers_and_ends_as_the_module_does(
    script: str, module: str, arguments: list[str], run: Run, installed: Path
) -> None:
    (metadata,) = installed.glob("*.dist-info")
    points = ConfigParser()
    points.read(metadata / "entry_points.txt")
    place, _, function = points["console_scripts"][script].partition(":")
    assert place == module
    as_installed = run("-c", f"import sys; from {place} import {function}; sys.exit({function}())", *arguments)
    assert as_installed.returncode == 2
    assert "nowhere" in as_installed.stderr
    assert len(as_installed.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["captcha_break", "captcha_break.yaml", "configs/captcha_break.yaml"])
def test_a_supplied_config_is_found_by_its_name_in_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(Path(name)) == load(REPOSITORY / "configs" / "captcha_break.yaml")


def test_a_file_that_is_there_comes_before_a_supplied_config_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = (CONFIGS / "quickstart.yaml").read_text().replace("trials: 12", "trials: 7")
    Path("quickstart.yaml").write_text(mine)
    assert load(Path("quickstart.yaml")).search.trials == 7
    assert load(Path("quickstart")).search.trials == 12


@pytest.mark.parametrize("name", ["quickstrat", "other/quickstart.yaml", "quickstart.txt", "/quickstart"])
def test_a_name_that_no_supplied_config_has_is_answered_in_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="cannot be read: No such file or directory") as caught:
        load(Path(name))
    assert str(caught.value).startswith(name)
