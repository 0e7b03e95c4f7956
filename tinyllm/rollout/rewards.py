"""Rule-based rewards by name, and the user's own functions by `path/to/file.py:name`.

A reward is `(columns, text, finished) -> float`: the columns of the prompt's record (`answer`, `task`, whatever the data hold), the text
that the policy generated, and whether it ended with an end token. No reward executes generated text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tinyllm.data import world
from tinyllm.errors import UserError
from tinyllm.io.user_code import load_module

Reward = Callable[[Mapping[str, Any], str, bool], float]
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def reference_answer(columns: Mapping[str, Any]) -> str:
    """Return the `answer` column; of a worked solution in GSM8K's format, the part after `####`."""
    return str(columns["answer"]).rpartition("####")[2].strip()


def _number(text: str) -> float | None:
    """Return the last number in `text`, which is where an answer usually is."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def exact_answer(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """Return 1 if the answer is correct, else 0: the same last number if the reference is a number, else the same words."""
    answer = reference_answer(columns)
    if _NUMBER.fullmatch(answer):
        return float(_number(text) == _number(answer))
    return float(_normalized(text) == _normalized(answer))


def _normalized(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".!")


def contains_answer(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """Return 1 if the reference answer occurs anywhere in the text, else 0."""
    return float(_normalized(reference_answer(columns)) in _normalized(text))


def gold(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """Return the bundled world's graded reward in [-1, 1]: correct, complete, in the requested form, not padded, ended."""
    return world.gold(dict(columns), text, finished)


REQUIRED_COLUMNS = {"exact_answer": ("answer",), "contains_answer": ("answer",), "gold": ("answer", "task")}
REWARDS: dict[str, Reward] = {"exact_answer": exact_answer, "contains_answer": contains_answer, "gold": gold}


def load_reward(name: str) -> Reward:
    """Return a built-in reward, or a function of the user's own file (`path/to/file.py:function`).

    Raises:
        UserError: there is no such reward, file or function, or the file cannot be imported.
    """
    if name in REWARDS:
        return REWARDS[name]
    path, _, function = name.rpartition(":")
    if not path.endswith(".py"):
        raise UserError(
            f"there is no reward {name!r}",
            where="rewards",
            fix=f"use {', '.join(REWARDS)}, reward_model, or path/to/file.py:function",
        )
    module = load_module(Path(path), where="rewards")
    if function not in vars(module):
        raise UserError(
            f"{path} has no function {function!r}", where="rewards", fix=f"define {function}(columns, text, finished)"
        )
    return vars(module)[function]


def check_columns(names: Iterable[str], columns: Mapping[str, Any], where: str) -> None:
    """Check that the prompts have the columns that the built-in rewards in `names` read.

    Raises:
        UserError: a column is missing.
    """
    for name in names:
        missing = [column for column in REQUIRED_COLUMNS.get(name, ()) if column not in columns]
        if missing:
            have = ", ".join(c for c in columns if c != "prompt") or "none"
            fix = "use exact_answer" if name == "gold" and "answer" in columns else f"add the column {missing[0]}"
            raise UserError(
                f"the reward {name} needs a column {missing[0]!r}; the prompts have {have}", where=where, fix=fix
            )
