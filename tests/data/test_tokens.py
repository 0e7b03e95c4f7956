"""Token arrays over several files: slices, index arrays and documents across file boundaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.data.tokens.memmap import Tokens, documents


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    ends=st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
    step=st.sampled_from([1, 2, 3, -1, -2]),
)
@settings(max_examples=200, deadline=None)
def test_slices_equal_those_of_the_joined_array(sizes: list[int], ends: tuple[int, int], step: int) -> None:
    whole = np.arange(sum(sizes), dtype=np.uint16)
    tokens = Tokens(np.split(whole, np.cumsum(sizes)[:-1]))
    assert len(tokens) == len(whole)
    assert tokens[ends[0] : ends[1] : step].tolist() == whole[ends[0] : ends[1] : step].tolist()
    assert tokens[:].tolist() == whole.tolist()
    assert [int(tokens[i]) for i in range(-len(whole), len(whole))] == [
        int(whole[i]) for i in range(-len(whole), len(whole))
    ]


def test_index_arrays_cross_files() -> None:
    whole = np.random.default_rng(0).integers(0, 60_000, 1000).astype(np.uint16)
    tokens = Tokens(np.split(whole, [1, 17, 500]))
    index = np.random.default_rng(1).integers(0, 1000, (7, 33))
    found = tokens[index]
    assert found.dtype == np.uint16
    assert (found == whole[index]).all()
    assert tokens[np.empty((0, 3), np.int64)].shape == (0, 3)
    with pytest.raises(IndexError):
        tokens[1000]
    with pytest.raises(IndexError):
        tokens[np.array([3, 1000])]


def test_slice_within_one_file_is_a_view() -> None:
    files = [np.arange(10), np.arange(10, 30)]
    assert np.shares_memory(Tokens(files)[12:18], files[1])


def test_documents_are_found_across_files_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyllm.data.tokens.memmap._BLOCK", 4)
    whole = np.array([0, 1, 2, 3, 0, 4, 0, 5, 6, 7, 8, 9, 10, 11, 0, 0, 12, 0], np.uint16)
    tokens = Tokens(np.split(whole, [2, 9]))
    found = [document.tolist() for document in documents(tokens, 0, 1, len(whole))]
    assert found == [[1, 2, 3, 0], [4, 0], [5, 6, 7, 8, 9, 10, 11, 0], [0], [12, 0]]
    assert [d.tolist() for d in documents(tokens, 0, 5, 7)] == [[4, 0]]
