import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FORBIDDEN = {"sweep", "ray", "optuna", "tensorboardX", "yaml", "ruamel"}


def modules(file: Path) -> set[str]:
    """All that a file imports, with the modules that it takes from packages."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            taken = {name for name in below if (REPOSITORY / name.replace(".", "/")).with_suffix(".py").exists()}
            found |= taken or {node.module or ""}
    return found


def imported(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in modules(file)}


def test_no_file_of_model_imports_the_sweep_or_its_libraries() -> None:
    files = list((REPOSITORY / "model").rglob("*.py"))
    assert len(files) > 8
    assert {file.name: imported(file) & FORBIDDEN for file in files if imported(file) & FORBIDDEN} == {}


def test_predicting_loads_neither_the_sweep_nor_its_libraries() -> None:
    code = "import sys, model.predict, model.training.loop; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in loaded} & FORBIDDEN == set()


def test_rendering_processes_load_no_torch() -> None:
    code = "import sys, model.data.pools; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" not in loaded


LIBRARIES = {  # which file or folder of sweep/ alone knows the library
    "ray": ["sweep/benchmark/baseline.py", "sweep/execution"],
    "tensorboardX": ["sweep/tensorboard"],
    "ruamel": ["sweep/config/yaml_text.py"],
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_known_to_the_folder_whose_job_it_is(library: str) -> None:
    files = [file for file in (REPOSITORY / "sweep").rglob("*.py") if library in imported(file)]
    assert files
    places = {str(file.relative_to(REPOSITORY)) for file in files}
    assert {place for place in places if not place.startswith(tuple(LIBRARIES[library]))} == set()


# Each folder imports those before it, and none after it.
ORDER = {
    "model": ["config", "system", "data", "network", "training", "reading"],
    "sweep": [
        "wording", "config", "machine", "search", "tensorboard", "verdict", "terminal", "execution", "benchmark",
    ],
}  # fmt: skip
# Where a folder builds on a later one all the same, with the reason.
EXCEPTIONS = {
    ("model/config/encoders.py", "network"),  # in `build` alone, when torch is there
}


@pytest.mark.parametrize("package", ORDER)
def test_folders_import_only_those_before_them(package: str) -> None:
    folders = [path.parent.name for path in (REPOSITORY / package).glob("*/__init__.py")]
    assert sorted(folders) == sorted(ORDER[package])
    wrong = []
    for place, folder in enumerate(ORDER[package]):
        for file in (REPOSITORY / package / folder).rglob("*.py"):
            for module in modules(file):
                root, *rest = module.split(".")
                name = str(file.relative_to(REPOSITORY))
                later = root == package and rest and rest[0] in ORDER[package][place + 1 :]
                command = root == package and (not rest or rest[0] not in folders)
                if (later or command) and (name, rest[0] if rest else "") not in EXCEPTIONS:
                    wrong.append(f"{name} imports {module}")
    assert wrong == []


@pytest.mark.slow
def test_trials_ask_ray_for_no_environment_of_their_own_and_so_run_in_the_processes_it_started_ahead() -> None:
    code = (
        "from sweep.execution.on_ray import RayTrial; from ray.tune.execution.class_cache import _ActorClassCache;"
        "print(_ActorClassCache().get(RayTrial)._default_options['runtime_env'].get('env_vars'))"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert asked.strip() in ("{}", "None")
