"""What an image shows, and the config section `images`: a folder or a table of your own labelled images."""

import re
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self
from unicodedata import category

from pydantic import Field, field_validator, model_validator

from model.config.section import Section, shown, unusable_path

_SHOWN = ("\t", "\u200c", "\u200d", "Zs", "Co")  # unprintable to Python, but to be seen: see `unprintable`
Pixels = Annotated[int, Field(ge=8, le=4096)]
Share = Annotated[float, Field(ge=0, lt=1)]


class ImageSection(Section):
    """What one image shows: the questions that `captcha` (drawn images) and `images` (your own) both answer.

    Only `model.data.source` distinguishes the two sections; everything else asks `TrialConfig.image`.
    """

    key: ClassVar[str]  # the section's name in a config, for error messages

    characters: str
    height: Pixels
    color: Literal["rgb", "grey"] = "rgb"

    @property
    def channels(self) -> int:
        return 3 if self.color == "rgb" else 1

    @property
    def is_known(self) -> bool:
        """Whether alphabet, widths and longest text are known. Own images must be looked at first."""
        return True

    @property
    @abstractmethod
    def all_widths(self) -> tuple[int, ...]:
        """The widths of image batches in pixels, ascending. All images of a batch have the same width."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """The length of the longest text."""

    @abstractmethod
    def target_width(self, size: tuple[int, int]) -> int:
        """The width in pixels that an image of this size (width, height) gets, before padding. Images that would get
        wider than the widest are squeezed."""

    @property
    @abstractmethod
    def doubled(self) -> dict[str, int]:
        """The keys of this section that double the images' size, with their values."""

    @property
    def widest(self) -> int:
        return self.all_widths[-1]


class ImagesConfig(ImageSection):
    """Your own images, instead of `captcha`.

    `path` is a folder, or a table of file names and texts. How the texts are stored is recognised, or set by `format`:
    a table (tsv, csv, space, json, jsonl, parquet), file names (names), LMDB (lmdb) or a text file beside each image
    (sidecar). `file_column` and `text_column` name a table's columns where they are not recognised; `pattern` is a
    regular expression for names, whose group `text` (or first group) is the text.

    `split` is a column with train, valid or test; without it, folders of these names are used, else a hash of each
    image's pixels assigns it by `fractions` (train, valid, test). `group` is a column or `folder`; images of one group
    get into the same split.

    `bad: stop` refuses to train if an image can't be used; `skip` leaves such images out. `characters: auto` takes the
    alphabet from the training texts.

    All images get the same height. `fit: pad` keeps the ratio and pads to the next of `widths`, `stretch` resizes to
    the last of `widths`. `widths: auto` chooses them by the images' ratios.

    `longest_text` and `digest` are set when the images have been looked at.
    """

    key: ClassVar[str] = "images"

    path: str | None = None
    format: Literal["auto", "tsv", "csv", "space", "json", "jsonl", "parquet", "names", "lmdb", "sidecar"] = "auto"
    file_column: str | None = None
    text_column: str | None = None
    pattern: str | None = None
    split: str | None = None
    group: str | None = None
    fractions: tuple[Share, Share, Share] = (0.8, 0.1, 0.1)
    bad: Literal["stop", "skip"] = "stop"
    characters: str = "auto"
    height: Pixels = 32
    fit: Literal["pad", "stretch"] = "pad"
    widths: Annotated[tuple[Pixels, ...], Field(min_length=1, max_length=8)] | Literal["auto"] = "auto"
    longest_text: Annotated[int, Field(ge=1, le=4096)] | None = None
    digest: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None

    @property
    def is_known(self) -> bool:
        return self.digest is not None

    @property
    def all_widths(self) -> tuple[int, ...]:
        assert self.widths != "auto", "the images have not been looked at"
        return self.widths

    @property
    def longest(self) -> int:
        assert self.longest_text is not None, "the images have not been looked at"
        return self.longest_text

    @property
    def doubled(self) -> dict[str, int]:
        return {"height": 2 * self.height}  # the widths follow

    def target_width(self, size: tuple[int, int]) -> int:
        if self.fit == "stretch":
            return self.widest
        width, height = size
        return max(self.height // 4, round(width * self.height / height))

    @field_validator("path")
    @classmethod
    def _is_usable(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if (problem := unusable_path(value)) is not None or not value:
            raise ValueError(f"{problem or 'must be a folder or a file'}, got {shown(value)}")
        return value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                groups = re.compile(value).groups
            except re.error as error:
                raise ValueError(f"must be a regular expression, got {shown(value)}: {error}") from None
            if not groups:
                raise ValueError(f"must have a group for the text, such as (?P<text>.*), got {shown(value)}")
        return value

    @field_validator("widths", mode="after")
    @classmethod
    def _ascend(cls, value: Any) -> Any:
        if value != "auto" and list(value) != sorted(set(value)):
            raise ValueError(f"must ascend, got {shown(value)}")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(sum(self.fractions) - 1) > 1e-6 or min(self.fractions[:2]) <= 0:
            raise ValueError(
                "images.fractions must be three numbers that add up to 1, those of train and valid above 0, "
                f"got {shown(self.fractions)}"
            )
        if self.fit == "stretch" and self.widths != "auto" and len(self.widths) > 1:
            raise ValueError(f"images.widths must be one width for images.fit stretch, got {shown(self.widths)}")
        if self.characters != "auto" and (problem := unusable_characters(self.characters)) is not None:
            raise ValueError(f"images.characters must be {problem}, got {shown(self.characters)}")
        return self


def unusable_characters(characters: str) -> str | None:
    """Says what an alphabet of own images must be, or returns None if it can be used."""
    if not 1 <= len(characters) <= 50_000 or len(set(characters)) != len(characters):
        return "1 to 50,000 different characters"
    return None if unprintable(characters) is None else "printable characters"


def unprintable(text: str) -> str | None:
    """The first character of a text that no image of one line can show: controls, line breaks and invisible marks.

    Joiners are invisible too, but change the shapes of their neighbours in Persian, Indic scripts and emoji. Characters
    for private use are those of some fonts, such as medieval ones.
    """
    if text.isprintable():  # nearly always, and fast
        return None
    return next((one for one in text if not (one.isprintable() or one in _SHOWN or category(one) in _SHOWN)), None)
