"""Batches: the records of a step, padding, masks and packing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.data.datasets.batches import Source, right_padded
from tinyllm.data.datasets.datasets import PreferenceDataset, PretrainDataset, SFTDataset, TokenPair, scored_documents
from tinyllm.data.datasets.packing import PackedPretrainDataset, PackedSFTDataset, best_fit
from tinyllm.errors import UserError


def dataset(n: int) -> SFTDataset:
    return SFTDataset([([i] * (2 + i % 5), [True] * (2 + i % 5)) for i in range(n)], pad=0)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_records_of_a_step_do_not_depend_on_ranks_or_micro_batches(world_size: int) -> None:
    want = Source(dataset(30), 8, 8, seed=1).records(5)
    found = []
    for rank in range(world_size):
        for batch in Source(dataset(30), 8, 3, seed=1, rank=rank, world_size=world_size)(5):
            assert len(batch.ids) <= 3
            found += batch.ids[:, 0].tolist()
    assert sorted(found) == sorted(want)


def test_another_batch_size_continues_with_the_next_record() -> None:
    """Steps of 6, then of 4, over 10 records: the order is that of one list, also across the edge of an epoch and over ranks."""
    data = SFTDataset([([i], [True]) for i in range(10)], 0)
    whole, first = (Source(data, size, 2, seed=3) for size in (1, 6))
    order = [whole.records(n)[0] for n in range(40)]
    for ranks in (1, 2):
        then = Source(data, 4, 2, seed=3, rank=ranks - 1, world_size=ranks)
        then.start_at(3, first.position(3))
        assert [r for step in range(3) for r in first.records(step)] + [
            r for step in range(3, 8) for r in then.records(step)
        ] == order[:38]
        assert then.position(8) == 38


def test_each_epoch_has_every_record_once_in_its_own_order() -> None:
    source = Source(dataset(24), 8, 8, seed=1)
    first = [i for step in range(3) for i in source.records(step)]
    second = [i for step in range(3, 6) for i in source.records(step)]
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert Source(dataset(24), 8, 8, seed=2).records(0) != first[:8]


def test_records_of_a_step_are_a_pure_function_of_its_number() -> None:
    used, fresh = Source(dataset(10), 4, 4, seed=3), Source(dataset(10), 4, 4, seed=3)
    for step in range(7):
        used(step)
    assert used.records(2) == fresh.records(2)


def test_batch_size_not_divisible_by_the_ranks_is_refused() -> None:
    with pytest.raises(UserError, match="not divisible by the 3 ranks"):
        Source(dataset(10), 8, 8, seed=0, world_size=3)


def test_pretrain_rows_cover_the_stream_without_overlap_and_shift_by_epoch() -> None:
    tokens = np.arange(103, dtype=np.uint16)
    windows = PretrainDataset(tokens, 10, seed=0)
    rows = windows.collate(range(len(windows)), 0, []).ids
    assert rows.shape == (len(windows), 11)
    assert rows[1:, 0].tolist() == rows[:-1, -1].tolist()  # the last target of a row is the first context of the next
    assert {int(windows.collate([0], epoch, []).ids[0, 0]) for epoch in range(12)} > {int(rows[0, 0])}
    assert not windows.collate([0], 0, []).mask[0, 0]
    with pytest.raises(UserError, match="too few"):
        PretrainDataset(tokens[:8], 10, seed=0)


def test_every_token_of_every_document_is_scored_exactly_once() -> None:
    documents = [list(range(1, n + 1)) for n in (1, 7, 8, 9, 40)]
    rows = scored_documents(documents, 8, begin=0)
    scored = [i for ids, mask in rows for i, m in zip(ids, mask, strict=True) if m]
    assert sorted(scored) == sorted(i for d in documents for i in d)
    assert all(len(ids) <= 8 and not mask[0] for ids, mask in rows)


def test_preference_batches_have_the_token_counts_of_the_whole_step() -> None:
    data = PreferenceDataset([TokenPair([1, 2], [3, 4, 5], [6]), TokenPair([1], [2], [3, 4])], pad=0)
    batch = data.collate([1], 0, [0, 1])
    assert batch.count == 1
    assert batch.tokens_per_pair == (1 + 3 + 0 + 1) / 2
    assert batch.answer_tokens_per_pair == 2.0
    assert batch.mask.sum(1).tolist() == [1, 2]
    assert batch.real.sum(1).tolist() == [2, 3]


def test_padding_is_on_the_right_to_a_multiple_of_the_width_step() -> None:
    padded = right_padded([[1, 2, 3], [4]], 9)
    assert padded.shape == (2, 16)
    assert padded[1, :3].tolist() == [4, 9, 9]
    assert right_padded([[True]], False).dtype == torch.bool


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_best_fit_packs_every_item_once_and_fills_the_bins(sizes: list[int]) -> None:
    bins = best_fit(sizes, 50)
    assert sorted(i for row in bins for i in row) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in row) <= 50 for row in bins)
    assert len(bins) <= 11 / 9 * math.ceil(sum(sizes) / 50) * 2  # twice the bound of first fit
    filled = sorted(sum(sizes[i] for i in row) for row in bins)
    assert len(bins) == 1 or filled[0] + filled[1] > 50  # no two bins fit into one


def test_packed_rows_number_their_documents_and_never_score_a_first_token() -> None:
    rows = [([7, 8, 9], [True, True, True]), ([1, 2, 3, 4, 5], [False, True, True, True, True]), ([6, 6], [True, True])]
    packed = PackedSFTDataset(rows, pad=0, length=8)
    assert [packed.length(i) for i in range(len(packed))] == [8, 2]
    batch = packed.collate([0, 1], 0, [])
    assert batch.ids[0, :9].tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 0]
    assert batch.documents[0, :9].tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 0]
    assert batch.mask[0, :9].tolist() == [False, True, True, True, True, False, True, True, False]
    assert batch.documents[1, :3].tolist() == [1, 1, 0]


def stream(sizes: list[int], end: int = 0) -> np.ndarray:
    """Return documents of distinct tokens, each followed by `end`, after an initial `end`."""
    found, next_token = [end], 1
    for size in sizes:
        found += [*range(next_token, next_token + size), end]
        next_token += size
    return np.array(found, dtype=np.uint16)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(4, 12))
def test_packed_documents_score_every_token_once_after_its_predecessor(sizes: list[int], length: int) -> None:
    """Every token but the first is scored exactly once, after its predecessor in the stream and within its own document."""
    tokens = stream(sizes)
    rows = PackedPretrainDataset(tokens, length, end=0, pad=9999)
    follows = {}  # every token but the end tokens is unique
    for before, token in itertools.pairwise(tokens.tolist()):
        follows[token] = before
    scored: list[int] = []
    for index in range(len(rows)):
        batch = rows.collate([index], 0, [])
        ids, mask, numbers = (x[0].tolist() for x in (batch.ids, batch.mask, batch.documents))
        assert rows.length(index) == sum(n > 0 for n in numbers) <= length + 1
        for i, (token, is_scored, number) in enumerate(zip(ids, mask, numbers, strict=True)):
            assert (token == 9999) == (number == 0)
            if is_scored:
                assert numbers[i - 1] == number
                scored.append(token)
                if token:
                    assert ids[i - 1] == follows[token]
    assert sorted(scored) == sorted(tokens[1:].tolist())


def test_padding_is_reported_with_and_without_packing() -> None:
    rows = PackedPretrainDataset(
        stream([5, 5, 2, 2, 8]), 9, end=0, pad=0
    )  # with their end tokens and a first token: 7, 7, 4, 4, 10 of 10
    assert len(rows) == 4
    packed, unpacked = rows.padding()
    assert packed == pytest.approx(1 - 32 / 40)
    assert unpacked == pytest.approx(1 - 32 / 50)


def test_200_000_documents_are_packed_with_less_than_1_percent_padding() -> None:
    sizes = (np.random.default_rng(0).pareto(1.5, 200_000) * 60 + 4).astype(int).clip(4, 513)
    bins = best_fit(sizes.tolist(), 513)
    assert sum(map(len, bins)) == len(sizes)
    assert len(bins) < 1.01 * math.ceil(sizes.sum() / 513)
