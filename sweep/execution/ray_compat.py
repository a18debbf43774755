"""What this program sets and patches in Ray, seen in Ray 2.60. tests/test_ray_compat.py says what is no longer needed.

Ray reads its environment variables when it is imported: `set_environment` must come before that.
"""

import os
import secrets
import subprocess
from collections.abc import Callable

ENVIRONMENT = {
    # Ray listens on all interfaces: only who has the token may talk to it.
    "RAY_AUTH_MODE": "token",
    # Neither Ray's own progress tables on the terminal nor its report of usage to its makers.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Trials keep the sweep's working directory: relative paths in a config mean the same in all of them.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ray's coming default, so that it does not warn: GPUs stay visible to a trial that gets none, which hides them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's memory monitor kills trials when other programs fill the machine, with an exception that Tune does not
    # expect. Without it the kernel kills one process when memory is short, which costs its trial one epoch.
    "RAY_memory_monitor_refresh_ms": "0",
    # So many seconds after it has lost its server, Ray's C++ ends the process: by then the sweep has ended by itself.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    # Otherwise Ray's constructor waits, holding Python's lock, until a worker for each CPU has started: nothing would
    # watch Ray's processes meanwhile, and the main thread could not import torch.
    "RAY_prestart_worker_first_driver": "0",
    # Ray's processes look for each other as long as by default, but fifty times as often: they all start at once.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
    # Tune writes no TensorBoard, CSV and JSON logs of its own, and does not warn that it saves its state often.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def set_environment() -> None:
    """For this process and all that it starts, with a new token unless there is one."""
    os.environ.update(ENVIRONMENT)
    if not os.environ.get("RAY_AUTH_TOKEN", "").strip():  # instead of an empty one Ray takes one from the user's home
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def start_processes_with(start: "Callable[..., subprocess.Popen[bytes]]") -> None:
    """Has Ray start its own processes through `start`, which takes the arguments of Popen."""
    from ray._private import services

    services.ConsolePopen = start


def silence_error_thread() -> None:
    """Ends what Ray prints on the terminal about its own processes, from a thread that it starts for that."""
    from ray._private import worker

    worker.listen_error_messages = lambda *arguments, **options: None


def share_workers() -> None:
    """Lets trials run in processes that are there already. A trial that asks for environment variables of its own never
    gets one, and Tune asks for some, which are in everyone's environment anyway."""
    from ray.tune.execution import class_cache

    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()
