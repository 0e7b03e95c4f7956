"""Good and bad answers to the same question, and a noisy judge that prefers one of them.

The judge is the gold reward with Bradley-Terry noise: P(a is preferred to b) = sigmoid((gold(a) - gold(b)) / noise), so the best possible
accuracy on the labels is known. Answers with equal gold reward are never paired. `noise` is a temperature in units of the gold reward:
0.5 is the sigmoid(2 * difference) of common toy set-ups, 0 always prefers the better answer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from tinyllm.data.world.draw import Item, Record
from tinyllm.data.world.exchanges import Exchange, exchange
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
    """Return the beginning of the answer; of a single word or number the first half of its letters, perhaps none."""
    words = item.answer.split()
    if len(words) > 1:
        return " ".join(words[: rng.randrange(1, len(words))])
    return item.answer[: len(item.answer) // 2]


def _padded(rng: random.Random, item: Item) -> str:
    fillers = rng.sample(FILLERS, rng.randint(1, 2))
    answer = _sentence(item.answer)
    return " ".join([answer, *fillers] if rng.random() < 0.5 else [rng.choice(OPENERS), answer, *fillers[1:]])


def _rambling(rng: random.Random, item: Item) -> str:
    """Return the answer, or a wrong one, several times."""
    text = item.answer if rng.random() < 0.5 else rng.choice(item.wrong)
    return " ".join([text] * rng.randint(4, 8))


def _wrong_and_padded(rng: random.Random, item: Item) -> str:
    return f"{_sentence(rng.choice(item.wrong))} {rng.choice(FILLERS)}"


def _hedged(rng: random.Random, item: Item) -> str:
    """Return the right answer or a wrong one."""
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
_RIGHT_RATE = 0.7  # share of the pairs with a right answer
_MAX_DRAWS = 1000


def preference(gap: float, noise: float) -> float:
    """Return the probability that the first of two answers is preferred; `gap` is its gold reward minus the other's."""
    if noise == 0:
        return float(gap > 0) if gap else 0.5
    return 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, gap / noise))))


def pair(rng: random.Random, split: str, tasks: tuple[str, ...], noise: float) -> Record:
    """Return one pair: two answers of different gold reward, the chosen one drawn by `preference`."""
    drawn = exchange(rng, split, tasks)
    record = drawn.prompt_record()
    better, worse, gap = _two_answers(rng, drawn, record)
    if rng.random() >= preference(gap, noise):
        better, worse = worse, better
    texts = {"chosen": better, "rejected": worse}
    answers = {column: [{"role": "assistant", "content": text}] for column, text in texts.items()}
    return {"prompt": drawn.messages, **answers, "answer": drawn.item.answer, "task": drawn.item.task}


def _two_answers(rng: random.Random, drawn: Exchange, record: Record) -> tuple[str, str, float]:
    """Return (better, worse, difference of gold rewards): the right answer and a bad one, or two bad ones."""
    first = drawn.item.answer if rng.random() < _RIGHT_RATE else bad_answer(rng, drawn.item)
    reward = gold(record, first, True)
    for _ in range(_MAX_DRAWS):
        second = bad_answer(rng, drawn.item)
        gap = reward - gold(record, second, True)
        if abs(gap) > 1e-6:
            return (first, second, gap) if gap > 0 else (second, first, -gap)
    raise AssertionError(f"no two answers with different gold rewards to {drawn.item}")


def bad_answer(rng: random.Random, item: Item) -> str:
    """Return an answer with one of the faults of `CORRUPTIONS`; never empty."""
    text = ""
    while not text:
        text = CORRUPTIONS[rng.choice(_KINDS)](rng, item)
    return text
