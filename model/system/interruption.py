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
            # If a KeyboardInterrupt leaves `exec` or `eval` of a string, as `dataclass` and `namedtuple` use it, Python
            # kills itself with SIGINT at exit, although the exception was caught, unless a later one ends normally.
            exec("")

    return run
