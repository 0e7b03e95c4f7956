"""Answers to questions as reward rules see and judge them. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from tinyllm.errors import UserError
from tinyllm.evals.formats import Question
from tinyllm.rollout.rewards import Reward
from tinyllm.rollout.scoring import Answered, score


def judged(rule: Reward, rows: Sequence[Answered]) -> list[float]:
    """Return what a rule says of each answer. Raises: UserError if it raises, or returns anything but a finite number."""
    values = score(rule, rows)
    for value, row in zip(values, rows, strict=True):
        if value is None:
            what = f"the rule {rule.name} returned None for {row.described()}: a rule of eval judges every answer"
            raise UserError(what, where=rule.place or "rule", fix="return a number, or leave such questions out")
    return [value for value in values if value is not None]


def answered(question: Question, text: str, finished: bool, ids: Sequence[int] = ()) -> Answered:
    """Return an answer to a question as rules see it."""
    columns = {"prompt": list(question.turns), **question.columns}
    return Answered(columns, text, finished, ids, question.place, question.plain)
