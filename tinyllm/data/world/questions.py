"""Questions about facts: `facts` (one fact), `whose` (from value to owner), `yesno`, `hops` (two facts chained).

Two things are held out: one fact in five is never asked about in train (but stated in the documents), and val has its own wordings.
A two-hop question is asked in train only if both facts are train facts and the chain itself is not held out. `hops` is meant to stay
hard for a small model, which must look up one fact by means of another without writing the first one down.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Literal

from tinyllm.data.world.draw import Item, belongs
from tinyllm.data.world.fact_wordings import ASK, ASK_INVERSE, CHECK, SHORT
from tinyllm.data.world.facts import FACTS, INVERSE, STATEMENTS, Fact, canonical, fact, lower_first, phrase
from tinyllm.data.world.lexicon import NAMES, TOWNS, VALUES

Form = Literal[
    "sentence", "word", "word by system"
]  # of the answer; the last: one word, as the system message requests
Answer = tuple[str, str]  # as a sentence and as a word


@cache
def askable(split: str, attributes: tuple[str, ...] = ()) -> tuple[Fact, ...]:
    """Return the facts that are asked about in this split, optionally only of these attributes."""
    return tuple(one for one in FACTS if belongs(one.key, split) and (not attributes or one.attribute in attributes))


@cache
def chains(split: str) -> tuple[tuple[str, str, Fact], ...]:
    """Return the two-hop questions of a split: (description of the subject, linking attribute, fact in question)."""
    questions = []
    for first in (one for one in FACTS if one.attribute in ("friend", "home", "pet_name")):
        start, end = (first.value, first.subject) if first.attribute == "pet_name" else (first.subject, first.value)
        described = {
            "friend": f"{start}'s best friend",
            "home": f"the home town of {start}",
            "pet_name": f"the owner of {start}",
        }[first.attribute]
        wanted = ("home", "job", "pet", "food", "colour", "hobby", "month")
        for second in (fact(a, end) for a in (("landmark",) if first.attribute == "home" else wanted)):
            own = belongs(f"hops|{start}|{second.attribute}", split)
            known = split == "val" or (belongs(first.key, "train") and belongs(second.key, "train"))
            if own and known:
                questions.append((described, first.attribute, second))
    return tuple(questions)


def _item(
    rng: random.Random, split: str, task: str, question: str, form: Form, right: Answer, wrong: list[Answer]
) -> Item:
    sentence, word = right
    if form == "sentence":
        reshaped = (word, sentence.removesuffix("."), sentence.lower())
        return Item(task, question, sentence, tuple(text for text, _ in wrong), reshaped)
    if form == "word":
        question = f"{question} {rng.choice(SHORT[split])}"
    return Item(task, question, word, tuple(answer for _, answer in wrong), (sentence, sentence.lower()))


def _other(rng: random.Random, values: tuple[str, ...], *excluded: str) -> str:
    while (value := rng.choice(values)) in excluded:
        pass
    return value


def _fill(template: str, subject: str) -> str:
    """Fill {n} with a name or pronoun, in the possessive where needed, and capitalize the question."""
    possessive = {"he": "his", "she": "her"}.get(subject, f"{subject}'s")
    text = template.replace("{n}'s", possessive).replace("{n}", subject)
    return text[0].upper() + text[1:]


def _answer(of: Fact, value: str) -> Answer:
    """Return the answer with this value in place of the true one."""
    return phrase(STATEMENTS[of.attribute][0], of.subject, value), value


def _fact_item(rng: random.Random, split: str, task: str, one: Fact, form: Form, question: str) -> Item:
    wrong = [_answer(one, _other(rng, VALUES[one.attribute], one.value, one.subject)) for _ in range(2)]
    return _item(rng, split, task, question, form, _answer(one, one.value), wrong)


def single_fact(rng: random.Random, split: str, form: Form = "sentence", about: Fact | None = None) -> Item:
    """Return a question about one fact: `about`, or any fact of the split."""
    one = about or rng.choice(askable(split))
    return _fact_item(rng, split, "facts", one, form, _fill(rng.choice(ASK[one.attribute][split]), one.subject))


def follow_up(rng: random.Random, split: str, form: Form, one: Fact, pronoun: str) -> Item:
    """Return a question about the person of the previous question, referred to by a pronoun."""
    wordings = [text for text in ASK[one.attribute][split] if "of {n}" not in text.replace("{n}'s", "")]  # "of her"
    question = _fill(rng.choice(wordings), pronoun)
    return _fact_item(rng, split, "facts", one, form, f"And {question[0].lower()}{question[1:]}")


def hops(rng: random.Random, split: str, form: Form = "sentence") -> Item:
    """Return a question with a subject that must be looked up first."""
    described, link, one = rng.choice(chains(split))
    wordings = [text for text in ASK[one.attribute][split] if link != "pet_name" or "{n}'s" not in text]
    return _fact_item(rng, split, "hops", one, form, _fill(rng.choice(wordings), described))


def whose(rng: random.Random, split: str, form: Form = "sentence") -> Item:
    """Return a question from a value to its only owner."""
    one = rng.choice(askable(split, INVERSE))
    question = rng.choice(ASK_INVERSE[one.attribute][split]).format(v=one.value)
    owners, template = NAMES if one.attribute == "pet_name" else TOWNS, STATEMENTS[one.attribute][1]
    others = [_other(rng, owners, one.subject) for _ in range(2)]
    wrong = [(phrase(template, owner, one.value), owner) for owner in others]
    return _item(rng, split, "whose", question, form, (canonical(one, inverse=True), one.subject), wrong)


def yesno(rng: random.Random, split: str, form: Form = "sentence") -> Item:
    """Return a statement to confirm or to correct; half of them are true."""
    one = rng.choice(askable(split))
    truth = canonical(one)
    false, _ = _answer(one, _other(rng, VALUES[one.attribute], one.value, one.subject))
    is_true = rng.random() < 0.5
    question = rng.choice(CHECK[split]).format(s=lower_first(truth if is_true else false))
    yes, no = ("Yes, " + (truth if is_true else false), "Yes"), ("No, " + (false if is_true else truth), "No")
    right, wrong = (yes, no) if is_true else (no, yes)
    return _item(rng, split, "yesno", question, form, right, [wrong])
