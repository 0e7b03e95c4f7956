"""An n-gram model, the baseline of pretraining.

Interpolated Kneser-Ney with three discounts for each order (Chen and Goodman 1999, section 3, "modified Kneser-Ney"). The text is one
stream of token ids; each document follows the end token of the previous one. Sorted arrays, no loop over tokens: order 5 takes about
three seconds for a million tokens. Left out: saving the model, generating from it.
"""

from __future__ import annotations

import numpy as np

from tinyllm.data.tokens.memmap import Tokens

_MAX_TOKENS = 8_000_000  # the first ones are counted; 8M take about half a minute


def surprisal(
    train: np.ndarray | Tokens, held_out: np.ndarray, vocab_size: int, order: int = 5, start: int = 0
) -> np.ndarray:
    """Return -log p in nats, float (N,), of every held-out token given the `order` - 1 tokens before it.

    Args:
        train: token ids (M,), whose n-grams are counted.
        held_out: token ids (N,).
        start: the id before the first token of each stream, usually the end-of-text token.
    """
    before = np.full(order - 1, start, dtype=np.int64)
    counting = np.concatenate([before, np.asarray(train[:_MAX_TOKENS], dtype=np.int64)])
    both = np.concatenate([counting, before, np.asarray(held_out, dtype=np.int64)])
    counted = np.arange(len(both)) < len(counting)
    counted[: order - 1] = False
    ids = _grams(both, vocab_size, order)
    scored = slice(len(counting) + order - 1, None)
    p = np.full(len(held_out), 1.0 / vocab_size)
    for length in range(1, order + 1):
        # the highest order counts occurrences, lower orders count distinct contexts
        if length == order:
            counts = np.bincount(ids[length][counted], minlength=ids[length].max() + 1)
        else:
            where = np.unique(ids[length + 1][counted], return_index=True)[1]
            counts = np.bincount(ids[length][counted][where], minlength=ids[length].max() + 1)
        context = np.zeros(len(both), dtype=np.int64) if length == 1 else np.roll(ids[length - 1], 1)
        p = _interpolated(p, counts, ids[length], context, counted, scored)
    return -np.log(p)


def _grams(tokens: np.ndarray, vocab_size: int, order: int) -> list[np.ndarray]:
    """Return for each k up to `order` the id of the k-gram that ends at each position; equal k-grams have equal ids."""
    ids = [np.zeros(len(tokens), dtype=np.int64), tokens]
    for _ in range(order - 1):
        longer = np.roll(ids[-1], 1) * vocab_size + tokens  # the gram before, and one more token
        ids.append(np.unique(longer, return_inverse=True)[1])
    return ids


def _interpolated(
    lower: np.ndarray, counts: np.ndarray, grams: np.ndarray, context: np.ndarray, counted: np.ndarray, scored: slice
) -> np.ndarray:
    """Return (c(hw) - D(c)) / c(h) + lambda(h) p_lower(w); for contexts that were not seen, p_lower(w)."""
    seen, first = np.unique(grams[counted], return_index=True)
    contexts, size = context[counted][first], int(context.max()) + 1  # of each distinct n-gram
    discount = _discounts(counts[seen])
    discounts = discount[np.minimum(counts, 3)]
    total = np.bincount(contexts, weights=counts[seen], minlength=size)
    left_over = np.bincount(contexts, weights=discounts[seen], minlength=size)
    h, c = context[scored], counts[grams[scored]]
    known = total[h] > 0
    scale = np.where(known, total[h], 1.0)
    here = np.maximum(c - discounts[grams[scored]], 0.0)
    return np.where(known, (here + left_over[h] * lower) / scale, lower)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Return the discounts D of n-grams seen 0, 1, 2 and 3 or more times, from the numbers seen once, twice, three and four times."""
    n = [max(1, int((counts == k).sum())) for k in range(1, 5)]
    y = n[0] / (n[0] + 2 * n[1])
    found = [k - (k + 1) * y * n[k] / n[k - 1] for k in (1, 2, 3)]
    return np.array([0.0, *(min(max(d, 0.1), k) for k, d in zip((0.9, 1.9, 2.9), found, strict=True))])
