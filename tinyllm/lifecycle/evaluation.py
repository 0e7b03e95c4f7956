"""Evaluation of every stage of a lifecycle on the same test documents and questions, with the same sampling seeds.

Answers are sampled at temperature 1: alignment changes the distribution, and greedy decoding would hide that.
Metrics have 95 % confidence intervals (`evals.statistics`): Wilson's for proportions, the normal one for means, none for equal values.
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

from tinyllm.data.datasets.batches import Source, right_padded
from tinyllm.data.datasets.datasets import SFTDataset, TokenPrompt, scored_documents
from tinyllm.evals.statistics import normal_interval, wilson_interval
from tinyllm.model.decoding import Completion, Sampling, generate
from tinyllm.model.transformer import CausalLM
from tinyllm.text.tokenizer import Tokenizer

Metric = dict[str, float]  # value, n, and low and high where there is an interval
_BATCH_SIZE = 64

COLUMNS = [
    {"key": "bits_per_byte", "title": "bits per byte", "better": "lower", "digits": 3},
    {"key": "perplexity", "title": "perplexity", "better": "lower", "digits": 2},
    {"key": "accuracy", "title": "accuracy", "better": "higher", "percent": True},
    {"key": "gold", "title": "gold reward", "better": "higher", "digits": 3},
    {"key": "win_rate", "title": "win rate vs parent", "better": "higher", "percent": True},
    {"key": "kl", "title": "KL to parent", "better": None, "digits": 2},
    {"key": "length", "title": "answer tokens", "better": None, "digits": 1},
    {"key": "distinct_2", "title": "distinct-2", "better": None, "digits": 2},
    {"key": "stopped", "title": "EOS rate", "better": "higher", "percent": True},
]


def proportion(hits: float, n: int) -> Metric:
    """Return hits / n with Wilson's interval; undefined, without one, if n is 0 or it is unknown what a hit is."""
    if not n or not math.isfinite(hits):
        return _metric(math.nan, None, n)
    return _metric(hits / n, wilson_interval(hits / n, n), n)


def mean(values: Sequence[float]) -> Metric:
    """Return a mean with its normal interval, which a single value and equal values do not have; undefined without values."""
    if not len(values):
        return _metric(math.nan, None, 0)
    found = np.asarray(values, dtype=np.float64)
    stderr = float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else None
    value = float(found.mean())
    return _metric(value, normal_interval(value, stderr), len(found))


def ratio(totals: Sequence[float] | np.ndarray, sizes: Sequence[float]) -> Metric:
    """Return sum(totals) / sum(sizes) with the normal interval of a ratio of sums over independent parts; undefined without parts."""
    if not len(sizes):
        return _metric(math.nan, None, 0)
    t, s = np.asarray(totals, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    value, n = float(t.sum() / s.sum()), len(t)
    stderr = math.sqrt(n / (n - 1) * ((t - value * s) ** 2).sum()) / float(s.sum()) if n > 1 else None
    return _metric(value, normal_interval(value, stderr), n)


def _metric(value: float, interval: tuple[float, float] | None, n: int) -> Metric:
    return {"value": value, "n": n} | ({"low": float(interval[0]), "high": float(interval[1])} if interval else {})


@dataclass(frozen=True)
class Questions:
    """Test prompts and how answers to them are scored.

    `gold` and `correct` map (columns of the prompt, answer, whether it ended with a stop token) to a reward in [-1, 1] and to 0 or 1.
    """

    prompts: Sequence[TokenPrompt]
    gold: Callable[[Mapping[str, Any], str, bool], float]
    correct: Callable[[Mapping[str, Any], str, bool], float]
    max_new_tokens: int = 48


@dataclass(frozen=True)
class EvaluationResult:
    """The scored answers of one stage, one per question."""

    completions: list[Completion]
    texts: list[str]
    gold: list[float]
    correct: list[float]

    def metrics(self) -> dict[str, Metric]:
        bigrams = [pair for c in self.completions for pair in pairwise(c.ids)]
        n = len(self.completions)
        return {
            "accuracy": proportion(sum(self.correct), n),
            "gold": mean(self.gold),
            "length": mean([len(c.ids) for c in self.completions]),
            "distinct_2": {"value": len(set(bigrams)) / max(1, len(bigrams)), "n": n},
            "stopped": proportion(sum(c.finished for c in self.completions), n),
        }

    def accuracy_by_task(self, questions: Questions) -> dict[str, Metric]:
        tasks = [str(p.columns.get("task", "")) for p in questions.prompts]
        return {
            task: proportion(sum(c for c, t in zip(self.correct, tasks, strict=True) if t == task), n)
            for task, n in sorted(Counter(tasks).items())
            if task
        }

    def win_rate(self, other: EvaluationResult) -> Metric:
        """Return the share of questions with unequal gold reward on which this result has the higher one; undefined if there are none."""
        gaps = [a - b for a, b in zip(self.gold, other.gold, strict=True)]
        wins, losses = sum(g > 1e-9 for g in gaps), sum(g < -1e-9 for g in gaps)
        return proportion(wins, wins + losses)


def evaluate(
    policy: CausalLM, tokenizer: Tokenizer, questions: Questions, *, seed: int, temperature: float = 1.0
) -> EvaluationResult:
    """Sample one answer per question and score it."""
    sampling = Sampling(questions.max_new_tokens, temperature, stop=tokenizer.stop_ids, seed=seed)
    completions = generate(policy, [p.ids for p in questions.prompts], sampling)
    texts = [tokenizer.decode(c.ids) for c in completions]
    answered = list(zip(questions.prompts, texts, completions, strict=True))
    gold = [questions.gold(p.columns, text, c.finished) for p, text, c in answered]
    correct = [questions.correct(p.columns, text, c.finished) for p, text, c in answered]
    return EvaluationResult(completions, texts, gold, correct)


@torch.no_grad()
def kl_divergence(policy: CausalLM, reference: CausalLM, questions: Questions, result: EvaluationResult) -> Metric:
    """Estimate KL(policy || reference), in nats per answer, from answers that the policy sampled at temperature 1."""
    log_ratios: list[float] = []
    device = policy.lm_head.weight.device
    pairs = list(zip(questions.prompts, result.completions, strict=True))
    for start in range(0, len(pairs), _BATCH_SIZE):
        rows = [(len(p.ids), [*p.ids, *c.ids]) for p, c in pairs[start : start + _BATCH_SIZE]]
        ids = right_padded([row for _, row in rows], 0).to(device)  # (B, T)
        mask = right_padded([[False] * at + [True] * (len(row) - at) for at, row in rows], False).to(device)
        sums = [model.eval().log_probs(ids, mask).sum(1) for model in (policy, reference)]
        log_ratios += (sums[0] - sums[1]).tolist()
    return mean(log_ratios)


@torch.no_grad()
def language_modeling(
    policy: CausalLM, tokenizer: Tokenizer, documents: Sequence[Sequence[int]], context: int
) -> dict[str, Metric]:
    """Return perplexity and bits per byte of documents, every token scored once.

    Args:
        documents: token ids, each with its end-of-text token.
        context: tokens in a window; longer documents are scored in several.
    """
    policy.eval()
    rows: list[tuple[list[int], list[bool]]] = []
    owner: list[int] = []
    for number, document in enumerate(documents):
        windows = scored_documents([document], context, tokenizer.document_start)
        rows, owner = rows + windows, owner + [number] * len(windows)
    nats, device = np.zeros(len(documents)), policy.lm_head.weight.device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    data = SFTDataset([rows[i] for i in order], tokenizer.padding_id)
    done = 0
    for batch in Source(data, 16, 16, seed=0).in_order(len(rows)):
        sums = policy.log_probs(batch.ids.to(device), batch.mask.to(device)).sum(1).tolist()
        for i, log_prob in enumerate(sums):
            nats[owner[order[done + i]]] -= log_prob
        done += len(sums)
    tokens = [len(d) for d in documents]
    size = tokenizer.text_sizes(documents)
    loss = ratio(nats, tokens)
    return {
        "bits_per_byte": ratio(nats / math.log(2), size),
        "perplexity": {k: (v if k == "n" else math.exp(min(v, 700.0))) for k, v in loss.items()},
    }
