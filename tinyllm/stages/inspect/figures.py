"""How long records are, as quantiles and a histogram, and how they fit into the row of a stage. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinyllm.data.records import Record
from tinyllm.stages.preflight import fits
from tinyllm.stages.rows import Facts, Room
from tinyllm.stages.sides import messages_of

QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
BINS = 12
_TAIL = 0.995  # of the records have bins of one width; what is longer shares the last bin


def lengths(found: Sequence[Record], facts: Mapping[str, Facts]) -> dict[str, Any]:
    """`tokens` and `trained` (where there is a tokenizer), `characters` and `words` of a record; and the histogram of the first."""
    texts = [[message["content"] for message in messages_of(record)] for record in found]
    counts = {
        "tokens": [n for side in facts.values() for n in side.length.tolist()],
        "trained": [n for side in facts.values() if side.answered for n in side.scored.tolist()],
        "characters": [sum(map(len, parts)) for parts in texts],
        "words": [sum(len(part.split()) for part in parts) for parts in texts],
    }
    unit = "tokens" if facts else "characters"
    quantiles = {name: quantiles_of(values) for name, values in counts.items() if values}
    return {**quantiles, "unit": unit, "histogram": histogram(counts[unit])}


def quantiles_of(values: Sequence[int]) -> dict[str, float]:
    found = np.asarray(values)
    picked = np.quantile(found, list(QUANTILES.values()), method="inverted_cdf")
    return dict(zip(QUANTILES, map(int, picked), strict=True)) | {"mean": round(float(found.mean()), 2)}


def histogram(values: Sequence[int]) -> list[dict[str, Any]]:
    """Bins of one round width, `from` to `to` (inclusive), with the `records` in each; of the last one `to` is None if it is open."""
    if not values:
        return []
    found = np.asarray(values)
    top = int(np.quantile(found, _TAIL, method="inverted_cdf"))
    width = _round_width(top)
    count = top // width + 1
    numbers = np.bincount(np.minimum(found // width, count), minlength=count + 1)
    bins = [{"from": i * width, "to": (i + 1) * width - 1, "records": int(n)} for i, n in enumerate(numbers)]
    bins[-1]["to"] = None
    first = next(i for i, b in enumerate(bins) if b["records"])
    return [b for b in bins[first:] if b["to"] is not None or b["records"]]


def _round_width(top: int) -> int:
    """The least of 1, 2, 5, 10, 20 … that needs at most `BINS` bins."""
    return next(m * 10**p for p in range(20) for m in (1, 2, 5) if m * 10**p * BINS > top)


def fit(facts: Mapping[str, Facts], room: Room) -> dict[str, Any] | None:
    """What becomes of the records at this length; None without a tokenizer."""
    if not facts:
        return None

    def total(pick: str) -> int:
        return sum(int(getattr(side, pick).sum()) for side in facts.values())

    dropped = sum(int((~side.kept).sum()) for side in facts.values())
    return {
        "max_length": room.limit,
        "too_long": room.too_long,
        "longer": total("long"),
        "dropped": dropped,
        "answers_cut": sum(int((side.kept & side.open).sum()) for side in facts.values()),
        "never_trained": sum(int((side.scored == 0).sum()) for side in facts.values() if side.answered),
        "train_an_end": sum(int((side.kept & side.ends).sum()) for side in facts.values()),
        "end_token": next(iter(facts.values())).end,
        "fits_99": fits(np.concatenate([side.length for side in facts.values()])),
    }
