"""Documents that are there already: the same text, or nearly the same.

Both come to one question, asked of 64-bit keys in the order of the documents: which keys have come before? Equal texts have equal keys.
For nearly equal ones there are 16 keys a document, made so that two documents agree in at least one of them with a probability that
rises steeply with their likeness (MinHash with banding: Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.3-3.4).
Likeness is the Jaccard similarity of the sets of 5 tokens in a row. A document is dropped if an earlier one agrees with it in a key, so no
two that are kept agree in any, and no copy that is found of a validation document stays in the training split, whatever their order.

Keys lie in files, and one pass over a file looks at a fraction of them, so memory hardly grows with the number of documents.
Two different texts get the same exact key with a probability of 2^-64; among a hundred million documents one is lost with 0.03 %.
Left out: verifying what MinHash says, likeness of parts of documents, duplicated lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

SHINGLE = 5  # tokens
BANDS, ROWS = 16, 8  # likeness 0.8: found with 95 %, 0.9: 99.99 %; 0.5: taken for a duplicate with 6 %
_BLOCK = 1 << 18  # keys read together
_ROOM = 1 << 18  # keys remembered in one pass over a file: 2 MiB, and twice that while they are sorted
_MOST_PASSES = 64  # a hundred million keys are more at a time: 36 MB


def repeats(file: Path) -> Iterator[np.ndarray]:
    """Positions (int64) of all keys in a file of uint64 that stand there earlier, too."""
    passes = min(1 + file.stat().st_size // 8 // _ROOM, _MOST_PASSES)
    for number in range(passes):
        seen = np.empty(0, np.uint64)
        for start, keys in _blocks(file):
            here = np.flatnonzero(keys % np.uint64(passes) == number)  # keys are hashes: evenly spread
            found, first = np.unique(keys[here], return_index=True)
            new = ~np.isin(found, seen, assume_unique=True)
            again = np.ones(len(here), dtype=bool)
            again[first[new]] = False
            seen = np.sort(np.concatenate([seen, found[new]]))
            yield start + here[again]


def _blocks(file: Path) -> Iterator[tuple[int, np.ndarray]]:
    start = 0
    with file.open("rb") as opened:
        while len(keys := np.fromfile(opened, "<u8", _BLOCK)):
            yield start, keys
            start += len(keys)


_draw = np.random.Generator(np.random.Philox(key=20240131))  # fixed: keys of one run are compared with those of another
_FLIPS = _draw.integers(0, 1 << 32, BANDS * ROWS, dtype=np.uint32)
_FACTORS = _draw.integers(0, 1 << 32, BANDS * ROWS, dtype=np.uint32) | np.uint32(1)


def near_keys(tokens: np.ndarray, lengths: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The keys of documents, uint64 (documents, BANDS).

    tokens: of all documents, one after another, each followed by its end; lengths (documents,) of each, without the end.
    exact (documents,): what stands for a document too short to have shingles, which is compared as a whole.
    """
    count = np.maximum(lengths - SHINGLE + 1, 0)  # (documents,) shingles
    keys = np.repeat(_mixed(exact)[:, None], BANDS, axis=1)
    some = count > 0
    if some.any():
        hashes = _shingles(tokens)[_within(lengths, count, len(tokens))]
        starts = np.concatenate([[0], np.cumsum(count[some])[:-1]])
        least = np.empty((BANDS, ROWS, int(some.sum())), np.uint64)
        for row, (flip, factor) in enumerate(zip(_FLIPS, _FACTORS, strict=True)):
            least[divmod(row, ROWS)] = np.minimum.reduceat(_permuted(hashes, flip, factor), starts)
        for band in range(BANDS):
            key = np.full(int(some.sum()), band, np.uint64)
            for minimum in least[band]:
                key = _mixed(key ^ minimum)
            keys[some, band] = key
    return keys


def _permuted(hashes: np.ndarray, flip: np.uint32, factor: np.uint32) -> np.ndarray:
    """One of many orders of the 32-bit numbers: the least of a set under it is each of its elements with equal probability."""
    found = hashes ^ flip
    found *= factor
    return found


def _shingles(tokens: np.ndarray) -> np.ndarray:
    """A hash of the SHINGLE tokens from each position on, uint32 (tokens - SHINGLE + 1,)."""
    width = len(tokens) - SHINGLE + 1
    found = np.zeros(width, np.uint64)
    for offset in range(SHINGLE):
        found *= np.uint64(0x9E3779B97F4A7C15)
        found += tokens[offset : offset + width]
    return (_mixed(found) >> np.uint64(32)).astype(np.uint32)


def _within(lengths: np.ndarray, count: np.ndarray, total: int) -> np.ndarray:
    """Positions at which a shingle of a single document begins: bool (total - SHINGLE + 1,)."""
    edges = np.zeros(total + 1, np.int8)
    starts = np.cumsum(lengths + 1) - (lengths + 1)
    some = count > 0
    edges[starts[some]] = 1
    edges[(starts + count)[some]] -= 1
    return np.cumsum(edges, dtype=np.int8)[: total - SHINGLE + 1].astype(bool)


def _mixed(keys: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of the key (the finaliser of splitmix64)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
