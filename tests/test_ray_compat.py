"""Each patch of Ray: fails when Ray no longer has what is patched, or no longer needs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweep.execution.ray_compat import ENVIRONMENT

# Each prints True while the patch is needed. In processes of their own, for the patches stay.
NEEDED = {
    "processes are started through ConsolePopen": """
import inspect, subprocess
from ray._private import services
used = "ConsolePopen(" in inspect.getsource(services.start_ray_process)
print(used and issubclass(services.ConsolePopen, subprocess.Popen))
""",
    "a driver starts a thread that prints errors": """
import inspect
from ray._private import worker
print(callable(worker.listen_error_messages) and "target=listen_error_messages" in inspect.getsource(worker.connect))
""",
    "Tune asks for environment variables for each trial": """
from ray.tune.execution import class_cache
print(bool(class_cache.DEFAULT_ENV_VARS) and bool(class_cache.ENV_VARS_TO_PROPAGATE))
""",
    "Tune takes no OutOfMemoryError for the loss of an actor": """
import inspect
from ray.air.execution._internal import actor_manager
from ray.exceptions import OutOfMemoryError
asked = inspect.getsource(actor_manager.RayActorManager._actor_task_failed)
print("isinstance(exception, RayActorError)" in asked and not issubclass(OutOfMemoryError, actor_manager.RayActorError))
""",
    "C++ joins by one function and ends the process by a few": """
import ctypes, threading
from ray import _raylet
from sweep.execution import ray_compat, ray_exits
places, told = ray_exits._entries(_raylet.__file__), threading.Event()
before = {name: ctypes.c_uint64.from_address(place).value for name, place in places.items()}
ray_compat.keep_from_exiting(told.set)
after = {name: ctypes.c_uint64.from_address(place).value for name, place in places.items()}
end = ctypes.CFUNCTYPE(None, ctypes.c_int)(after[b"_Exit"])
threading.Thread(target=end, args=[1], daemon=True).start()
print(told.wait(60) and {ray_exits._JOIN, b"_Exit"} <= {name for name in places if after[name] != before[name]})
""",
}


def printed(code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("what", NEEDED)
def test_a_patch_of_ray_is_still_needed(what: str) -> None:
    assert printed(NEEDED[what]).split() == ["True"]


def test_ray_and_tune_still_read_each_variable_that_is_set() -> None:
    code = """
import ray, sys
from pathlib import Path
folder = Path(ray.__file__).parent
files = [*folder.rglob("*.py"), *folder.glob("core/src/ray/*/raylet"), *folder.glob("_raylet.so")]
texts = [path.read_bytes() for path in files]
for name in sys.argv[1:]:
    names = (name, name.removeprefix("RAY_"))  # C++ and a few of Python's lists name them without
    if not any(word.encode() in text for text in texts for word in names):
        print(name)
"""
    command = [sys.executable, "-c", code, *ENVIRONMENT, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


@pytest.mark.parametrize("given", ["", "  ", "mine"])
def test_each_sweep_has_a_new_token_unless_it_is_given_one(given: str) -> None:
    code = "import os; from sweep.execution.ray_compat import *; set_environment(); print(os.environ['RAY_AUTH_TOKEN'])"
    first, second = (printed(code, RAY_AUTH_TOKEN=given).strip() for _ in range(2))
    if given.strip():
        assert first == second == given
    else:
        assert len(first) == len(second) == 64
        assert first != second


@pytest.mark.parametrize(
    "given", [{}, {"RAY_AUTH_TOKEN": " "}, {"RAY_AUTH_TOKEN": "theirs"}, {"RAY_AUTH_TOKEN_PATH": "f"}]
)
def test_to_join_a_cluster_no_token_is_made_and_one_that_is_given_is_used(
    given: dict[str, str], tmp_path: Path
) -> None:
    code = """
import os
from sweep.execution.ray_compat import *
set_environment(joining=True)
print((os.environ.get("RAY_AUTH_TOKEN") or "").strip() or None, os.environ.get("RAY_AUTH_MODE"))
"""
    token, mode = printed(code, HOME=str(tmp_path), **given).split()[-2:]
    used = any(value.strip() for value in given.values())
    assert mode == ("token" if used else "None")
    assert token == (given.get("RAY_AUTH_TOKEN", "").strip() or "None")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("theirs")
    assert printed(code, HOME=str(tmp_path), **given).split()[-1] == "token"
