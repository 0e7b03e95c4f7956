"""Reference values for the gates: an n-gram model of the pretraining text, and the best accuracy a reward model can have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tinyllm.data import ngram, world
from tinyllm.data.config import is_world
from tinyllm.data.datasets.batches import right_padded
from tinyllm.data.loading import preference_dataset
from tinyllm.data.splits import read_split
from tinyllm.data.tokens.shards import Shards
from tinyllm.lifecycle.evaluation import EvaluationResult, Questions
from tinyllm.model.transformer import SequenceScorer
from tinyllm.text.tokenizer import Tokenizer

_PAIRS = 1000  # held-out pairs, for a standard error of about 0.01


def ngram_bits_per_byte(
    shards: Shards, tokenizer: Tokenizer, documents: Sequence[Sequence[int]], order: int = 5
) -> float:
    """Return the bits per byte of documents under an n-gram model of the training shard.

    Args:
        documents: token ids, each with its end-of-text token.
    """
    held_out = np.concatenate([np.asarray(d, dtype=np.int64) for d in documents])
    nats = ngram.surprisal(shards.train, held_out, tokenizer.vocab_size, order, tokenizer.endoftext).sum()
    return float(nats / math.log(2) / sum(tokenizer.text_sizes(documents)))


@torch.no_grad()
def reward_model_metrics(
    scorer: SequenceScorer, tokenizer: Tokenizer, config: Any, questions: Questions, result: EvaluationResult
) -> dict[str, float]:
    """Return `accuracy` on held-out `pairs` and `correlation` with gold over a policy's answers; for pairs of the bundled world `ceiling`.

    The pairs are the held-out side of the stage's own data. The bundled world is read only if the stage was trained on nothing else.

    The ceiling is the accuracy of a scorer that knows the gold rewards: E[max(p, 1 - p)], where p is the probability that the label is
    correct.
    """
    of_world = not config.data.val and all(map(is_world, config.data.train))
    data = config.data.model_copy(update={"val": (f"world:{_PAIRS}",)}) if of_world else config.data
    _, records, _ = read_split(data, "pairs", config.seed, noise=config.noise)
    pairs = preference_dataset(records[:_PAIRS], tokenizer, config.data.max_length, "held-out pairs")
    device = scorer.score.weight.device
    right = 0
    for part in np.array_split(np.arange(len(pairs)), 1 + len(pairs) // 64):
        batch = pairs.collate(part.tolist(), 0, part.tolist())
        chosen, rejected = scorer.rewards(batch.ids.to(device), batch.real.to(device)).chunk(2)
        right += int((chosen > rejected).sum())
    found = {
        "accuracy": right / len(pairs),
        "pairs": len(pairs),
        "correlation": _correlation(scorer, questions, result),
    }
    if of_world:
        found["ceiling"] = _ceiling(config)
    return found


def _ceiling(config: Any) -> float:
    rows = world.pairs(_PAIRS, seed=config.seed, split="val", noise=config.noise)
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
