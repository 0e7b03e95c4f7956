"""An n-gram model as the yardstick for pretraining: what counting alone would predict.

Interpolated Kneser-Ney with three discounts an order (Chen and Goodman 1999, section 3, "modified Kneser-Ney"). The text is one stream of
token ids; a document starts behind the end of the one before it. Everything is sorted arrays, no loop over tokens: order 5 takes about
three seconds a million tokens. Left out: keeping the model, generating from it.
"""

from __future__ import annotations

import numpy as np

_MOST_TOKENS = 8_000_000  # counted at most: the first ones; 8M take about half a minute


def surprise(train: np.ndarray, held_out: np.ndarray, vocab_size: int, order: int = 5, start: int = 0) -> np.ndarray:
    """-log p (nats) of every token of `held_out` (N,) given the `order` - 1 before it, counted on `train` (M,); both 1-D token ids.

    start: the id that stands before the first token of each stream, usually the end of a document.
    """
    before = np.full(order - 1, start, dtype=np.int64)
    train = np.concatenate([before, np.asarray(train[:_MOST_TOKENS], dtype=np.int64)])
    both = np.concatenate([train, before, np.asarray(held_out, dtype=np.int64)])
    counted = np.arange(len(both)) < len(train)
    counted[: order - 1] = False
    ids = _grams(both, vocab_size, order)
    asked = slice(len(train) + order - 1, None)
    p = np.full(len(held_out), 1.0 / vocab_size)
    for length in range(1, order + 1):
        # the highest order counts occurrences, lower ones in how many contexts an n-gram occurs
        if length == order:
            counts = np.bincount(ids[length][counted], minlength=ids[length].max() + 1)
        else:
            where = np.unique(ids[length + 1][counted], return_index=True)[1]
            counts = np.bincount(ids[length][counted][where], minlength=ids[length].max() + 1)
        context = np.zeros(len(both), dtype=np.int64) if length == 1 else np.roll(ids[length - 1], 1)
        p = _interpolated(p, counts, ids[length], context, counted, asked)
    return -np.log(p)


def _grams(tokens: np.ndarray, vocab_size: int, order: int) -> list[np.ndarray]:
    """For each length k up to `order`, the number of the k-gram that ends at each position; equal k-grams have equal numbers."""
    ids = [np.zeros(len(tokens), dtype=np.int64), tokens]
    for _ in range(order - 1):
        longer = np.roll(ids[-1], 1) * vocab_size + tokens  # the gram before, and one token more
        ids.append(np.unique(longer, return_inverse=True)[1])
    return ids


def _interpolated(
    lower: np.ndarray, counts: np.ndarray, grams: np.ndarray, context: np.ndarray, counted: np.ndarray, asked: slice
) -> np.ndarray:
    """One order: (c(hw) - D(c)) / c(h) + lambda(h) p_lower(w); where the context was never seen, the lower order alone."""
    seen, first = np.unique(grams[counted], return_index=True)
    home, size = context[counted][first], int(context.max()) + 1  # each distinct n-gram's context
    discount = _discounts(counts[seen])
    taken = discount[np.minimum(counts, 3)]
    total = np.bincount(home, weights=counts[seen], minlength=size)
    left_over = np.bincount(home, weights=taken[seen], minlength=size)
    h, c = context[asked], counts[grams[asked]]
    known = total[h] > 0
    scale = np.where(known, total[h], 1.0)
    here = np.maximum(c - taken[grams[asked]], 0.0)
    return np.where(known, (here + left_over[h] * lower) / scale, lower)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D for n-grams seen 0, 1, 2 and 3 or more times, from how many were seen once, twice, three and four times."""
    n = [max(1, int((counts == k).sum())) for k in range(1, 5)]
    y = n[0] / (n[0] + 2 * n[1])
    found = [k - (k + 1) * y * n[k] / n[k - 1] for k in (1, 2, 3)]
    return np.array([0.0, *(min(max(d, 0.1), k) for k, d in zip((0.9, 1.9, 2.9), found, strict=True))])
