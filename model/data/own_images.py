"""A user's own images as a source: looks at all of them, decides which can be used, splits them and writes the pools.

Each image is decoded once. Worker processes read, decode and resize it, and write the pixels to a temporary file, the
spool. Splits and alphabet are known only when all images have been seen; then the pools are copied from the spool.
Within a split, images are in the order of their pixels' hashes, so that the same images and texts give the same pools
however they are stored.
"""

import hashlib
import json
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from importlib.metadata import version
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np

from model.config import ImagesConfig, TrialConfig, shown
from model.config.images import unprintable
from model.data import conversion
from model.data.alphabet import Alphabet
from model.data.cache import locked, remove_leftovers, share, temporary, written
from model.data.catalog import Catalog
from model.data.conversion import Spool
from model.data.image_facts import Facts
from model.data.pool_file import SPLITS, PoolSpec, Shape, Split, label_type, open_pool
from model.data.readers import recognise
from model.data.readers.row import Row
from model.data.splits import assign
from model.data.workers import Progress, Workers, refuse_unguarded_script
from model.system.files import replace_file

TimeSteps = Callable[[int], int]  # width of an image in pixels → T

_VERSION = 2  # of the preparation; another gives other pools
_CHUNK = 200  # images of a worker's task
_BLOCK = 500  # images that are copied to a pool at once
_SAMPLE = 1_000  # images whose sizes decide about the widths
_NAMED = 10  # names in the table of what can't be used
_WORTH_A_POOL = 1.1  # pixels without a further width over those with it
_MOST_BYTES = 2**28  # of an encoded image
_STEPS = 5  # CTC time steps for each character of 90 % of the images, or more
_MOST_POOLING = 8  # pixels for each time step

_CONFLICT = "listed twice with different labels"
_OTHER_LABEL = "the same picture has another label elsewhere"
_ELSEWHERE = "the same picture is in another split"
_OUTSIDE = "character outside the alphabet"
_UNSEEN = "character that no training label has"
_TOO_LONG = "label longer than the time steps allow"


class Unusable(ValueError):
    """Raised for images that a config refuses to train on. `facts` is what was found in them."""

    def __init__(self, sentence: str, facts: Facts) -> None:
        super().__init__(sentence)
        self.facts = facts


class OwnImages:
    """The images of a config that have been looked at: `images.digest` names their pools."""

    def __init__(self, config: TrialConfig) -> None:
        assert config.images is not None
        self._config, self._section = config, config.images

    def specs(self, split: Split) -> list[PoolSpec]:
        contents, count = {"images": self._section.digest}, self._config.data.count(split)
        return [PoolSpec.of(split, count, width, contents) for width in self._section.all_widths]

    def make(self, missing: list[PoolSpec], folder: Path, workers: int, progress: Progress) -> None:
        """Converts the images again. Raises FileNotFoundError if they are gone or no longer the same."""
        section = self._section.model_copy(update={"bad": "skip"})  # what was left out then is left out now
        config = self._config.model_copy(update={"images": section})
        limits = {split: self._config.data.count(split) for split in SPLITS}
        try:
            facts = Look(config, folder, workers, progress, limits=limits).convert()
        except ValueError as error:
            raise FileNotFoundError(f"the images must be converted again, but {error}") from None
        if facts.settings["digest"] != self._section.digest:
            raise FileNotFoundError(
                f"the images must be converted again, but those in {self._section.path} have changed since, or another "
                "version of Pillow or of this program had converted them"
            )

    def file_bytes(self, split: Split) -> int:
        """The most that the split's pools take on the disk."""
        return self.shape(self._config.data.count(split), self._section.widest).file_bytes

    def shape(self, count: int, width: int) -> Shape:
        """The sizes of a pool with so many images of this width."""
        section = self._section
        kind = label_type(Alphabet(section.characters).classes)
        return Shape(count, section.channels, section.height, width, section.longest, kind)

    def findings(self, folder: Path, bad_images: Path) -> list[str]:
        """What was found in the images. Writes those that are left out to the file `bad_images`, if there are any.

        The catalog is read from the cache; without it, nothing is said.
        """
        try:
            with closing(Catalog(catalog_path(str(self._section.digest), folder))) as catalog:
                facts = Facts.from_json(catalog.facts)
                if facts.reasons or facts.put_aside:
                    catalog.write_bad_images(bad_images)
        except (sqlite3.Error, ValueError, TypeError, KeyError):
            return []
        return list(facts.table())

    def fresh(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError("only drawn images are endless")


def catalog_path(digest: str, folder: Path) -> Path:
    """The catalog of the images with this digest: their names, in the order of the pools, and those left out."""
    return folder / f"images-{digest}.sqlite"


def _kept_in(seen: str) -> str:
    """The name of the file that keeps what a look has found. `seen` is a hash of what it has looked at."""
    return f"images-{seen}.json"


class Look:
    """A look at all images of a config, which converts them into pools in `folder` unless `keep` is false.

    `limits` are the most images of a split. Without `keep`, or if the config refuses the images, those that can't be
    used are written to the file `bad_images`. The pooling is chosen if the config has no `network.pools`. Raises
    ValueError if the images can't be recognised.
    """

    def __init__(
        self,
        config: TrialConfig,
        folder: Path,
        workers: int,
        progress: Progress,
        *,
        limits: Mapping[Split, int] | None = None,
        bad_images: Path | None = None,
        keep: bool = True,
    ) -> None:
        assert config.images is not None
        self._steps: TimeSteps | None = None
        if config.images.is_known or "pools" in config.network.model_fields_set:
            self._steps = lambda width: config.network.feature_size(config.image.height, width)[1]
        self._config, self._section, self._folder = config, config.images, folder
        self._workers, self._progress = workers, progress
        self._limits, self._bad_images, self._keep = dict(limits or {}), bad_images, keep
        self._reader = recognise(config.images)
        self._seen = ""

    def facts(self) -> Facts:
        """What is found in the images. Decodes them only if no earlier look has done so, or its pools are gone.

        Raises OSError; ValueError with a sentence about a key of the config; Unusable if the config refuses the images.
        """
        refuse_unguarded_script()
        if not self._keep:
            return self.convert()
        if (facts := self._kept()) is not None:
            return facts
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder):
            if (facts := self._kept()) is None:  # perhaps another sweep has converted them meanwhile
                remove_leftovers(self._folder)
                facts = self.convert()
                file = self._folder / _kept_in(self._seen)
                replace_file(file, json.dumps(facts.as_json()).encode())
                share(file, self._folder)
        return facts

    def _kept(self) -> Facts | None:
        """What an earlier look has found, if its pools are there. Reads the list of images only if a look has been."""
        if not any(self._folder.glob(_kept_in("*"))):
            return None
        for _ in self._rows():
            pass
        return self._known(_kept_in(self._seen))

    def _rows(self) -> Iterator[Row]:
        """All rows of the reader. At their end, `_seen` is a hash of all that can be seen without decoding."""
        section = self._section.model_dump(mode="json", exclude={"bad", "digest", "longest_text"})
        steps = None if self._steps is None else [self._steps(width) for width in range(8, 4096, 8)]
        seed = self._config.data.seed
        settings = [section, seed, steps, sorted(self._limits.items()), _VERSION, version("pillow")]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for row in self._reader.rows():
            found = (row.name, row.text, row.split, row.group, row.size, row.changed, row.problem)
            digest.update(repr(found).encode("utf-8", "surrogatepass"))
            yield row
        self._seen = digest.hexdigest()[:32]

    def _known(self, file: str) -> Facts | None:
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            facts = Facts.from_json(json.loads((self._folder / file).read_bytes()))
            source = OwnImages(self._config.model_copy(update=fitted_sections(self._config, facts)))
            specs = [spec for split in SPLITS for spec in source.specs(split)]
            if _refusal(facts, self._section.bad) is None and all(open_pool(spec, self._folder) for spec in specs):
                return facts
        return None

    def convert(self) -> Facts:
        """Decodes all images, and with `keep` writes the pools and the catalog. Raises Unusable."""
        catalog_file = temporary(self._folder, "images-catalog")
        spool_file = temporary(self._folder, "images-spool")
        try:
            with (
                closing(Catalog(catalog_file, new=True)) as catalog,
                Workers(self._workers, conversion.__name__) as workers,
            ):
                self._list(catalog, workers)
                section = self._with_widths(catalog, workers)
                spool = Spool(spool_file, section.channels * section.height * section.widest) if self._keep else None
                self._decode(catalog, section, spool, workers)
                characters, pooling = self._judge(catalog, section)
                facts = self._counted(catalog, section, characters, pooling)
                refusal = _refusal(facts, section.bad)
                left_out = facts.reasons or facts.put_aside
                if self._bad_images is not None and left_out and (refusal is not None or not self._keep):
                    catalog.write_bad_images(self._bad_images)
                    refusal = refusal and f"{refusal}; all that can't be used are in {self._bad_images}"
                if refusal is not None:
                    raise Unusable(refusal, facts)
                if spool is not None:
                    self._write_pools(catalog, facts, spool, workers)
                    final = catalog_path(facts.settings["digest"], self._folder)
                    catalog.set_facts(facts.as_json())
                    catalog.commit()
            if self._keep:
                share(catalog_file, self._folder)
                catalog_file.replace(final)
            return facts
        finally:
            for path in (catalog_file, spool_file):
                path.unlink(missing_ok=True)

    def _list(self, catalog: Catalog, workers: Workers) -> None:
        """Fills the catalog with the reader's rows. Starts the workers as soon as there is work for all of them."""

        def rows() -> Iterator[tuple[Any, ...]]:
            for number, row in enumerate(self._rows()):
                if number == self._workers * _CHUNK:
                    workers.start(self._workers)
                text = unicodedata.normalize("NFC", row.text)
                problem = row.problem or _problem(text, row.size)
                yield row.name, text, text != row.text, row.split, row.group, problem

        catalog.change(
            "INSERT INTO images (name, text, composed, split, source_group, problem) VALUES (?, ?, ?, ?, ?, ?)", rows()
        )
        several = "SELECT name FROM images WHERE problem IS NULL GROUP BY name HAVING COUNT(DISTINCT text) > 1"
        catalog.condemn(_CONFLICT, f"name IN ({several})")
        workers.start(-(-catalog.one("SELECT COUNT(*) FROM images WHERE problem IS NULL") // _CHUNK))

    def _with_widths(self, catalog: Catalog, workers: Workers) -> ImagesConfig:
        """The section with widths, which `auto` takes from the sizes of a sample."""
        section = self._section
        if section.widths != "auto":
            return section
        usable = catalog.one("SELECT COUNT(*) FROM images WHERE problem IS NULL")
        step = max(1, -(-usable // _SAMPLE))
        names = catalog.all(f"SELECT name FROM images WHERE problem IS NULL AND position % {step} = 0")
        ratio_kept = section.model_copy(update={"fit": "pad"})
        tasks = ((self._reader, ratio_kept, [name for (name,) in chunk]) for chunk in _chunks(names, _CHUNK))
        wanted = [width for found in workers.results(conversion.target_widths, tasks) for width in found]
        return section.model_copy(update={"widths": choose_widths(wanted or [section.height], section.fit)})

    def _decode(self, catalog: Catalog, section: ImagesConfig, spool: Spool | None, workers: Workers) -> None:
        if spool is not None:
            spool.path.touch(exist_ok=False)

        def tasks() -> Iterator[tuple[Any, ...]]:
            last = 0
            query = "SELECT position, name FROM images WHERE problem IS NULL AND position > ? ORDER BY position LIMIT ?"
            while chunk := list(catalog.all(query, last, _CHUNK)):
                last = chunk[-1][0]
                yield self._reader, section, spool, *zip(*chunk, strict=True)

        done, rows = 0, catalog.one("SELECT COUNT(*) FROM images WHERE problem IS NULL")
        self._progress(0, rows)
        for found in workers.results(conversion.decode, tasks()):
            catalog.change(
                "UPDATE images SET problem = ?, original_width = ?, original_height = ?, digest = ?, width = ?, "
                "padded = ?, squeezed = ? WHERE position = ?",
                found,
            )
            done += len(found)
            self._progress(done, rows)

    def _judge(self, catalog: Catalog, section: ImagesConfig) -> tuple[str, int]:
        """Splits the images, condemns those that can't be used and numbers the others. Returns alphabet and pooling."""
        several = "SELECT digest FROM images WHERE problem IS NULL GROUP BY digest HAVING COUNT(DISTINCT text) > 1"
        catalog.condemn(_OTHER_LABEL, f"digest IN ({several})")
        self._split(catalog)
        characters = self._alphabet(catalog)
        known = set(characters)
        reason = _UNSEEN if section.characters == "auto" else _OUTSIDE
        texts = catalog.all("SELECT position, text FROM images WHERE problem IS NULL")
        catalog.condemn(reason, "position = ?", [(row,) for row, text in texts if not known.issuperset(text)])
        pooling = _pooling(catalog)
        steps = self._steps or (lambda width: width // pooling)
        texts = catalog.all("SELECT position, text, width FROM images WHERE problem IS NULL")
        too_long = [(row,) for row, text, width in texts if _needed(text) > steps(width)]
        catalog.condemn(_TOO_LONG, "position = ?", too_long)
        catalog.change(
            "UPDATE images SET place = n FROM (SELECT position AS p, ROW_NUMBER() OVER (PARTITION BY split ORDER BY "
            "digest, text, name) - 1 AS n FROM images WHERE problem IS NULL) WHERE position = p"
        )
        for split, limit in self._limits.items():
            catalog.change("UPDATE images SET place = NULL WHERE split = ? AND place >= ?", [(split, limit)])
        return characters, pooling

    def _counted(self, catalog: Catalog, section: ImagesConfig, characters: str, pooling: int) -> Facts:
        used = "FROM images WHERE place NOT NULL"
        longest = catalog.one(f"SELECT COALESCE(MAX(LENGTH(text)), 1) {used}")
        settings = {"characters": characters, "widths": list(section.all_widths), "longest_text": longest}
        settings["digest"] = self._digest(catalog, section, settings)
        return Facts(
            read_as=self._reader.description,
            rows=catalog.one("SELECT COUNT(*) FROM images"),
            counts={split: catalog.one(f"SELECT COUNT(*) {used} AND split = ?", split) for split in SPLITS},
            settings=settings,
            reasons=_reasons(catalog, "NOT IN"),
            put_aside=_reasons(catalog, "IN"),
            sizes={what: catalog.quantiles(of, (0, 0.5, 1)) for what, of in _SIZES.items()},
            lengths=dict(catalog.all(f"SELECT LENGTH(text), COUNT(*) {used} GROUP BY 1")),
            characters=_count_characters(catalog, "place NOT NULL"),
            widths=dict(catalog.all(f"SELECT padded, COUNT(*) {used} GROUP BY 1 ORDER BY 1")),
            squeezed=catalog.one(f"SELECT COALESCE(SUM(squeezed), 0) {used}"),
            duplicates=catalog.one(f"SELECT COUNT(*) - COUNT(DISTINCT digest) {used}"),
            composed=catalog.one("SELECT COALESCE(SUM(composed), 0) FROM images"),
            pooling=pooling,
        )

    def _split(self, catalog: Catalog) -> None:
        """Assigns each usable image to a split: as its column or folder says, else by a hash of its group or pixels."""
        section, seed = self._section, self._config.data.seed
        given = {split for (split,) in catalog.all("SELECT DISTINCT split FROM images WHERE split NOT NULL")}
        train, valid, test = section.fractions
        valid, test = (0 if split in given else share for split, share in (("valid", valid), ("test", test)))
        fractions = (1 - valid - test if given else train, valid, test)
        catalog.define("assigned", lambda key: assign(key, seed, fractions))
        catalog.change(
            "UPDATE images SET split = assigned(COALESCE(CAST(source_group AS BLOB), digest)) "
            "WHERE problem IS NULL AND COALESCE(split, '') NOT IN ('valid', 'test')"
        )
        # One picture in several splits stays in the one that judges: test before valid before train.
        for split, others in (("train", "'valid', 'test'"), ("valid", "'test'")):
            there = f"SELECT digest FROM images WHERE problem IS NULL AND split IN ({others})"
            catalog.condemn(_ELSEWHERE, f"split = '{split}' AND digest IN ({there})")

    def _alphabet(self, catalog: Catalog) -> str:
        if self._section.characters != "auto":
            return self._section.characters
        return "".join(sorted(_count_characters(catalog, "problem IS NULL AND split = 'train'")))

    def _digest(self, catalog: Catalog, section: ImagesConfig, settings: Mapping[str, Any]) -> str:
        """A hash of all that determines the pools: the pixels and texts in order, and how they are prepared."""
        prepared = section.model_dump(mode="json", include={"height", "color", "fit"})
        everything = json.dumps([prepared, settings, _VERSION, version("pillow")], sort_keys=True)
        digest = hashlib.sha256(everything.encode("utf-8", "surrogatepass"))
        ordered = "SELECT split, digest, text FROM images WHERE place NOT NULL ORDER BY split, place"
        for split, pixels, text in catalog.all(ordered):
            digest.update(f"{split}\0{text}\0".encode() + pixels)
        return digest.hexdigest()[:32]

    def _write_pools(self, catalog: Catalog, facts: Facts, spool: Spool, workers: Workers) -> None:
        source = OwnImages(self._config.model_copy(update=fitted_sections(self._config, facts)))
        counts = Counter[tuple[str, int]]()
        for split, width, count in catalog.all(
            "SELECT split, padded, COUNT(*) FROM images WHERE place NOT NULL GROUP BY 1, 2"
        ):
            counts[split, width] = count
        specs = [spec for split in SPLITS for spec in source.specs(split)]
        shapes = {spec: source.shape(counts[spec.split, spec.width], spec.width) for spec in specs}
        query = (
            "SELECT position, text, width FROM images WHERE place NOT NULL AND split = ? AND padded = ? ORDER BY place"
        )
        with written(shapes, self._folder) as paths:

            def tasks() -> Iterator[tuple[Any, ...]]:
                for spec, path in paths.items():
                    start = 0
                    for block in _chunks(catalog.all(query, spec.split, spec.width), _BLOCK):
                        yield spool, path, shapes[spec], facts.settings["characters"], start, block
                        start += len(block)

            for _ in workers.results(conversion.copy_to_pool, tasks()):
                pass


def fitted_sections(config: TrialConfig, facts: Facts) -> dict[str, Any]:
    """The sections of the config that follow from what was found, for `model_copy`."""
    assert config.images is not None
    settings = {**facts.settings, "widths": tuple(facts.settings["widths"])}
    counts = {f"{split}_images": count for split, count in facts.counts.items()}
    return {
        "images": config.images.model_copy(update=settings),
        "data": config.data.model_copy(update=counts),
    }


def _refusal(facts: Facts, bad: str) -> str | None:
    """Says in a sentence why nothing can be trained on these images, or returns None. `bad` is the key of the config.

    That images can't be used comes before what follows from it, except that leaving out all of them is no advice.
    """
    used, characters = sum(facts.counts.values()), facts.settings["characters"]
    if not used:
        return f"images.path must have images that can be used, but none of its {facts.rows:,} can"
    if facts.bad and bad == "stop":
        return (
            f"images.bad must be skip to leave out {facts.bad:,} of {facts.rows:,} images that can't be used, got stop"
        )
    if empty := [split for split, count in facts.counts.items() if not count]:
        return (
            f"images.fractions must leave images for train, valid and test, got none for {' and '.join(empty)}: "
            f"{used:,} of {facts.rows:,} images can be used"
        )
    if len(characters) < 2:
        return f"images.characters must be at least two characters, got {shown(characters)}: all texts are of this one"
    return None


def choose_widths(wanted: list[int], fit: str) -> tuple[int, ...]:
    """Up to three widths to which images of the `wanted` widths are padded, so that there are few pixels of padding.

    The rarest 0.5 % are squeezed. A further width must save a tenth of the pixels. Stretched images all get the median.
    """
    widths = np.minimum(4096, -(-np.sort(wanted) // 8) * 8)
    if fit == "stretch":
        return (int(np.quantile(widths, 0.5, method="higher")),)
    widest = int(np.quantile(widths, 0.995, method="higher"))
    narrower = np.unique(widths[widths < widest])
    candidates = narrower[:: -(-len(narrower) // 32) or 1].tolist()

    def pixels(chosen: tuple[int, ...]) -> int:
        places = np.searchsorted(chosen, np.minimum(widths, widest))
        return int(np.asarray(chosen)[places].sum())

    best = [
        min(((*some, widest) for some in combinations(candidates, count)), key=pixels)
        for count in range(min(3, len(candidates) + 1))
    ]
    return next(chosen for chosen in best if pixels(chosen) <= _WORTH_A_POOL * pixels(best[-1]))


def _chunks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(rows, size)):
        yield chunk


_SIZES = {
    "width": "original_width",
    "height": "original_height",
    "width / height": "ROUND(1.0 * original_width / original_height, 2)",
}


def _problem(text: str, size: int) -> str | None:
    """Why a text or an image of this many bytes can't be used, as far as can be said without decoding."""
    if not text.strip():
        return "empty label"
    if (wrong := unprintable(text)) is not None:
        return f"unprintable character: U+{ord(wrong):04X}"
    if size > _MOST_BYTES:
        return f"larger than {_MOST_BYTES >> 20} MB"
    return None


def _pooling(catalog: Catalog) -> int:
    """The pixels of a time step: the most with which 90 % of the texts get `_STEPS` steps for each character, and 99 %
    as many as they need."""
    texts = catalog.all("SELECT text, width FROM images WHERE problem IS NULL")
    pixels = np.fromiter(((width / len(text), width / _needed(text)) for text, width in texts), (float, 2))
    if not len(pixels):
        return 1
    for_each, for_need = pixels.T
    most = min(float(_MOST_POOLING), float(np.quantile(for_each, 0.1)) / _STEPS, float(np.quantile(for_need, 0.01)))
    pooling = 1
    while 2 * pooling <= most:
        pooling *= 2
    return pooling


def _needed(text: str) -> int:
    """The least number of CTC time steps for a text: one for each character, and a blank between equal neighbours."""
    return len(text) + sum(map(str.__eq__, text, text[1:]))


def _reasons(catalog: Catalog, operator: str) -> dict[str, tuple[int, list[str]]]:
    """Why images can't be used: how many, and the first names, each with its details, which follow a colon."""
    reason = "SUBSTR(problem, 1, INSTR(problem || ':', ':') - 1)"
    where = f"problem NOT NULL AND problem {operator} ('{_UNSEEN}')"
    counts = list(catalog.all(f"SELECT {reason}, COUNT(*) FROM images WHERE {where} GROUP BY 1 ORDER BY 2 DESC, 1"))
    named = f"name || SUBSTR(problem, LENGTH({reason}) + 1)"
    names = f"SELECT {named} FROM images WHERE {reason} = ? ORDER BY position LIMIT {_NAMED}"
    return {each: (count, [name for (name,) in catalog.all(names, each)]) for each, count in counts}


def _count_characters(catalog: Catalog, where: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for texts in _chunks(catalog.all(f"SELECT text FROM images WHERE {where}"), _BLOCK):
        counts.update("".join(text for (text,) in texts))
    return dict(sorted(counts.items()))
