"""JSON that every parser reads. Everything this package writes as JSON goes through `dumps`.

JSON has no NaN and no infinities, and `json.dumps` writes them all the same. Here they become null, and the object says so: its key
`nonfinite` maps the place of each (`best.reward`, `checks.3.difference`) to what it was, "nan", "inf" or "-inf".
Left out: reading (`untrusted_files`).
"""

from __future__ import annotations

import json
import math
from typing import Any

NONFINITE = "nonfinite"
_WORDS = ("nan", "inf", "-inf")


def dumps(value: Any, **options: Any) -> str:
    """Return `value` as JSON, with null for numbers that are not finite.

    Args:
        value: what `json.dumps` accepts. The note is added to an object only: a list has no place for it.
        options: of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(without_nonfinite(value), allow_nan=False, **options)


def without_nonfinite(value: Any) -> Any:
    """Return a copy with None for NaN and infinities; an object that had some names them under `nonfinite`."""
    found: dict[str, str] = {}
    clean = _clean(value, "", found)
    return {**clean, NONFINITE: found} if found and isinstance(clean, dict) else clean


def restored(value: Any) -> Any:
    """Return what `without_nonfinite` was given: numbers that are not finite are back in their places, and the note is gone."""
    if not isinstance(value, dict) or not isinstance(value.get(NONFINITE), dict):
        return value
    return _restored({key: inner for key, inner in value.items() if key != NONFINITE}, "", value[NONFINITE])


def _restored(value: Any, place: str, note: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _restored(inner, _inside(place, key), note) for key, inner in value.items()}
    if isinstance(value, list):
        return [_restored(inner, _inside(place, i), note) for i, inner in enumerate(value)]
    return float(note[place]) if value is None and note.get(place) in _WORDS else value


def _inside(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)


def _clean(value: Any, place: str, found: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _clean(inner, _inside(place, key), found) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner, _inside(place, i), found) for i, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        found[place] = str(float(value))
        return None
    return value
