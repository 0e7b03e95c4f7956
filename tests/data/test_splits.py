"""Train, val and test of a stage's records: disjoint by construction, stable, and the training set that of two splits."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import small
from tinyllm.data import splits
from tinyllm.data.config import DataConfig
from tinyllm.data.record_source import share_for_test
from tinyllm.data.records.types import Conversation, opening_of, prompt_of
from tinyllm.data.tokens.documents import document_hash, threshold_of_test

KEYS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60)
FRACTIONS = st.floats(0.01, 0.99)


def divided(keys: list[int], fraction: float, test: float, labels: list[bool] | None = None) -> splits.Division:
    hashes = np.array(keys, np.uint64)
    good = None if labels is None else np.array(labels)
    return splits.split_by_hash(hashes, lambda: hashes, fraction, good, test=test)


@given(KEYS, st.lists(st.integers(0, 59), max_size=30), FRACTIONS, FRACTIONS)
@settings(max_examples=300, deadline=None)
def test_the_parts_are_disjoint_and_a_key_is_in_one(keys: list[int], again: list[int], fraction: float, test: float):
    keys = keys + [keys[i % len(keys)] for i in again]
    found = divided(keys, fraction, test)
    assert not (found.test & ~found.held).any()  # a part of what was held out
    parts: dict[int, set[tuple[bool, bool]]] = {}
    for key, held, examined in zip(keys, found.held.tolist(), found.test.tolist(), strict=True):
        parts.setdefault(key, set()).add((held, examined))
    assert all(len(sides) == 1 for sides in parts.values())
    held = {key for key, sides in parts.items() if (True, False) in sides or (True, True) in sides}
    low = {key % 2**32 for key in held}
    assert {bool(found.test.any()), bool((found.held & ~found.test).any())} == {len(low) > 1, bool(held)}


@given(KEYS, FRACTIONS, FRACTIONS)
@settings(max_examples=200, deadline=None)
def test_the_training_set_is_that_of_two_splits(keys: list[int], fraction: float, test: float):
    """Written again from the rule of docs/data.md, without the functions of the module."""
    if len(set(keys)) == len(keys) == 1:
        expected = [False]
    else:
        expected = [key < int(fraction * 2**64) for key in keys]
        distinct = sorted(set(keys))
        counts = [keys.count(key) for key in distinct]
        if len(distinct) < 2:
            expected = [False] * len(keys)
        elif not any(expected):
            expected = [key == distinct[counts.index(min(counts))] for key in keys]
        elif all(expected):
            expected = [key != distinct[counts.index(max(counts))] for key in keys]
    assert divided(keys, fraction, test).held.tolist() == expected
    assert divided(keys, fraction, 0.0).held.tolist() == expected
    assert not divided(keys, fraction, 0.0).test.any()


@given(st.lists(st.integers(0, 2**64 - 1), min_size=200, max_size=200, unique=True), KEYS, FRACTIONS)
@settings(max_examples=50, deadline=None)
def test_more_records_move_no_others(keys: list[int], more: list[int], test: float):
    keys = [
        int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=8).digest()) for key in keys
    ]  # as spread as hashes are
    first, both = divided(keys, 0.3, test), divided(keys + more, 0.3, test)
    assert (both.held[:200] == first.held).all()
    inside = [key % 2**32 < test * 2**32 for key in keys]
    if any(h and i for h, i in zip(first.held, inside, strict=True)) and any(first.held & ~np.array(inside)):
        assert (both.test[:200] == first.test).all()


@given(st.lists(st.tuples(st.integers(0, 15), st.booleans()), min_size=2, max_size=40), FRACTIONS, FRACTIONS)
@settings(max_examples=300, deadline=None)
def test_labeled_answers_have_both_labels_in_val_and_test_or_there_is_no_test(rows, fraction: float, test: float):
    keys = [int.from_bytes(hashlib.sha256(bytes([key])).digest()[:8], "big") for key, _ in rows]
    labels = np.array([good for _, good in rows])
    plain, found = (divided(keys, fraction, share, labels.tolist()) for share in (0.0, test))
    assert (plain.held == found.held).all()
    if found.test.any():
        held = set(labels[found.held])
        assert set(labels[found.test]) == set(labels[found.held & ~found.test]) == held
        assert not set(np.array(keys)[found.test]) & set(np.array(keys)[~found.test])


@given(st.lists(st.lists(st.integers(0, 70000), max_size=5), max_size=30), FRACTIONS)
@settings(max_examples=200, deadline=None)
def test_documents_are_divided_by_their_tokens(documents: list[list[int]], share: float):
    hashes = [document_hash(one) for one in documents]
    below = threshold_of_test(hashes, share)
    test = {tuple(one) for one, number in zip(documents, hashes, strict=True) if number < below}
    val = {tuple(one) for one, number in zip(documents, hashes, strict=True) if number >= below}
    assert not test & val
    assert not documents or val
    assert bool(test) == (len(test | val) > 1)
    assert document_hash(np.array([1, 2], np.uint16)) == document_hash([1, 2])
    assert threshold_of_test(hashes, 0.0) == 0


# --- files -----------------------------------------------------------------------------------------------------------------------


def conversations(path: Path, count: int, start: int = 0) -> Path:
    """Write three conversations to every prompt."""
    return small.written(
        path,
        [{"prompt": f"What is {i // 3 + start}?", "completion": f"It is {i}."} for i in range(count)],
    )


def read(**data: Any) -> splits.Split:
    return splits.read_split(DataConfig(**data), "conversations", 0)


def prompts_of(records: list[Conversation]) -> set[str]:
    return {record.messages[0]["content"] for record in records}


def test_half_of_what_is_split_off_is_for_test(tmp_path: Path) -> None:
    path = str(conversations(tmp_path / "a.jsonl", 3000))
    found, two = read(train=path, val_fraction=0.2), read(train=path, val_fraction=0.2, test_fraction=0)
    sets = [prompts_of(part) for part in found[:3]]
    assert [len(a & b) for a, b in itertools.combinations(sets, 2)] == [0, 0, 0]
    assert found.train == two.train
    assert sorted(map(repr, found.val + found.test)) == sorted(map(repr, two.val))
    assert not two.test
    assert 70 < len(sets[1]) < 140
    assert 70 < len(sets[2]) < 140
    assert {part: facts["records"] for part, facts in found.facts.items()} == {
        part: len(records) for part, records in found.records().items()
    }
    assert found.facts["test"]["keys"] == len(sets[2])
    hashes = sorted(splits.text_hashes(found.test, opening_of).tolist())
    digest = hashlib.sha256(b"".join(key.to_bytes(8, "big") for key in sorted(set(hashes)))).hexdigest()
    assert found.facts["test"]["sha256"] == digest


def test_an_explicit_val_is_divided_only_where_that_is_asked_for(tmp_path: Path) -> None:
    train, val = str(conversations(tmp_path / "a.jsonl", 30)), str(conversations(tmp_path / "b.jsonl", 300, start=50))
    plain = read(train=train, val=val)
    assert (len(plain.val), len(plain.test)) == (300, 0)
    half = read(train=train, val=val, test_fraction=0.5)
    assert half.train == plain.train
    assert sorted(map(repr, half.val + half.test)) == sorted(map(repr, plain.val))
    assert 60 < len(half.test) < 240
    assert not prompts_of(half.val) & prompts_of(half.test)


def test_files_of_their_own_for_test_leave_all_of_val_and_overlaps_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train = str(conversations(tmp_path / "a.jsonl", 300))
    test = str(conversations(tmp_path / "t.jsonl", 30, start=95))  # five prompts of train or val, five new ones
    found, two = read(train=train, test=test, val_fraction=0.2), read(train=train, val_fraction=0.2, test_fraction=0)
    assert (found.train, found.val) == (two.train, two.val)
    assert len(found.test) == 30
    shared = [sum(prompt_of(r) in [prompt_of(o) for o in part] for r in found.test) for part in (two.train, two.val)]
    assert sum(shared) == 15
    said = capsys.readouterr().err
    for count, split in zip(shared, ("is trained on", "is in val"), strict=True):
        assert (f"warning: {count} of 30 test records have a prompt that {split}" in said) == (count > 0)


def test_a_file_that_is_val_and_test_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train, val = str(conversations(tmp_path / "a.jsonl", 30)), str(conversations(tmp_path / "b.jsonl", 30, start=50))
    read(train=train, val=val, test=val)
    said = capsys.readouterr().err
    assert "30 of 30 test records have a prompt that is in val" in said
    assert f"data.val and data.test both name {val}" in said


def test_one_prompt_that_is_held_out_is_for_val(tmp_path: Path) -> None:
    path = str(conversations(tmp_path / "a.jsonl", 6))  # two prompts
    found = read(train=path, val_fraction=0.05)
    assert (len(found.train), len(found.val), len(found.test)) == (3, 3, 0)
    assert found.facts["test"]["records"] == 0


def test_the_world_has_as_many_test_records_as_val_records() -> None:
    found = read(train="world:40")
    assert (len(found.val), len(found.test)) == (256, 256)
    own = read(train="world:40", val="world:30")
    assert (len(own.val), len(own.test)) == (30, 30)
    assert own.val == found.val[:30]
    assert own.test == found.test[:30]
    assert read(train="world:40", test_fraction=0).test == []
    assert len(read(train="world:40", test="world:7").test) == 7


def test_an_overlap_that_this_program_made_ends_the_stage() -> None:
    with pytest.raises(RuntimeError, match="1 of 2 keys of test are in val as well"):
        splits.check_disjoint({"train": [1, 2], "val": [3, 4, 4], "test": [4, 5]})
    assert splits.check_disjoint({"train": [2, 1, 2], "val": []})["train"]["keys"] == 2


def test_a_test_fraction_beside_test_is_refused() -> None:
    with pytest.raises(ValueError, match=r"test_fraction 0\.5 divides nothing beside test"):
        DataConfig(test="a.jsonl", test_fraction=0.5)
    shares = [DataConfig(), DataConfig(val="a"), DataConfig(val="a", test_fraction=0.3), DataConfig(test="a")]
    assert [share_for_test(data) for data in shares] == [0.5, 0.0, 0.3, 0.0]
