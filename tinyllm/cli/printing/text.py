"""Numbers, sizes and times as text; lines that are safe to print."""

from __future__ import annotations

import codecs
import json
import math
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any

from tinyllm.errors import escape_unprintable
from tinyllm.io import strict_json

_LONGEST = 1e15  # larger numbers are written with an exponent


def line(text: str) -> None:
    """Print one line of untrusted text, with what the terminal cannot encode replaced."""
    encoding = sys.stdout.encoding or "utf-8"
    print(escape_unprintable(text).encode(encoding, "replace").decode(encoding))


def prints_on_stderr(as_json: bool) -> AbstractContextManager[object]:
    """Return a context in which prints of the user's own rewards and algorithms go to stderr if stdout is to hold one JSON object."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def json_object(found: Any, **options: Any) -> None:
    """Print one JSON object. What a terminal would act on is written as JSON escapes, which parsers read as the same characters.

    Args:
        options: of `json.dumps`.
    """
    any_script = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"  # others would replace characters
    text = strict_json.dumps(found, ensure_ascii=not any_script, **options)
    print("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text))


def pad(text: str, width: int, side: str = "left") -> str:
    """Return a text filled with spaces to `width` columns of a terminal: Chinese characters take two, combining marks none.

    Args:
        side: of the text; `left` or `right`.
    """
    spaces = " " * (width - columns(text))
    return spaces + text if side == "right" else text + spaces


def columns(text: str) -> int:
    """Return the columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def cut(text: str, width: int) -> str:
    """Return a text of at most `width` columns, with an ellipsis where it was longer."""
    if columns(text) <= width:
        return text
    from rich.cells import set_cell_size

    return set_cell_size(text, width - 3).rstrip() + "..."


def number(value: Any) -> str:
    """Format a number with four significant digits, or with thousands separators; `?` for None, words for NaN and infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < _LONGEST else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else "?" if value is None else str(value)


def change(before: Any, after: Any) -> str:
    """Format a figure before and after: `3.2 -> 1.5`, or `1.5` where there is nothing to compare it with."""
    return number(after) if before is None else f"{number(before)} -> {number(after)}"


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
