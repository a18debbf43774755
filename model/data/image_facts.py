"""What was found in a user's images, and the table that says it."""

import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

_MOST_CHARACTERS = 60  # of the alphabet, in the table


@dataclass(frozen=True)
class Facts:
    """What was found in a user's images.

    `settings` are the keys of the config section `images` that follow from them. `reasons` are why images can't be
    used: how many, and the first names. `put_aside` are those that are left out whatever `images.bad` says.
    """

    read_as: str
    rows: int
    counts: dict[str, int]  # split → images
    settings: dict[str, Any]
    reasons: dict[str, tuple[int, list[str]]]
    put_aside: dict[str, tuple[int, list[str]]]
    sizes: dict[str, tuple[float, ...]]  # what → least, median, greatest
    lengths: dict[int, int]  # length of a text → images
    characters: dict[str, int]  # → how often
    widths: dict[int, int]  # width of a pool → images
    squeezed: int
    duplicates: int
    composed: int
    pooling: int

    @property
    def bad(self) -> int:
        """How many images can't be used; `images.bad` decides whether that is an error."""
        return sum(count for count, _ in self.reasons.values())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "Facts":
        """Inverse of `as_json`, for what JSON made of it: keys are text, tuples lists. Raises TypeError, ValueError."""
        whole = {key: {int(name): count for name, count in tree[key].items()} for key in ("lengths", "widths")}
        pairs = {key: {name: tuple(each) for name, each in tree[key].items()} for key in ("reasons", "put_aside")}
        sizes = {what: tuple(three) for what, three in tree["sizes"].items()}
        return cls(**{**tree, **whole, **pairs, "sizes": sizes})

    def table(self) -> Iterator[str]:
        """The lines of the table."""
        yield f"read as: {visible(self.read_as)}, {self.rows:,} images"
        yield "images: " + ", ".join(f"{count:,} {split}" for split, count in self.counts.items())
        for reason, (count, names) in {**self.reasons, **self.put_aside}.items():
            aside = " (left out)" if reason in self.put_aside else ""
            yield f"can't be used: {count:,} × {reason}{aside}"
            yield from (f"    {visible(name)}" for name in names)
            if count > len(names):
                yield f"    … and {count - len(names):,} more"
        for what, (least, median, greatest) in self.sizes.items():
            yield f"{what}: {least:g} to {greatest:g}, median {median:g}"
        yield "texts: " + ", ".join(
            f"{count:,} of length {length}" for length, count in _largest(self.lengths, most=8).items()
        )
        most = sorted(self.characters.items(), key=lambda item: (-item[1], item[0]))
        shown = " ".join(f"{_alone(character)}:{count}" for character, count in most[:_MOST_CHARACTERS])
        more = f" … and {len(most) - _MOST_CHARACTERS:,} more" if len(most) > _MOST_CHARACTERS else ""
        yield f"alphabet: {len(most):,} characters: {shown}{more}"
        yield "widths: " + ", ".join(f"{count:,} of {width} px" for width, count in self.widths.items())
        if self.squeezed:
            yield f"squeezed: {self.squeezed:,} images were wider than the widest"
        if self.duplicates:
            yield f"duplicates: {self.duplicates:,} images show the same pixels as another of the same text"
        if self.composed:
            yield f"normalised: {self.composed:,} texts were changed to Unicode's composed form (NFC)"


def visible(text: str) -> str:
    """The text with escapes in place of characters that a terminal obeys instead of showing them, as a file's name may
    have."""
    return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _alone(character: str) -> str:
    """A character to be shown by itself: a mark on a dotted circle, and a space or what can't be seen as an escape."""
    if unicodedata.category(character).startswith("M"):
        return f"\N{DOTTED CIRCLE}{character}"
    return character if character.isprintable() and character.strip() else ascii(character)


def _largest(counts: dict[int, int], most: int) -> dict[int, int]:
    """The `most` largest counts, in the order of their keys."""
    kept = sorted(counts, key=lambda key: -counts[key])[:most]
    return {key: counts[key] for key in sorted(kept)}
