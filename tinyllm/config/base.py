"""What settings are: the `Config` base class, its sections and its dotted keys. Left out: where values come from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

KeyPath = tuple[str, ...]  # the parts of a dotted key
Location = tuple[str | int, ...]  # and on into lists and mappings


class Config(BaseModel):
    """A group of settings. Fields are documented by a string below them.

    Strict: nothing is converted but int to float (from files and JSON also lists to tuples and text to paths), and keys
    that are not fields are refused, as are nan and inf (inf may be allowed: `Field(allow_inf_nan=True)`). A field may
    be another Config, or one or None.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def dump(config: Config) -> dict[str, Any]:
    """The settings as nested plain values: what YAML and JSON can hold."""
    return config.model_dump(mode="json")


def flat(config: Config) -> dict[str, Any]:
    """dotted key -> plain value. A section that is None, a list and a free mapping are one value each."""
    plain = dump(config)
    values: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, Config):
            values |= {f"{name}.{key}": leaf for key, leaf in flat(value).items()}
        else:
            values[name] = plain[name]
    return values


def kinds(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation itself."""
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in kinds(member)]
    return [annotation]


def section(field: FieldInfo) -> type[Config] | None:
    """The Config that a field holds, if it holds one."""
    members = kinds(field.annotation)
    configs = [kind for kind in members if isinstance(kind, type) and issubclass(kind, Config)]
    assert not configs or len(set(members) - {NoneType}) == 1, (
        f"{field.annotation}: a section is a Config, or one or None"
    )
    return configs[0] if configs else None


def optional(field: FieldInfo) -> bool:
    return NoneType in kinds(field.annotation)


def text_only(field: FieldInfo) -> bool:
    """Whether a field is text or a path (or None), so that what is typed for it on a command line needs no quotes."""
    members = set(kinds(field.annotation)) - {NoneType}
    return bool(members) and members <= {str, Path}


def _free(field: FieldInfo) -> bool:
    return any(kind is dict or get_origin(kind) in (dict, Mapping) for kind in kinds(field.annotation))


def find(cls: type[Config], parts: KeyPath) -> tuple[KeyPath, FieldInfo] | None:
    """The field that a dotted key means, or None; below a free mapping all the rest is one key, dots included."""
    first, rest = parts[0], parts[1:]
    if first not in cls.model_fields:
        return None
    field = cls.model_fields[first]
    inner = section(field)
    if not rest:
        return parts, field
    if inner is None:
        return ((first, ".".join(rest)), field) if _free(field) else None
    below = find(inner, rest)
    return ((first, *below[0]), below[1]) if below else None


@cache
def names(cls: type[Config]) -> tuple[str, ...]:
    """Every dotted key, sections before what is in them."""
    found = []
    for name, field in cls.model_fields.items():
        inner = section(field)
        found += [name, *(f"{name}.{key}" for key in names(inner))] if inner else [name]
    return tuple(found)


def owner(cls: type[Config], path: KeyPath) -> type[Config] | None:
    """The Config at `path`, which names a section; None where it does not."""
    for name in path:
        inner = section(cls.model_fields[name]) if name in cls.model_fields else None
        if inner is None:
            return None
        cls = inner
    return cls


def defaults(cls: type[Config]) -> dict[str, Any]:
    """The tree of plain default values. Required values are absent; a required section is there, with its defaults.

    A section's own default may differ from its class's, so that setting one key of it must not reset the others.
    """
    tree = {}
    for name, field in cls.model_fields.items():
        inner = section(field)
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            tree[name] = dump(value) if isinstance(value, Config) else to_jsonable_python(value)
        elif inner and not optional(field):
            tree[name] = defaults(inner)
    return tree


def schema(cls: type[Config], path: KeyPath) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The JSON schema of the field at `path`, and the definitions that its references mean."""
    above = owner(cls, path[:-1])
    assert above is not None, path
    whole = _schema(above)
    return whole["properties"][path[-1]], whole.get("$defs", {})


@cache
def _schema(cls: type[Config]) -> Mapping[str, Any]:
    return cls.model_json_schema()
