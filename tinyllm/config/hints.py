"""What a message says about a foreign word or value: how it is shown, what was expected, what was probably meant.

Knows nothing of configurations or files: names are strings, expectations are JSON schemas (pydantic writes them), and
values are what YAML or JSON can hold. Left out: anything that would need a dictionary of English.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

from tinyllm.errors import harmless

Schema = Mapping[str, Any]
_LONGEST = 100  # letters of a word worth a guess
_WORDS = {"true", "false", "null"}  # that YAML does not take for text


def shown(text: str, limit: int = 60) -> str:
    """Foreign text for a message: on one line, without control characters, and not endless."""
    return harmless(text if len(text) <= limit else text[: limit - 3] + "...")


def found(value: Any) -> str:
    """A value as YAML would write it, if it is short."""
    if isinstance(value, str):
        return f'"{shown(value)}"'
    if value is None:
        return "nothing (null)"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return f"a mapping of {shown(', '.join(value))}" if value else "an empty mapping"
    return written(value)


def written(value: Any) -> str:
    """A scalar, or a list of scalars, as it is typed into a YAML file."""
    if isinstance(value, list):
        return f"[{', '.join(written(item) for item in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    text = shown(str(value))
    bare = not isinstance(value, str) or (re.fullmatch(r"[A-Za-z_./][\w ./:~-]*", text) and text.lower() not in _WORDS)
    return text if bare else f'"{text}"'


def suggest(word: str, known: Iterable[str]) -> str | None:
    """The known name that `word` most probably stands for, or None where nothing is near.

    Names may be dotted. In order: one edit away (a letter missing, added or swapped with the next; changed); the same
    last part in another section; a few edits; the initials (`lr`), a good part of the letters, or some of the words.
    """
    return next(iter(nearest(word, known)), None)


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """`suggest`, with all names that are as near by one edit, in their order."""
    if len(word) > _LONGEST:
        return []
    word, known = _normal(word), list(known)
    steps = [(edits(word, near := _normal(name), 1), _is_changed(word, near)) for name in known]
    if steps and min(steps)[0] <= 1:
        return [name for name, step in zip(known, steps, strict=True) if step == min(steps)]
    ranked = [(rank, order, name) for order, name in enumerate(known) if (rank := _rank(word, _normal(name)))]
    return [min(ranked)[2]] if ranked else []


def _normal(name: str) -> str:
    return name.lower().replace("-", "_")


def _is_changed(word: str, name: str) -> bool:
    """Whether a letter was changed into another, which fingers do less often than leaving one out, doubling or swapping it."""
    return len(word) == len(name) and Counter(word) != Counter(name)


def _rank(word: str, name: str) -> tuple[int, int, float] | None:
    """How near a name is that is more than one edit away: smaller is nearer, None is not near."""
    section, _, leaf = word.rpartition(".")
    other_section, _, other = name.rpartition(".")
    same = section == other_section
    reach = max(1, len(leaf) // 3)
    part = edits(leaf, other, reach)
    ratio = SequenceMatcher(None, leaf, other, autojunk=False).ratio() if _share_letters(leaf, other) else 0.0
    abbreviates = len(leaf) > 1 and leaf == "".join(piece[:1] for piece in other.split("_"))
    pieces, other_pieces = set(leaf.split("_")), set(other.split("_"))
    tiers = (
        part == 0,
        same and part <= reach,
        part <= 1 and len(leaf) >= 4,
        same and (abbreviates or ratio >= 0.6),
        abbreviates or ratio >= 0.75,
        pieces <= other_pieces or pieces >= other_pieces,
    )
    return (tiers.index(True), part, -ratio) if True in tiers else None


def _share_letters(a: str, b: str) -> bool:
    """Whether more than half of the letters could match, whatever their order."""
    return 2 * sum((Counter(a) & Counter(b)).values()) > 0.5 * (len(a) + len(b))


def edits(a: str, b: str, most: int) -> int:
    """Letters to insert, delete, change or swap with a neighbour to make `b` of `a`; above `most`, anything larger.

    The distance is that of the optimal string alignment: no letter is edited twice.
    """
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    if abs(len(a) - len(b)) > most:
        return most + 1
    before, row = [0] * (len(b) + 1), list(range(len(b) + 1))
    for i, x in enumerate(a):
        last, before, row = before, row, [i + 1]
        for j, y in enumerate(b):
            cost = min(before[j + 1] + 1, row[j] + 1, before[j] + (x != y))
            if i and j and x == b[j - 1] and y == a[i - 1]:
                cost = min(cost, last[j - 1] + 1)
            row.append(cost)
        if min(row) > most:
            return most + 1
    return row[-1]


_KINDS = {
    "integer": ("an integer", "integers"),
    "number": ("a number", "numbers"),
    "boolean": ("true or false", "true or false"),
    "string": ("text", "text values"),
    "path": ("a path", "paths"),
    "null": ("null", "nulls"),
    "object": ("a mapping", "mappings"),
    "array": ("a list", "lists"),
}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters long",
    "maxLength": "at most {} characters long",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matching {}",
}


def alternatives(schema: Schema, definitions: Schema) -> list[Schema]:
    """The members of a union, however deep, with references followed."""
    if "$ref" in schema:
        return alternatives(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return [member for option in schema["anyOf"] for member in alternatives(option, definitions)]
    return [schema]


def expected(schema: Schema, definitions: Schema) -> str:
    """What a schema asks for, in words."""
    return " or ".join(dict.fromkeys(_one(option, definitions) for option in alternatives(schema, definitions)))


def _one(schema: Schema, definitions: Schema) -> str:
    values = allowed(schema)
    if values:
        return found(values[0]) if len(values) == 1 else f"one of {', '.join(written(value) for value in values)}"
    kind = schema.get("type")
    if kind is None:
        return "any value"
    if "properties" in schema:
        return f"a section with {shown(', '.join(schema['properties']), 200)}"
    words = _KINDS[schema["format"] if schema.get("format") in _KINDS else kind][0]
    if "prefixItems" in schema:
        items = [expected(item, definitions) for item in schema["prefixItems"]]
        return f"a list of {len(items)} ({', '.join(items)})"
    if "items" in schema:
        words += f" of {_plural(schema['items'], definitions)}"
    if isinstance(schema.get("additionalProperties"), dict):
        words += f" of names to {_plural(schema['additionalProperties'], definitions)}"
    bounds = [text.format(written(schema[key])) for key, text in _BOUNDS.items() if key in schema]
    return f"{words}, {' and '.join(bounds)}" if bounds else words


def _plural(schema: Schema, definitions: Schema) -> str:
    if set(schema) <= {"type", "format"} and "type" in schema:
        return _KINDS[schema["format"] if schema.get("format") in _KINDS else schema["type"]][1]
    return f"({expected(schema, definitions)})"


def inner(schema: Schema, definitions: Schema, part: str | int) -> Schema:
    """What a schema asks of an item of a list or of an entry of a mapping."""
    for option in alternatives(schema, definitions):
        if isinstance(part, int):
            fixed = option.get("prefixItems", [])
            options = [fixed[part] if part < len(fixed) else option.get("items")]
        else:
            options = [option.get("properties", {}).get(part), option.get("additionalProperties")]
        for found_schema in options:
            if isinstance(found_schema, dict):
                return found_schema
    return {}


def allowed(schema: Schema) -> list[Any]:
    """The values of a Literal; empty for anything else."""
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def meant(value: Any, schema: Schema, definitions: Schema) -> Any:
    """A value of the right kind that `value` was probably meant to be, or None."""
    options = alternatives(schema, definitions)
    guesses = (guess for option in options for guess in _guesses(value, option) if _fits(guess, option))
    return next(guesses, None)


_TRUTH = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


def _guesses(value: Any, option: Schema) -> Iterable[Any]:
    if isinstance(value, str):
        near = suggest(value, [str(v) for v in allowed(option)])
        yield from (v for v in allowed(option) if str(v) == near)
        if value.lower() in _TRUTH:
            yield _TRUTH[value.lower()]
        yield from _numbers(value)
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


def _fits(value: Any, option: Schema) -> bool:
    """Whether a guess is what the schema asks for. Knows the kinds that `_guesses` makes."""
    if allowed(option):
        return value in allowed(option)
    kind = option.get("type")
    if isinstance(value, list):
        return kind == "array" and _fits(value[0], option.get("items", {}))
    if kind == "array":
        return False
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, str):
        return kind == "string"
    if not math.isfinite(value) or kind not in ("number", "integer" if isinstance(value, int) else "number"):
        return False
    return (
        option.get("minimum", -math.inf) <= value <= option.get("maximum", math.inf)
        and option.get("exclusiveMinimum", -math.inf) < value < option.get("exclusiveMaximum", math.inf)
    )  # fmt: skip
