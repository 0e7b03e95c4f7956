"""The bundled world: documents, conversations, preference pairs and prompts about a closed world with known facts.

The world has 24 people and 8 towns with 224 facts, and 13 kinds of questions. Everything is generated from a seed: nothing is
downloaded or shipped, and record i is a pure function of (seed, split, i). For every seed, what is held out (val, test) is disjoint from
train by content, and val from test by text (docs/world.md). Records are plain dicts in the public formats, so they are read like a
user's own files. Left out: other languages, facts of the real world, questions about people who do not exist.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

from tinyllm.data.world.documents import document
from tinyllm.data.world.draw import Record, check_choice, check_stream, stream
from tinyllm.data.world.exchanges import demonstrated, exchange, questions
from tinyllm.data.world.gold import TASKS, gold
from tinyllm.data.world.preferences import bad_answer, pair, preference
from tinyllm.errors import UserError

__all__ = ["TASKS", "conversations", "documents", "gold", "pairs", "preference", "prompts", "questions"]

Choice = str | tuple[str, ...] | None


def documents(count: int, *, seed: int = 0, split: str = "train") -> Iterator[Record]:
    """Yield stories, portraits, lists and worked tasks: `{"text"}`, about 100 to 1,500 characters each.

    Raises:
        UserError: a negative count or an unknown split. So do all functions below.
    """
    check_stream(count, split)
    return stream(document, "documents", count, seed, split)


def conversations(
    count: int,
    *,
    seed: int = 0,
    split: str = "train",
    wrong: float = 0.0,
    flawed: float = 0.0,
    task: Choice = None,
) -> Iterator[Record]:
    """Yield questions with answers: `{"messages", "task"}`, where `task` is that of the last question.

    Args:
        wrong: probability that an answer is wrong, in the right form: an unreliable demonstrator, for RL to improve on.
        flawed: probability that the last answer is one of the rejected answers of `pairs`: wrong, padded, hedged, truncated, a
            refusal, or in another form. Alignment should remove these faults.
        task: one task or several to draw from; None for all.
    """
    check_stream(count, split)
    _check_range(wrong, "wrong", 1.0)
    _check_range(flawed, "flawed", 1.0)
    tasks = _tasks(task)

    def make(rng: random.Random, split: str) -> Record:
        drawn = exchange(rng, split, tasks, wrong)
        bad = flawed and rng.random() < flawed
        text = bad_answer(rng, drawn.item) if bad else demonstrated(rng, drawn.item, wrong)
        return {"messages": [*drawn.messages, {"role": "assistant", "content": text}], "task": drawn.item.task}

    return stream(make, "conversations", count, seed, split)


def pairs(
    count: int, *, seed: int = 0, split: str = "train", noise: float = 0.0, task: Choice = None
) -> Iterator[Record]:
    """Yield two answers of different gold reward: `{"prompt", "chosen", "rejected", "answer", "task"}`.

    Args:
        noise: Bradley-Terry temperature in units of the gold reward; with 0 the better answer is always chosen (see `preference`).
        task: as in `conversations`.
    """
    check_stream(count, split)
    _check_range(noise, "noise", float("inf"))
    return stream(partial(pair, tasks=_tasks(task), noise=noise), "pairs", count, seed, split)


def prompts(count: int, *, seed: int = 0, split: str = "train", task: Choice = None) -> Iterator[Record]:
    """Yield questions without an answer turn: `{"prompt", "answer", "task"}`.

    Args:
        task: as in `conversations`.
    """
    check_stream(count, split)
    tasks = _tasks(task)
    return stream(lambda rng, split: exchange(rng, split, tasks).prompt_record(), "prompts", count, seed, split)


def _tasks(task: Choice) -> tuple[str, ...]:
    names = TASKS if task is None else (task,) if isinstance(task, str) else tuple(task)
    if not names:
        raise UserError("no task to draw from", where="task", fix=f"use one of {', '.join(TASKS)}")
    for name in names:
        check_choice(name, TASKS, "task")
    return names


def _check_range(value: float, name: str, top: float) -> None:
    if not 0.0 <= value <= top:
        raise UserError(f"{name} {value} is out of range", where=name, fix=f"use a number from 0 to {top:g}")
