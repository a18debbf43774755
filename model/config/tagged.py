"""Tagged sections: config sections whose `name` decides which other keys they have, such as `schedule`."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from annotated_types import GroupedMetadata
from pydantic import BaseModel, BeforeValidator, Discriminator


class Tagged(GroupedMetadata):
    """Makes a union of sections a tagged section, pydantic's discriminated union: `Annotated[A | B, Tagged("a")]`.

    `name` selects the member; without a name, the member called `default` is used. A string instead of a mapping is
    read as the name.
    """

    def __init__(self, default: str) -> None:
        self.default = default

    def __iter__(self) -> Iterator[object]:
        yield Discriminator("name")
        yield BeforeValidator(self._named)

    def _named(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {"name": self.default, **value}
        return {"name": value} if isinstance(value, str) else value


def members(annotation: Any) -> dict[str, type[BaseModel]]:
    """Maps each `name` to its section of the union."""
    return {section.model_fields["name"].default: section for section in get_args(annotation)}


def tagged_sections(
    model: type[BaseModel], prefix: str = ""
) -> Iterator[tuple[str, Tagged, dict[str, type[BaseModel]]]]:
    """Yields each tagged section of a config, also nested ones: dotted path, tag and members by name."""
    for key, field in model.model_fields.items():
        for tag in field.metadata:
            if isinstance(tag, Tagged):
                yield f"{prefix}{key}", tag, members(field.annotation)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from tagged_sections(field.annotation, f"{prefix}{key}.")
