"""Numbers, sizes and times as text; lines that are safe to print."""

from __future__ import annotations

import sys
from typing import Any

from tinyllm.errors import escape_unprintable


def line(text: str) -> None:
    """Print one line of untrusted text, with what the terminal cannot encode replaced."""
    encoding = sys.stdout.encoding or "utf-8"
    print(escape_unprintable(text).encode(encoding, "replace").decode(encoding))


def number(value: Any) -> str:
    """Format a number with four significant digits, or with thousands separators; `?` for None."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else "?" if value is None else str(value)


def size(count: float) -> str:
    """Format a number of bytes: 999 B, 1.2 MB."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def minute(timestamp: str) -> str:
    """Shorten an ISO timestamp to `YYYY-MM-DD HH:MM`."""
    return timestamp[:16].replace("T", " ")
