"""The width of a running sweep: how many trials it has, and how many of them run at once."""

from pathlib import Path

from sweep.config import ConfigError
from sweep.config.want import WANT, Want, read_want
from sweep.search.search import Search
from sweep.terminal.terminal import Terminal


class Width:
    """Widens or narrows a running sweep as the file want.yaml in its folder asks, which is read whenever it changes.

    Without the file, at most `at_once` trials run at once, and with `grows` as many more as a cluster gains room for.
    In a narrowed sweep, the trials that started last pause after their epoch and go on when others have ended.
    """

    def __init__(self, root: Path, search: Search, terminal: Terminal, at_once: int, grows: bool = False) -> None:
        self._path, self._search, self._terminal = root / WANT, search, terminal
        self._usual, self._grows = at_once, grows
        self._first_room: int | None = None
        self._want, self._version = Want(), (0, 0)

    def at_once(self, room: int | None = None) -> int:
        """How many trials may run at once now, at most `room`."""
        self._read_if_changed()
        usual = self._usual
        if room is not None and self._grows:
            self._first_room = room if self._first_room is None else self._first_room
            usual += max(0, room - self._first_room)
        wanted = self._want.at_once or usual
        return wanted if room is None else min(wanted, room)

    def _read_if_changed(self) -> None:
        try:
            status = self._path.stat()
            version = status.st_mtime_ns, status.st_ino
        except OSError:
            version = 0, 0
        if version == self._version:
            return
        self._version = version
        try:
            self._want = read_want(self._path) if any(version) else Want()
        except ConfigError as error:
            self._terminal.say(f"{error}; the sweep goes on as before", at=0)
            return
        self._search.resize(self._want.trials, self._want.at_once)
        running = "as many at once as before" if (most := self._want.at_once) is None else f"at most {most} at once"
        self._terminal.resized(self._search, f"{WANT}: {self._search.trials} trials, {running}")
