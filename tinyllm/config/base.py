"""The base class of all settings, and access to its sections and fields by dotted key."""

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
Location = tuple[str | int, ...]  # a key path that continues into lists and mappings


class Config(BaseModel):
    """Base class of a group of settings. Each field is documented by a string below it.

    Strict: the only conversion is int to float (from files and JSON also lists to tuples and strings to paths). Unknown keys, nan and
    inf are refused (inf can be allowed: `Field(allow_inf_nan=True)`). A field that holds another Config, or one or None, is a section.
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


def list_to_tuple(value: Any) -> Any:
    """Return a list as a tuple, and anything else unchanged: for fields below a validator of the whole section, whose input is no JSON
    any more."""
    return tuple(value) if isinstance(value, list) else value


def dump(config: Config) -> dict[str, Any]:
    """Return the settings as nested plain values that YAML and JSON can hold."""
    return config.model_dump(mode="json")


def flatten(config: Config) -> dict[str, Any]:
    """Return dotted key -> plain value. A section that is None, a list and a free mapping are one value each.

    A field that its section leaves out of `dump` is left out here.
    """
    plain = dump(config)
    values: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, Config):
            values |= {f"{name}.{key}": leaf for key, leaf in flatten(value).items()}
        elif name in plain:
            values[name] = plain[name]
    return values


def _union_members(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself."""
    if get_origin(annotation) is Annotated:
        return _union_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _union_members(member)]
    return [annotation]


def section_class(field: FieldInfo) -> type[Config] | None:
    """Return the Config that a field holds, or None if the field is not a section."""
    members = _union_members(field.annotation)
    configs = [kind for kind in members if isinstance(kind, type) and issubclass(kind, Config)]
    assert not configs or len(set(members) - {NoneType}) == 1, (
        f"{field.annotation}: a section is a Config, or one or None"
    )
    return configs[0] if configs else None


def is_optional(field: FieldInfo) -> bool:
    """Return whether a field may be None."""
    return NoneType in _union_members(field.annotation)


def is_text(field: FieldInfo) -> bool:
    """Return whether a field is a string or a path (or None), whose values need no quotes on a command line."""
    members = set(_union_members(field.annotation)) - {NoneType}
    return bool(members) and members <= {str, Path}


def is_list(field: FieldInfo) -> bool:
    """Return whether a field is a list (or None)."""
    return any(kind is tuple or get_origin(kind) is tuple for kind in _union_members(field.annotation))


def _is_mapping(field: FieldInfo) -> bool:
    return any(kind is dict or get_origin(kind) in (dict, Mapping) for kind in _union_members(field.annotation))


def find_field(cls: type[Config], parts: KeyPath) -> tuple[KeyPath, FieldInfo] | None:
    """Return the path and field of a dotted key, or None. Below a free mapping the rest is one key, dots included."""
    first, rest = parts[0], parts[1:]
    if first not in cls.model_fields:
        return None
    field = cls.model_fields[first]
    inner = section_class(field)
    if not rest:
        return parts, field
    if inner is None:
        return ((first, ".".join(rest)), field) if _is_mapping(field) else None
    below = find_field(inner, rest)
    return ((first, *below[0]), below[1]) if below else None


@cache
def dotted_keys(cls: type[Config]) -> tuple[str, ...]:
    """Return every dotted key, each section before its fields."""
    keys = []
    for name, field in cls.model_fields.items():
        inner = section_class(field)
        keys += [name, *(f"{name}.{key}" for key in dotted_keys(inner))] if inner else [name]
    return tuple(keys)


def class_at(cls: type[Config], path: KeyPath) -> type[Config] | None:
    """Return the Config of the section at `path`, or None if there is no section."""
    for name in path:
        inner = section_class(cls.model_fields[name]) if name in cls.model_fields else None
        if inner is None:
            return None
        cls = inner
    return cls


def default_tree(cls: type[Config]) -> dict[str, Any]:
    """Return the nested plain default values, without required values but with required sections.

    A section's own default may differ from its class's defaults, so setting one key of it must not reset the others.
    """
    tree = {}
    for name, field in cls.model_fields.items():
        inner = section_class(field)
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            tree[name] = dump(value) if isinstance(value, Config) else to_jsonable_python(value)
        elif inner and not is_optional(field):
            tree[name] = default_tree(inner)
    return tree


def field_schema(cls: type[Config], path: KeyPath) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the JSON schema of the field at `path`, and the definitions that it refers to."""
    parent = class_at(cls, path[:-1])
    assert parent is not None, path
    schema = _class_schema(parent)
    return schema["properties"][path[-1]], schema.get("$defs", {})


@cache
def _class_schema(cls: type[Config]) -> Mapping[str, Any]:
    return cls.model_json_schema()
