"""The config sections `captcha` (what a drawn image shows) and `data` (where the images come from, and how many)."""

import string
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from model.config.images import ImageSection, Pixels
from model.config.section import FileName, Section, Seed, Sha256, shown, unusable_path

Images = Annotated[int, Field(ge=1, le=100_000_000)]
FontSize = Annotated[int, Field(ge=4, le=512)]
TextLength = Annotated[int, Field(ge=1, le=256)]

_MOST_PIXELS = 4096 * 4096  # of one captcha, at the size at which it is drawn


class CaptchaConfig(ImageSection):
    """What one drawn image shows.

    Images are drawn `render_scale` times larger and then shrunk, because the captcha library's noise dots are 3 pixels
    wide and swamp small images. `font_sizes` are pixels of the larger image; the default sizes fit 192×64. Each
    character is drawn in one of `fonts` at random; without any, in the captcha library's own.
    """

    key: ClassVar[str] = "captcha"

    characters: str = string.digits + string.ascii_uppercase
    length: TextLength | tuple[TextLength, TextLength] = 4
    width: Pixels = 192
    height: Pixels = 64
    font_sizes: Annotated[tuple[FontSize, ...], Field(min_length=1, max_length=32)] = (42, 50, 56)
    fonts: Annotated[tuple[FileName, ...], Field(max_length=64)] | None = None
    fonts_sha256: tuple[Sha256, ...] | None = None
    render_scale: Annotated[int, Field(ge=1, le=8)] = 1

    @property
    def all_widths(self) -> tuple[int, ...]:
        return (self.width,)

    @property
    def longest(self) -> int:
        return self.lengths[1]

    @property
    def doubled(self) -> dict[str, int]:
        return {"width": 2 * self.width, "height": 2 * self.height}

    def target_width(self, size: tuple[int, int]) -> int:
        return self.width

    @property
    def lengths(self) -> tuple[int, int]:
        """Lengths of the shortest and the longest text."""
        return (self.length, self.length) if isinstance(self.length, int) else self.length

    @field_validator("fonts", mode="after")
    @classmethod
    def _none_is_null(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return value or None

    @model_validator(mode="after")
    def _check(self) -> Self:
        unusable = [c for c in self.characters if not c.isprintable() or c.isspace() or c == "/"]
        if not 1 <= len(self.characters) <= 255 or unusable or len(set(self.characters)) != len(self.characters):
            raise ValueError(  # 255, and the blank: a class index is stored in one byte
                "captcha.characters must be 1 to 255 different, printable characters without spaces and '/', "
                f"got {shown(self.characters)}"
            )
        low, high = self.lengths
        if low > high:
            raise ValueError(f"captcha.length must not have its first number above its second, got [{low}, {high}]")
        if self.width * self.height * self.render_scale**2 > _MOST_PIXELS:
            raise ValueError(
                f"captcha.render_scale must give at most {_MOST_PIXELS:,} pixels, got {self.render_scale}: "
                f"captcha.width {self.width} and captcha.height {self.height} are multiplied by it"
            )
        return self


class DataConfig(Section):
    """Where the images come from, and how many there are.

    `source: pool` renders them once into files below `cache`, which all trials map into memory.
    `source: stream` renders a new image for each use in training; an epoch is then `train_images` long.
    `cache` defaults to the user's cache folder; a relative path is below the output directory.
    """

    source: Literal["pool", "stream"] = "pool"
    cache: str | None = None
    train_images: Images = 20_000
    valid_images: Images = 2_000
    test_images: Images = 2_000
    seed: Seed = 0

    def count(self, split: Literal["train", "valid", "test"]) -> int:
        """The number of images of a split."""
        return {"train": self.train_images, "valid": self.valid_images, "test": self.test_images}[split]

    @field_validator("cache")
    @classmethod
    def _can_be_a_folder(cls, value: str | None) -> str | None:
        if value is None:
            return None
        problem = unusable_path(value)
        if not value.startswith("/") and {"..", "~"} & {value[:1], *value.split("/")}:
            problem = "must lie below the output directory or be absolute"
        if problem is not None:
            raise ValueError(f"{problem}, got {shown(value)}")
        return value
