"""The one place where rewards are called: in training, on held-out prompts, in `eval`, and in the check before the first step.

A reward that raises, or returns anything but a finite number or None, ends the run with an error that names the function, its file and
line, the row and its columns. Columns are copied, so that a reward cannot change the data.

A batch function receives what TRL's GRPOTrainer passes, by keyword: `prompts` and `completions` (texts; lists of messages where the data
give the prompt as a list of messages), `completion_ids`, one list for each column, `trainer_state` (`global_step`, `max_steps`), and
`log_extra` and `log_metric`, which do nothing here. Without `**columns` it receives the arguments it names. It may be asynchronous.
"""

from __future__ import annotations

import asyncio
import copy
import math
import traceback
from collections.abc import Awaitable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from tinyllm.errors import UserError, escape_unprintable
from tinyllm.rollout.rewards import Reward
from tinyllm.signals import Stop

LARGEST = 3e38  # rewards are float32
_SHOWN = 60  # characters of a prompt or value in an error


@dataclass
class TrainerState:
    """The part of transformers' TrainerState that rewards read, to change with the progress of training."""

    global_step: int = 0
    max_steps: int = 0


@dataclass(frozen=True)
class Answered:
    """An answer to a prompt, as rewards see it."""

    columns: Mapping[str, Any]
    """of the prompt's record; with `prompt`, its messages"""
    text: str
    finished: bool
    ids: Sequence[int] = ()
    place: str = ""
    """file and line of the prompt, if known"""
    plain: bool = False
    """the data give the prompt as a text, not as messages"""

    @property
    def messages(self) -> list[dict[str, Any]]:
        return list(self.columns.get("prompt", []))

    @property
    def prompt_text(self) -> str:
        return str(self.messages[-1]["content"]) if self.messages else ""

    def described(self) -> str:
        """Return where the row is and how its prompt begins, for an error."""
        start = _short(repr(self.prompt_text))
        return f"{self.place} ({start})" if self.place else f"the prompt {start}"


def score(reward: Reward, rows: Sequence[Answered], state: TrainerState | None = None) -> list[float | None]:
    """Return the reward of every answer; None where it does not apply.

    Raises: UserError if the reward raises or returns something else.
    """
    if reward.style == "row":
        return [_number(reward, _called(reward, row), row) for row in rows]
    return _batch(reward, rows, state or TrainerState())


def _called(reward: Reward, row: Answered) -> Any:
    try:
        return reward.function(copy.deepcopy(dict(row.columns)), row.text, row.finished)
    except Stop:
        raise
    except BaseException as error:  # SystemExit and asyncio's CancelledError too
        raise _raised(reward, error, row) from error


def _batch(reward: Reward, rows: Sequence[Answered], state: TrainerState) -> list[float | None]:
    if not rows:
        return []
    try:
        found = reward.function(**_arguments(reward, rows, state))
        found = asyncio.run(_awaited(found)) if isinstance(found, Awaitable) else found
        several = isinstance(found, Iterable) and not isinstance(found, str | bytes | Mapping | Set)
        values = list(islice(found, len(rows) + 1)) if several else None
    except Stop:
        raise
    except BaseException as error:  # SystemExit and asyncio's CancelledError too
        for row in rows if len(rows) > 1 else ():  # to name the row that it raises for
            _batch(reward, [row], state)
        raise _raised(reward, error, rows[0], len(rows)) from error
    if values is None:
        raise _refused(reward, f"returned {_shown(found)}, not a list of {len(rows)} numbers", rows[0])
    if len(values) != len(rows):
        number = f"more than {len(rows)}" if len(values) > len(rows) else f"{len(values)}"
        raise _refused(reward, f"returned {number} values for {len(rows)} answers", rows[0])
    return [_number(reward, value, row) for value, row in zip(values, rows, strict=True)]


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found


def _arguments(reward: Reward, rows: Sequence[Answered], state: TrainerState) -> dict[str, Any]:
    """Return the keyword arguments of a batch function."""
    names = dict.fromkeys(name for row in rows for name in row.columns)
    names |= dict.fromkeys(reward.required)
    columns = {
        name: [copy.deepcopy(row.columns.get(name)) for row in rows]
        for name in names
        if name not in ("prompt", "completion", "completion_ids")
    }
    given = columns | {
        "prompts": [row.prompt_text if row.plain else copy.deepcopy(row.messages) for row in rows],
        "completions": [row.text if row.plain else [{"role": "assistant", "content": row.text}] for row in rows],
        "completion_ids": [list(row.ids) for row in rows],
        "trainer_state": copy.copy(state),
        "log_extra": _not_recorded,
        "log_metric": _not_recorded,
    }
    return given if reward.parameters is None else {k: v for k, v in given.items() if k in reward.parameters}


def _not_recorded(name: str, value: Any) -> None:
    """Stand for TRL's `log_extra` and `log_metric`: add a reward of weight 0 to have a figure of your own recorded."""


def _number(reward: Reward, value: Any, row: Answered) -> float | None:
    """Return what a reward returned as a float, or None. Booleans and scalars of numpy and torch are numbers."""
    if value is None:
        return None
    number = None
    with suppress(Exception):
        if not isinstance(value, str | bytes | bytearray | complex | np.complexfloating) and np.ndim(value) == 0:
            number = math.inf if isinstance(value, int) and abs(value) > LARGEST else float(value)
    if number is None:
        raise _refused(reward, f"returned {_shown(value)}, not a number", row)
    if not math.isfinite(number) or abs(number) > LARGEST:
        raise _refused(reward, f"returned {_shown(value)}, not a finite number", row)
    return number


# --- errors ----------------------------------------------------------------------------------------------------------------------


def _raised(reward: Reward, error: BaseException, row: Answered, rows: int = 1) -> UserError:
    if isinstance(error, UserError) and not reward.own:
        return UserError(f"{error.what}, for {row.described()}", where=error.where, fix=error.fix)
    file = reward.place.rpartition(":")[0]
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if file and f.filename.endswith(file)]
    place = f"{file}:{lines[-1]}" if lines else reward.place
    text = _short(" ".join(str(error).split()), 200)
    what = f"raised {type(error).__name__}" + f": {text}" * bool(text)
    fix = "fix the function at this line"
    if reward.style == "batch" and isinstance(error, TypeError | AttributeError | KeyError | IndexError):
        kind = "texts" if row.plain else "lists of messages"
        fix += (
            f"; text prompts give text completions, message prompts give lists of messages (these prompts are {kind})"
        )
    return _error(reward, what, row, place, fix, f" of a batch of {rows}" if rows > 1 else "")


def _refused(reward: Reward, what: str, row: Answered) -> UserError:
    one = "one finite number for each answer" if reward.style == "batch" else "a finite number"
    return _error(reward, what, row, reward.place, f"return {one}, or None where the reward does not apply")


def _error(reward: Reward, what: str, row: Answered, place: str, fix: str, batch: str = "") -> UserError:
    columns = ", ".join(map(str, list(row.columns)[:20])) or "none"
    answered = f"for {row.described()}{batch}, answered {_short(repr(row.text))}"
    return UserError(
        f"the reward {reward.name} {what}, {answered}; columns: {columns}", where=place or "rewards", fix=fix
    )


def _shown(value: Any) -> str:
    """Return the type and the beginning of a value."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = "?"
    return text if isinstance(value, float) else f"{_short(text)} ({type(value).__name__})"


def _short(text: str, limit: int = _SHOWN) -> str:
    text = escape_unprintable(text)
    return text if len(text) <= limit else text[:limit] + "…"
