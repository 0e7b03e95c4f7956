"""Good and bad answers to the same question, and which of two a judge would choose.

The judge is the gold reward with Bradley-Terry noise: P(a is chosen over b) = sigmoid((gold(a) - gold(b)) / noise),
so the label ceiling of any pair is known. Answers that tie in gold are never paired. `noise` is a temperature in
units of gold: 0.5 is the sigmoid(2 * difference) of the usual toy set-ups, 0 always chooses the better one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from tinyllm.data.world.chat import Exchange, exchange
from tinyllm.data.world.draw import Item, Record
from tinyllm.data.world.gold import gold

REFUSALS = ("I do not know.", "I am not sure.", "I can not say.", "Ask me later.", "I have no idea.")
FILLERS = (
    "I hope this helps you.",
    "Please ask me more questions.",
    "That was a very good question.",
    "I am happy to help you today.",
    "Let me know if you want to hear more.",
    "It is nice to talk about this.",
    "There is a lot more to say about it.",
    "As you can see, this is the answer.",
)
OPENERS = (
    "That is a very good question.",
    "Let me think about it for a moment.",
    "Well, I am happy that you asked me this.",
    "Thank you for your question.",
)


def _sentence(answer: str) -> str:
    return answer if answer.endswith(".") else answer + "."


def _wrong(rng: random.Random, item: Item) -> str:
    return rng.choice(item.wrong)


def _reshaped(rng: random.Random, item: Item) -> str:
    return rng.choice(item.reshaped)


def _incomplete(rng: random.Random, item: Item) -> str:
    """The beginning of the answer; of a single word or number, its first letters, or nothing."""
    words = item.answer.split()
    if len(words) > 1:
        return " ".join(words[: rng.randrange(1, len(words))])
    return item.answer[: len(item.answer) // 2]


def _padded(rng: random.Random, item: Item) -> str:
    fillers = rng.sample(FILLERS, rng.randint(1, 2))
    told = _sentence(item.answer)
    return " ".join([told, *fillers] if rng.random() < 0.5 else [rng.choice(OPENERS), told, *fillers[1:]])


def _rambling(rng: random.Random, item: Item) -> str:
    """The answer, or a wrong one, over and over."""
    text = item.answer if rng.random() < 0.5 else rng.choice(item.wrong)
    return " ".join([text] * rng.randint(4, 8))


def _wrong_and_padded(rng: random.Random, item: Item) -> str:
    return f"{_sentence(rng.choice(item.wrong))} {rng.choice(FILLERS)}"


def _hedged(rng: random.Random, item: Item) -> str:
    """The right answer and a wrong one, so that one of them will do."""
    both = [item.answer, rng.choice(item.wrong)]
    rng.shuffle(both)
    return f"{both[0].removesuffix('.')} or {both[1]}"


def _refusing(rng: random.Random, item: Item) -> str:
    return rng.choice(REFUSALS)


CORRUPTIONS: dict[str, Callable[[random.Random, Item], str]] = {
    "wrong": _wrong,
    "reshaped": _reshaped,
    "incomplete": _incomplete,
    "padded": _padded,
    "rambling": _rambling,
    "wrong_and_padded": _wrong_and_padded,
    "hedged": _hedged,
    "refusing": _refusing,
}
_KINDS = tuple(CORRUPTIONS)
_RIGHT_RATE = 0.7  # of pairs, those in which one answer is the right one
_MANY = 1000


def preference(gap: float, noise: float) -> float:
    """The probability that the first of two answers is chosen, `gap` being its gold minus the other's."""
    if noise == 0:
        return float(gap > 0) if gap else 0.5
    return 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, gap / noise))))


def pair(rng: random.Random, split: str, tasks: tuple[str, ...], noise: float) -> Record:
    """One pair: two answers of different gold, the chosen one drawn by `preference`."""
    asked = exchange(rng, split, tasks)
    record = asked.prompt_record()
    better, worse, gap = _two_answers(rng, asked, record)
    if rng.random() >= preference(gap, noise):
        better, worse = worse, better
    sides = {"chosen": better, "rejected": worse}
    answers = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": asked.messages, **answers, "answer": asked.item.answer, "task": asked.item.task}


def _two_answers(rng: random.Random, asked: Exchange, record: Record) -> tuple[str, str, float]:
    """(better, worse, difference of gold): the right answer against a bad one, or two bad ones."""
    first = asked.item.answer if rng.random() < _RIGHT_RATE else bad_answer(rng, asked.item)
    worth = gold(record, first, True)
    for _ in range(_MANY):
        second = bad_answer(rng, asked.item)
        gap = worth - gold(record, second, True)
        if abs(gap) > 1e-6:
            return (first, second, gap) if gap > 0 else (second, first, -gap)
    raise AssertionError(f"no two answers of different worth to {asked.item}")


def bad_answer(rng: random.Random, item: Item) -> str:
    """An answer with something wrong with it; never empty."""
    text = ""
    while not text:
        text = CORRUPTIONS[rng.choice(_KINDS)](rng, item)
    return text
