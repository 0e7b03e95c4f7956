"""Rewards and other measurements of sampled answers: rules, a reward model, length, repetition.

`Judge` computes the rewards of a rollout. `generate_and_score` samples answers to held-out prompts and reports the same metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyllm.data.datasets.batches import right_padded
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.mean import Mean, over
from tinyllm.model.generate import Completion, Sampling, generate
from tinyllm.model.transformer import CausalLM, SequenceScorer
from tinyllm.rollout.rewards import Reward
from tinyllm.text.tokenizer import Tokenizer

Probe = Callable[[Sequence[TokenPrompt], Sequence[Completion]], dict[str, Mean]]  # further metrics of sampled answers


@dataclass(frozen=True)
class Judge:
    """Reward of an answer: a weighted sum of rules and a reward model, minus penalties."""

    tokenizer: Tokenizer
    rules: Mapping[str, tuple[Reward, float]]
    """name: (rule, weight)"""
    scorer: SequenceScorer | None
    """the reward model"""
    scorer_weight: float
    unfinished_penalty: float
    max_new_tokens: int = 0
    overlong_buffer: int = 0
    """an answer loses up to 1 over this many tokens before `max_new_tokens` (arXiv 2503.14476 Eq. 13)"""

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[TokenPrompt], answers: Sequence[Completion], ids: Tensor, real: Tensor
    ) -> tuple[Tensor, dict[str, Mean]]:
        """Return rewards (B,) on the device of `ids`, and the mean of each part.

        Args:
            ids: (B, T) int64, prompts and answers.
            real: (B, T) bool, all tokens but padding.
        """
        texts = [self.tokenizer.decode(a.ids) for a in answers]
        total = torch.zeros(len(answers), device=ids.device)
        parts: dict[str, Mean] = {}
        for name, (rule, weight) in self.rules.items():
            values = [
                float(rule(p.columns, text, a.finished)) for p, text, a in zip(prompts, texts, answers, strict=True)
            ]
            scores = torch.tensor(values, device=ids.device)
            parts[f"rewards/{name}"] = over(scores)
            total += weight * scores
        if self.scorer is not None:
            scores = self.scorer.rewards(ids, real)
            parts["rewards/reward_model"] = over(scores)
            total += self.scorer_weight * scores
        unfinished = torch.tensor([not a.finished for a in answers], device=ids.device)
        total -= self.unfinished_penalty * unfinished
        if self.overlong_buffer:
            left = torch.tensor([self.max_new_tokens - len(a.ids) for a in answers], device=ids.device)
            total -= (1 - left / self.overlong_buffer).clamp(0, 1)
        return total, parts


def answer_rows(
    prompts: Sequence[TokenPrompt], answers: Sequence[Completion], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return prompts and answers as ids (B, T), the mask of all tokens but padding (B, T), and the mask of the answers (B, T)."""
    pairs = [(len(p.ids), [*p.ids, *a.ids]) for p, a in zip(prompts, answers, strict=True)]
    ids = right_padded([row for _, row in pairs], 0)
    real = right_padded([[True] * len(row) for _, row in pairs], False)
    mask = right_padded([[False] * start + [True] * (len(row) - start) for start, row in pairs], False)
    return ids.to(device), real.to(device), mask.to(device)


def generate_and_score(
    policy: CausalLM,
    prompts: Sequence[TokenPrompt],
    judge: Judge,
    sampling: Sampling,
    *,
    rows: int = 64,
    probe: Probe | None = None,
) -> dict[str, Mean]:
    """Sample one answer to each prompt, `rows` at a time, and return the metrics of `score_answers` and of `probe`."""
    pooled: dict[str, Mean] = {}
    for start in range(0, len(prompts), rows):
        part = prompts[start : start + rows]
        answers = generate(policy, [p.ids for p in part], sampling)
        _, metrics = score_answers(judge, part, answers, policy.lm_head.weight.device)
        metrics |= probe(part, answers) if probe else {}
        pooled = {name: pooled[name] + mean if name in pooled else mean for name, mean in metrics.items()}
    return pooled


def score_answers(
    judge: Judge, prompts: Sequence[TokenPrompt], answers: Sequence[Completion], device: torch.device
) -> tuple[Tensor, dict[str, Mean]]:
    """Return rewards (B,) and the metrics reward, its parts, length, finished and repetition."""
    ids, real, mask = answer_rows(prompts, answers, device)
    reward, parts = judge(prompts, answers, ids, real)
    finished = torch.tensor([float(a.finished) for a in answers])
    return reward, {
        "reward": over(reward),
        **parts,
        "length": over(mask.sum(1).float()),
        "finished": over(finished),
        "repetition": repetition(ids, mask),
    }


def repetition(ids: Tensor, mask: Tensor) -> Mean:
    """Return the fraction of bigrams that occurred before in their answer: near 0 for prose, near 1 for a loop. Inputs (B, T)."""
    both = mask[:, 1:] & mask[:, :-1]
    codes = (ids[:, :-1] * (int(ids.max()) + 1) + ids[:, 1:]).masked_fill(~both, -1).sort(1).values
    repeated = (codes[:, 1:] == codes[:, :-1]) & (codes[:, 1:] >= 0)
    return Mean(repeated.sum(), both.sum())
