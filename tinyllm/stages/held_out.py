"""Held-out figures: the loss of a stage over validation records, and how well a model predicts whole documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np
import torch

from tinyllm import distributed as dist
from tinyllm.console import ProgressBar, say
from tinyllm.data.datasets.batches import Source
from tinyllm.data.datasets.datasets import SFTDataset, scored_documents
from tinyllm.data.spelling import CannotSpell
from tinyllm.errors import UserError
from tinyllm.mean import Mean
from tinyllm.stages.config import TunedConfig
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.config import TrainConfig
from tinyllm.train.engine import Engine, detached, pool_over_ranks

Made = TypeVar("Made")
FAST_ROWS = 64
NO_TEST = "no test split: figures are those of the last checkpoint, on the records that select the best one"
_LARGEST_LOSS = 700.0  # whose perplexity is a float64


def rows_of_test(train: TrainConfig, *, fast: bool) -> int:
    """Return the largest number of test records: as many as are evaluated, but few in a fast-dev-run, which is to be fast."""
    return min(train.eval_rows, FAST_ROWS) if fast else train.eval_rows


def examined(make: Callable[[Sequence[Any]], Made], records: Sequence[Any], rows: int) -> Made | None:
    """Return `make` of the first `rows` test records; None, which is said, where there are none or they cannot be used.

    Raises: CannotSpell, as for the records of train and val.
    """
    if not records:
        say(f"note: {NO_TEST}")
        return None
    try:
        return make(records[:rows])
    except CannotSpell:
        raise
    except UserError as error:
        say(f"note: {NO_TEST} ({error.what})")
        return None


def loss_of_test(source: Source | None, config: TunedConfig) -> dict[str, Any]:
    """Return the entries of a `Job` for its test records: loss and metrics over all of them."""
    return {} if source is None else {"test": held_out_loss(source, config), "test_records": len(source.dataset)}


def held_out_loss(source: Source, config: TunedConfig) -> Callable[[Engine], dict[str, Mean]]:
    """Return an `evaluate` for a `Job`: loss and metrics over the validation records, pooled over batches and ranks."""
    return lambda engine: pooled_loss(engine, source, config.train.eval_rows)


def pooled_loss(engine: Engine, source: Source, rows: int, title: str = "") -> dict[str, Mean]:
    """Return the engine's loss and metrics over the first `rows` records of `source`, pooled over all ranks.

    A rank without a record takes part in the exchange with a batch that counts nothing.

    Args:
        title: of a progress bar; without one nothing is shown.
    """
    pooled: dict[str, Mean] = {}
    batches = list(source.in_order(rows))
    idle = not batches
    with ProgressBar(title, len(batches)) if title else nullcontext() as bar:
        for done, batch in enumerate(batches or source.dummy_batch(), start=1):
            with engine.autocast():
                loss, metrics = engine.loss(engine.model, batch.to(engine.device))
            for name, mean in {"loss": loss, **metrics}.items():
                mean = Mean(detached(mean).total * (not idle), detached(mean).count * (not idle))
                pooled[name] = pooled[name] + mean if name in pooled else mean
            if bar is not None:
                counted = f"{done:,}/{len(batches):,} batches"
                bar.update(done, counted, f"{counted} {bar.eta(done)}")
    return pool_over_ranks(pooled, engine.device)


@torch.no_grad()
def score_documents(
    engine: Engine,
    documents: Iterable[Sequence[int] | np.ndarray],
    tokenizer: Tokenizer,
    context: int,
    rows: int,
    sizes: Sequence[int] | None = None,
    start: Sequence[int] | None = None,
    title: str = "",
) -> dict[str, Mean | float]:
    """Return how well documents are predicted: loss (nats per token), perplexity, bits_per_byte, and what was counted.

    Every token counts once, with the same weight in every document, batch and rank. Bits per byte divides by the UTF-8 bytes of the text,
    so models with different vocabularies can be compared; the end-of-text token is part of the numerator.

    Args:
        documents: token ids, each document ending in end-of-text.
        context: tokens in a row at most; longer documents are read through overlapping windows.
        rows: rows in a forward pass.
        sizes: UTF-8 bytes of the documents; by default those of the text that their tokens stand for.
        start: the id in front of every document, which is not scored; by default the one that training shards put there. Empty: the
            first token of a document is not scored.
        title: see `pooled_loss`.
    """
    arrays = [np.asarray(document, dtype=np.int64) for document in documents]
    begin = tokenizer.document_start if start is None else next(iter(start), None)
    rows_of = scored_documents((document.tolist() for document in arrays), context, begin)
    scored = sorted(rows_of, key=lambda row: len(row[0]))
    dataset = SFTDataset(scored, tokenizer.padding_id)
    ranks = dist.world_size()
    source = Source(dataset, rows * ranks, rows, seed=0, rank=dist.rank(), world_size=ranks)
    loss = pooled_loss(engine, source, len(scored), title)["loss"]
    size = sum(tokenizer.text_sizes(arrays) if sizes is None else sizes)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss.value, _LARGEST_LOSS)) if math.isfinite(loss.value) else loss.value,
        "bits_per_byte": Mean(float(loss.total) / math.log(2), size),
        "tokens": float(loss.count),
        "bytes": size,
    }
