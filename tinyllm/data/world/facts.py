"""Facts of the world and their paraphrases, which documents are made of and answers are checked against.

Every attribute has eight or more paraphrases, each one sentence. The first is the canonical answer to a question about the
attribute. For attributes that can also be asked about from the value to its owner (`INVERSE`), the second is the answer to that
question. Templates: {n} subject, {v} value, {av} value with its article, {he} {his} pronouns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tinyllm.data.world.lexicon import KIND_OF, PERSON, TABLE, article

STATEMENTS: dict[str, tuple[str, ...]] = {
    "home": (
        "{n} lives in {v}.",
        "{v} is the home of {n}.",
        "{n}'s home is in {v}.",
        "{n}'s house is in {v}.",
        "{n} has a house in {v}.",
        "{v} is the town where {n} lives.",
        "The home town of {n} is {v}.",
        "The town where {n} lives is {v}.",
        "{n} comes from {v}.",
    ),
    "job": (
        "{n} works as {av}.",
        "{n} is {av}.",
        "{n}'s job is to work as {av}.",
        "The job of {n} is that of {av}.",
        "{n} has worked as {av} for years.",
        "{n} has a job as {av}.",
        "{n} is {av} and likes the work.",
        "{n} goes to work each day as {av}.",
    ),
    "pet": (
        "{n} has {av} as a pet.",
        "{n}'s pet is {av}.",
        "The pet of {n} is {av}.",
        "{n} keeps {av} at home.",
        "{n} takes good care of {his} pet {v}.",
        "{n} shares {his} home with {av}.",
        "{n} owns {av}.",
        "At home {n} has {av}.",
    ),
    "pet_name": (
        "{n}'s pet is called {v}.",
        "{v} belongs to {n}.",
        "{v} is the name of {n}'s pet.",
        "{n} calls {his} pet {v}.",
        "{n} named {his} pet {v}.",
        "The pet of {n} is called {v}.",
        "{v} is {n}'s pet.",
        "{n} is the owner of {v}.",
        "The owner of {v} is {n}.",
    ),
    "food": (
        "{n}'s favourite food is {v}.",
        "{n} likes to eat {v} best.",
        "The favourite food of {n} is {v}.",
        "{n} loves to eat {v}.",
        "{n} could eat {v} every day.",
        "Nothing tastes better to {n} than {v}.",
        "When {n} is hungry, {he} eats {v}.",
        "The food {n} loves most is {v}.",
    ),
    "colour": (
        "{n}'s favourite colour is {v}.",
        "{n} likes {v} best of all colours.",
        "The favourite colour of {n} is {v}.",
        "Of all colours {n} likes {v} best.",
        "The colour {n} loves most is {v}.",
        "{n} thinks that {v} is the best colour.",
        "{n} often wears {v}, {his} favourite colour.",
        "{n} picks {v} when {he} can choose a colour.",
    ),
    "hobby": (
        "{n}'s hobby is {v}.",
        "The hobby of {n} is {v}.",
        "{n} enjoys {v}.",
        "{n} likes {v} in {his} free time.",
        "In {his} free time {n} enjoys {v}.",
        "{n} is fond of {v}.",
        "{n} finds time for {v} every week.",
        "The hobby {n} loves most is {v}.",
    ),
    "month": (
        "{n} was born in {v}.",
        "{n}'s birthday is in {v}.",
        "{n} has {his} birthday in {v}.",
        "The birthday of {n} is in {v}.",
        "{v} is the month of {n}'s birthday.",
        "{n} gets birthday presents in {v}.",
        "{n} turns one year older in {v}.",
        "Every {v} there is a cake for {n}.",
    ),
    "friend": (
        "{n}'s best friend is {v}.",
        "The best friend of {n} is {v}.",
        "{v} is the best friend of {n}.",
        "{n} and {v} are best friends.",
        "{n} spends many days with {his} best friend {v}.",
        "{n} has a best friend called {v}.",
        "{n} tells every secret to {his} best friend {v}.",
        "No one is a better friend to {n} than {v}.",
    ),
    "landmark": (
        "{n} is known for its {v}.",
        "The {v} is in {n}.",
        "{n} has a famous {v}.",
        "People visit {n} to see the {v}.",
        "You can see the {v} in {n}.",
        "The town of {n} has a {v}.",
        "The famous {v} stands in {n}.",
        "Everyone in {n} is proud of the {v}.",
    ),
}
INVERSE = ("pet_name", "landmark")  # one value, one owner: "Whose pet is Rusty?" has a single answer


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: an entry of the table."""

    attribute: str
    subject: str
    value: str

    @property
    def key(self) -> str:
        """The unit that is held out: the same for a fact in both directions (best friends are one fact, not two)."""
        subject = min(self.subject, self.value) if self.attribute == "friend" else self.subject
        return f"{self.attribute}|{subject}"


FACTS = tuple(Fact(attribute, subject, value) for (attribute, subject), value in TABLE.items())


def fact(attribute: str, subject: str) -> Fact:
    """Return the fact of this attribute about this person or town."""
    return Fact(attribute, subject, TABLE[attribute, subject])


def phrase(template: str, subject: str, value: str) -> str:
    """Fill a statement template. The value need not be true: wrong answers are made here too."""
    he, his = (PERSON[subject].he, PERSON[subject].his) if subject in PERSON else ("it", "its")
    return template.format(n=subject, v=value, av=f"{article(value)} {value}", he=he, his=his)


@cache
def statements(of: Fact) -> tuple[str, ...]:
    """Return all paraphrases of a fact, the canonical one first."""
    return tuple(phrase(template, of.subject, of.value) for template in STATEMENTS[of.attribute])


@cache
def pronoun_statements(of: Fact) -> tuple[str, ...]:
    """Return the paraphrases in which the name can be replaced by "She" or "His": where it is the first word and occurs once."""
    he, his = (PERSON[of.subject].he, PERSON[of.subject].his) if of.subject in PERSON else ("it", "its")
    sentences = []
    for template in STATEMENTS[of.attribute]:
        if template.startswith("{n}") and template.count("{n}") == 1 and "{n} and" not in template:
            short = template.replace("{n}'s", his.capitalize()).replace("{n}", he.capitalize())
            sentences.append(phrase(short, of.subject, of.value))
    return tuple(sentences)


def canonical(of: Fact, inverse: bool = False) -> str:
    """Return the sentence that answers a question about this fact; `inverse`: asked from the value to its owner."""
    return statements(of)[1 if inverse else 0]


@cache
def statement_index() -> dict[str, Fact]:
    """Return true statement: fact, for all paraphrases of all facts."""
    index: dict[str, Fact] = {}
    for one in FACTS:
        for sentence in statements(one):
            index.setdefault(sentence, one)
    return index


def lower_first(sentence: str) -> str:
    """Return the sentence as a clause: without a capital, unless it begins with a name, and without a full stop."""
    first = sentence.split(" ", 1)[0].removesuffix("'s")
    clause = sentence.removesuffix(".")
    return clause if first in KIND_OF else clause[0].lower() + clause[1:]
