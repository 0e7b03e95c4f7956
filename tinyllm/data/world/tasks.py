"""Rule-based tasks: sequences (sort, copy, reverse, spell), numbers (count, sums, addition, compare), odd.

Each task draws an instance, and a hash of it decides whether it is held out: the same digits, in any order, are never sorted in
train and in val.
A model of 1.4M parameters learns `sort`, `copy` and `compare` in minutes; `addition` (three digits) and long `reverse` are meant to
stay out of its reach. For a model that has whole words as tokens, `spell` is knowledge and not a rule: the documents spell every word,
and val asks for words that train does not ask for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tinyllm.data.world.draw import Item, belongs
from tinyllm.data.world.lexicon import CATEGORIES, COUNTABLE, WORDS, plural
from tinyllm.data.world.task_wordings import WORDINGS

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance of a task: `key` decides its split, `ask` is the kind of question where a task has several."""

    key: str
    x: str
    answer: str
    wrong: tuple[str, ...]
    ask: str = ""


def _swap(rng: random.Random, items: list[str]) -> list[str]:
    """Return the list with two neighbors swapped that differ, or unchanged if all items are equal."""
    places = [i for i in range(len(items) - 1) if items[i] != items[i + 1]]
    if not places:
        return items
    at = rng.choice(places)
    return [*items[:at], items[at + 1], items[at], *items[at + 2 :]]


def _replace(rng: random.Random, items: list[str], pool: tuple[str, ...] | str) -> list[str]:
    at = rng.randrange(len(items))
    return [*items[:at], rng.choice([x for x in pool if x != items[at]]), *items[at + 1 :]]


def _wrong_sequences(rng: random.Random, items: list[str], pool: tuple[str, ...] | str) -> tuple[str, ...]:
    """Return wrong sequences: a swap, a replacement, one item lost, one item twice."""
    at = rng.randrange(len(items))
    lost, twice = items[:at] + items[at + 1 :], items[: at + 1] + items[at:]
    variants = [_swap(rng, items), _replace(rng, items, pool), lost, twice]
    right = " ".join(items)
    return tuple(text for text in map(" ".join, variants) if text != right)


def _number_near(rng: random.Random, right: int) -> tuple[str, ...]:
    near = [right + step for step in (-2, -1, 1, 2) if right + step >= 0]
    return tuple(str(number) for number in rng.sample(near, 2))


def _sort(rng: random.Random) -> Instance:
    digits = [rng.choice("0123456789") for _ in range(rng.randint(4, 6))]
    answer = sorted(digits)
    given = " ".join(digits)
    wrong = _wrong_sequences(rng, answer, "0123456789") + ((given,) if digits != answer else ())
    return Instance("".join(answer), given, " ".join(answer), wrong)


def _draw_items(rng: random.Random) -> tuple[list[str], tuple[str, ...] | str]:
    if rng.random() < 0.6:
        return [rng.choice(_LETTERS) for _ in range(rng.randint(3, 7))], _LETTERS
    return [rng.choice(WORDS) for _ in range(rng.randint(2, 5))], WORDS


def _copy(rng: random.Random) -> Instance:
    items, pool = _draw_items(rng)
    text = " ".join(items)
    return Instance(text, text, text, _wrong_sequences(rng, items, pool))


def _reverse(rng: random.Random) -> Instance:
    items, pool = _draw_items(rng)
    given, back = " ".join(items), items[::-1]
    wrong = _wrong_sequences(rng, back, pool) + ((given,) if items != back else ())
    return Instance(min(given, " ".join(back)), given, " ".join(back), wrong)


def _spell(rng: random.Random) -> Instance:
    word = rng.choice(WORDS)
    return Instance(word, word, " ".join(word), _wrong_sequences(rng, list(word), _LETTERS))


def _count(rng: random.Random) -> Instance:
    if rng.random() < 0.5:
        pool = tuple(rng.sample(_LETTERS, 3))
        target, named, ask = pool[0], pool[0], "letter"
    else:
        pool = tuple(rng.sample(CATEGORIES[rng.choice(COUNTABLE)], 3))
        target, named, ask = pool[0], plural(pool[0]), "word"
    items = [target] * rng.randint(1, 5) + [rng.choice(pool[1:]) for _ in range(rng.randint(1, 4))]
    rng.shuffle(items)
    number = items.count(target)
    return Instance(
        f"{target}:{' '.join(sorted(items))}",
        f"{named}: {' '.join(items)}",
        str(number),
        _number_near(rng, number),
        ask,
    )


def _sums(rng: random.Random) -> Instance:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    if rng.random() < 0.5:
        return Instance(f"{a}+{b}", f"{a} plus {b}", str(a + b), _number_near(rng, a + b), "plus")
    a, b = max(a, b), min(a, b)
    return Instance(f"{a}-{b}", f"{a} minus {b}", str(a - b), _number_near(rng, a - b), "minus")


def _addition(rng: random.Random) -> Instance:
    a, b = rng.randint(100, 999), rng.randint(100, 999)
    right = a + b
    wrong = tuple(str(right + step) for step in rng.sample((-100, -10, -1, 1, 10, 100), 3))
    return Instance(f"{min(a, b)}+{max(a, b)}", f"{a} plus {b}", str(right), wrong)


def _compare(rng: random.Random) -> Instance:
    a, b = rng.sample(range(100), 2)
    ask = rng.choice(("bigger", "smaller"))
    right = max(a, b) if ask == "bigger" else min(a, b)
    return Instance(f"{min(a, b)}:{max(a, b)}", f"{a} or {b}", str(right), (str(a + b - right),), ask)


def _odd(rng: random.Random) -> Instance:
    one, other = rng.sample(tuple(CATEGORIES), 2)
    three, odd = rng.sample(CATEGORIES[one], 3), rng.choice(CATEGORIES[other])
    items = [*three, odd]
    rng.shuffle(items)
    return Instance(" ".join(sorted(items)), ", ".join(items), odd, tuple(three))


DRAW: dict[str, Callable[[random.Random], Instance]] = {
    "sort": _sort,
    "copy": _copy,
    "reverse": _reverse,
    "spell": _spell,
    "count": _count,
    "sums": _sums,
    "addition": _addition,
    "compare": _compare,
    "odd": _odd,
}
SEQUENCES = ("sort", "copy", "reverse", "spell")  # these have partial credit by position
NUMBERS = ("count", "sums", "addition", "compare")


def draw_instance(rng: random.Random, task: str, split: str) -> Instance:
    """Draw instances until one is in the split (one in `HOLD_OUT` is held out)."""
    draw = DRAW[task]
    while not belongs(f"{task}|{(instance := draw(rng)).key}", split):
        pass
    return instance


def rule_task(rng: random.Random, task: str, split: str, wordings: str = "") -> Item:
    """Return a question of a rule-based task, in a wording of the split, or of the split `wordings`."""
    instance = draw_instance(rng, task, split)
    wording = WORDINGS[task + ("/" + instance.ask if instance.ask else "")]
    templates = wording.val if (wordings or split) == "val" else wording.train
    question = rng.choice(templates).format(x=instance.x)
    return Item(task, question, instance.answer, instance.wrong, _reshape(task, instance.answer))


def _reshape(task: str, answer: str) -> tuple[str, ...]:
    """Return the right content in other forms than the requested one."""
    wordy = f"The answer is {answer}."
    if task in SEQUENCES:
        return wordy, answer.replace(" ", ", "), answer.replace(" ", "-")
    return wordy, f"I think it is {answer}.", f"It is {answer}."
