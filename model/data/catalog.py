"""The catalog of a user's images: a SQLite file with one row for each image, so that a million take no memory.

A row has the image's name and text, what was found when it was decoded, its split, its place in the split's order, and
the problem if it can't be used.
"""

import csv
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

BAD_IMAGES = "bad_images.csv"

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE images (
    position INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    text TEXT NOT NULL,
    composed INTEGER NOT NULL,  -- whether NFC has changed the text
    split TEXT,
    source_group TEXT,
    problem TEXT,
    original_width INTEGER,
    original_height INTEGER,
    digest BLOB,
    width INTEGER,       -- after resizing, without padding
    padded INTEGER,      -- with padding: the width of the image's pool
    squeezed INTEGER,
    place INTEGER        -- in the order of its split
);
CREATE TABLE facts (json TEXT NOT NULL);
"""


class Catalog:
    """A connection to the file of a catalog. Opened read-only unless `new`, which creates the file."""

    def __init__(self, path: Path, new: bool = False) -> None:
        self.path = path
        if new:
            path.touch(exist_ok=False)
            self.database = sqlite3.connect(path)
            self.database.executescript(_TABLES)
        else:
            self.database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)

    def all(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        return self.database.execute(query, values)

    def one(self, query: str, *values: Any) -> Any:
        """The first column of the query's only row."""
        return self.database.execute(query, values).fetchone()[0]

    def change(self, query: str, rows: Iterable[tuple[Any, ...]] | None = None) -> int:
        """Executes a statement, once or for each row. Returns how many rows it changed."""
        cursor = self.database.execute(query) if rows is None else self.database.executemany(query, rows)
        return cursor.rowcount

    def condemn(self, problem: str, where: str, values: Iterable[tuple[Any, ...]] = ((),)) -> None:
        """Marks rows as unusable, for each tuple of values. A row keeps the first problem that was found."""
        rows = ((problem, *each) for each in values)
        self.change(f"UPDATE images SET problem = ? WHERE problem IS NULL AND {where}", rows)

    def quantile(self, expression: str, fraction: float) -> float | None:
        """A quantile of an expression over the usable images."""
        usable = "FROM images WHERE problem IS NULL"
        if not (count := self.one(f"SELECT COUNT(*) {usable}")):
            return None
        place = min(count - 1, int(fraction * count))
        value: float = self.one(f"SELECT {expression} {usable} ORDER BY 1 LIMIT 1 OFFSET {place}")
        return value

    def quantiles(self, expression: str, fractions: Iterable[float]) -> tuple[float, ...]:
        return tuple(self.quantile(expression, fraction) or 0 for fraction in fractions)

    def define(self, name: str, function: Callable[[Any], Any]) -> None:
        """Defines an SQL function of one argument."""
        self.database.create_function(name, 1, function, deterministic=True)

    def set_facts(self, facts: dict[str, Any]) -> None:
        self.change("INSERT INTO facts VALUES (?)", [(json.dumps(facts),)])

    @property
    def facts(self) -> dict[str, Any]:
        """What `set_facts` was given, as JSON keeps it."""
        found: dict[str, Any] = json.loads(self.one("SELECT json FROM facts"))
        return found

    def commit(self) -> None:
        self.database.commit()

    def close(self) -> None:
        self.database.close()

    def write_bad_images(self, path: Path) -> None:
        """Writes all images that can't be used to a CSV file: file, reason, text. Makes its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            table = csv.writer(file)
            table.writerow(("file", "reason", "text"))
            table.writerows(self.all("SELECT name, problem, text FROM images WHERE problem NOT NULL ORDER BY position"))
