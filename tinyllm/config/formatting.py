"""Formatting of untrusted text and values for error messages."""

from __future__ import annotations

import re
from typing import Any

from tinyllm.errors import escape_unprintable

_RESERVED = {"true", "false", "null"}  # words that YAML does not read as strings


def shorten(text: str, limit: int = 60) -> str:
    """Return text on one line, without control characters and cut to `limit` characters."""
    return escape_unprintable(text if len(text) <= limit else text[: limit - 3] + "...")


def describe_value(value: Any) -> str:
    """Describe a value that was found: scalars as YAML writes them, lists and mappings by size or keys."""
    if isinstance(value, str):
        return f'"{shorten(value)}"'
    if isinstance(value, list):
        return f"a list of {len(value)} item{'s' * (len(value) > 1)}" if value else "an empty list"
    if isinstance(value, dict):
        return f"a mapping with keys {shorten(', '.join(value))}" if value else "an empty mapping"
    return format_value(value)


def format_value(value: Any) -> str:
    """Format a scalar, or a list or mapping of scalars, as it is typed into a YAML file."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {format_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(format_value(item) for item in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    text = shorten(str(value))
    is_plain = not isinstance(value, str) or (
        re.fullmatch(r"[A-Za-z_./](?:[\w ./~-]|:(?! ))*", text) and text.lower() not in _RESERVED
    )
    return text if is_plain else f'"{text}"'
