"""What the gates need beside the exam: how well counting predicts the documents, and how near a reward model comes to what is possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tinyllm.data import ngram, world
from tinyllm.data.batches import right_padded
from tinyllm.data.shards import Shards
from tinyllm.model.transformer import SequenceScorer
from tinyllm.stages.exam import Paper, Questions
from tinyllm.stages.reading import preferences_from, read_split
from tinyllm.text.tokenizer import Tokenizer

_PAIRS = 1000  # held-out pairs a reward model is judged by: a standard error of one point


def ngram_bits_per_byte(
    shards: Shards, tokenizer: Tokenizer, documents: Sequence[Sequence[int]], order: int = 5
) -> float:
    """What an n-gram model counted on the training shard needs for these documents (ids, each with its end)."""
    held_out = np.concatenate([np.asarray(d, dtype=np.int64) for d in documents])
    nats = ngram.surprise(shards.train, held_out, tokenizer.vocab_size, order, tokenizer.endoftext).sum()
    return float(nats / math.log(2) / tokenizer.byte_lengths()[held_out].sum())


@torch.no_grad()
def reward_model(
    scorer: SequenceScorer, tokenizer: Tokenizer, config: Any, questions: Questions, paper: Paper
) -> dict[str, float]:
    """accuracy on held-out pairs; with the world's pairs their ceiling; correlation with gold over a policy's own answers.

    The ceiling is the accuracy of a judge that knows the gold rewards: E[max(p, 1 - p)], p the probability that the label is right.
    """
    data = config.data.model_copy(update={"val": config.data.val or (f"world:{_PAIRS}",)})
    _, records, _ = read_split(data, "pairs", config.seed, noise=config.noise)
    pairs = preferences_from(records[:_PAIRS], tokenizer, config.data.max_length, "pairs to judge the reward model by")
    right = sum(
        int((scores[: len(scores) // 2] > scores[len(scores) // 2 :]).sum())
        for batch in (
            pairs.collate(part, 0, part) for part in np.array_split(np.arange(len(pairs)), 1 + len(pairs) // 64)
        )
        for scores in [scorer.rewards(batch.ids.to(_device(scorer)), batch.real.to(_device(scorer)))]
    )
    found = {"accuracy": right / len(pairs), "correlation": _correlation(scorer, questions, paper)}
    if not config.data.val and all(source.startswith("world") for source in config.data.train):
        found["ceiling"] = _ceiling(config)
    return found


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _ceiling(config: Any) -> float:
    rows = world.pairs(_PAIRS, seed=config.seed, split="val", noise=config.noise)
    gaps = [
        abs(world.gold(r, r["chosen"][0]["content"], True) - world.gold(r, r["rejected"][0]["content"], True))
        for r in rows
    ]
    return float(np.mean([world.preference(gap, config.noise) for gap in gaps]))


def _correlation(scorer: SequenceScorer, questions: Questions, paper: Paper) -> float:
    rows = [[*p.ids, *a.ids] for p, a in zip(questions.prompts, paper.answers, strict=True)]
    scores: list[float] = []
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        ids, real = right_padded(part, 0), right_padded([[True] * len(row) for row in part], False)
        scores += scorer.rewards(ids.to(_device(scorer)), real.to(_device(scorer))).tolist()
    if np.std(paper.gold) == 0 or np.std(scores) == 0:
        return float("nan")
    return float(np.corrcoef(scores, paper.gold)[0, 1])
