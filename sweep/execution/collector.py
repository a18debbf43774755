"""Fetches the files of trials that run on machines which do not share the sweep's folder."""

import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from model.system.files import replace_file
from sweep.execution.mirror import Mirror
from sweep.execution.storage import LONGEST_PAUSE, THREAD, Storage, files_of_trial, owner_file, reason
from sweep.execution.trial_copy import names_of_trial
from sweep.search.records import TrialRecord


class Collector:
    """Listener of the search that fetches trials' files from the storage, to which other machines upload them.

    After each epoch of a trial it fetches the trial's curves. When a trial has ended it fetches all its files, calls
    `complete` and then `mirror.take`. A thread of its own does this, so that neither the search nor other trials wait
    for the storage. `elsewhere` has the names of the trials whose newest files are in the storage at the start.
    """

    def __init__(
        self,
        storage: Storage,
        root: Path,
        complete: Callable[[TrialRecord], None],
        mirror: Mirror,
        tell: Callable[[str], None],
        elsewhere: Collection[str] = (),
    ) -> None:
        self._elsewhere = set(elsewhere)
        self._storage, self._root, self._complete, self._mirror, self._tell = storage, root, complete, mirror, tell
        self._wanted: dict[str, TrialRecord | None] = {}  # trials to fetch; without a record, their curves
        self._stamps: dict[str, tuple[int, int]] = {}  # of the curves in the storage, when they were fetched
        self._change = threading.Condition()
        self._abandoned = self._ending = False
        self._broken: Exception | None = None  # why trials that have ended could not be completed
        self._fault: str | None = None
        self._answered = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()

    def started(self, record: TrialRecord) -> None:
        self._elsewhere.add(record.name)

    def reported(self, record: TrialRecord) -> None:
        self._want(record.name, None)

    def released(self, record: TrialRecord) -> None:
        pass

    def ended(self, record: TrialRecord) -> None:
        self._want(record.name, record)

    def finish(self, unfinished: Iterable[TrialRecord], patience: float) -> str | None:
        """Fetches what is left, and all files of `unfinished` trials, to which no process uploads from now on. Returns
        a sentence if the storage did not answer for `patience` seconds. Raises what `complete` raised."""
        for record in unfinished:
            if record.name in self._elsewhere:
                self._want(record.name, record)
        begin = time.monotonic()
        with self._change:
            self._ending = True
            self._change.notify()
        while self._thread.is_alive():
            self._thread.join(0.1)
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

    def _want(self, name: str, record: TrialRecord | None) -> None:
        self._raise_if_broken()
        with self._change:
            self._wanted[name] = self._wanted.get(name) or record
            self._change.notify()

    def _run(self) -> None:
        pause = 1.0
        while True:
            with self._change:
                self._change.wait_for(lambda: self._wanted or self._ending or self._abandoned)
                if self._abandoned or not self._wanted:
                    return
                name = next(iter(self._wanted))
                record = self._wanted.pop(name)
            try:
                if record is None:
                    self._fetch_curves(name)
                elif name in self._elsewhere:
                    self._fetch_all(name)
                self._fault, pause = None, 1.0
            except Exception as error:  # pyarrow and fsspec raise errors of many types
                self._want(name, record)
                if self._fault is None:
                    self._tell(f"{self._storage.shown} can't be read: {reason(error)}; the sweep goes on and waits")
                self._fault = reason(error)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if record is not None and not self._abandoned:
                self._elsewhere.discard(name)
                try:
                    if record.state != "interrupted":
                        self._complete(record)
                except Exception as error:
                    self._broken = error
                    return
                self._mirror.take(record)

    def _fetch_curves(self, name: str) -> None:
        for each in names_of_trial(self._storage, name, ["tensorboard"]):
            stamp = self._storage.stamp(each)
            self._answered = time.monotonic()
            if stamp is not None and stamp != self._stamps.get(each):
                self._fetch(each)
                self._stamps[each] = stamp

    def _fetch_all(self, name: str) -> None:
        self._storage.put(owner_file(name), b"")  # a process that still trains the trial uploads no more from now on
        there = names_of_trial(self._storage, name)
        for each in there:
            self._fetch(each)
        for each in files_of_trial(self._root, name).keys() - set(there):
            (self._root / each).unlink()
            self._storage.fetched.pop(each, None)
        self._storage.there.update(there)
        self._storage.remove(owner_file(name))

    def _fetch(self, name: str) -> None:
        """Fetches a file. What is new is appended to what is here, because TensorBoard may read it."""
        data, path = self._storage.read(name), self._root / name
        here = path.read_bytes() if path.is_file() else None
        if here is not None and data.startswith(here):
            with path.open("ab") as file:
                file.write(data[len(here) :])
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, data)
        stat = path.stat()
        self._storage.fetched[name] = stat.st_size, stat.st_mtime_ns, stat.st_ino
        self._answered = time.monotonic()
