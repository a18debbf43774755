"""Environment variables and patches for Ray 2.60. tests/test_ray_compat.py tells which are no longer needed.

Ray reads its environment variables when it is imported, so the first import must be `import_ray`.
"""

import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweep.execution import ray_exits

ENVIRONMENT = {
    # Turns off Ray's progress tables on the terminal and its usage statistics.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Trials keep the sweep's working directory, so that relative paths in a config mean the same in every process.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ray's future default, set to silence its warning. GPUs stay visible to a trial that gets none; `keep_to_share`
    # hides them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Turns off Ray's memory monitor, which ends trials already when other programs fill the memory. Without it the
    # kernel's OOM killer ends one process, which costs its trial one epoch.
    "RAY_memory_monitor_refresh_ms": "0",
    # After 600 s without its server (GCS), Ray's C++ ends the process; by then the sweep has ended by itself.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    # Otherwise Ray holds the GIL until it has started one worker per CPU. Meanwhile no thread could watch Ray's
    # processes, and the main thread could not import torch.
    "RAY_prestart_worker_first_driver": "0",
    # Ray's processes try to connect for as long as by default, but fifty times as often: they all start at once.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
    # Under `uv run`, Ray would upload the working directory, and build the environment again for each worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Turns off Tune's own TensorBoard, CSV and JSON loggers, and its warning that it saves its state often.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


# The same for a trial's process on a cluster that was started without them.
OF_TRIALS = {name: ENVIRONMENT[name] for name in ("RAY_CHDIR_TO_TRIAL_DIR", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")}


def import_ray(*, joining: bool = False) -> None:
    """Imports Ray, which reads the environment that is set before, unless it is imported already."""
    set_environment(joining=joining)
    import ray  # noqa: F401


def set_environment(*, joining: bool = False) -> None:
    """Sets the variables for this process and its children, and Ray's token.

    Ray listens on all network interfaces, and the token keeps other users and machines out. A cluster of our own gets a
    new random token unless one is set. To join a cluster, the token is found by Ray's own rules, for which a random one
    would hide the right one. A trial's process has its token already: Ray has started it.
    """
    os.environ.update(ENVIRONMENT)
    if "ray" in sys.modules:
        return
    if joining:
        if token_source() is not None:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    if not os.environ.get("RAY_AUTH_TOKEN", "").strip():  # if empty, Ray reads one from the home folder
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def token_source() -> str | None:
    """Where Ray finds its token, in Ray's order: a variable with the token, one with a file's path, the default file.
    None if there is none."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name, "").strip():
            return name
    default = Path("~/.ray/auth_token")
    try:
        return str(default) if default.expanduser().is_file() else None
    except (RuntimeError, OSError):  # no home, or not ours to enter
        return None


def start_processes_with(start: "Callable[..., subprocess.Popen[bytes]]") -> None:
    """Makes Ray start its own processes through `start`, which takes the arguments of `subprocess.Popen`."""
    from ray._private import services

    services.ConsolePopen = start


def silence_error_thread() -> None:
    """Stops Ray from printing errors of its own processes on the terminal, which it does from a thread."""
    from ray._private import worker

    worker.listen_error_messages = lambda *arguments, **options: None


def keep_from_exiting(tell: Callable[[], None]) -> None:
    """Makes Ray's C++ call `tell` where it would end this process, as when it loses its raylet while it joins it."""
    from ray import _raylet

    ray_exits.redirect(_raylet.__file__, tell)


def share_workers() -> None:
    """Lets trials run in idle worker processes. Ray starts a new process for a trial that requests environment
    variables, and Tune always requests some; they are in the environment of every process anyway."""
    from ray.tune.execution import class_cache

    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()


def survive_memory_monitor() -> None:
    """Lets Tune take an OutOfMemoryError for what it is, the loss of one actor, instead of ending the experiment. Ray's
    memory monitor ends processes with that error, and a cluster that others have started has one."""
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    handle = RayActorManager._actor_task_failed

    def handle_as_loss(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        handle(manager, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = handle_as_loss


def draining_nodes() -> set[str]:
    """The IDs of the nodes that will end soon: they got SIGTERM, or `ray drain-node` has announced a pre-emption. Ray
    places nothing new on them."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def node_of(actor: Any) -> str | None:
    """The ID of the node on which a started actor runs."""
    from ray._private.state import actors

    node: str | None = actors(actor._actor_id.hex()).get("Address", {}).get("NodeID")
    return node
