"""JSON schemas (as pydantic writes them) in words, and guesses of the value that a user meant."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tinyllm.config.formatting import describe_value, format_value, shorten
from tinyllm.config.suggestions import suggest

Schema = Mapping[str, Any]
_TYPES = {  # singular and plural
    "integer": ("an integer", "integers"),
    "number": ("a number", "numbers"),
    "boolean": ("true or false", "true or false"),
    "string": ("a string", "strings"),
    "path": ("a path", "paths"),
    "null": ("null", "nulls"),
    "object": ("a mapping", "mappings"),
    "array": ("a list", "lists"),
}
_CONSTRAINTS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "divisible by {}",
    "minLength": "with at least {} character(s)",
    "maxLength": "with at most {} character(s)",
    "minItems": "with at least {} item(s)",
    "maxItems": "with at most {} item(s)",
    "pattern": "matching {}",
}
_BOOLEANS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


def union_members(schema: Schema, definitions: Schema) -> list[Schema]:
    """Return the members of a possibly nested union, with references resolved."""
    if "$ref" in schema:
        return union_members(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return [member for option in schema["anyOf"] for member in union_members(option, definitions)]
    return [schema]


def literal_values(schema: Schema) -> list[Any]:
    """Return the values of a Literal; empty for other schemas."""
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def subschema(schema: Schema, definitions: Schema, part: str | int) -> Schema:
    """Return the schema of an item of a list or of an entry of a mapping; empty if it is not known."""
    for option in union_members(schema, definitions):
        if isinstance(part, int):
            fixed = option.get("prefixItems", [])
            options = [fixed[part] if part < len(fixed) else option.get("items")]
        else:
            options = [option.get("properties", {}).get(part), option.get("additionalProperties")]
        for found in options:
            if isinstance(found, dict):
                return found
    return {}


def describe_schema(schema: Schema, definitions: Schema) -> str:
    """Describe the expected value: `an integer >= 1 or null`."""
    members = union_members(schema, definitions)
    return " or ".join(dict.fromkeys(_describe_member(member, definitions) for member in members))


def _describe_member(schema: Schema, definitions: Schema) -> str:
    values = literal_values(schema)
    if values:
        return describe_value(values[0]) if len(values) == 1 else f"one of {', '.join(map(format_value, values))}"
    kind = schema.get("type")
    if kind is None:
        return "any value"
    if "properties" in schema:
        return f"a section with {shorten(', '.join(schema['properties']), 200)}"
    words = _TYPES[schema["format"] if schema.get("format") in _TYPES else kind][0]
    if "prefixItems" in schema:
        items = [describe_schema(item, definitions) for item in schema["prefixItems"]]
        return f"a list of {len(items)} ({', '.join(items)})"
    if "items" in schema:
        words += f" of {_describe_plural(schema['items'], definitions)}"
    if isinstance(schema.get("additionalProperties"), dict):
        words += f" of names to {_describe_plural(schema['additionalProperties'], definitions)}"
    constraints = [text.format(format_value(schema[key])) for key, text in _CONSTRAINTS.items() if key in schema]
    return f"{words} {' and '.join(constraints)}" if constraints else words


def _describe_plural(schema: Schema, definitions: Schema) -> str:
    if set(schema) <= {"type", "format"} and "type" in schema:
        return _TYPES[schema["format"] if schema.get("format") in _TYPES else schema["type"]][1]
    return f"({describe_schema(schema, definitions)})"


def guess_value(value: Any, schema: Schema, definitions: Schema) -> Any:
    """Return a valid value that `value` was probably meant to be, or None."""
    options = union_members(schema, definitions)
    guesses = (guess for option in options for guess in _guesses(value, option) if _is_valid(guess, option))
    return next(guesses, None)


def _guesses(value: Any, option: Schema) -> Iterable[Any]:
    if isinstance(value, str):
        near = suggest(value, [str(v) for v in literal_values(option)])
        yield from (v for v in literal_values(option) if str(v) == near)
        if value.lower() in _BOOLEANS:
            yield _BOOLEANS[value.lower()]
        yield from _numbers(value)
        if "pattern" in option:  # of names
            yield re.sub(r"[^\w.~]+", "-", value).strip("-.~")
    elif isinstance(value, bool):
        yield from ("on", "off") if value else ("off", "on")
    elif isinstance(value, float) and value.is_integer():
        yield int(value)
    elif value in (0, 1):
        yield bool(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
    if isinstance(value, str | int | float):
        yield [value]


def _numbers(text: str) -> Iterable[int | float]:
    digits = text.strip().replace("_", "").replace(",", "")
    try:
        number = float(digits)
    except ValueError:
        return
    yield int(number) if number.is_integer() and abs(number) < 1e15 else number


def _is_valid(value: Any, option: Schema) -> bool:
    """Return whether a guess satisfies the schema. Supports the types that `_guesses` returns."""
    if literal_values(option):
        return value in literal_values(option)
    kind = option.get("type")
    if isinstance(value, list):
        return kind == "array" and _is_valid(value[0], option.get("items", {}))
    if kind == "array":
        return False
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, str):
        return kind == "string" and re.search(option.get("pattern", ""), value) is not None
    if not math.isfinite(value) or kind not in ("number", "integer" if isinstance(value, int) else "number"):
        return False
    return (
        option.get("minimum", -math.inf) <= value <= option.get("maximum", math.inf)
        and option.get("exclusiveMinimum", -math.inf) < value < option.get("exclusiveMaximum", math.inf)
    )  # fmt: skip
