"""Ctrl-C in a command: one line and exit code 130."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

Parameters = ParamSpec("Parameters")


def interruptible(main: Callable[Parameters, int]) -> Callable[Parameters, int]:
    """Decorates a command's `main`, which returns an exit code: KeyboardInterrupt prints its message, or "interrupted",
    and returns 130."""

    @wraps(main)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt as error:
            print(str(error) or "\ninterrupted", file=sys.stderr)
            return 130
        finally:
            # If a KeyboardInterrupt is raised in code that `exec` or `eval` runs from a string, as `dataclass` and
            # `namedtuple` do, CPython kills itself with SIGINT at exit, even if the exception was caught. A later
            # `exec` that ends normally prevents that.
            exec("")

    return run
