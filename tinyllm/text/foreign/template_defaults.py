"""Values of a chat template's own variables: lines in front of the template, which set what its caller leaves out.

Every program that renders the template reads them, so a model that was trained with `enable_thinking = false` is also used with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from tinyllm.io import strict_json

Value = bool | int | float | str
_MOST_SHOWN = 200  # characters; a template may come from anywhere
_LINE = re.compile(r"\{%- if ([A-Za-z_]\w*) is not defined %\}\{% set \1 = (.*) %\}\{% endif %\}\n")


def split(template: str) -> tuple[dict[str, Value], str]:
    """Return the values in front of a template, and the template without them."""
    values: dict[str, Value] = {}
    at = 0
    while found := _LINE.match(template, at):
        try:
            value = json.loads(found[2])
        except ValueError:
            break
        if not isinstance(value, Value) or value != value or value in (float("inf"), -float("inf")):
            break
        values[found[1]] = value
        at = found.end()
    return values, template[at:]


def join(values: Mapping[str, Value], body: str) -> str:
    """Return a template with values in front. It begins at the start of a line, as it did: spaces there are stripped."""
    lines = (
        f"{{%- if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}\n"
        for name, value in values.items()
    )
    return "".join([*lines, body])


def described(values: Mapping[str, Value]) -> str:
    """Return the values for a person."""
    found = ", ".join(f"{name} = {_literal(value)}" for name, value in values.items())
    return found if len(found) <= _MOST_SHOWN else f"{found[:_MOST_SHOWN]}…"


def _literal(value: Value) -> str:
    return strict_json.dumps(value, ensure_ascii=False)
