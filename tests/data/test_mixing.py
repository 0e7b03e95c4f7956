"""Mixing of sources: shares exact to a row, all rows of a source used equally often, rows a function of the epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.data.datasets.batches import Source
from tinyllm.data.datasets.datasets import PretrainDataset
from tinyllm.data.tokens.mixing import Mixture
from tinyllm.errors import UserError

ROWS = st.lists(st.integers(1, 60), min_size=1, max_size=4)


@given(rows=ROWS, seed=st.integers(0, 99), epochs=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_all_rows_of_a_source_are_used_equally_often(rows: list[int], seed: int, epochs: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.05, 1, len(rows)).tolist()
    mixture = Mixture(rows, weights)
    seen = [Counter() for _ in rows]
    for epoch in range(epochs):
        for source, _, row in zip(
            *(part.tolist() for part in mixture.locate(np.arange(len(mixture)), epoch)), strict=True
        ):
            seen[source][row] += 1
    for source, count in enumerate(rows):
        times = [seen[source][row] for row in range(count)]
        assert max(times) - min(times) <= 1
        assert sum(times) == epochs * mixture.draws[source]
        assert sum(times) / count == pytest.approx(mixture.epochs(epochs * len(mixture))[source])


@given(rows=ROWS, seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_shares_are_exact_to_a_row(rows: list[int], seed: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.05, 1, len(rows))
    mixture = Mixture(rows, weights.tolist())
    wanted = sum(rows) * weights / weights.sum()
    assert len(mixture) == max(sum(rows), len(mixture.draws)) or min(wanted) < 1
    assert (np.abs(mixture.draws - wanted) <= 1).all()


def test_epochs_of_a_source_are_counted_and_an_undersampled_one_is_spread_evenly() -> None:
    mixture = Mixture([1000, 1000], [1, 3])
    source, source_epoch, row = mixture.locate(np.arange(2000), 0)
    assert np.bincount(source).tolist() == [500, 1500]
    assert np.bincount(source_epoch[source == 1]).tolist() == [1000, 500]
    early = np.sort(row[source == 0][:100])
    assert np.diff(early).max() <= 50  # of 1000: the first hundred are spread over all
    again = mixture.locate(np.arange(2000), 1)[2][:500]
    assert set(row[:500].tolist()).isdisjoint(again.tolist())


def test_rows_of_a_single_source_are_pinned() -> None:
    """The rows of existing runs must not change: an offset by (seed, epoch), and row i at i x length."""
    tokens = np.arange(1000, dtype=np.uint16)
    windows = PretrainDataset(tokens, 10, seed=3)
    for epoch in (0, 1, 5):
        offset = int(np.random.Generator(np.random.Philox(key=[3, epoch])).integers(10))
        batch = windows.collate([0, 7, 97], epoch, [])
        assert batch.ids[:, 0].tolist() == [offset, 70 + offset, 970 + offset]
        assert batch.ids.shape == (3, 11)


def test_two_sources_have_their_shares_of_tokens_and_never_share_a_row() -> None:
    tokens = np.concatenate([[0], np.full(999, 1), [0], np.full(299, 2), [0]]).astype(np.uint16)
    windows = PretrainDataset(tokens, 10, seed=0, sources={"a": 1000, "b": 300}, weights=[1, 3])
    source = Source(windows, 8, 8, seed=0)
    counts = Counter()
    for step in range(3 * len(windows) // 8):
        for batch in source(step):
            for row in batch.ids[:, 1:].tolist():
                assert len({*row} - {0}) == 1
                counts[max(row)] += 1
    assert counts[2] / (counts[1] + counts[2]) == pytest.approx(0.75, abs=0.01)
    assert windows.mixture.shares().tolist() == pytest.approx([0.25, 0.75], abs=0.005)


def test_source_without_a_row_is_refused_by_name() -> None:
    tokens = np.ones(1005, np.uint16)
    with pytest.raises(UserError, match=r"b\.txt: 4 tokens are too few for one row of 10"):
        PretrainDataset(tokens, 10, seed=0, sources={"a.txt": 1000, "b.txt": 4}, weights=[1, 1])
