"""Documents of the bundled world: true statements in plain, varied English."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from tinyllm.data import world
from tinyllm.data.world.documents import GROUPS
from tinyllm.data.world.facts import FACTS, STATEMENTS, phrase
from tinyllm.data.world.lexicon import CATEGORIES, LANDMARKS, NAMES, PEOPLE, PERSON, TABLE, VALUES, article, plural
from tinyllm.data.world.stories import expand, skeletons


def test_values_of_the_table_are_distinct_words():
    assert len(PEOPLE) == 24
    assert len(FACTS) == len(TABLE) == 224
    words = [value for values in VALUES.values() for value in values]
    assert len(words) == len(set(words))
    assert all(re.fullmatch(r"[A-Za-z]+", word) for word in words)
    members = [word for category in CATEGORIES.values() for word in category]
    assert len(members) == len(set(members)) == 80
    for person in PEOPLE:
        friend = PERSON[person.friend]
        assert friend.friend == person.name != friend.name
        assert all(
            TABLE[a, person.name] != TABLE[a, friend.name]
            for a in ("home", "job", "pet", "food", "colour", "hobby", "month")
        )


@pytest.mark.parametrize("attribute", ["home", "job", "pet", "food", "colour", "hobby", "month"])
def test_values_of_an_attribute_are_equally_frequent(attribute):
    counts = Counter(TABLE[attribute, name] for name in NAMES)
    assert len(set(counts.values())) == 1


def sentences(texts: list[str]) -> Counter:
    """Count the sentences and clauses of the texts, without their full stops."""
    return Counter(part for text in texts for part in re.split(r'[.!?"] *|, (?:but|and) (?=[A-Z])', text) if part)


@pytest.mark.parametrize("attribute", list(STATEMENTS))
def test_documents_state_every_fact_and_no_false_one(attribute, world_texts):
    subjects = LANDMARKS if attribute == "landmark" else NAMES
    meaning = {
        phrase(template, subject, value).removesuffix("."): (template, subject, value)
        for template in STATEMENTS[attribute]
        for subject in subjects
        for value in VALUES[attribute]
    }
    counts, used = Counter(), set()
    for sentence, count in sentences(world_texts).items():
        if sentence in meaning:
            template, subject, value = meaning[sentence]
            assert TABLE[attribute, subject] == value, sentence
            counts[subject] += count
            used.add(template)
    assert used == set(STATEMENTS[attribute])
    assert min(counts[subject] for subject in subjects) >= 20


NAME = rf"(?:{'|'.join(NAMES)})"
IN_STORIES = {  # attribute: its wordings in stories, with name (n) and value (v)
    "home": r"(?P<n>NAME),? (?:from|comes from|lives in) (?P<v>VALUE)|(?P<v2>VALUE), where (?P<n2>NAME) lives",
    "job": r"(?P<n>NAME)(?:,? who)? (?:works as|is) an? (?P<v>VALUE)",
    "pet": r"(?P<n>NAME)'s (?P<v>VALUE)\b|(?P<v2>VALUE) of (?P<n2>NAME)\b|(?P<n3>NAME) has an? (?P<v3>VALUE)",
    "pet_name": r"(?P<v>VALUE), (?P<n>NAME)'s (?:PET)\b|(?P<n2>NAME) has an? \w+ called (?P<v2>VALUE)",
    "food": r"(?P<n>NAME) (?:loves|loves to eat|could eat) (?P<v>VALUE)\b|(?P<v2>VALUE) for (?P<n2>NAME)\b",
    "colour": r"(?P<n>NAME) (?:likes|often wears|wore) (?P<v>VALUE)\b",
    "hobby": r"(?P<n>NAME) (?:enjoys|is fond of) (?P<v>VALUE)",
    "month": r"(?P<n>NAME) was born in (?P<v>VALUE)",
    "landmark": r"(?P<v>VALUE) (?:of|in) (?P<n>TOWN)\b|(?P<n2>TOWN), next to the (?P<v2>VALUE)",
    "friend": r"(?P<n>NAME), the best friend of (?P<v>VALUE)\b|(?P<v2>VALUE) and (?P<n2>NAME) are best friends",
}


@pytest.mark.parametrize("attribute", list(IN_STORIES))
def test_facts_in_stories_are_true(attribute, world_texts):
    towns, pets, values = ("|".join(words) for words in (LANDMARKS, VALUES["pet"], VALUES[attribute]))
    words = {"NAME": NAME, "TOWN": f"(?:{towns})", "PET": pets, "VALUE": f"(?:{values})"}
    pattern = re.compile(re.sub("NAME|PET|TOWN|VALUE", lambda match: words[match[0]], IN_STORIES[attribute]))
    checked = 0
    for text in world_texts[:2500]:
        for match in pattern.finditer(text):
            groups = match.groupdict()
            name, value = (next(groups[g] for g in groups if g[0] == kind and groups[g]) for kind in "nv")
            assert TABLE[attribute, name] == value, match[0]
            checked += 1
    assert checked > 40


def test_lists_of_people_are_true(world_texts):
    lists, checked = rf"((?:{NAME}, )*{NAME} and {NAME})", 0
    many = [sentence for sentence in sentences(world_texts) if re.search(rf"{NAME} and {NAME}", sentence)]
    for attribute, templates in GROUPS.items():
        for value, template in itertools.product(VALUES[attribute], templates):
            words = {"v": value, "av": f"{article(value)} {value}", "vs": plural(value), "who": "@"}
            head, tail = template.format(**words).removesuffix(".").split("@")
            for sentence in (s for s in many if s.startswith(head) and s.endswith(tail)):
                if match := re.fullmatch(re.escape(head) + lists + re.escape(tail), sentence):
                    people = re.findall(r"\w+", match[1].replace(" and ", " "))
                    assert {name for name in NAMES if TABLE[attribute, name] == value} == set(people)
                    checked += 1
    assert checked > 500


def test_worked_examples_in_documents_are_right(world_texts):
    whole = "\n".join(world_texts)
    sorts = re.findall(r"Sorted from small to big, ([\d ]+) gives ([\d ]+)\.", whole)
    sums = re.findall(r"(\d+) (plus|minus) (\d+) is (\d+)\.", whole)
    backwards = re.findall(r"Backwards, ([a-z ]+) is ([a-z ]+)\.", whole)
    assert min(len(sorts), len(sums), len(backwards)) > 30
    assert all(sorted(given.split()) == got.split() for given, got in sorts)
    assert all((int(a) + int(b) if sign == "plus" else int(a) - int(b)) == int(got) for a, sign, b, got in sums)
    assert all(given.split()[::-1] == got.split() for given, got in backwards)


def test_texts_are_plain_grammatical_ascii(world_texts):
    prompts = [record for split in ("train", "val") for record in world.prompts(3000, split=split)]
    everything = (
        world_texts
        + [m["content"] for r in prompts for m in r["prompt"] if m["role"] == "user"]
        + [record["answer"] for record in prompts]
    )
    for text in everything:
        assert text.isascii()
        assert not re.search(r"[{}\[\]|@]|  |^ | $|\.\.|,\.|\?\.| [.,?]", text), text
        assert not re.search(r"\w\w [Aa] (?!is\b|and\b)[aeiou][a-z]+|\b[Aa]n [^aeiou\W]", text), text
    for text in world_texts:
        assert text[0].isupper() or text[0] == '"', text
        assert text[-1] in '."', text
        assert text.count('"') % 2 == 0, text


def test_vocabulary_is_small(world_texts):
    words = Counter(re.findall(r"[A-Za-z]+", " ".join(world_texts)))
    assert 600 < len(words) < 1100


def test_number_of_skeletons_beats_and_stories():
    assert len(skeletons()) == 17
    assert min(len(beats) for beats in skeletons()) >= 6
    assert expand("a [b|c] d [e|f]") == ("a b d e", "a b d f", "a c d e", "a c d f")
    stories = {text for text in (record["text"] for record in world.documents(3000, seed=2)) if len(text) > 300}
    assert len(stories) > 1000
