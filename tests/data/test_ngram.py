"""The n-gram baseline: its formula, its normalization, and the effect of the order."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from tinyllm.data import world
from tinyllm.data.ngram import _discounts, surprisal


def by_dictionaries(train: list[int], held_out: list[int], vocab: int, order: int) -> list[float]:
    """Compute the same model with dictionaries, one token at a time."""
    stream = [0] * (order - 1) + train
    grams = [
        Counter(tuple(stream[i - k + 1 : i + 1]) for i in range(order - 1, len(stream))) for k in range(1, order + 1)
    ]
    counts = []
    for k in range(1, order + 1):
        if k == order:
            counts.append(dict(grams[k - 1]))
        else:
            counts.append(Counter(longer[1:] for longer in grams[k]))
    discounts = [_discounts(np.array(list(c.values()))) for c in counts]
    followers = [defaultdict(dict) for _ in counts]
    for k, table in enumerate(counts):
        for gram, c in table.items():
            followers[k][gram[:-1]][gram[-1]] = c
    found, history = [], [0] * (order - 1) + held_out
    for i in range(order - 1, len(history)):
        p = 1 / vocab
        for k in range(order):
            after = followers[k].get(tuple(history[i - k : i]), {})
            if after:
                c = after.get(history[i], 0)
                taken = sum(discounts[k][min(x, 3)] for x in after.values())
                p = (max(c - discounts[k][min(c, 3)], 0) + taken * p) / sum(after.values())
        found.append(-float(np.log(p)))
    return found


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_surprisal_equals_the_formula_computed_with_dictionaries(order: int) -> None:
    rng = np.random.default_rng(order)
    train, held = (rng.integers(0, 7, n) * rng.integers(0, 2, n) for n in (300, 60))
    got = surprisal(train, held, 8, order)
    np.testing.assert_allclose(got, by_dictionaries(train.tolist(), held.tolist(), 8, order), rtol=1e-10)


def test_probabilities_sum_to_one() -> None:
    train = np.random.default_rng(0).integers(0, 9, 400)
    context = [3, 1, 4, 1]
    p = [np.exp(-surprisal(train, np.array([*context, token]), 10, 5)[-1]) for token in range(10)]
    assert sum(p) == pytest.approx(1.0, abs=1e-9)
    assert min(p) > 0


def test_higher_orders_predict_the_bundled_world_better() -> None:
    text = "\n".join(row["text"] for row in world.documents(300))
    held = "\n".join(row["text"] for row in world.documents(40, split="val"))
    train, val = (np.frombuffer(t.encode(), dtype=np.uint8) for t in (text, held))
    bits = [surprisal(train, val, 256, order).mean() / np.log(2) for order in (1, 2, 3, 5)]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] > 3.5 > 2.2 > bits[3]
