"""Suggestions for misspelled names."""

from __future__ import annotations

import time

import pytest

from tinyllm.config import suggest
from tinyllm.config.base import dotted_keys
from tinyllm.config.suggestions import edit_distance
from tinyllm.stages import config as stages


def misspellings(leaf: str) -> set[str]:
    """Return the words with one letter missing, changed, inserted, or swapped with the next."""
    letters = "es_"
    found = {leaf[:i] + leaf[i + 1 :] for i in range(len(leaf))}
    found |= {leaf[:i] + c + leaf[i + 1 :] for i in range(len(leaf)) for c in letters}
    found |= {leaf[:i] + c + leaf[i:] for i in range(len(leaf) + 1) for c in letters}
    found |= {leaf[:i] + leaf[i + 1] + leaf[i] + leaf[i + 2 :] for i in range(len(leaf) - 1)}
    return found - {leaf, ""}


@pytest.mark.parametrize(
    "cls", [stages.PretrainConfig, pytest.param(stages.AlignOnlineConfig, marks=pytest.mark.slow), stages.ChatConfig]
)
def test_one_typo_in_any_key(cls) -> None:
    keys = dotted_keys(cls)
    assert len(keys) > 8
    right = wrong = 0
    for key in keys:
        section, dot, leaf = key.rpartition(".")
        for word in misspellings(leaf):
            if section + dot + word not in keys:
                hit = suggest(section + dot + word, keys) == key
                right, wrong = right + hit, wrong + (not hit)
    assert right + wrong > 500
    assert right / (right + wrong) >= 0.95


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("learning_rate", "optim.learning_rate"),  # in another section
        ("train.learning_rate", "optim.learning_rate"),
        ("optm.learning_rate", "optim.learning_rate"),
        ("optim.learnig_rate", "optim.learning_rate"),
        ("optim.learning_raet", "optim.learning_rate"),
        ("leaning_rate", "optim.learning_rate"),
        ("lr", "optim.learning_rate"),
        ("max_steps", "train.steps"),
        ("train.batch-size", "train.batch_size"),
        ("Train", "train"),
        ("optim.steps", "train.steps"),
        ("train.stepss", "train.steps"),
        ("colour", None),
        ("", None),
        ("x" * 10**6, None),
    ],
)
def test_suggested_name(word: str, meant: str | None) -> None:
    known = ["name", "train", "train.steps", "train.batch_size", "optim", "optim.learning_rate", "optim.eps"]
    assert suggest(word, known) == meant


def test_the_same_name_in_another_section_beats_a_similar_name_in_this_one() -> None:
    assert suggest("first.length", ["first.lengthen", "second.length"]) == "second.length"
    assert suggest("first.length", ["first.lengths", "second.length"]) == "first.lengths"  # one edit


def test_very_long_words_are_rejected_at_once() -> None:
    begun = time.monotonic()
    assert suggest("x" * 10**7, [f"name{i}" for i in range(1000)]) is None
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("", "abc", 3), ("ab", "ba", 1), ("kitten", "sitting", 3), ("ca", "abc", 3)]
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b, 9) == edit_distance(b, a, 9) == distance
    assert edit_distance(a, b, distance - 1) == distance
