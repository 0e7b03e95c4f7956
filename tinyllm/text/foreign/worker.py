"""The process that renders a foreign chat template: its memory, the time for one conversation and the files it may write are limited.

A line of JSON in, a line of JSON out, for the template first and then for each conversation. `process` starts it. Python's
sandboxes limit what a template reaches, not what it uses: `(10**8)**(10**6)` holds the interpreter for seconds, `'%999999999d'|format(1)`
takes a gigabyte, and nested loops do not end. No torch, no tokenizer.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from typing import Any

from tinyllm.text.foreign.jinja_template import TemplateFailedError
from tinyllm.text.foreign.layouts import Layouts, NoMaskError
from tinyllm.text.foreign.trial import describe

FAILED, NO_MASK = "failed", "no_mask"


def main() -> None:
    """Serve requests until standard input is closed."""
    setting = json.loads(sys.stdin.readline())
    _limit_memory(setting["memory"])
    _start_clock(setting["seconds"])
    try:
        layouts = Layouts(setting["template"], setting["names"], setting["control"])
        found: dict[str, Any] = asdict(describe(layouts))
    except (TemplateFailedError, MemoryError, RecursionError) as error:
        _answer({FAILED: str(error) or type(error).__name__})
        return
    _answer(found)
    _start_clock(0)  # it may be long until the first conversation: the model is loaded
    while line := sys.stdin.readline():
        _start_clock(setting["seconds"])
        _answer(_layout(layouts, line))
        _start_clock(0)


def _layout(layouts: Layouts, line: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
        found = layouts.layout(
            request["messages"], request["tools"], line, prompt=request["prompt"], answers=request["answers"]
        )
    except TemplateFailedError as error:
        return {FAILED: str(error)}
    except NoMaskError as error:
        return {NO_MASK: str(error)}
    except (MemoryError, RecursionError):
        return {FAILED: "it needs more memory than it may use"}
    answers = [asdict(answer) for answer in found.answers]
    return {"text": found.text, "controls": found.controls, "forged": found.forged, "answers": answers}


def _answer(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def _limit_memory(size: int) -> None:
    """Limit the memory of this process to `size` bytes, and forbid writing files. Only the time is limited where the system cannot."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, limit in (("RLIMIT_AS", size), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        kind = vars(resource).get(name)
        try:
            if kind is not None:
                resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):  # macOS refuses some
            continue


def _start_clock(seconds: float) -> None:
    """End this process after so many seconds; 0 stops the clock. The signal has no handler, so no computation can delay it."""
    if "setitimer" in vars(signal):
        signal.setitimer(signal.ITIMER_REAL, seconds)
