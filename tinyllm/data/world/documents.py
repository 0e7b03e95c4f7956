"""The documents of the world: portraits, stories, towns, comparisons, talks, riddles, lessons and word lists.

No text is in two splits. Every fact is stated in documents of every split, in all its paraphrases, but held-out facts are never
*asked* about here, and worked tasks in train documents are train instances. `KINDS` has the share of each kind of document.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import accumulate

from tinyllm.data.world.draw import Item, Record, belongs, content_of, in_half
from tinyllm.data.world.facts import Fact, canonical, fact, lower_first, pronoun_statements, statements
from tinyllm.data.world.lexicon import (
    CATEGORIES,
    NAMES,
    PEOPLE,
    PEOPLE_ATTRIBUTES,
    TOWNS,
    VALUES,
    WORDS,
    article,
    plural,
    with_article,
)
from tinyllm.data.world.questions import single_fact, whose
from tinyllm.data.world.stories import DAYS, story
from tinyllm.data.world.task_wordings import WORDINGS
from tinyllm.data.world.tasks import DRAW, draw_instance, rule_task

GROUPS: dict[str, tuple[str, ...]] = {  # {who} lists all people with this value
    "home": ("{who} live in {v}.", "{v} is the home of {who}.", "The people of {v} are {who}.", "{who} come from {v}."),
    "job": ("{who} work as {vs}.", "{who} are {vs}.", "The {vs} are {who}."),
    "pet": ("{who} have {av} as a pet.", "{who} keep {av} at home.", "{who} share their homes with {av}."),
    "food": ("{who} love to eat {v}.", "The favourite food of {who} is {v}.", "{who} like to eat {v} best."),
    "colour": ("{who} like {v} best of all colours.", "The favourite colour of {who} is {v}.", "{who} often wear {v}."),
    "hobby": ("{who} enjoy {v}.", "The hobby of {who} is {v}.", "{who} are fond of {v}."),
    "month": ("{who} were born in {v}.", "{who} have a birthday in {v}.", "The birthdays of {who} are in {v}."),
}
_TALKS = ('"{q}" asked {x}. "{a}" said {y}.', '{x} asked, "{q}" {y} said, "{s}"', '"{q}" {x} asked. {y} knew it. "{s}"')
_ORDERS = (
    '"{q}," said {x}. "{a}" said {y}.',
    '{x} said, "{q}." {y} said, "{s}"',
    '"{q}," {x} said. {y} knew it. "{s}"',
)
_LESSONS = (
    "The teacher {t} gave a lesson in {home}.",
    "{day} the class of {t} worked hard. {t} is a teacher.",
    "{t} stood in front of the class in {home}. {t} works as a teacher.",
    "It was quiet in the school of {home}. Then {t}, the teacher, began.",
    "{day} {a} and {b} had a lesson with {t}, who works as a teacher.",
)
_TEACHERS = tuple(person for person in PEOPLE if person.job == "teacher")


def _facts_about(name: str) -> list[Fact]:
    return [fact(attribute, name) for attribute in PEOPLE_ATTRIBUTES]


def _other(rng: random.Random, *excluded: str) -> str:
    while (name := rng.choice(NAMES)) in excluded:
        pass
    return name


def portrait(rng: random.Random, split: str) -> str:
    """Describe one person by five to nine facts, some with pronouns."""
    facts = _facts_about(rng.choice(NAMES))
    rng.shuffle(facts)
    sentences = [rng.choice(statements(facts[0]))]
    for one in facts[1 : rng.randint(5, 9)]:
        sentences.append(rng.choice(statements(one) if rng.random() < 0.5 else pronoun_statements(one)))
    return " ".join(sentences)


def several(rng: random.Random, split: str) -> str:
    """List unrelated facts about different people, which a model must tell apart."""
    return " ".join(rng.choice(statements(fact(rng.choice(PEOPLE_ATTRIBUTES), rng.choice(NAMES)))) for _ in range(8))


def town(rng: random.Random, split: str) -> str:
    """Describe a town: its landmark, its people, and some facts about a few of them."""
    name = rng.choice(TOWNS)
    people = [person.name for person in PEOPLE if person.home == name]
    rng.shuffle(people)
    place = fact("landmark", name)
    sentences = [rng.choice(statements(place)), rng.choice(_group_sentences("home", name)).format(who=listed(people))]
    for person in people[: rng.randint(1, 3)]:
        sentences += [rng.choice(statements(one)) for one in rng.sample(_facts_about(person), rng.randint(2, 3))]
    sentences.append(rng.choice(statements(place)))
    return " ".join(sentences)


def listed(names: list[str]) -> str:
    """Return "Ada, Ben and Cleo"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


@cache
def _group_sentences(attribute: str, value: str) -> tuple[str, ...]:
    fields = {"v": value, "av": f"{article(value)} {value}", "vs": plural(value), "who": "{who}"}
    return tuple(template.format(**fields) for template in GROUPS[attribute])


@cache
def _holders(attribute: str, value: str) -> tuple[str, ...]:
    return tuple(person.name for person in PEOPLE if getattr(person, attribute) == value)


def alike(rng: random.Random, split: str) -> str:
    """Compare people: who shares a value, and who differs."""
    sentences = []
    for _ in range(rng.randint(2, 3)):
        attribute = rng.choice(tuple(GROUPS))
        value = rng.choice(VALUES[attribute])
        holders = list(_holders(attribute, value))
        rng.shuffle(holders)
        sentences.append(rng.choice(_group_sentences(attribute, value)).format(who=listed(holders)))
        one, other = holders[0], _other(rng, holders[0])
        sentences.append(_contrast(rng, fact(attribute, one), fact(attribute, other)))
    return " ".join(sentences)


def _contrast(rng: random.Random, one: Fact, other: Fact) -> str:
    """Return one sentence with two facts of the same attribute."""
    at = rng.randrange(len(statements(one)))
    first, second = statements(one)[at].removesuffix("."), lower_first(statements(other)[at])
    return f"{first}, and {second} too." if one.value == other.value else f"{first}, but {second}."


def _spoken(rng: random.Random, item: Item, asker: str, teller: str) -> str:
    """Return a question and its answer as direct speech; an instruction ("Sort these digits: ...") is said, not asked."""
    question, answer = item.question, item.answer
    is_question = question.endswith("?")
    full = answer if answer.endswith(".") else answer + "."
    return rng.choice(_TALKS if is_question else _ORDERS).format(
        q=question if is_question else question.removesuffix("."), a=full[:-1] + ",", s=full, x=asker, y=teller
    )


def talk(rng: random.Random, split: str) -> str:
    """Two people ask each other about facts; in every split these are train facts in train wordings."""
    asker, teller = rng.sample(NAMES, 2)
    lines = [f"{rng.choice(DAYS)} {asker} met {teller} in {rng.choice(TOWNS)}."]
    for _ in range(rng.randint(3, 6)):
        make = whose if rng.random() < 0.2 else single_fact
        lines.append(_spoken(rng, make(rng, "train"), asker, teller))
        asker, teller = teller, asker
    return " ".join(lines)


def riddle(rng: random.Random, split: str) -> str:
    """State facts about a person without the name, which follows at the end."""
    name = rng.choice(NAMES)
    asker, guesser = _other(rng, name), _other(rng, name)
    facts = rng.sample([one for one in _facts_about(name) if pronoun_statements(one)], rng.randint(3, 5))
    clues = " ".join(rng.choice(pronoun_statements(one)) for one in facts)
    first = rng.choice((f"{asker} thought of a friend.", f'"Who is it?" asked {asker}.', f"{asker} had a riddle."))
    wrong = _other(rng, name, asker, guesser)
    miss = fact(facts[0].attribute, wrong)
    no = f'"Is it {wrong}?" asked {guesser}. "No, {canonical(miss)}" ' if miss.value != facts[0].value else ""
    answer = " ".join(canonical(one) for one in facts[:2])
    return f'{first} "{clues}" {no}"It is {name}," said {guesser}. "Yes, it is {name}. {answer}"'


def lesson(rng: random.Random, split: str) -> str:
    """Worked examples of one or two tasks, in a lesson at school."""
    teacher = rng.choice(_TEACHERS)
    a, b = _other(rng, teacher.name), _other(rng, teacher.name)
    values = {"t": teacher.name, "home": teacher.home, "day": rng.choice(DAYS), "a": a, "b": b}
    sentences = [rng.choice(_LESSONS).format_map(values)]
    for task in rng.sample(tuple(DRAW), rng.randint(1, 2)):
        for _ in range(rng.randint(2, 4)):
            sentences.append(_worked(rng, task, split, teacher.name, rng.choice((a, b))))
    return " ".join(sentences)


def _worked(rng: random.Random, task: str, split: str, teacher: str, pupil: str) -> str:
    if rng.random() < 0.5:
        instance = draw_instance(rng, task, split)
        wording = WORDINGS[task + ("/" + instance.ask if instance.ask else "")]
        return rng.choice(wording.worked).format(x=instance.x, y=instance.answer)
    return _spoken(rng, rule_task(rng, task, split, "train"), teacher, pupil)


def words(rng: random.Random, split: str) -> str:
    """Categories and spellings of words; held-out words as well, since they are knowledge."""
    category, other = rng.sample(tuple(CATEGORIES), 2)
    members = rng.sample(CATEGORIES[category], 4)
    stranger = rng.choice(CATEGORIES[other])
    kind = with_article(category)
    sentences = [_sentence(f"{with_article(word)} is {kind}.") for word in members[:2]]
    sentences.append(_sentence(f"{listed([with_article(word) for word in members[2:]])} belong here too."))
    sentences.append(_sentence(f"{with_article(stranger)} is not {kind}, it is {with_article(other)}."))
    for word in rng.sample(WORDS, 4):
        sentences.append(rng.choice(WORDINGS["spell"].worked).format(x=word, y=" ".join(word)))
    return " ".join(sentences)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


KINDS: dict[Callable[[random.Random, str], str], int] = {
    portrait: 26,
    story: 27,
    several: 9,
    town: 6,
    alike: 7,
    talk: 9,
    riddle: 4,
    lesson: 15,
    words: 5,
}
_MAKERS = tuple(KINDS)
_WEIGHTS = tuple(accumulate(KINDS.values()))


def document(rng: random.Random, split: str) -> Record:
    """Draw documents, of a kind drawn by its share, until one is in the split; hashes of the text decide."""
    content = content_of(split)
    while True:
        text = rng.choices(_MAKERS, cum_weights=_WEIGHTS)[0](rng, content)
        if belongs(text, content) and in_half(text, split):
            return {"text": text}
