"""Is the nearest name the one that was meant?"""

from __future__ import annotations

import time

import pytest

from tinyllm.config import hints, suggest
from tinyllm.config.base import names
from tinyllm.stages import config as stages


def misspellings(leaf: str) -> set[str]:
    """Every letter once missing, changed, doubled up with another, or swapped with the next."""
    letters = "aest_1"
    found = {leaf[:i] + leaf[i + 1 :] for i in range(len(leaf))}
    found |= {leaf[:i] + c + leaf[i + 1 :] for i in range(len(leaf)) for c in letters}
    found |= {leaf[:i] + c + leaf[i:] for i in range(len(leaf) + 1) for c in letters}
    found |= {leaf[:i] + leaf[i + 1] + leaf[i] + leaf[i + 2 :] for i in range(len(leaf) - 1)}
    return found - {leaf, ""}


@pytest.mark.parametrize("cls", [stages.PretrainConfig, stages.AlignOnlineConfig, stages.ChatConfig])
def test_one_wrong_letter_in_any_key(cls) -> None:
    keys = names(cls)
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
def test_what_was_probably_meant(word: str, meant: str | None) -> None:
    known = ["name", "train", "train.steps", "train.batch_size", "optim", "optim.learning_rate", "optim.eps"]
    assert suggest(word, known) == meant


def test_the_same_name_elsewhere_is_nearer_than_a_like_name_here() -> None:
    assert suggest("first.length", ["first.lengthen", "second.length"]) == "second.length"
    assert suggest("first.length", ["first.lengths", "second.length"]) == "first.lengths"  # one edit


def test_endless_words_cost_nothing() -> None:
    begun = time.monotonic()
    assert suggest("x" * 10**7, [f"name{i}" for i in range(1000)]) is None
    assert time.monotonic() - begun < 0.5


@pytest.mark.parametrize(
    ("a", "b", "count"), [("", "abc", 3), ("ab", "ba", 1), ("kitten", "sitting", 3), ("ca", "abc", 3)]
)
def test_edits(a: str, b: str, count: int) -> None:
    assert hints.edits(a, b, 9) == hints.edits(b, a, 9) == count
    assert hints.edits(a, b, count - 1) == count


def test_foreign_text_is_shown_harmless_and_short() -> None:
    assert hints.shown("a\x1b[2J\u202e\nb") == "a\\x1b[2J\\u202e\\nb"
    assert len(hints.shown("x" * 1000)) == 60
    assert hints.found("\ud800") == '"\\ud800"'
