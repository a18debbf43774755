"""Uploads a sweep's files to a storage while the sweep runs."""

import logging
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from sweep.execution.storage import (
    LONGEST_PAUSE,
    OWN_RUN,
    STUDY,
    THREAD,
    TRIALS,
    Stamp,
    Storage,
    StorageAway,
    Superseded,
    digest,
    files_of,
    in_order,
    is_checkpoint,
    owner_file,
    reason,
)
from sweep.search.records import TrialRecord

_PAUSE = 1.0  # seconds between two uploads, at least
_QUIET = 5.0  # seconds at the end after which a line says what is waited for

log = logging.getLogger("sweep")


class Mirror:
    """Listener of the search. When a trial ends an epoch, ends or is released, it uploads the changed files of all
    trials that run and those of the sweep, and removes from the storage what was removed here.

    A thread of its own uploads, so that no trial waits, also if the storage does not answer for hours: it is tried
    again until it does. `study` gives the contents of study.db.

    If trials upload their own files, from other machines, `taken` names those trials that do not: the mirror uploads
    the files of these alone. A trial leaves them when it starts and comes back with `take`.

    The storage holds a sweep that can go on at any time, as if killed at that time: what study.db says and what a
    checkpoint promises of other files is uploaded before them, and checkpoints are removed after the study says that
    they are needed no more.
    """

    def __init__(
        self,
        storage: Storage,
        root: Path,
        study: Callable[[], bytes],
        tell: Callable[[str], None],
        taken: Collection[str] | None = None,
    ) -> None:
        self._storage, self._root, self._study, self._tell = storage, root, study, tell
        self._taken = None if taken is None else set(taken)
        self._sent, self._there = storage.fetched, storage.there
        self._study_sent = storage.study if storage.fetched else None  # digest of the study that is there
        self._studies = {storage.study}  # of those that were there before, or that this sweep may have sent
        self._seen: tuple[int, int] | None = None  # stamp of the study in the storage
        self._looked = 0.0  # when that was looked at
        self._running: set[str] = set()  # trials, all of which an upload of the study must look at
        self._trials: set[str] = set()  # that ran since the last upload
        self._lock = threading.Lock()
        self._wake, self._begun, self._ending = threading.Event(), threading.Event(), threading.Event()
        self._abandoned = self._done = False
        self._fault: str | None = None
        self._superseded = False
        self._answered = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()

    def started(self, record: TrialRecord) -> None:
        with self._lock:
            self._running.add(record.name)
            if self._taken is not None:
                self._taken.discard(record.name)
        self._wake.set()

    def reported(self, record: TrialRecord) -> None:
        self._wake.set()

    def released(self, record: TrialRecord) -> None:
        self.ended(record)

    def ended(self, record: TrialRecord) -> None:
        with self._lock:
            self._running.discard(record.name)
            self._trials.add(record.name)
        self._wake.set()

    def take(self, record: TrialRecord) -> None:
        """Uploads the trial's files from now on, because nobody else writes them any more."""
        with self._lock:
            if self._taken is not None:
                self._taken.add(record.name)
        self.ended(record)

    def wait(self, patience: float) -> None:
        """Waits until all is uploaded that was there at the start. Raises StorageAway if the storage does not answer
        for `patience` seconds."""
        begin = time.monotonic()
        while not self._begun.wait(0.1):
            if time.monotonic() - max(begin, self._answered) > patience or not self._thread.is_alive():
                raise StorageAway(f"{self._storage.shown} can't be written: {self._fault or 'no answer'}")

    def finish(self, patience: float) -> str | None:
        """Uploads what is left, and returns a sentence if that failed for `patience` seconds."""
        begin = time.monotonic()
        told = False
        self._ending.set()
        self._wake.set()
        while self._thread.is_alive():
            self._thread.join(0.1)
            now = time.monotonic()
            if now - max(begin, self._answered) > patience:
                self.close()
                break
            if not told and now - begin > _QUIET:
                with self._lock:  # a line in sweep.log too, which is then not yet uploaded
                    if not self._done:
                        told = True
                        self._tell(f"uploading the last files to {self._storage.shown}")
        if self._superseded:
            return f"{self._storage.shown} gets no more: another command goes on with this sweep"
        return None if self._done else f"not all files are in {self._storage.shown}: {self._fault or 'no answer'}"

    def close(self) -> None:
        """Ends the thread after the present request, without waiting for it."""
        self._abandoned = True
        self._ending.set()
        self._wake.set()

    def _run(self) -> None:
        everything, pause = True, _PAUSE
        while not self._abandoned:
            self._wake.clear()
            everything = everything or self._ending.is_set()
            with self._lock:
                trials, self._trials = self._trials | self._running, set()
            begin = time.monotonic()
            try:
                self._upload(None if everything else trials)
                self._begun.set()
                if self._ending.is_set() and everything and self._is_done():
                    return
                if self._fault is not None:
                    log.info("uploads work again")
                everything, self._fault, pause = False, None, max(_PAUSE, time.monotonic() - begin)
            except Superseded:
                self._superseded = True
                self._tell(
                    f"another command goes on with this sweep from {self._storage.shown}; this one uploads no more"
                )
                return
            except Exception as error:  # pyarrow and fsspec raise errors of many types
                if self._fault is None:
                    log.error("an upload failed:", exc_info=error)
                    self._tell(
                        f"{self._storage.shown} can't be written: {reason(error)}; the sweep goes on and uploads later"
                    )
                self._fault = reason(error)
                everything, pause = True, min(2 * pause, LONGEST_PAUSE)
                if self._ending.is_set():
                    time.sleep(_PAUSE)
            self._ending.wait(pause)
            if not everything and not self._ending.is_set():
                self._wake.wait()

    def _is_done(self) -> bool:
        ours = self._filter()
        with self._lock:
            sent = {name: stamp for name, stamp in list(self._sent.items()) if ours(name)}
            self._done = sent == self._files(None, ours) and digest(self._study()) == self._study_sent
            return self._done

    def _upload(self, trials: Collection[str] | None) -> None:
        """Uploads what has changed in the folders of `trials` and in the sweep's own, or everywhere if they are None.
        Raises whatever a storage raises."""
        ours = self._filter()
        before = self._files(trials, ours)
        study = self._study()  # files that it speaks of are read later, and so are at least as new
        now = self._files(trials, ours)
        if not any(name.startswith("trials/") for name in now):
            self._put_study(study)  # from now on the copy of a new sweep can go on
        changed = sorted((name for name in now if self._sent.get(name) != now[name]), key=in_order)
        # Read first, though uploaded last: the next epoch removes a checkpoint, perhaps before its turn comes.
        checkpoints = {name: self._read(name) for name in changed if is_checkpoint(name)}
        for name in changed:
            data = checkpoints[name] if name in checkpoints else self._read(name)
            if data is not None:
                self._put(name, data)
                self._sent[name] = now[name]
        self._put_study(study)
        here = {*before, *now, STUDY}
        for name in [name for name in list(self._there) if _is_of(trials, name) and ours(name) and name not in here]:
            self._require_own()
            self._storage.remove(name)
            self._there.discard(name)
            self._sent.pop(name, None)

    def _files(self, trials: Collection[str] | None, ours: Callable[[str], bool]) -> dict[str, Stamp]:
        return {name: stamp for name, stamp in files_of(self._root, trials).items() if ours(name)}

    def _filter(self) -> Callable[[str], bool]:
        """A function that tells whether the file of a name is uploaded or removed by this mirror at present."""
        if self._taken is None:
            return lambda name: True
        with self._lock:
            taken = {None, OWN_RUN, *self._taken}
        return lambda name: (trial := _trial_of(name)) in taken and name != owner_file(str(trial))

    def _read(self, name: str) -> bytes | None:
        """The contents of a file; None if it has been removed."""
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def _put_study(self, study: bytes) -> None:
        if (found := digest(study)) != self._study_sent:
            self._studies.add(found)
            self._put(STUDY, study)
            self._study_sent = found

    def _put(self, name: str, data: bytes) -> None:
        self._require_own()
        self._storage.put(name, data)
        self._there.add(name)
        self._answered = time.monotonic()

    def _require_own(self) -> None:
        """Raises Superseded if the study in the storage is neither what was found at the start nor what this sweep has
        sent: then another machine goes on with the sweep, and must not be overwritten. Looks once a second, because
        this process or its machine may have been asleep since the last time."""
        if self._abandoned:
            raise InterruptedError("the sweep has ended")
        if abs(time.time() - self._looked) < _PAUSE:
            return
        found = self._storage.stamp(STUDY)
        self._answered = time.monotonic()
        if found is None and self._seen is not None:
            self._sent.clear()  # somebody has emptied the storage
            self._seen = self._study_sent = None
            raise FileNotFoundError(f"there is no {STUDY} any more")
        if found is not None and found != self._seen and digest(self._storage.read(STUDY)) not in self._studies:
            raise Superseded
        self._seen, self._looked = found, time.time()


def _is_of(trials: Collection[str] | None, name: str) -> bool:
    """Whether `files_of(root, trials)` looks at a file of this name."""
    return trials is None or _trial_of(name) in (None, OWN_RUN, *trials)


def _trial_of(name: str) -> str | None:
    """The trial to which a file belongs; None for one of the sweep."""
    folder, _, rest = name.partition("/")
    return rest.partition("/")[0] if folder in TRIALS else None
