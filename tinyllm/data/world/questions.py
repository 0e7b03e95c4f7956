"""Questions about the world's facts: `facts` (one fact), `whose` (value to owner), `yesno`, `hops` (two facts
chained).

Held out twice: one fact in five is never asked about in train (it is still told in the documents), and val uses its
own wordings. A two-hop question is asked in train only if both its facts are train facts and the chain itself is not
held out. `hops` is meant to stay hard for a small model: it must look a fact up inside another one without writing
the first one down.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Literal

from tinyllm.data.world.asking import ASK, ASK_INVERSE, CHECK, SHORT
from tinyllm.data.world.draw import Item, belongs
from tinyllm.data.world.facts import FACTS, INVERSE, STATEMENTS, Fact, canonical, fact, lower_first, phrase
from tinyllm.data.world.lexicon import NAMES, TOWNS, VALUES

Form = Literal["sentence", "word", "word by system"]  # the last one: one word, but the question need not say so
Told = tuple[str, str]  # an answer as a sentence and as a word


@cache
def askable(split: str, attributes: tuple[str, ...] = ()) -> tuple[Fact, ...]:
    """The facts that may be asked about in this split (only these attributes, if any are given)."""
    return tuple(one for one in FACTS if belongs(one.key, split) and (not attributes or one.attribute in attributes))


@cache
def chains(split: str) -> tuple[tuple[str, str, Fact], ...]:
    """The two-hop questions of a split: (the subject described, the attribute that links it, the fact asked for)."""
    found = []
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
                found.append((described, first.attribute, second))
    return tuple(found)


def _item(rng: random.Random, split: str, task: str, question: str, form: Form, right: Told, wrong: list[Told]) -> Item:
    sentence, word = right
    if form == "sentence":
        reshaped = (word, sentence.removesuffix("."), sentence.lower())
        return Item(task, question, sentence, tuple(told for told, _ in wrong), reshaped)
    if form == "word":
        question = f"{question} {rng.choice(SHORT[split])}"
    return Item(task, question, word, tuple(bare for _, bare in wrong), (sentence, sentence.lower()))


def _other(rng: random.Random, values: tuple[str, ...], *not_these: str) -> str:
    while (value := rng.choice(values)) in not_these:
        pass
    return value


def _asked(template: str, who: str) -> str:
    """Fill {n}, and mind the possessive and the capital."""
    possessive = {"he": "his", "she": "her"}.get(who, f"{who}'s")
    text = template.replace("{n}'s", possessive).replace("{n}", who)
    return text[0].upper() + text[1:]


def _told(one: Fact, value: str) -> Told:
    """The canonical sentence with this value in place of the true one."""
    return phrase(STATEMENTS[one.attribute][0], one.subject, value), value


def _about(rng: random.Random, split: str, task: str, one: Fact, form: Form, question: str) -> Item:
    wrong = [_told(one, _other(rng, VALUES[one.attribute], one.value, one.subject)) for _ in range(2)]
    return _item(rng, split, task, question, form, _told(one, one.value), wrong)


def single_fact(rng: random.Random, split: str, form: Form = "sentence", about: Fact | None = None) -> Item:
    """A question about one fact (`about`, or any that may be asked)."""
    one = about or rng.choice(askable(split))
    return _about(rng, split, "facts", one, form, _asked(rng.choice(ASK[one.attribute][split]), one.subject))


def follow_up(rng: random.Random, split: str, form: Form, one: Fact, pronoun: str) -> Item:
    """A question about the person of the question before, who is now "he" or "she"."""
    wordings = [text for text in ASK[one.attribute][split] if "of {n}" not in text.replace("{n}'s", "")]  # "of her"
    question = _asked(rng.choice(wordings), pronoun)
    return _about(rng, split, "facts", one, form, f"And {question[0].lower()}{question[1:]}")


def hops(rng: random.Random, split: str, form: Form = "sentence") -> Item:
    """A question whose subject must itself be looked up first."""
    described, link, one = rng.choice(chains(split))
    wordings = [text for text in ASK[one.attribute][split] if link != "pet_name" or "{n}'s" not in text]
    return _about(rng, split, "hops", one, form, _asked(rng.choice(wordings), described))


def whose(rng: random.Random, split: str, form: Form = "sentence") -> Item:
    """A question from a value to its only owner."""
    one = rng.choice(askable(split, INVERSE))
    question = rng.choice(ASK_INVERSE[one.attribute][split]).format(v=one.value)
    owners, template = NAMES if one.attribute == "pet_name" else TOWNS, STATEMENTS[one.attribute][1]
    others = [_other(rng, owners, one.subject) for _ in range(2)]
    wrong = [(phrase(template, owner, one.value), owner) for owner in others]
    return _item(rng, split, "whose", question, form, (canonical(one, inverse=True), one.subject), wrong)


def yesno(rng: random.Random, split: str, form: Form = "sentence") -> Item:
    """A statement to confirm or to put right; true half of the time."""
    one = rng.choice(askable(split))
    truth = canonical(one)
    lie, _ = _told(one, _other(rng, VALUES[one.attribute], one.value, one.subject))
    is_true = rng.random() < 0.5
    question = rng.choice(CHECK[split]).format(s=lower_first(truth if is_true else lie))
    yes, no = ("Yes, " + (truth if is_true else lie), "Yes"), ("No, " + (lie if is_true else truth), "No")
    right, wrong = (yes, no) if is_true else (no, yes)
    return _item(rng, split, "yesno", question, form, right, [wrong])
