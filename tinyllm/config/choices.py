"""Fields and sections that come from a registry instead of being listed in a class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, create_model
from pydantic_core import CoreSchema, core_schema

from tinyllm.config.base import Config

C = TypeVar("C", bound=Config)


class OneOf:
    """A string that must be a name in a registry: `optimizer: Annotated[str, OneOf(optimizers.names)] = "adamw"`.

    Validation, error messages and suggestions are those of a Literal of these names.
    """

    def __init__(self, names: Callable[[], Iterable[str]]):
        self.names = names

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.names()))


def with_sections(base: type[C], sections: Mapping[str, type[Config]]) -> type[C]:
    """Return a subclass of `base` with these sections, at their defaults, and the name of `base`."""
    fields: dict[str, Any] = {name: (settings, settings()) for name, settings in sections.items()}
    return create_model(base.__name__, __base__=base, __module__=base.__module__, __doc__=base.__doc__, **fields)
