"""Rewards by name: rules that are built in, and the user's own functions by `path/to/file.py:function`.

A reward has one of two signatures, told apart by the names of its parameters:

- `f(columns, text, finished) -> float`, one answer at a time: the columns of the prompt's record (`answer`, `task`, whatever the data hold,
  and `prompt`, the messages), the text that the policy generated, and whether it ended with an end token.
- `f(prompts, completions, **columns) -> list[float]`, a batch at a time, with TRL's keyword arguments; see `scoring`.

None means that the reward does not apply to an answer. No reward executes generated text.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tinyllm.config.suggestions import suggest
from tinyllm.data import world
from tinyllm.errors import UserError
from tinyllm.io.user_code import load_module
from tinyllm.rollout import answers

REWARD_MODEL = "reward_model"
BATCH_ARGUMENTS = ("prompts", "completions", "completion_ids")
GIVEN = (*BATCH_ARGUMENTS, "trainer_state", "log_extra", "log_metric")  # to a batch function, besides the columns
_ROW_ARGUMENTS = ("columns", "text", "finished")
_SIGNATURES = "def {name}(columns, text, finished), or def {name}(prompts, completions, **columns)"


@dataclass(frozen=True)
class Reward:
    """A reward function as it is called."""

    name: str
    """of its metric, `rewards/NAME`"""
    function: Callable[..., Any]
    style: Literal["row", "batch"] = "row"
    place: str = ""
    """file and line where it is defined; empty if it is built in"""
    parameters: tuple[str, ...] | None = None
    """of a batch function, the names it accepts; None: any"""
    required: tuple[str, ...] = ()
    """columns without which it cannot be called"""

    @property
    def own(self) -> bool:
        """Return whether it is a function of the user's own."""
        return bool(self.place)


# --- built in --------------------------------------------------------------------------------------------------------------------


def exact_answer(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """Return 1 if the final answer of the text is (one of) the right one(s), else 0; see `answers`."""
    return float(answers.matches(columns["answer"], text))


def contains_answer(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """Return 1 if a right answer occurs anywhere in the text, as whole words or a whole number, else 0."""
    return float(answers.contains(columns["answer"], text))


def gold(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """Return the bundled world's graded reward in [-1, 1]: correct, complete, in the requested form, not padded, ended."""
    return world.gold(dict(columns), text, finished)


REQUIRED_COLUMNS = {"exact_answer": ("answer",), "contains_answer": ("answer",), "gold": ("answer", "task")}
COMPARING = ("exact_answer", "contains_answer")  # these need an answer that is not blank
REWARDS: dict[str, Reward] = {
    function.__name__: Reward(function.__name__, function, required=REQUIRED_COLUMNS[function.__name__])
    for function in (exact_answer, contains_answer, gold)
}


# --- by name ---------------------------------------------------------------------------------------------------------------------


def is_own(key: str) -> bool:
    """Return whether a key of the `rewards` table names a function of the user's own."""
    return ".py:" in key


def names(keys: Iterable[str]) -> dict[str, str]:
    """Return the name of every reward's metric: that of its function, with its file where two functions have one name.

    Raises: UserError if two keys name the same function.
    """
    keys = list(keys)
    own = {key: (Path(key.rpartition(":")[0]).resolve(), key.rpartition(":")[2]) for key in keys if is_own(key)}
    if len(set(own.values())) < len(own):
        twice = next(key for key in own if list(own.values()).count(own[key]) > 1)
        raise UserError(f"the reward {twice} is named twice", where="rewards", fix="leave one of them out")
    found = {key: own[key][1] if key in own else key for key in keys}
    for parts in range(1, 32):  # of the path, until all names differ
        taken = Counter([*found.values(), *REWARDS, REWARD_MODEL])
        clashing = {key for key in own if taken[found[key]] > 1}
        clashing |= {key for key in own if any(found[key] == found[other] for other in clashing)}
        if not clashing:
            break
        for key in clashing:
            path, function = own[key]
            found[key] = f"{'/'.join(path.with_suffix('').parts[-parts:])}.{function}"
    return found


def old_names(keys: Iterable[str]) -> dict[str, str]:
    """Return the name that a metric had in earlier versions, that of its file, and its name now."""
    now = names(keys)
    stems = {key: Path(key.rpartition(":")[0]).stem for key in now if is_own(key)}
    return {
        f"rewards/{stem}": f"rewards/{now[key]}" for key, stem in stems.items() if list(stems.values()).count(stem) == 1
    }


def load_rewards(keys: Iterable[str]) -> dict[str, Reward]:
    """Return key -> reward for all rules and functions of a `rewards` table; the reward model is left out."""
    return {key: load_reward(key, name) for key, name in names(keys).items() if key != REWARD_MODEL}


def load_reward(key: str, name: str = "") -> Reward:
    """Return a built-in reward, or a function of the user's own file (`path/to/file.py:function`).

    Args:
        name: of the metric, if it is not the function's.

    Raises:
        UserError: there is no such reward, file or function, the file cannot be imported, or the signature is unknown.
    """
    if key in REWARDS:
        return REWARDS[key]
    path, _, function = key.rpartition(":")
    if not path.endswith(".py"):
        usual = f"use {', '.join(REWARDS)}, reward_model, or path/to/file.py:function"
        raise _unknown(f"there is no reward {key!r}", key, (*REWARDS, REWARD_MODEL), usual)
    module = load_module(Path(path), where="rewards")
    if function not in vars(module):
        known = [name for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"]
        usual = f"define {function}(columns, text, finished)"
        raise _unknown(f"{path} has no function {function!r}", function, known, usual)
    return reward_of(vars(module)[function], name or function, path)


def _unknown(what: str, name: str, known: Iterable[str], usual: str) -> UserError:
    """Return the error for an unknown name, with the nearest known one where there is one."""
    near = suggest(name, known)
    what, fix = (f"{what}; did you mean {near!r}?", f"write {near} instead of {name}") if near else (what, usual)
    return UserError(what, where="rewards", fix=fix)


def reward_of(function: Any, name: str, path: str = "") -> Reward:
    """Return a function as a reward.

    Args:
        path: the file it was loaded from, for messages.

    Raises: UserError if it is no function, or its signature does not tell how to call it.
    """
    place = path and f"{path}:{_line(function)}"
    if not callable(function) or isinstance(function, type):
        kind = "a class" if isinstance(function, type) else f"a {type(function).__name__}, not a function"
        raise UserError(
            f"the reward {name} is {kind}", where=place or "rewards", fix=f"write {_SIGNATURES.format(name=name)}"
        )
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):
        parameters = None
    style = _style(parameters) if parameters is not None else None
    if style is None:
        shown = f"({', '.join(parameters or ['?'])})"
        what = f"the reward {name}{shown} cannot be told to take one answer or a batch"
        raise UserError(what, where=place or "rewards", fix=f"write {_SIGNATURES.format(name=name)}")
    assert parameters is not None
    if style == "row":
        if inspect.iscoroutinefunction(function):
            what = f"the reward {name} is asynchronous, which only a batch function can be"
            raise UserError(
                what, where=place or "rewards", fix=f"write async def {name}(prompts, completions, **columns)"
            )
        return Reward(name, function, "row", place)
    kinds = {p.kind for p in parameters.values()}
    by_name = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = tuple(p.name for p in by_name if p.default is p.empty and p.name not in GIVEN)
    accepted = None if inspect.Parameter.VAR_KEYWORD in kinds else tuple(p.name for p in by_name)
    return Reward(name, function, "batch", place, accepted, required)


def _style(parameters: Mapping[str, inspect.Parameter]) -> Literal["row", "batch"] | None:
    """Return how a function with these parameters is called; None if that is not clear."""
    kinds = {p.kind for p in parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    of_batch, of_row = (any(name in parameters for name in known) for known in (BATCH_ARGUMENTS, _ROW_ARGUMENTS[1:]))
    if of_batch:
        return None if of_row or inspect.Parameter.POSITIONAL_ONLY in kinds else "batch"
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    others = [p for p in parameters.values() if p.kind == p.KEYWORD_ONLY and p.default is p.empty]
    if len(positional) >= 3 and all(p.default is not p.empty for p in positional[3:]) and not others:
        return "row"
    return "batch" if inspect.Parameter.VAR_KEYWORD in kinds else None


def _line(function: Any) -> int:
    """Return the line where a function is defined; 1 where Python does not know."""
    try:
        return inspect.unwrap(function).__code__.co_firstlineno
    except (AttributeError, ValueError):
        return 1
