"""Settings from plain values (files of other programs, earlier runs): validation and comparison field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from tinyllm.config.base import Config, flatten
from tinyllm.config.formatting import format_value
from tinyllm.config.validation_errors import explain_errors
from tinyllm.errors import UserError

T = TypeVar("T", bound=Config)
_MAX_SHOWN = 5


def validate(cls: type[T], values: Mapping[str, Any], *, where: Path, fix: str = "", code: int) -> T:
    """Return the settings described by the file at `where`.

    Raises:
        UserError (`code`): with every field that is invalid.
    """
    try:
        return cls.model_validate_json(json.dumps(values))
    except ValidationError as error:
        found = [p.what for _, _, p in explain_errors(cls, error.errors(include_url=False), values, {})]
    raise UserError("; ".join(list(dict.fromkeys(found))[:_MAX_SHOWN]), where=str(where), fix=fix, code=code)


def differences(there: Config, here: Config, names: tuple[str, str] = ("checkpoint", "config")) -> str:
    """Return `hidden_size: checkpoint 256, config 128; ...` for two configurations of one class; empty if they are equal."""
    a, b = flatten(there), flatten(here)
    found = [
        f"{key}: {names[0]} {format_value(a.get(key))}, {names[1]} {format_value(b.get(key))}"
        for key in {**a, **b}
        if a.get(key) != b.get(key)
    ]
    more = [f"and {len(found) - _MAX_SHOWN} more"] if len(found) > _MAX_SHOWN else []
    return "; ".join([*found[:_MAX_SHOWN], *more])
