"""Fetches the files of trials that run on machines which do not share the sweep's folder."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from model.system.files import replace_file
from sweep.execution.mirror import Mirror
from sweep.execution.storage import THREAD, Storage, files_of_trial, reason
from sweep.execution.trial_copy import names_of_trial, owner_file
from sweep.search.records import TrialRecord

_LONGEST_PAUSE = 30.0  # seconds after a failed attempt, at most


class Completes(Protocol):
    """What completes the files of a trial that has ended."""

    def ended(self, record: TrialRecord) -> None: ...


@dataclass
class _Wanted:
    """What to fetch of a trial: its curves alone, or everything, for good; with its record if it has ended."""

    everything: bool = False
    record: TrialRecord | None = None


class Collector:
    """Listener of the search that keeps the sweep's folder up to date with the storage, to which trials upload.

    After each epoch of a trial it fetches the trial's curves, and after the end all its files, which `reporter` then
    completes and `mirror` takes. A thread of its own does this, so that neither the search nor other trials wait for
    the storage.
    """

    def __init__(
        self, storage: Storage, root: Path, reporter: Completes, mirror: Mirror, tell: Callable[[str], None]
    ) -> None:
        self._storage, self._root, self._reporter, self._mirror, self._tell = storage, root, reporter, mirror, tell
        self._wanted: dict[str, _Wanted] = {}
        self._stamps: dict[str, tuple[int, int] | None] = {}  # of the files in the storage, when they were fetched
        self._change = threading.Condition()
        self._abandoned = self._ending = False
        self._broken: Exception | None = None  # why trials that have ended could not be completed
        self._fault: str | None = None
        self._answered = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()

    def started(self, record: TrialRecord) -> None:
        pass

    def reported(self, record: TrialRecord) -> None:
        self._want(record.name)

    def released(self, record: TrialRecord) -> None:
        pass

    def ended(self, record: TrialRecord) -> None:
        self._want(record.name, everything=True, record=record)

    def finish(self, unfinished: Iterable[TrialRecord], patience: float) -> str | None:
        """Fetches what is left, also of trials that have not ended. Returns a sentence if the storage did not answer
        for `patience` seconds."""
        for record in unfinished:
            self._want(record.name, everything=True)
        begin = time.monotonic()
        with self._change:
            self._ending = True
            self._change.notify()
        while self._thread.is_alive():
            self._thread.join(0.1)
            self._raise_if_broken()
            if time.monotonic() - max(begin, self._answered) > patience:
                self.close()
                return f"not all files could be fetched from {self._storage.shown}: {self._fault or 'no answer'}"
        self._raise_if_broken()
        return None

    def close(self) -> None:
        """Ends the thread after the present request, without waiting for it."""
        with self._change:
            self._abandoned = True
            self._change.notify()

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _want(self, name: str, everything: bool = False, record: TrialRecord | None = None) -> None:
        self._raise_if_broken()
        with self._change:
            wanted = self._wanted.setdefault(name, _Wanted())
            wanted.everything, wanted.record = wanted.everything or everything, wanted.record or record
            self._change.notify()

    def _run(self) -> None:
        pause = 1.0
        while True:
            with self._change:
                self._change.wait_for(lambda: self._wanted or self._ending or self._abandoned)
                if self._abandoned or not self._wanted:
                    return
                name = next(iter(self._wanted))
                wanted = self._wanted.pop(name)
            try:
                self._collect(name, wanted)
                self._fault, pause = None, 1.0
            except Exception as error:  # pyarrow and fsspec raise errors of many types
                self._want(name, wanted.everything, wanted.record)
                if self._fault is None:
                    self._tell(f"{self._storage.shown} can't be read: {reason(error)}; the sweep goes on and waits")
                self._fault = reason(error)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            if wanted.record is not None:
                try:
                    self._reporter.ended(wanted.record)
                except Exception as error:
                    self._broken = error
                    return
                self._mirror.take(wanted.record)

    def _collect(self, name: str, wanted: _Wanted) -> None:
        if wanted.everything:  # from now on, no process that may still train the trial uploads anything
            self._storage.remove(owner_file(name))
            there = names_of_trial(self._storage, name)
        else:
            there = names_of_trial(self._storage, name, ["tensorboard"])
        for each in there:
            self._fetch(each, wanted.everything)
        if not wanted.everything:
            return
        for each in files_of_trial(self._root, name).keys() - set(there):
            (self._root / each).unlink()
            self._storage.fetched.pop(each, None)
        self._storage.there.update(there)

    def _fetch(self, name: str, anyway: bool) -> None:
        """Fetches a file, `anyway` or if it has changed. What is new is appended, because TensorBoard may read it."""
        stamp, path = None if anyway else self._storage.stamp(name), self._root / name
        self._answered = time.monotonic()
        if stamp is not None and stamp == self._stamps.get(name):
            return
        data = self._storage.read(name)
        here = path.read_bytes() if path.is_file() else None
        if here is not None and data.startswith(here):
            with path.open("ab") as file:
                file.write(data[len(here) :])
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, data)
        stat = path.stat()
        self._storage.fetched[name] = stat.st_size, stat.st_mtime_ns, stat.st_ino
        self._stamps[name] = stamp
        self._answered = time.monotonic()
