"""Rewards that a rule can compute, by name; and a user's own function by `path/to/file.py:name`.

A reward is `(columns, text, finished) -> float`: the prompt's columns (`answer`, `task`, whatever the data hold), what the policy wrote,
and whether it ended by itself. No reward executes what the policy wrote.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tinyllm.data import world
from tinyllm.errors import UserError

Reward = Callable[[Mapping[str, Any], str, bool], float]
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def expected(columns: Mapping[str, Any]) -> str:
    """The `answer` column; of GSM8K's worked solutions what follows `####`."""
    return str(columns["answer"]).rpartition("####")[2].strip()


def _number(text: str) -> float | None:
    """The last number in `text`, which is where answers stand."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def exact_answer(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """1 where the answer is right: the same last number if a number was asked for, else the same words."""
    answer = expected(columns)
    if _NUMBER.fullmatch(answer):
        return float(_number(text) == _number(answer))
    return float(_plain(text) == _plain(answer))


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".!")


def contains_answer(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """1 where the right answer occurs anywhere in the text."""
    return float(_plain(expected(columns)) in _plain(text))


def gold(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """The bundled world's own judgement: right, complete, in the asked form, not padded out, ended. In [-1, 1]."""
    return world.gold(columns, text, finished)


NEEDS = {"exact_answer": ("answer",), "contains_answer": ("answer",), "gold": ("answer", "task")}
REWARDS: dict[str, Reward] = {"exact_answer": exact_answer, "contains_answer": contains_answer, "gold": gold}


def find(name: str) -> Reward:
    """A built-in reward, or the function `name` of a Python file."""
    if name in REWARDS:
        return REWARDS[name]
    path, _, function = name.rpartition(":")
    if not path.endswith(".py"):
        raise UserError(
            f"there is no reward {name!r}",
            where="rewards",
            fix=f"use {', '.join(REWARDS)}, reward_model, or path/to/file.py:function",
        )
    if not Path(path).is_file():
        raise UserError(f"no file {path}", where="rewards", fix="write the path from where the command runs")
    spec = importlib.util.spec_from_file_location("user_reward", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if function not in vars(module):
        raise UserError(
            f"{path} has no function {function!r}", where="rewards", fix=f"define {function}(columns, text, finished)"
        )
    return vars(module)[function]


def check_columns(names: Iterable[str], columns: Mapping[str, Any], where: str) -> None:
    """Raise before training where a rule needs a column that the prompts do not have."""
    for name in names:
        missing = [column for column in NEEDS.get(name, ()) if column not in columns]
        if missing:
            have = ", ".join(c for c in columns if c != "prompt") or "none"
            fix = "use exact_answer" if name == "gold" and "answer" in columns else f"add the column {missing[0]}"
            raise UserError(
                f"the reward {name} needs a column {missing[0]!r}; the prompts have {have}", where=where, fix=fix
            )
