"""Exact and near duplicates among documents.

Both are found by 64-bit keys: a document is a duplicate if an earlier one has the same key. Equal texts have equal exact keys. For near
duplicates each document has 16 keys, such that two documents share at least one with a probability that rises steeply with their
similarity (MinHash with banding: Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.3-3.4). The similarity is the
Jaccard index of the sets of 5-token shingles. No two documents that are kept share a key, and no duplicate found of a validation document
stays in the training split, whatever their order.

Keys are stored in files, and each pass over a file handles a fraction of them, so memory hardly grows with the number of documents.
Two different texts have the same exact key with probability 2^-64; among a hundred million documents one is lost with 0.03 %.
Left out: verifying the candidates of MinHash, similarity of parts of documents, duplicated lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

SHINGLE = 5  # tokens
BANDS, ROWS = 16, 8  # at a similarity of 0.8 found with 95 %, at 0.9 with 99.99 %; at 0.5 with 6 %
_BLOCK = 1 << 18  # keys read together
_PASS_KEYS = 1 << 18  # keys in memory in one pass over a file: 2 MiB, and twice that while sorting
_MAX_PASSES = 64  # for a hundred million keys more are in memory: 36 MB


def duplicate_positions(file: Path) -> Iterator[np.ndarray]:
    """Yield the positions, int64, of all keys in a file of uint64 that occur earlier in it, in several arrays."""
    passes = min(1 + file.stat().st_size // 8 // _PASS_KEYS, _MAX_PASSES)
    for number in range(passes):
        seen = np.empty(0, np.uint64)
        for start, keys in _blocks(file):
            chosen = np.flatnonzero(keys % np.uint64(passes) == number)  # keys are hashes: evenly spread
            unique, first = np.unique(keys[chosen], return_index=True)
            new = ~np.isin(unique, seen, assume_unique=True, kind="sort")  # the table of numpy 2.0 overflows
            duplicate = np.ones(len(chosen), dtype=bool)
            duplicate[first[new]] = False
            seen = np.sort(np.concatenate([seen, unique[new]]))
            yield start + chosen[duplicate]


def _blocks(file: Path) -> Iterator[tuple[int, np.ndarray]]:
    start = 0
    with file.open("rb") as opened:
        while len(keys := np.fromfile(opened, "<u8", _BLOCK)):
            yield start, keys
            start += len(keys)


_rng = np.random.Generator(np.random.Philox(key=20240131))  # fixed: keys of different runs are compared
_FLIPS = _rng.integers(0, 1 << 32, BANDS * ROWS, dtype=np.uint32)
_FACTORS = _rng.integers(0, 1 << 32, BANDS * ROWS, dtype=np.uint32) | np.uint32(1)


def near_keys(tokens: np.ndarray, lengths: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return the near-duplicate keys of documents, uint64 (documents, BANDS).

    Args:
        tokens: concatenated documents, each followed by its end token.
        lengths: (documents,) tokens of each, without the end token.
        exact: (documents,) exact keys, used for documents too short to have shingles.
    """
    count = np.maximum(lengths - SHINGLE + 1, 0)  # (documents,) number of shingles
    keys = np.repeat(_mix(exact)[:, None], BANDS, axis=1)
    some = count > 0
    if some.any():
        hashes = _shingles(tokens)[_inside_documents(lengths, count, len(tokens))]
        starts = np.concatenate([[0], np.cumsum(count[some])[:-1]])
        least = np.empty((BANDS, ROWS, int(some.sum())), np.uint64)
        for row, (flip, factor) in enumerate(zip(_FLIPS, _FACTORS, strict=True)):
            least[divmod(row, ROWS)] = np.minimum.reduceat(_permuted(hashes, flip, factor), starts)
        for band in range(BANDS):
            key = np.full(int(some.sum()), band, np.uint64)
            for minimum in least[band]:
                key = _mix(key ^ minimum)
            keys[some, band] = key
    return keys


def _permuted(hashes: np.ndarray, flip: np.uint32, factor: np.uint32) -> np.ndarray:
    """Apply a permutation of the 32-bit integers under which each element of a set is equally likely to be the minimum."""
    permuted = hashes ^ flip
    permuted *= factor
    return permuted


def _shingles(tokens: np.ndarray) -> np.ndarray:
    """Return a hash of the SHINGLE tokens from each position on, uint32 (tokens - SHINGLE + 1,)."""
    width = len(tokens) - SHINGLE + 1
    hashes = np.zeros(width, np.uint64)
    for offset in range(SHINGLE):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += tokens[offset : offset + width]
    return (_mix(hashes) >> np.uint64(32)).astype(np.uint32)


def _inside_documents(lengths: np.ndarray, count: np.ndarray, total: int) -> np.ndarray:
    """Return bool (total - SHINGLE + 1,): the shingle at this position does not cross the end of a document."""
    edges = np.zeros(total + 1, np.int8)
    starts = np.cumsum(lengths + 1) - (lengths + 1)
    some = count > 0
    edges[starts[some]] = 1
    edges[(starts + count)[some]] -= 1
    return np.cumsum(edges, dtype=np.int8)[: total - SHINGLE + 1].astype(bool)


def _mix(keys: np.ndarray) -> np.ndarray:
    """Hash 64-bit integers: every bit of the result depends on every bit of the key (the finalizer of splitmix64)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
