"""One examination for every stage: the same held-out documents and the same questions, sampled with the same seeds, and the same marks.

A policy is examined as it would be used for sampling, at temperature 1: alignment moves the distribution, and greedy answers hide that.
Every figure has a 95 % interval: Wilson's for shares, the normal one for means.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from tinyllm.data.batches import Source, right_padded
from tinyllm.data.datasets import Answers, scored_documents
from tinyllm.model.generate import Completion, Sampling, generate
from tinyllm.model.transformer import CausalLM
from tinyllm.rollout.judge import TokenPrompt
from tinyllm.text.tokenizer import Tokenizer

Figure = dict[str, float]  # value, low, high, n
_Z = 1.96  # 95 %
_ROWS = 64

COLUMNS = [
    {"key": "bits_per_byte", "title": "bits per byte", "better": "lower", "digits": 3},
    {"key": "perplexity", "title": "perplexity", "better": "lower", "digits": 2},
    {"key": "accuracy", "title": "right", "better": "higher", "percent": True},
    {"key": "gold", "title": "gold reward", "better": "higher", "digits": 3},
    {"key": "win_rate", "title": "wins against parent", "better": "higher", "percent": True},
    {"key": "kl", "title": "KL to parent", "better": None, "digits": 2},
    {"key": "length", "title": "tokens", "better": None, "digits": 1},
    {"key": "distinct_2", "title": "distinct-2", "better": None, "digits": 2},
    {"key": "stopped", "title": "stopped", "better": "higher", "percent": True},
]


def share(hits: float, n: int) -> Figure:
    """A proportion with Wilson's interval."""
    p, z2 = hits / n, _Z * _Z
    centre, half = (p + z2 / (2 * n)) / (1 + z2 / n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return {"value": p, "low": centre - half, "high": centre + half, "n": n}


def average(values: Sequence[float]) -> Figure:
    """A mean with its normal interval."""
    found = np.asarray(values, dtype=np.float64)
    half = _Z * found.std(ddof=1) / math.sqrt(len(found)) if len(found) > 1 else float("nan")
    return {
        "value": float(found.mean()),
        "low": float(found.mean() - half),
        "high": float(found.mean() + half),
        "n": len(found),
    }


def ratio(totals: Sequence[float], sizes: Sequence[float]) -> Figure:
    """sum(totals) / sum(sizes) with the normal interval of a ratio of sums over independent parts."""
    t, s = np.asarray(totals, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    value = t.sum() / s.sum()
    half = _Z * math.sqrt(len(t) / max(1, len(t) - 1) * ((t - value * s) ** 2).sum()) / s.sum()
    return {"value": float(value), "low": float(value - half), "high": float(value + half), "n": len(t)}


@dataclass(frozen=True)
class Questions:
    """What is asked, and how an answer is marked: gold in [-1, 1], and whether it is right."""

    prompts: Sequence[TokenPrompt]
    gold: Callable[[Mapping[str, Any], str, bool], float]
    right: Callable[[Mapping[str, Any], str, bool], float]
    max_new_tokens: int = 48


@dataclass(frozen=True)
class Paper:
    """One stage's answers, marked."""

    answers: list[Completion]
    texts: list[str]
    gold: list[float]
    right: list[float]

    def figures(self) -> dict[str, Figure]:
        bigrams = [pair for a in self.answers for pair in pairwise(a.ids)]
        n = len(self.answers)
        return {
            "accuracy": share(sum(self.right), n),
            "gold": average(self.gold),
            "length": average([len(a.ids) for a in self.answers]),
            "distinct_2": {"value": len(set(bigrams)) / max(1, len(bigrams)), "n": n},
            "stopped": share(sum(a.finished for a in self.answers), n),
        }

    def by_task(self, questions: Questions) -> dict[str, Figure]:
        tasks = [str(p.columns.get("task", "")) for p in questions.prompts]
        return {
            task: share(sum(r for r, t in zip(self.right, tasks, strict=True) if t == task), n)
            for task, n in sorted(Counter(tasks).items())
            if task
        }

    def against(self, other: Paper) -> Figure:
        """The share of decided questions (unequal gold) that this paper wins."""
        gaps = [a - b for a, b in zip(self.gold, other.gold, strict=True)]
        wins, losses = sum(g > 1e-9 for g in gaps), sum(g < -1e-9 for g in gaps)
        return share(wins, wins + losses) if wins + losses else {"value": 0.5, "low": 0.0, "high": 1.0, "n": 0}


def sit(policy: CausalLM, tokenizer: Tokenizer, questions: Questions, *, seed: int, temperature: float = 1.0) -> Paper:
    """Answer every question once."""
    answers: list[Completion] = []
    for start in range(0, len(questions.prompts), _ROWS):
        part = questions.prompts[start : start + _ROWS]
        sampling = Sampling(questions.max_new_tokens, temperature, stop=tokenizer.stop_ids, seed=seed + start)
        answers += generate(policy, [p.ids for p in part], sampling)
    texts = [tokenizer.decode(a.ids) for a in answers]
    marked = list(zip(questions.prompts, texts, answers, strict=True))
    gold = [questions.gold(p.columns, text, a.finished) for p, text, a in marked]
    right = [questions.right(p.columns, text, a.finished) for p, text, a in marked]
    return Paper(answers, texts, gold, right)


@torch.no_grad()
def divergence(policy: CausalLM, reference: CausalLM, questions: Questions, paper: Paper) -> Figure:
    """KL(policy || reference) in nats an answer, from the policy's own samples at temperature 1."""
    found: list[float] = []
    device = policy.lm_head.weight.device
    for start in range(0, len(paper.answers), _ROWS):
        rows = [
            (len(p.ids), [*p.ids, *a.ids])
            for p, a in zip(questions.prompts[start : start + _ROWS], paper.answers[start : start + _ROWS], strict=True)
        ]
        ids = right_padded([row for _, row in rows], 0).to(device)
        mask = right_padded([[False] * at + [True] * (len(row) - at) for at, row in rows], False).to(device)
        gap = [m.eval().log_probs(ids, mask).log_probs.sum(1) for m in (policy, reference)]
        found += (gap[0] - gap[1]).tolist()
    return average(found)


@torch.no_grad()
def reading(
    policy: CausalLM, tokenizer: Tokenizer, documents: Sequence[Sequence[int]], context: int
) -> dict[str, Figure]:
    """Perplexity and bits per byte of held-out documents (ids, each with its end), every token counted once."""
    policy.eval()
    begin, lengths = tokenizer.endoftext if tokenizer.bos is None else tokenizer.bos, tokenizer.byte_lengths()
    rows, owner = [], []
    for number, document in enumerate(documents):
        found = scored_documents([document], context, begin)
        rows, owner = rows + found, owner + [number] * len(found)
    nats, device = np.zeros(len(documents)), policy.lm_head.weight.device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    data = Answers([rows[i] for i in order], tokenizer.endoftext)
    done = 0
    for batch in Source(data, 16, 16, seed=0).passes(len(rows)):
        scores = policy.log_probs(batch.ids.to(device), batch.mask.to(device)).log_probs.sum(1).tolist()
        for i, score in enumerate(scores):
            nats[owner[order[done + i]]] -= score
        done += len(scores)
    tokens = [len(d) for d in documents]
    size = [int(lengths[np.asarray(d, dtype=np.int64)].sum()) for d in documents]
    loss = ratio(nats, tokens)
    return {
        "bits_per_byte": ratio(nats / math.log(2), size),
        "perplexity": {k: (v if k == "n" else math.exp(min(v, 700.0))) for k, v in loss.items()},
    }
