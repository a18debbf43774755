"""Finds the files of a folder of images: by walking through it, or by names that may be wrong or lead elsewhere."""

import mimetypes
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from model.data.image_files import SUFFIXES
from model.data.readers.row import IRREGULAR, MISSING, OUTSIDE
from model.system.files import reason

_MAX_BYTES = 2**28  # of an encoded image; anything larger is no line of text
# Images of these formats are named as unusable where a folder is searched for images. Other files are ignored.
_OTHER_IMAGES = {
    *(suffix for suffix, kind in mimetypes.MimeTypes().types_map[True].items() if kind.startswith("image/")),
    *(".heic", ".heif", ".avif", ".jxl", ".tga", ".dds", ".psd", ".dng", ".cr2", ".nef"),
} - SUFFIXES
_PARENTS = 10_000  # how many folders are remembered as lying inside or not


class File(NamedTuple):
    name: str  # relative to the folder, with forward slashes
    size: int
    changed: int
    problem: str | None = None


def suffix_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Whether a file's name has the suffix of an image format that can be read."""
    return suffix_of(name) in SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether an entry of a folder is none of the user's: `.git`, `._x.png`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


class Folder:
    """Finds the regular files that really lie inside of a folder, whatever links, `..` or absolute paths say."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._real = os.path.realpath(path)
        self._start = os.path.join(self._real, "")  # what the paths of all files in the folder begin with
        self._is_inside: dict[str, bool] = {}

    def find(self, name: str, root: str = "") -> File:
        """Looks up a file by a path that is absolute or relative to `root` (by default this folder)."""
        if os.sep != "/" or name.startswith("/"):
            path = os.path.normpath(os.path.join(root or self._real, name))
        else:
            path = f"{root or self._real}/{name}"  # faster
            if "/." in path or "//" in path:
                path = os.path.normpath(path)
        if not path.startswith(self._start):
            if not path.startswith(os.path.join(self.path, "")):
                return File(name, 0, 0, OUTSIDE)
            path = self._real + path[len(self.path) :]
        relative = path[len(self._start) :]
        if os.sep != "/":
            relative = relative.replace(os.sep, "/")
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                if not os.path.realpath(path).startswith(self._start):
                    return File(relative, 0, 0, OUTSIDE)
                status = os.stat(path)
            elif not self._parent_is_inside(path.rpartition(os.sep)[0]):
                return File(relative, 0, 0, OUTSIDE)
        except (FileNotFoundError, NotADirectoryError):
            return File(relative, 0, 0, MISSING)
        except OSError as error:
            return File(relative, 0, 0, reason(error))
        except ValueError:  # NUL
            return File(relative, 0, 0, MISSING)
        if not stat.S_ISREG(status.st_mode):
            return File(relative, 0, 0, IRREGULAR)
        return File(relative, status.st_size, status.st_mtime_ns)

    def read(self, name: str) -> bytes | str:
        """Returns the content of a file of this folder, or why it can't be read."""
        file = self.find(name)
        if file.problem is not None:
            return file.problem
        if file.size > _MAX_BYTES:
            return f"larger than {_MAX_BYTES >> 20} MiB"
        try:
            with open(os.path.join(self._real, file.name), "rb") as opened:
                return opened.read(_MAX_BYTES)
        except OSError as error:
            return reason(error)

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """Gives each folder's relative path, its files' names and the links in it to folders elsewhere.

        Sorted, so that two machines see the same order: the only thing held in memory is one folder's names.
        Hidden folders and files are left out, and links to folders inside, whose files are found where they are.
        """
        pending = [""]
        while pending:
            folder = pending.pop()
            folders, files, links = [], [], []
            try:
                with os.scandir(os.path.join(self._real, folder)) as entries:
                    for entry in entries:
                        if is_hidden(entry.name):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.name)
                        elif entry.is_symlink() and os.path.isdir(entry.path):  # entry.is_dir raises for some
                            if not os.path.join(os.path.realpath(entry.path), "").startswith(self._start):
                                links.append(entry.name)
                        else:
                            files.append(entry.name)
            except OSError:
                links.append("")  # the folder itself can't be read
            yield folder, sorted(files), sorted(links)
            pending += (below(folder, name) for name in sorted(folders, reverse=True))

    def images(self) -> Iterator[File]:
        """Finds all images in the folder and its sub-folders, also those that can't be used."""
        for folder, names, links in self.walk():
            for name in names:
                suffix = suffix_of(name)
                if suffix in SUFFIXES:
                    yield self.find(below(folder, name))
                elif suffix in _OTHER_IMAGES:
                    yield File(below(folder, name), 0, 0, f"images of the format {suffix} are not read")
            for name in links:
                yield File(below(folder, name), 0, 0, OUTSIDE if name else "the folder can't be read")

    def _parent_is_inside(self, parent: str) -> bool:
        known = self._is_inside.get(parent)
        if known is None:
            if len(self._is_inside) >= _PARENTS:
                self._is_inside.clear()
            real = os.path.realpath(parent)
            known = self._is_inside[parent] = os.path.join(real, "").startswith(self._start)
        return known


def below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name
