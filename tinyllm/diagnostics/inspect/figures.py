"""Lengths of records as quantiles and a histogram, and the effect of `data.max_length`. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinyllm.data.records.types import Record, messages_of
from tinyllm.data.tokenization import LengthLimit, TokenizationReport
from tinyllm.data.validation import length_quantile

QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
BINS = 12
_TAIL = 0.995  # quantile up to which bins have one width; longer records share the last bin


def lengths(found: Sequence[Record], reports: Mapping[str, TokenizationReport]) -> dict[str, Any]:
    """Return quantiles of `tokens` and `trained` (with a tokenizer), `characters` and `words` per record, and a histogram."""
    texts = [[message["content"] for message in messages_of(record)] for record in found]
    counts = {
        "tokens": [n for report in reports.values() for n in report.lengths.tolist()],
        "trained": [n for report in reports.values() if report.has_answers for n in report.trained.tolist()],
        "characters": [sum(map(len, parts)) for parts in texts],
        "words": [sum(len(part.split()) for part in parts) for parts in texts],
    }
    unit = "tokens" if reports else "characters"
    quantiles = {name: quantiles_of(values) for name, values in counts.items() if values}
    return {**quantiles, "unit": unit, "histogram": histogram(counts[unit])}


def quantiles_of(values: Sequence[int]) -> dict[str, float]:
    found = np.asarray(values)
    picked = np.quantile(found, list(QUANTILES.values()), method="inverted_cdf")
    return dict(zip(QUANTILES, map(int, picked), strict=True)) | {"mean": round(float(found.mean()), 2)}


def histogram(values: Sequence[int]) -> list[dict[str, Any]]:
    """Return bins of one round width, `from` to `to` (inclusive), with the number of `records`; `to` of an open last bin is None."""
    if not values:
        return []
    found = np.asarray(values)
    top = int(np.quantile(found, _TAIL, method="inverted_cdf"))
    width = _round_width(top)
    count = top // width + 1
    numbers = np.bincount(np.minimum(found // width, count), minlength=count + 1)
    bins: list[dict[str, Any]] = [
        {"from": i * width, "to": (i + 1) * width - 1, "records": int(n)} for i, n in enumerate(numbers)
    ]
    bins[-1]["to"] = None
    first = next(i for i, b in enumerate(bins) if b["records"])
    return [b for b in bins[first:] if b["to"] is not None or b["records"]]


def _round_width(top: int) -> int:
    """Return the least of 1, 2, 5, 10, 20 … that needs at most `BINS` bins."""
    return next(m * 10**p for p in range(20) for m in (1, 2, 5) if m * 10**p * BINS > top)


def fit(reports: Mapping[str, TokenizationReport], limit: LengthLimit) -> dict[str, Any] | None:
    """Return the numbers of records that are longer, dropped or truncated at this length; None without a tokenizer."""
    if not reports:
        return None

    def total(pick: str) -> int:
        return sum(int(getattr(report, pick).sum()) for report in reports.values())

    dropped = sum(int((~report.kept).sum()) for report in reports.values())
    return {
        "max_length": limit.tokens,
        "too_long": limit.too_long,
        "longer": total("over_limit"),
        "dropped": dropped,
        "answers_cut": sum(int((report.kept & report.truncated).sum()) for report in reports.values()),
        "never_trained": sum(int((report.trained == 0).sum()) for report in reports.values() if report.has_answers),
        "train_an_end": sum(int((report.kept & report.trains_end).sum()) for report in reports.values()),
        "end_token": next(iter(reports.values())).end_token,
        "fits_99": length_quantile(np.concatenate([report.lengths for report in reports.values()])),
    }
