"""The words of the closed world: its people and their attributes, its towns, and categories of nouns.

All documents, questions and gold rewards are made from the table below. It does not depend on a seed, so pretraining,
fine-tuning and evaluation with different seeds are about the same world. Each value of a column occurs equally often, so guessing
the most frequent value is no better than chance. Left out on purpose: anything about the real world.
"""

from __future__ import annotations

from dataclasses import dataclass

# name pronoun home job pet pet_name food colour hobby month friend; friendship is mutual
_PEOPLE = """
    Ada she Goosefield pilot goat Dusty rice blue reading July Alma
    Alma she Windmoor farmer cat Fluff pizza black dancing January Ada
    Ben he Goosefield doctor parrot Pepper pancakes brown swimming July Leo
    Bruno he Brightwater farmer turtle Biscuit salad yellow painting March Gus
    Clara she Fernby teacher turtle Clover cheese green sailing November Jack
    Cleo she Brightwater engineer goat Gizmo bread blue singing May Mia
    Dan he Stonewell doctor dog Socks salad brown sailing September Emma
    Emma she Larkford actor rabbit Twig rice green reading October Dan
    Finn he Saltbay teacher owl Nutmeg soup red painting February Noah
    Gus he Fernby baker goat Coco pizza purple swimming August Bruno
    Hana she Maplegate actor pony Peanut rice pink fishing April Ivy
    Hugo he Maplegate pilot dog Shadow salad red reading April Olga
    Ivy she Larkford pilot parrot Lucky pancakes black singing February Hana
    Jack he Brightwater farmer rabbit Button noodles purple fishing December Clara
    Kate she Goosefield teacher turtle Ziggy pancakes brown fishing May Zoe
    Leo he Stonewell baker owl Waffles pizza yellow dancing June Ben
    Mia she Saltbay doctor pony Bubbles noodles purple painting October Cleo
    Noah he Maplegate actor cat Toffee cheese pink running June Finn
    Olga she Windmoor baker owl Echo bread yellow sailing March Hugo
    Oscar he Saltbay nurse rabbit Rusty bread pink swimming September Paul
    Paul he Larkford engineer pony Pip soup green singing August Oscar
    Rosa she Windmoor nurse cat Rocket soup blue dancing December Sam
    Sam he Fernby engineer parrot Misty cheese red running January Rosa
    Zoe she Stonewell nurse dog Sunny noodles black running November Kate
"""

LANDMARKS = {
    "Fernby": "castle",
    "Larkford": "bridge",
    "Stonewell": "library",
    "Windmoor": "museum",
    "Maplegate": "theatre",
    "Saltbay": "market",
    "Goosefield": "windmill",
    "Brightwater": "fountain",
}

# Every word is in one category only, so that the odd one out is unambiguous.
CATEGORIES = {
    "fruit": ("apple", "pear", "plum", "peach", "cherry", "banana", "lemon", "grape"),
    "animal": ("dog", "cat", "horse", "cow", "sheep", "goat", "pig", "lion"),
    "colour": ("red", "blue", "green", "yellow", "purple", "pink", "brown", "white"),
    "piece of clothing": ("shirt", "coat", "hat", "sock", "glove", "scarf", "shoe", "dress"),
    "piece of furniture": ("table", "chair", "bed", "sofa", "desk", "shelf", "lamp", "stool"),
    "vehicle": ("car", "bus", "train", "bike", "truck", "boat", "plane", "tram"),
    "tool": ("hammer", "spade", "rake", "drill", "axe", "wrench", "chisel", "saw"),
    "part of the body": ("hand", "foot", "arm", "leg", "nose", "ear", "knee", "chin"),
    "instrument": ("piano", "drum", "flute", "violin", "guitar", "trumpet", "harp", "bell"),
    "kind of weather": ("rain", "snow", "wind", "fog", "storm", "hail", "frost", "thunder"),
}
COUNTABLE = ("fruit", "animal", "piece of clothing", "piece of furniture", "vehicle", "tool", "instrument")
CATEGORY_OF = {word: category for category, words in CATEGORIES.items() for word in words}
WORDS = tuple(CATEGORY_OF)
_MASS = frozenset(CATEGORIES["colour"] + CATEGORIES["kind of weather"]) - {"storm"}  # words that take no article

_PLURALS = {"sheep": "sheep", "foot": "feet", "scarf": "scarves", "shelf": "shelves", "cherry": "cherries"}
PEOPLE_ATTRIBUTES = ("home", "job", "pet", "pet_name", "food", "colour", "hobby", "month", "friend")


@dataclass(frozen=True, slots=True)
class Person:
    """One row of the table; every value is a single word."""

    name: str
    he: str
    home: str
    job: str
    pet: str
    pet_name: str
    food: str
    colour: str
    hobby: str
    month: str
    friend: str

    @property
    def his(self) -> str:
        return "her" if self.he == "she" else "his"

    @property
    def him(self) -> str:
        return "her" if self.he == "she" else "him"


def article(word: str) -> str:
    """Return `a` or `an`; every word of this world that begins with a vowel letter begins with a vowel sound."""
    return "an" if word[0].lower() in "aeiou" else "a"


def with_article(word: str) -> str:
    """Return the word as it follows "is": "an owl", but "snow"."""
    return word if word in _MASS else f"{article(word)} {word}"


def plural(noun: str) -> str:
    """Return the plural of a countable noun of this world."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    return noun + ("es" if noun.endswith(("s", "ch", "sh", "x")) else "s")


PEOPLE = tuple(Person(*row.split()) for row in _PEOPLE.strip().splitlines())
PERSON = {person.name: person for person in PEOPLE}
NAMES = tuple(PERSON)
TOWNS = tuple(LANDMARKS)
OWNER = {person.pet_name: person.name for person in PEOPLE}
TOWN_OF = {landmark: town for town, landmark in LANDMARKS.items()}


def _row(person: Person) -> dict[str, str]:
    return {attribute: getattr(person, attribute) for attribute in PEOPLE_ATTRIBUTES}


TABLE: dict[tuple[str, str], str] = {
    **{(attribute, person.name): value for person in PEOPLE for attribute, value in _row(person).items()},
    **{("landmark", town): landmark for town, landmark in LANDMARKS.items()},
}
"""(attribute, subject): value, for all facts of the world."""

VALUES: dict[str, tuple[str, ...]] = {
    attribute: tuple(dict.fromkeys(value for (name, _), value in TABLE.items() if name == attribute))
    for attribute in (*PEOPLE_ATTRIBUTES, "landmark")
}
"""attribute: its distinct values. No word is a value of two attributes."""

KIND_OF = {value: attribute for attribute, values in VALUES.items() for value in values}
"""value: its attribute. The name of a person counts as `friend`, that of a town as `home`."""
