"""What answers are worth, and what else is seen on them: rules and a reward model, length, repetition.

`Judge` is what a rollout is rewarded by; `judged` has a policy answer held-out prompts and reports the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyllm.data.batches import right_padded
from tinyllm.mean import Mean, over
from tinyllm.model.generate import Completion, Sampling, generate
from tinyllm.model.transformer import CausalLM, SequenceScorer
from tinyllm.rollout.rewards import Reward
from tinyllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt ready to be answered: ids up to and including the assistant's header, and the columns its rewards read."""

    ids: list[int]
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Judge:
    """What an answer is worth: rules and a reward model, weighted and added."""

    tokenizer: Tokenizer
    rules: Mapping[str, tuple[Reward, float]]
    scorer: SequenceScorer | None
    scorer_weight: float
    unfinished_penalty: float
    longest: int = 0
    """tokens an answer may have"""
    overlong_buffer: int = 0
    """over its last so many tokens before `longest`, an answer loses up to 1 (arXiv 2503.14476 Eq. 13)"""

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[TokenPrompt], answers: Sequence[Completion], ids: Tensor, real: Tensor
    ) -> tuple[Tensor, dict[str, Mean]]:
        """Rewards (B,) on the ids' device, and each part's mean."""
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
            left = torch.tensor([self.longest - len(a.ids) for a in answers], device=ids.device)
            total -= (1 - left / self.overlong_buffer).clamp(0, 1)
        return total, parts


def answer_rows(
    prompts: Sequence[TokenPrompt], answers: Sequence[Completion], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """ids (B, T), what is not padding (B, T), and the answers' tokens (B, T)."""
    pairs = [(len(p.ids), [*p.ids, *a.ids]) for p, a in zip(prompts, answers, strict=True)]
    ids = right_padded([row for _, row in pairs], 0)
    real = right_padded([[True] * len(row) for _, row in pairs], False)
    mask = right_padded([[False] * start + [True] * (len(row) - start) for start, row in pairs], False)
    return ids.to(device), real.to(device), mask.to(device)


Probe = Callable[[Sequence[TokenPrompt], Sequence[Completion]], dict[str, Mean]]


def judged(
    policy: CausalLM,
    prompts: Sequence[TokenPrompt],
    judge: Judge,
    sampling: Sampling,
    *,
    rows: int = 64,
    probe: Probe | None = None,
) -> dict[str, Mean]:
    """Answer held-out prompts once each: reward and its parts, length, finished, repetition; and what `probe` finds."""
    pooled: dict[str, Mean] = {}
    for start in range(0, len(prompts), rows):
        part = prompts[start : start + rows]
        answers = generate(policy, [p.ids for p in part], sampling)
        metrics = marks(judge, part, answers, policy.lm_head.weight.device)[1] | (probe(part, answers) if probe else {})
        pooled = {name: pooled[name] + mean if name in pooled else mean for name, mean in metrics.items()}
    return pooled


def marks(
    judge: Judge, prompts: Sequence[TokenPrompt], answers: Sequence[Completion], device: torch.device
) -> tuple[Tensor, dict[str, Mean]]:
    """Rewards (B,), and the figures of these answers."""
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
    """The share of neighbouring token pairs that their answer had before: near 0 for prose, near 1 for a loop. Both (B, T)."""
    both = mask[:, 1:] & mask[:, :-1]
    codes = (ids[:, :-1] * (int(ids.max()) + 1) + ids[:, 1:]).masked_fill(~both, -1).sort(1).values
    again = (codes[:, 1:] == codes[:, :-1]) & (codes[:, 1:] >= 0)
    return Mean(again.sum(), both.sum())
