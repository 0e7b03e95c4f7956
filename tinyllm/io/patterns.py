"""Regular expressions that others wrote, matched in a process of their own: a pattern can need longer than anyone waits.

`re` has no limit of time, and a pattern such as `(\\w+.?)+x` takes exponential time on forty characters.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache

SECONDS = 5.0  # for all patterns and all names together; an ordinary one takes microseconds
LONGEST = 20_000  # characters
_SCRIPT = """
import json, re, sys
patterns, names = json.load(sys.stdin)
json.dump([[bool(re.fullmatch(pattern, name)) for name in names] for pattern in patterns], sys.stdout)
"""


@lru_cache(maxsize=64)
def fullmatches(patterns: tuple[str, ...], names: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """Return pattern -> those of `names` that it matches from the first to the last character.

    Raises:
        ValueError: a pattern that is not a regular expression, too long, or that takes too long.
    """
    for pattern in patterns:
        _check(pattern)
    if not patterns or not names:
        return dict.fromkeys(patterns, frozenset())
    found = _matched(patterns, names)
    rows = zip(patterns, found, strict=True)
    return {pattern: frozenset(n for n, hit in zip(names, row, strict=True) if hit) for pattern, row in rows}


def _check(pattern: str) -> None:
    if len(pattern) > LONGEST:
        raise ValueError(f"a pattern of {len(pattern):,} characters, at most {LONGEST:,} are read")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression: {error}") from None


def _matched(patterns: Sequence[str], names: Sequence[str]) -> list[list[bool]]:
    arguments = [sys.executable, "-I", "-S", "-c", _SCRIPT]
    try:
        done = subprocess.run(
            arguments, input=json.dumps([patterns, names]), capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the pattern was not matched within {SECONDS:g} seconds") from None
    except subprocess.CalledProcessError:
        raise ValueError("the pattern cannot be matched") from None
    return json.loads(done.stdout)
