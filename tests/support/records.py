"""Results as they come, one JSON object a line, in a file that a killed command goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line. A line that a killed command left incomplete is ended first."""
    torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * bool(torn) + json.dumps(record) + "\n")


def read(path: Path | None) -> list[dict[str, Any]]:
    """Return the records of the whole lines, in order; none without a file."""
    text = path.read_text(encoding="utf-8") if path and path.is_file() else ""
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # of a command that was killed
    return found
