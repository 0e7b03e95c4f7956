"""Exchanges of one to three questions, some with a greeting or a system message; the last question has no answer.

`conversations` adds the answer, `prompts` does not, and `pairs` adds two. All three draw exchanges in the same way, from separate
streams. A system message may request one-word answers; then all questions of the exchange are about facts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinyllm.data.world.draw import Item, Record, content_of, in_half
from tinyllm.data.world.facts import Fact
from tinyllm.data.world.lexicon import PERSON
from tinyllm.data.world.questions import Form, askable, follow_up, hops, single_fact, whose, yesno
from tinyllm.data.world.tasks import rule_task

WEIGHTS = {
    "facts": 30,
    "whose": 7,
    "yesno": 8,
    "hops": 5,
    "sort": 9,
    "copy": 7,
    "reverse": 6,
    "spell": 5,
    "count": 5,
    "sums": 6,
    "addition": 3,
    "compare": 5,
    "odd": 6,
}
_FACT_TASKS: dict[str, Callable[[random.Random, str, Form], Item]] = {
    "facts": single_fact,
    "whose": whose,
    "yesno": yesno,
    "hops": hops,
}

SHORT_SYSTEM = (
    "Answer every question with one word.",
    "You give answers of one word.",
    "Use one word for each answer.",
    "Keep all answers to one word.",
)
PLAIN_SYSTEM = (
    "You are a helpful friend.",
    "You know all people of the eight towns.",
    "You answer questions.",
    "Be kind and helpful.",
    "You are a good teacher.",
    "Help the user.",
)
GREETINGS = (
    ("Hello!", "Hello! What would you like to know?"),
    ("Hi!", "Hi! How can I help you?"),
    ("Good morning!", "Good morning! What can I do for you?"),
    ("Hello, can you help me?", "Yes, I can. What would you like to know?"),
    ("Who are you?", "I am a small language model. I know the people of eight towns."),
    ("What can you do?", "I can answer questions about eight towns and do small tasks."),
    ("Can I ask you something?", "Yes, please ask."),
    ("Good evening!", "Good evening! How can I help you?"),
)
_HELLOS = frozenset(hello for hello, _ in GREETINGS)
LEAD_INS = ("",) * 12 + ("Please help me. ", "I have a question. ", "A question for you. ")

SHORT_RATE = 0.25  # share of the fact questions that request one word
SYSTEM_RATE = 0.08
GREETING_RATE = 0.05
FOLLOW_RATE = 0.7  # share of follow-ups where a fact question follows a question about a person
TURNS = (1, 1, 1, 1, 1, 1, 1, 2, 2, 3)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Messages up to and including the last question, and the item of that question."""

    messages: list[dict[str, str]]
    item: Item

    def prompt_record(self) -> Record:
        return {"prompt": self.messages, "answer": self.item.answer, "task": self.item.task}


def exchange(rng: random.Random, split: str, tasks: tuple[str, ...], wrong: float = 0.0) -> Exchange:
    """Draw an exchange with questions of these tasks; answers to earlier questions are wrong with probability `wrong`."""
    facts_only = all(task in _FACT_TASKS for task in tasks)
    system, short = _system(rng, facts_only or any(task in _FACT_TASKS for task in tasks))
    allowed = tuple(task for task in tasks if not short or task in _FACT_TASKS)
    messages = [_message("system", system)] if system else []
    if rng.random() < GREETING_RATE and not short:
        hello, reply = rng.choice(GREETINGS)
        messages += [_message("user", hello), _message("assistant", reply)]
    about: Fact | None = None
    for left in range(rng.choice(TURNS) - 1, -1, -1):
        item, about = _turn(rng, split, allowed, short, about)
        messages.append(_message("user", item.question))
        if left:
            messages.append(_message("assistant", demonstrated(rng, item, wrong)))
    return Exchange(messages, item)


def questions(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the questions of an exchange as their splits are decided: without greetings and lead-ins."""
    for message in messages:
        if message["role"] == "user" and message["content"] not in _HELLOS:
            text = message["content"]
            yield text.removeprefix(next((lead_in for lead_in in LEAD_INS if lead_in and text.startswith(lead_in)), ""))


def demonstrated(rng: random.Random, item: Item, wrong: float) -> str:
    """Return the answer of a demonstrator: the right one, or with probability `wrong` a wrong one in the right form."""
    return rng.choice(item.wrong) if wrong and rng.random() < wrong else item.answer


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _system(rng: random.Random, may_be_short: bool) -> tuple[str, bool]:
    if rng.random() >= SYSTEM_RATE:
        return "", False
    if may_be_short and rng.random() < 0.5:
        return rng.choice(SHORT_SYSTEM), True
    return rng.choice(PLAIN_SYSTEM), False


def _turn(
    rng: random.Random, split: str, tasks: tuple[str, ...], short: bool, last: Fact | None
) -> tuple[Item, Fact | None]:
    """Return one question, and its fact if it is about one, so that the next question can refer to its subject.

    Questions of the task are drawn until one is in the split. Every task has many in val and in test (tests/data/test_world_split.py).
    """
    task = rng.choices(tasks, [WEIGHTS[task] for task in tasks])[0]
    while True:
        item, about, lead_in = _question(rng, content_of(split), task, short, last)
        if in_half(item.question, split):
            return (replace(item, question=rng.choice(LEAD_INS) + item.question) if lead_in else item), about


def _question(
    rng: random.Random, content: str, task: str, short: bool, last: Fact | None
) -> tuple[Item, Fact | None, bool]:
    """Return a question, its fact if it is about one, and whether a lead-in may precede it: not a follow-up."""
    if task not in _FACT_TASKS:
        return rule_task(rng, task, content), None, True
    form: Form = "word by system" if short else "word" if rng.random() < SHORT_RATE else "sentence"
    if task != "facts":
        return _FACT_TASKS[task](rng, content, form), None, True
    others = _same_person(content, last) if last else ()
    if others and rng.random() < FOLLOW_RATE:
        one = rng.choice(others)
        return follow_up(rng, content, form, one, PERSON[one.subject].he), one, False
    one = rng.choice(askable(content))
    return single_fact(rng, content, form, one), one, True


def _same_person(content: str, last: Fact) -> tuple[Fact, ...]:
    """Return the other facts of this content about the person of the last question."""
    if last.subject not in PERSON:
        return ()
    return tuple(one for one in askable(content) if one.subject == last.subject and one.attribute != last.attribute)
