"""Every JSON that the package writes parses strictly: NaN and infinities are null and named."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tinyllm.io import strict_json

PACKAGE = Path(__file__).resolve().parents[2] / "tinyllm"
ELSEWHERE = {  # (file, why): text in memory that is never a file or an output of ours
    "io/strict_json.py": "the writer",
    "config/load.py": "read back at once; a setting that is NaN or infinite is refused there by its name",
    "config/values.py": "read back at once",
    "train/changes.py": "a setting in a message",
    "cli/training_files.py": "a setting, read back at once",
    "io/shell.py": "a setting, as part of a command that is suggested",
    "distributed/rendezvous.py": "compared between ranks",
    "data/sources/json_rows.py": "looks for lone surrogates",
    "data/records/detect.py": "a string, as part of a command that is suggested",
    "text/foreign/jinja_template.py": "what a template makes of a value, as in transformers",
    "text/foreign/layouts.py": "part of a text that is rendered, as transformers writes it",
    "text/foreign/process.py": "a line to the process of a template",
    "text/foreign/trial.py": "a line to the process of a template",
    "text/foreign/worker.py": "a line from the process of a template",
    "cli/printing/text.py": "one character of a text that `strict_json` has written",
}


def refuse(word: str) -> NoReturn:
    raise ValueError(word)


def test_numbers_that_are_not_finite_become_null_and_are_named() -> None:
    value = {"a": math.nan, "b": {"c": [1.5, math.inf, (-math.inf, None)]}, "d": None, "e": "NaN"}
    found = json.loads(strict_json.dumps(value, indent=2), parse_constant=refuse)
    assert found.pop("nonfinite") == {"a": "nan", "b.c.1": "inf", "b.c.2.0": "-inf"}
    assert found == {"a": None, "b": {"c": [1.5, None, [None, None]]}, "d": None, "e": "NaN"}


@pytest.mark.parametrize("options", [{}, {"indent": 2, "ensure_ascii": False}, {"sort_keys": True}])
def test_finite_values_are_written_as_by_the_library(options: dict[str, Any]) -> None:
    value = {"b": [1, 2.5e-300, True, None, "é"], "a": {}}
    assert strict_json.dumps(value, **options) == json.dumps(value, **options)


def test_a_list_is_written_without_a_note() -> None:
    assert strict_json.dumps([math.nan, 1]) == "[null, 1]"


def test_what_was_written_is_restored() -> None:
    value = {"x.y": {"z": [math.inf, None, 1.0]}, "figures": {"low": -math.inf, "high": math.nan}}
    read = strict_json.restored(json.loads(strict_json.dumps(value)))
    assert math.isnan(read["figures"].pop("high"))
    assert read == {"x.y": {"z": [math.inf, None, 1.0]}, "figures": {"low": -math.inf}}
    for other in ([1], {"a": None}, {"nonfinite": 3}):
        assert strict_json.restored(other) == other
    assert strict_json.restored({"nonfinite": {"a": "text"}, "a": None}) == {"a": None}


def raw_writes(source: str) -> list[int]:
    """The lines that write JSON by the library itself, unless `allow_nan=False` refuses what JSON does not have."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "json":
            found.append(node.lineno)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps", "json.JSONEncoder"):
            refuses = any(k.arg == "allow_nan" and ast.unparse(k.value) == "False" for k in node.keywords)
            found += [] if refuses else [node.lineno]
    return found


def test_the_search_finds_raw_writes() -> None:
    assert raw_writes("json.dumps(x)\njson.dump(x, f)\njson.dumps(x, allow_nan=False)\nstrict_json.dumps(x)") == [1, 2]
    assert raw_writes("from json import dumps\ndumps(x)\njson.JSONEncoder()") == [1, 3]


def test_nothing_else_writes_json() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := raw_writes(path.read_text(encoding="utf-8")))
    }
    own = {name: lines for name, lines in found.items() if name not in ELSEWHERE}
    assert not own, f"write with io.strict_json: {own}"
