"""Worker processes that prepare images in parallel.

This module doesn't import torch, so that the processes start fast.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from multiprocessing import spawn
from typing import Any, Self, TypeVar

Result = TypeVar("Result")
Progress = Callable[[int, int], None]  # images done, images in all

_AHEAD = 4  # tasks that wait for each worker


def refuse_unguarded_script() -> None:
    """Raises RuntimeError in a worker process of a script without `if __name__ == "__main__"`.

    There the script runs again, and would wait for ever for what its first process has locked.
    """
    spawn._check_not_importing_main()  # type: ignore[attr-defined]


class Workers:
    """Up to `most` worker processes, which end with the context. They import `module` as they start."""

    def __init__(self, most: int, module: str) -> None:
        self._most, self._module, self._count = max(1, most), module, 0
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._others = multiprocessing.active_children()
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def start(self, tasks: int) -> None:
        """Starts the processes, one for each of so many tasks if these are fewer, unless they run. Doesn't wait."""
        if self._executor is not None:
            return
        self._count = min(self._most, max(1, tasks))
        # Spawned, because the caller may have threads, with which forking is not safe.
        executor = ProcessPoolExecutor(self._count, multiprocessing.get_context("spawn"), _start, (self._module,))
        # Starts all workers before the executor's manager thread: CPython fails if that thread notices a killed worker
        # while another is being started.
        executor._safe_to_dynamically_spawn_children = False  # type: ignore[attr-defined]
        self._executor = executor
        with _interrupts_waiting():
            executor.submit(int)  # the first task starts the workers

    def results(self, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """Yields `function(*task)` of each task as it is ready.

        Takes tasks only as workers need them. Starts all workers unless they run. Raises BrokenProcessPool if a worker
        is killed.
        """
        tasks = iter(tasks)
        self.start(self._most)
        assert self._executor is not None
        waiting: set[Future[Result]] = set()
        try:
            while True:
                for task in islice(tasks, self._count * _AHEAD - len(waiting)):
                    waiting.add(self._executor.submit(function, *task))
                if not waiting:
                    break
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            # A worker was killed. If another was starting at that moment, CPython 3.11 would wait for it for ever.
            for process in multiprocessing.active_children():
                if process not in self._others:
                    process.kill()
            raise


@contextmanager
def _interrupts_waiting() -> Iterator[None]:
    """Makes Ctrl-C wait until the context ends, for this thread and for the processes that it starts.

    A process that is being started would print a traceback: it imports its modules before it can ignore Ctrl-C.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def another_main_module() -> Iterator[None]:
    """Makes processes spawned in this context import this module as their main module instead of the caller's script.

    For commands that scripts may call: a script without `if __name__ == "__main__"` would run again in each process.
    """
    main, sys.modules["__main__"] = sys.modules["__main__"], sys.modules[__name__]
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start(module: str) -> None:
    prepare_process()
    import_module(module)


def prepare_process() -> None:
    """Prepares a worker process: it ignores Ctrl-C, which the caller handles, and exits when the caller dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    caller = multiprocessing.parent_process()
    assert caller is not None

    def follow() -> None:
        caller.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
