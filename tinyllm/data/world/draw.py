"""Random streams of records, and their splits: train by content, val and test by text.

Record i of a stream is a pure function of (seed, split, i), so a stream can be cut, repeated or generated in parallel. Content (a
fact, a task instance) is held out by its hash and not by the seed, so no seed trains on what another seed evaluates. Val and test
share the held-out content and its wordings; each question or document about it is in one of them, by the hash of its text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b
from typing import Any

from tinyllm.errors import UserError

SPLITS = ("train", "val", "test")
HOLD_OUT = 5  # one content key in five is held out
_SALT = "2161|"  # chosen so that about a fifth of the facts of every attribute is held out
_TEST_SALT = "test40|"  # chosen so that every task has about half of its held-out questions in test

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its answer.

    Attributes:
        task: the task's name, one of `TASKS`.
        question: the text of the user.
        answer: the canonical answer, in the requested form.
        wrong: wrong answers in the requested form (the first is a near miss, where the task has one).
        reshaped: the right content in another form.
    """

    task: str
    question: str
    answer: str
    wrong: tuple[str, ...]
    reshaped: tuple[str, ...]


def held_out(key: str) -> bool:
    """Return whether this content, for example `home|Ada` or `sort|1259`, is held out; the same for every seed."""
    return blake2b((_SALT + key).encode(), digest_size=4).digest()[0] % HOLD_OUT == 0


def belongs(key: str, content: str) -> bool:
    """Return whether this is content of `content`: "train", or "val" for what is held out."""
    return held_out(key) == (content == "val")


def content_of(split: str) -> str:
    """Return the content and the wordings that a split draws from: "train", or "val", which val and test share."""
    return "train" if split == "train" else "val"


def in_half(text: str, split: str) -> bool:
    """Return whether a text about held-out content is in `split`: in val or in test. Train is not divided."""
    return split == "train" or blake2b((_TEST_SALT + text).encode(), digest_size=1).digest()[0] % 2 == (split == "test")


def stream(
    make: Callable[[random.Random, str], Record], name: str, count: int, seed: int, split: str
) -> Iterator[Record]:
    """Yield `make(rng, split)` for the records 0 to count - 1, each with its own generator."""
    for index in range(count):
        yield make(random.Random(f"{name}/{seed}/{split}/{index}"), split)


def check_stream(count: int, split: str) -> None:
    """Check the arguments of a stream.

    Raises:
        UserError: `count` is negative, or `split` is none of SPLITS.
    """
    if count < 0:
        raise UserError(f"a negative number of records: {count}", where="count", fix="use 0 or more")
    check_choice(split, SPLITS, "split")


def check_choice(value: str, known: tuple[str, ...], what: str) -> None:
    """Check that a name is known; the fix suggests the nearest one.

    Raises:
        UserError: `value` is not in `known`.
    """
    if value not in known:
        near = get_close_matches(str(value), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
        raise UserError(f"the bundled world has no {what} {value!r}", where=what, fix=hint)
