"""A trial's files on a machine that does not share the sweep's folder: fetched from the storage, and uploaded to it."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from sweep.config.workplace import Workplace
from sweep.execution.storage import (
    LONGEST_PAUSE,
    PATIENCE,
    TRIALS,
    Answer,
    Stamp,
    Storage,
    StorageAway,
    Superseded,
    files_of_trial,
    in_order,
    is_hidden,
    is_safe,
    owner_file,
    reason,
    shown,
)
from sweep.machine.private_folder import private_folder


class TrialCopy:
    """Copies one trial's files from the storage to a temporary folder of this machine, and back after each epoch.

    A process that has lost its connection to the sweep may train on, while another one goes on with the trial. So a
    process writes a random token into the storage before it trains the trial, and uploads only while that is there.
    """

    def __init__(self, workplace: Workplace, name: str) -> None:
        self.workplace, self._name, self._token = workplace, name, secrets.token_hex(16).encode()
        self._uri = str(workplace.storage)
        self._storage: Storage | None = None
        self._sent: dict[str, Stamp] = {}

    @contextmanager
    def taken_over(self, others: Sequence[str]) -> Iterator[None]:
        """Makes this process the only one that uploads the trial, and fetches the trial's files and `others`, files of
        the sweep, into `workplace.root`, a folder that is removed at the end of the block. Raises StorageAway, or
        another OSError of this machine."""
        with private_folder() as root:
            self.workplace = replace(self.workplace, root=root)
            for name, data in self._patiently(lambda storage: self._read(storage, others)).items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            self._sent = files_of_trial(root, self._name)
            yield

    def upload(self) -> None:
        """Uploads the files that have changed, checkpoints last, and removes in the storage what was removed here.
        Raises StorageAway, and Superseded if the trial goes on elsewhere."""
        self._patiently(self._upload)

    def _read(self, storage: Storage, others: Sequence[str]) -> dict[str, bytes]:
        storage.put(owner_file(self._name), self._token)
        return {name: storage.read(name) for name in [*others, *names_of_trial(storage, self._name)]}

    def _upload(self, storage: Storage) -> None:
        here = files_of_trial(self.workplace.root, self._name)
        for name in sorted((name for name in here if self._sent.get(name) != here[name]), key=in_order):
            self._require_owner(storage)
            storage.put(name, (self.workplace.root / name).read_bytes())
            self._sent[name] = here[name]
        for name in self._sent.keys() - here.keys():
            self._require_owner(storage)
            storage.remove(name)
            del self._sent[name]

    def _require_owner(self, storage: Storage) -> None:
        try:
            owner = storage.read(owner_file(self._name))
        except FileNotFoundError:
            owner = b""
        if owner != self._token:
            raise Superseded("another process goes on with this trial")

    def _patiently(self, act: Callable[[Storage], Answer]) -> Answer:
        """Calls `act`, and again after an error: the storage may be away, or may not yet have a file. Raises
        StorageAway after `PATIENCE`."""
        begin, pause = time.monotonic(), 1.0
        while True:
            try:
                self._storage = self._storage or Storage.unread(self._uri)
                return act(self._storage)
            except Superseded:
                raise
            except Exception as error:  # pyarrow and fsspec raise errors of many types
                if time.monotonic() - begin > PATIENCE:
                    raise StorageAway(f"{shown(self._uri)} can't be read or written: {reason(error)}") from None
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def names_of_trial(storage: Storage, name: str, folders: Sequence[str] = TRIALS) -> list[str]:
    """The trial's files in the storage, checkpoints last."""
    found = [each for folder in folders for each in storage.names(f"{folder}/{name}")]
    return sorted((each for each in found if is_safe(each) and not is_hidden(each)), key=in_order)
