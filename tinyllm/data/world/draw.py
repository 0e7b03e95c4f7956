"""Randomness and the line between train and val: the two things every other file of the world stands on.

Record i of a stream is a pure function of (seed, split, i), so a stream can be cut, repeated or made in parallel.
What is held out is decided by a hash of the *content* (a fact, a task instance) and not by the seed: no seed ever
trains on what another one asks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b
from typing import Any

from tinyllm.errors import UserError

SPLITS = ("train", "val")
HOLD_OUT = 5  # one content key in five belongs to val
_SALT = "2161|"  # with this one, val holds about a fifth of the facts of every attribute

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its answer, before it becomes messages.

    Attributes:
        task: the task's name, one of `TASKS`.
        question: the user's words.
        answer: the one canonical answer, in the asked form.
        wrong: answers in the asked form that are not right (the first is a near miss where the task has such a thing).
        reshaped: the right content in a form that was not asked for.
    """

    task: str
    question: str
    answer: str
    wrong: tuple[str, ...]
    reshaped: tuple[str, ...]


def held_out(key: str) -> bool:
    """Whether this content (say `home|Ada`, or `sort|1259`) belongs to val only; the same for every seed."""
    return blake2b((_SALT + key).encode(), digest_size=4).digest()[0] % HOLD_OUT == 0


def belongs(key: str, split: str) -> bool:
    """Whether a question about this content may be asked in this split."""
    return held_out(key) == (split == "val")


def stream(
    make: Callable[[random.Random, str], Record], name: str, count: int, seed: int, split: str
) -> Iterator[Record]:
    """Yield `make(rng, split)` for records 0 .. count-1, each with its own generator."""
    for index in range(count):
        yield make(random.Random(f"{name}/{seed}/{split}/{index}"), split)


def check_stream(count: int, split: str) -> None:
    """Refuse a count or a split that does not exist.

    Raises:
        UserError: `count` is negative, or `split` is neither train nor val.
    """
    if count < 0:
        raise UserError(f"the world cannot make {count} records", where="count", fix="ask for 0 or more records")
    check_choice(split, SPLITS, "split")


def check_choice(value: str, known: tuple[str, ...], what: str) -> None:
    """Refuse a name that is not in `known`, with the nearest one that is.

    Raises:
        UserError: `value` is not in `known`.
    """
    if value not in known:
        near = get_close_matches(str(value), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
        raise UserError(f"the world has no {what} {value!r}", where=what, fix=hint)
