"""Reference values for the gates: an n-gram model of the pretraining text, and the best accuracy a reward model can have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tinyllm.data import ngram, world
from tinyllm.data.config import DataConfig, is_world
from tinyllm.data.datasets.batches import right_padded
from tinyllm.data.loading import preference_dataset
from tinyllm.data.splits import read_split
from tinyllm.data.tokens.shards import Shards
from tinyllm.lifecycle.evaluation import EvaluationResult, Questions
from tinyllm.model.transformer import SequenceScorer
from tinyllm.text.tokenizer import Tokenizer

_PAIRS = 1000  # test pairs, for a standard error of about 0.01


def ngram_bits_per_byte(
    shards: Shards, tokenizer: Tokenizer, documents: Sequence[Sequence[int]], order: int = 5
) -> float:
    """Return the bits per byte of documents under an n-gram model of the training shard.

    Args:
        documents: token ids, each with its end-of-text token.
    """
    if not documents:
        return math.nan
    held_out = np.concatenate([np.asarray(d, dtype=np.int64) for d in documents])
    nats = ngram.surprisal(shards.train, held_out, tokenizer.vocab_size, order, tokenizer.endoftext).sum()
    return float(nats / math.log(2) / sum(tokenizer.text_sizes(documents)))


def pairs_of(config: Any) -> list[Any]:
    """Return the test pairs of a reward model: of its own data, and of the bundled world only if it was trained on nothing else."""
    data = config.data
    if of_world(data):
        # those of test do not depend on the training pairs, which need not be made
        drawn = {"train": ("world:1",), "test": (f"world:{_PAIRS}",), "test_fraction": None}
        data = data.model_copy(update=drawn)
    return read_split(data, "pairs", config.seed, noise=config.noise).test[:_PAIRS]


def of_world(data: DataConfig) -> bool:
    """Return whether the test records of a stage come from the bundled world."""
    return not data.val and not data.test and all(map(is_world, data.train))


@torch.no_grad()
def reward_model_metrics(
    scorer: SequenceScorer,
    tokenizer: Tokenizer,
    config: Any,
    pairs: Sequence[Any],
    questions: Questions,
    result: EvaluationResult,
) -> dict[str, float]:
    """Return `accuracy` on test `pairs` and `correlation` with gold over a policy's `answers`; for pairs of the bundled world `ceiling`.

    The ceiling is the accuracy of a scorer that knows the gold rewards: E[max(p, 1 - p)], where p is the probability that the label is
    correct.
    """
    found = {"pairs": len(pairs), "accuracy": math.nan, "answers": len(result.completions)}
    found["correlation"] = _correlation(scorer, questions, result)
    if pairs:
        found["accuracy"] = _accuracy(scorer, tokenizer, config, pairs)
    if of_world(config.data):
        found["ceiling"] = _ceiling(config)
    return found


def _accuracy(scorer: SequenceScorer, tokenizer: Tokenizer, config: Any, records: Sequence[Any]) -> float:
    """Return the share of pairs in which the chosen answer has the higher reward."""
    pairs = preference_dataset(records, tokenizer, config.data.max_length, "test pairs")
    device = scorer.score.weight.device
    right = 0
    for part in np.array_split(np.arange(len(pairs)), 1 + len(pairs) // 64):
        batch = pairs.collate(part.tolist(), 0, part.tolist())
        chosen, rejected = scorer.rewards(batch.ids.to(device), batch.real.to(device)).chunk(2)
        right += int((chosen > rejected).sum())
    return right / len(pairs)


def _ceiling(config: Any) -> float:
    rows = world.pairs(_PAIRS, seed=config.seed, split="test", noise=config.noise)
    gaps = [
        abs(world.gold(r, r["chosen"][0]["content"], True) - world.gold(r, r["rejected"][0]["content"], True))
        for r in rows
    ]
    return float(np.mean([world.preference(gap, config.noise) for gap in gaps]))


def _correlation(scorer: SequenceScorer, questions: Questions, result: EvaluationResult) -> float:
    """Return the Pearson correlation of rewards with gold; NaN if either is constant."""
    rows = [[*p.ids, *c.ids] for p, c in zip(questions.prompts, result.completions, strict=True)]
    device = scorer.score.weight.device
    rewards: list[float] = []
    for start in range(0, len(rows), 64):
        batch = rows[start : start + 64]
        ids, real = right_padded(batch, 0), right_padded([[True] * len(row) for row in batch], False)
        rewards += scorer.rewards(ids.to(device), real.to(device)).tolist()
    if np.std(result.gold) == 0 or np.std(rewards) == 0:
        return float("nan")
    return float(np.corrcoef(rewards, result.gold)[0, 1])
