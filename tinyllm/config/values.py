"""Settings that come as plain values, from a file of another program's or of an earlier run: checked, and compared field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from tinyllm.config import base, complaints, hints
from tinyllm.config.base import Config
from tinyllm.errors import UserError

T = TypeVar("T", bound=Config)
_MOST_SHOWN = 5


def checked(cls: type[T], values: Mapping[str, Any], *, where: Path, fix: str = "", code: int) -> T:
    """The settings that a file at `where` describes; UserError naming every field that it cannot mean."""
    try:
        return cls.model_validate_json(json.dumps(values))
    except ValidationError as error:
        found = [p.what for _, _, p in complaints.explain(cls, error.errors(include_url=False), values, {})]
    raise UserError("; ".join(list(dict.fromkeys(found))[:_MOST_SHOWN]), where=str(where), fix=fix, code=code)


def differences(there: Config, here: Config, names: tuple[str, str] = ("checkpoint", "config")) -> str:
    """`hidden_size: checkpoint 256, config 128; ...` for two settings of one kind; empty where they are equal."""
    a, b = base.flat(there), base.flat(here)
    found = [
        f"{key}: {names[0]} {hints.written(a.get(key))}, {names[1]} {hints.written(b.get(key))}"
        for key in {**a, **b}
        if a.get(key) != b.get(key)
    ]
    more = [f"and {len(found) - _MOST_SHOWN} more"] if len(found) > _MOST_SHOWN else []
    return "; ".join([*found[:_MOST_SHOWN], *more])
