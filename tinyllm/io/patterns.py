"""Regular expressions that others wrote, matched within a limit of time.

`re` has none, and a pattern such as `(\\w+.?)+x` takes exponential time on forty characters. It does look for signals while it
matches, so a timer of the process's own time ends it. Where there is no such timer (Windows, other threads), patterns that could take
that long are refused by their form.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

SECONDS = 2.0  # of computing, for all patterns and names together; an ordinary pattern takes microseconds
LONGEST = 20_000  # characters
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_MANY = 6  # repetitions: with each, the time grows by the length of a name
T = TypeVar("T")


@lru_cache(maxsize=64)
def fullmatches(patterns: tuple[str, ...], names: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """Return pattern -> those of `names` that it matches from the first to the last character.

    Raises:
        ValueError: a pattern that is not a regular expression, too long, or that takes too long.
    """
    if (longest := max(map(len, patterns), default=0)) > LONGEST:
        raise ValueError(f"a pattern of {longest:,} characters, at most {LONGEST:,} are read")
    try:
        return _within_limit(lambda: _found(patterns, names), patterns)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"not a regular expression: {error}") from None


def _found(patterns: Sequence[str], names: Sequence[str]) -> dict[str, frozenset[str]]:
    compiled = {pattern: re.compile(pattern) for pattern in patterns}
    return {text: frozenset(filter(pattern.fullmatch, names)) for text, pattern in compiled.items()}


def _within_limit(work: Callable[[], T], patterns: Sequence[str]) -> T:
    """Return `work()`, ended with an error after `SECONDS` of computing."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        for pattern in patterns:
            if _REPEATED_GROUP.search(pattern) or sum(pattern.count(sign) for sign in "*+{") > _MANY:
                raise ValueError("a pattern with repeated groups, or many repetitions, could take too long")
        return work()

    def end(*_: object) -> None:
        raise ValueError(f"the pattern is not matched within {SECONDS:g} seconds")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
