"""The closed world's words: who lives in it, what each of them is like, and the categories things fall into.

The table below is the truth that every document, question and gold reward is made from. It does not depend on any
seed, so that pretraining, fine-tuning and evaluation with different seeds still speak of the same world. Each value
of a column occurs equally often, so that guessing the commonest value is no better than chance. Left out on purpose:
anything about the real world.
"""

from __future__ import annotations

from dataclasses import dataclass

# name pronoun home job pet pet_name food colour hobby month friend; friendship is mutual
_PEOPLE = """
    Ada she Fernby baker pony Domino salad green painting June Noah
    Alma she Maplegate tailor dog Twig pizza white fishing November Hugo
    Ben he Windmoor tailor owl Sparky pancakes pink fishing August Jack
    Bruno he Pebblecove teacher dog Pepper bread brown painting February Lena
    Clara she Saltbay actor hamster Coco bread black running November Sam
    Cleo she Stonewell baker hamster Jelly soup pink sailing December Oscar
    Dan he Windmoor farmer cat Echo pizza red reading August Hana
    Dora she Larkford nurse owl Sunny pancakes red sailing July Umar
    Emma she Maplegate nurse parrot Socks porridge brown reading October Igor
    Eric he Goosefield baker parrot Nutmeg rice red singing May Max
    Finn he Brightwater writer rabbit Pip noodles purple knitting May Karl
    Fiona she Maplegate pilot parrot Biscuit beans black swimming October Paul
    Gina she Larkford carpenter rabbit Gizmo porridge yellow reading April Leo
    Gus he Goosefield farmer cat Bubbles noodles blue fishing March Kate
    Hana she Stonewell nurse owl Button beans green knitting June Dan
    Hugo he Fernby writer pony Comet porridge pink singing September Alma
    Igor he Windmoor farmer goat Fluff beans yellow knitting February Emma
    Ivy she Larkford engineer cat Velvet bread green running July Vera
    Jack he Saltbay writer rabbit Dusty pasta white dancing September Ben
    Karl he Pebblecove doctor dog Ziggy rice blue sailing November Finn
    Kate she Pebblecove actor hamster Rocket soup pink swimming May Gus
    Lena she Saltbay doctor parrot Marble pie purple fishing April Bruno
    Leo he Fernby gardener turtle Lucky rice black dancing December Gina
    Max he Saltbay teacher turtle Whisper pizza purple dancing March Eric
    Mia she Brightwater engineer turtle Waffles pie green dancing January Olga
    Noah he Goosefield gardener goat Patches cheese purple singing February Ada
    Olga she Windmoor doctor cat Toffee soup blue knitting August Mia
    Oscar he Maplegate teacher goat Truffle salad red swimming January Cleo
    Paul he Fernby carpenter rabbit Peanut pancakes white sailing April Fiona
    Rosa she Larkford carpenter owl Spot salad black swimming September Yuri
    Sam he Stonewell engineer pony Tinker pie white painting December Clara
    Tara she Brightwater pilot dog Rusty cheese blue running March Zoe
    Umar he Stonewell actor pony Shadow cheese yellow painting June Dora
    Vera she Pebblecove pilot goat Misty pasta yellow reading October Ivy
    Yuri he Brightwater gardener turtle Clover noodles brown running July Rosa
    Zoe she Goosefield tailor hamster Pickle pasta brown singing January Tara
"""

LANDMARKS = {
    "Fernby": "castle",
    "Larkford": "bridge",
    "Stonewell": "library",
    "Pebblecove": "lighthouse",
    "Windmoor": "museum",
    "Maplegate": "theatre",
    "Saltbay": "market",
    "Goosefield": "windmill",
    "Brightwater": "fountain",
}

# A word stands in one category only, so that the odd one out is never a matter of opinion.
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
    """`a` or `an`; every word of this world that begins with a vowel letter also begins with a vowel sound."""
    return "an" if word[0].lower() in "aeiou" else "a"


def with_article(word: str) -> str:
    """The word as it stands after "is": "an owl", but "snow"."""
    return word if word in _MASS else f"{article(word)} {word}"


def plural(noun: str) -> str:
    """The plural of a countable noun of this world."""
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
"""(attribute, subject) -> value: the whole truth of the world."""

VALUES: dict[str, tuple[str, ...]] = {
    attribute: tuple(dict.fromkeys(value for (name, _), value in TABLE.items() if name == attribute))
    for attribute in (*PEOPLE_ATTRIBUTES, "landmark")
}
"""attribute -> its distinct values; no word is a value of two attributes."""

KIND_OF = {value: attribute for attribute, values in VALUES.items() for value in values}
"""A value's attribute; a person's name counts as `friend`, a town's as `home`."""
