"""Makes small folders of labelled images, and reads them as a worker process would."""

import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from model.config.images import ImagesConfig
from model.data.readers import Reader, Row, recognise


def picture(number: int) -> bytes:
    """A PNG file that differs for each number."""
    file = io.BytesIO()
    Image.new("RGB", (20 + number % 7, 10), (number % 256, number // 256 % 256, 0)).save(file, "PNG")
    return file.getvalue()


def images(folder: Path, names: Iterable[str]) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture_of = Image.open(io.BytesIO(picture(number)))
        picture_of.save(path)


def reader(path: Path, **keys: Any) -> Reader:
    """The recognised reader, once pickled and back."""
    found: Reader = pickle.loads(pickle.dumps(recognise(ImagesConfig(path=str(path), **keys))))
    return found


def rows(path: Path, **keys: Any) -> list[Row]:
    """All rows, after checking what must be true of any: names, and that each usable image can be read."""
    source = reader(path, **keys)
    found = list(source.rows())
    usable = [row for row in found if row.problem is None]
    contents = list(source.read([row.name for row in usable]))
    assert [len(content) for content in contents if isinstance(content, bytes)] == [row.size for row in usable]
    assert all(row.changed > 0 and row.text.strip() for row in usable)
    assert all(row.name and "\\" not in row.name for row in found)
    assert all(row.size == 0 for row in found if row.problem is not None)
    return found


def texts(path: Path, **keys: Any) -> dict[str, str]:
    """The texts of the usable images by name; all others as their problem in angle brackets."""
    return {row.name: row.text if row.problem is None else f"<{row.problem}>" for row in rows(path, **keys)}
