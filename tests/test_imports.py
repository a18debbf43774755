import ast
import subprocess
import sys

from tests.conftest import REPOSITORY

FORBIDDEN = {"sweep", "ray", "optuna", "tensorboardX", "yaml", "ruamel"}


def imported(file: object) -> set[str]:
    tree = ast.parse(file.read_text())  # type: ignore[attr-defined]
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


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


def test_tensorboardx_and_yaml_are_known_to_one_file_each() -> None:
    users = {library: [] for library in ("tensorboardX", "ruamel")}
    for file in (REPOSITORY / "sweep").rglob("*.py"):
        for library in users:
            if library in imported(file):
                users[library].append(file.name)
    assert users == {"tensorboardX": ["tensorboard.py"], "ruamel": ["config.py"]}


def test_trials_ask_ray_for_no_environment_of_their_own_and_so_run_in_the_processes_it_started_ahead() -> None:
    code = (
        "from sweep.execution.on_ray import RayTrial; from ray.tune.execution.class_cache import _ActorClassCache;"
        "print(_ActorClassCache().get(RayTrial)._default_options['runtime_env'].get('env_vars'))"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert asked.strip() in ("{}", "None")
