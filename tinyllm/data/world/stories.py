"""Stories made from seventeen skeletons and the people of the world.

A skeleton is a title, `# title`, and a list of beats: `- ` begins a beat, `| ` is another wording of the same beat, `? ` begins a beat
that half of the stories leave out, `[one|two]` are alternatives inside a sentence, and an indented line continues the one before it.
`{a}` is the main person, `{b}` the best friend of `{a}`, `{c}` somebody else; `{a_home}` and so on are their facts. All facts in a story
are true.
"""

from __future__ import annotations

import random
import re
from functools import cache
from itertools import product

from tinyllm.data.world import stories_home, stories_town
from tinyllm.data.world.lexicon import CATEGORIES, LANDMARKS, NAMES, PEOPLE_ATTRIBUTES, PERSON, with_article

Beat = tuple[bool, tuple[str, ...]]  # (optional, wordings)

DAYS = (
    "One morning",
    "One day",
    "One evening",
    "On Monday",
    "On Tuesday",
    "On Wednesday",
    "On Thursday",
    "On Friday",
    "On Saturday",
    "On Sunday",
    "Last week",
    "Yesterday",
    "Last night",
    "One cold day",
    "One warm day",
)
WEATHER = (
    "The sun was shining.",
    "It was a warm day.",
    "It was cold and windy.",
    "There was snow on the roofs.",
    "The sky was grey.",
    "There was fog over the fields.",
    "It was a fine day.",
    "The birds were singing.",
    "It was getting dark.",
)
_CHOICE = re.compile(r"\[([^\]]*)\]")


def expand(line: str) -> tuple[str, ...]:
    """Return all variants of a line with `[one|two]` alternatives."""
    parts = _CHOICE.split(line)  # the alternatives are at odd indices
    return tuple(
        "".join(variant) for variant in product(*(p.split("|") if i % 2 else (p,) for i, p in enumerate(parts)))
    )


def parse(text: str) -> dict[str, tuple[Beat, ...]]:
    """Parse skeletons to title: beats."""
    skeletons: dict[str, list[Beat]] = {}
    for line in filter(None, text.replace("\n  ", " ").splitlines()):
        mark, rest = line[0], line[2:]
        if mark == "#":
            beats = skeletons[rest] = []
        elif mark == "|":
            optional, wordings = beats.pop()
            beats.append((optional, wordings + expand(rest)))
        else:
            beats.append((mark == "?", expand(rest)))
    return {title: tuple(beats) for title, beats in skeletons.items()}


@cache
def skeletons() -> tuple[tuple[Beat, ...], ...]:
    """Return all skeletons, in a fixed order."""
    return tuple((parse(stories_home.TEXT) | parse(stories_town.TEXT)).values())


@cache
def cast(role: str, name: str) -> dict[str, str]:
    """Return the values of all placeholders for the person in this role."""
    person = PERSON[name]
    values = {attribute: getattr(person, attribute) for attribute in PEOPLE_ATTRIBUTES}
    words = {
        **values,
        "landmark": LANDMARKS[person.home],
        "ajob": with_article(person.job),
        "apet": with_article(person.pet),
        "colour_cap": person.colour.capitalize(),
        "food_cap": person.food.capitalize(),
        "he": person.he,
        "his": person.his,
        "him": person.him,
        "He": person.he.capitalize(),
        "His": person.his.capitalize(),
    }
    return {role: name, **{f"{role}_{key}": word for key, word in words.items()}}


@cache
def _strangers(name: str) -> tuple[str, ...]:
    """Return the people who differ from this person and their friend in every attribute that stories compare."""
    a, b = PERSON[name], PERSON[PERSON[name].friend]
    differ = ("home", "food", "colour")
    values = {(attribute, getattr(person, attribute)) for person in (a, b) for attribute in differ}
    return tuple(
        c for c in NAMES if not any((attribute, getattr(PERSON[c], attribute)) in values for attribute in differ)
    )


def story(rng: random.Random, split: str) -> str:
    """Return one story of about six to eight sentences with more than ten facts."""
    a = rng.choice(NAMES)
    b = PERSON[a].friend
    c = rng.choice(_strangers(a))
    day = rng.choice(DAYS)
    values = {**cast("a", a), **cast("b", b), **cast("c", c), "day": day, "day_low": day[0].lower() + day[1:]}
    values["weather"], values["fruit"] = rng.choice(WEATHER), with_article(rng.choice(CATEGORIES["fruit"]))
    chosen = []
    for optional, wordings in rng.choice(skeletons()):
        if not (optional and rng.random() < 0.5):
            chosen.append(rng.choice(wordings))
    return " ".join(chosen).format_map(values)
