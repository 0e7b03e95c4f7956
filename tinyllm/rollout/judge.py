"""Rewards and other measurements of sampled answers: rules, a reward model, length, repetition.

`Judge` computes the rewards of a rollout. `generate_and_score` samples answers to held-out prompts and reports the same metrics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tinyllm.console import say
from tinyllm.data.datasets.batches import right_padded
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.errors import FAILED, UserError
from tinyllm.mean import Mean, over
from tinyllm.model.decoding import Completion, Sampling, generate
from tinyllm.model.transformer import CausalLM, SequenceScorer
from tinyllm.rollout.rewards import REWARD_MODEL, Reward
from tinyllm.rollout.scoring import Answered, TrainerState, score
from tinyllm.text.tokenizer import Tokenizer

APPLIED = "/applied"  # the end of the name of a reward's share of answers that it applies to
_SLOW_SECONDS = 3.0  # of a rule in a rollout, worth a message

Probe = Callable[[Sequence[TokenPrompt], Sequence[Completion]], dict[str, Mean]]  # further metrics of sampled answers


@dataclass(frozen=True)
class Judge:
    """Reward of an answer: a weighted sum of rules and a reward model, minus penalties."""

    tokenizer: Tokenizer
    rules: Sequence[tuple[Reward, float]]
    """with their weights; a reward of weight 0 is measured and is no part of the sum"""
    scorer: SequenceScorer | None
    """the reward model"""
    scorer_weight: float
    unfinished_penalty: float
    max_new_tokens: int = 0
    overlong_buffer: int = 0
    """an answer loses up to 1 over this many tokens before `max_new_tokens` (arXiv 2503.14476 Eq. 13)"""
    state: TrainerState = field(default_factory=TrainerState)
    """for rewards that change with the progress of training"""
    seconds: dict[str, float] = field(default_factory=dict)
    """spent in each rule so far"""
    said: set[str] = field(default_factory=set)
    """rules that have been called slow"""

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[TokenPrompt], answers: Sequence[Completion], ids: Tensor, real: Tensor
    ) -> tuple[Tensor, dict[str, Mean]]:
        """Return rewards (B,) on the device of `ids`, and the mean of each part.

        Args:
            ids: (B, T) int64, prompts and answers.
            real: (B, T) bool, all tokens but padding.
        """
        rows = self._answered(prompts, answers)
        total = torch.zeros(len(answers), device=ids.device)
        applied = torch.tensor([self.scorer is not None and self.scorer_weight != 0] * len(rows), device=ids.device)
        parts: dict[str, Mean] = {}
        shares: dict[str, Mean] = {}
        for rule, weight in self.rules:
            started = time.monotonic()
            values = score(rule, rows, self.state)
            self.seconds[rule.name] = self.seconds.get(rule.name, 0.0) + time.monotonic() - started
            applies = torch.tensor([value is not None for value in values], device=ids.device)
            scores = torch.tensor([value or 0.0 for value in values], device=ids.device)
            parts[f"rewards/{rule.name}"] = Mean(scores.sum(), applies.sum())
            if rule.own:
                shares[f"rewards/{rule.name}{APPLIED}"] = over(applies.float())
            if weight:
                total += weight * scores
                applied |= applies
        if self.scorer is not None:
            scores = self.scorer.rewards(ids, real)
            parts[f"rewards/{REWARD_MODEL}"] = over(scores)
            if self.scorer_weight:
                total += self.scorer_weight * scores
        self._check(rows, total, applied)
        unfinished = torch.tensor([not a.finished for a in answers], device=ids.device)
        total -= self.unfinished_penalty * unfinished
        if self.overlong_buffer:
            left = torch.tensor([self.max_new_tokens - len(a.ids) for a in answers], device=ids.device)
            total -= (1 - left / self.overlong_buffer).clamp(0, 1)
        return total, parts | shares

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Say once which rule takes most of the time of what is done inside, which is a rollout."""
        before, started = dict(self.seconds), time.monotonic()
        yield
        elapsed = time.monotonic() - started
        spent = {name: seconds - before.get(name, 0.0) for name, seconds in self.seconds.items()}
        name = max(spent, key=lambda rule: spent[rule], default="")
        if name and name not in self.said and spent[name] > max(_SLOW_SECONDS, elapsed / 2):
            self.said.add(name)
            say(f"the reward {name} takes {spent[name]:.1f} s of {elapsed:.1f} s of sampling")

    def _answered(self, prompts: Sequence[TokenPrompt], answers: Sequence[Completion]) -> list[Answered]:
        return [
            Answered(p.columns, self.tokenizer.decode(a.ids), a.finished, a.ids, p.place, p.plain)
            for p, a in zip(prompts, answers, strict=True)
        ]

    def _check(self, rows: Sequence[Answered], total: Tensor, applied: Tensor) -> None:
        """Raise UserError if an answer has no reward, or one that is not finite."""
        trained = any(weight for _, weight in self.rules) or (self.scorer is not None and self.scorer_weight != 0)
        for row, value, has_reward in zip(rows, total.tolist(), applied.tolist(), strict=True):
            if trained and not has_reward:
                raise UserError(
                    f"no reward applies to {row.described()}: all of them returned None",
                    where="rewards",
                    fix="add a reward that applies to every prompt, or leave such prompts out",
                )
            if not math.isfinite(value):
                raise UserError(
                    f"the reward is {value} for {row.described()}, the sum of {self._parts_of()}",
                    where="rewards",
                    fix="lower the weights, or train the reward model again",
                    code=FAILED,
                )

    def _parts_of(self) -> str:
        parts = [f"{rule.name} x {weight:g}" for rule, weight in self.rules if weight]
        return " + ".join([*parts, *[f"{REWARD_MODEL} x {self.scorer_weight:g}"] * bool(self.scorer_weight)])


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
    streams: Sequence[int] | None = None,
    rows: int = 64,
    probe: Probe | None = None,
) -> dict[str, Mean]:
    """Sample one answer to each prompt, and return the metrics of `score_answers` and of `probe`, computed for `rows` at a time.

    Args:
        streams: of random numbers, see `generate`.
    """
    pooled: dict[str, Mean] = {}
    all_answers = generate(policy, [p.ids for p in prompts], sampling, streams=streams)
    for start in range(0, len(prompts), rows):
        part, answers = prompts[start : start + rows], all_answers[start : start + rows]
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
    shares = {name: mean for name, mean in parts.items() if name.endswith(APPLIED)}
    return reward, {
        "reward": over(reward),
        **{name: mean for name, mean in parts.items() if name not in shares},
        "length": over(mask.sum(1).float()),
        "finished": over(finished),
        "repetition": repetition(ids, mask),
        **shares,
    }


def repetition(ids: Tensor, mask: Tensor) -> Mean:
    """Return the fraction of bigrams that occurred before in their answer: near 0 for prose, near 1 for a loop. Inputs (B, T)."""
    both = mask[:, 1:] & mask[:, :-1]
    codes = (ids[:, :-1] * (int(ids.max()) + 1) + ids[:, 1:]).masked_fill(~both, -1).sort(1).values
    repeated = (codes[:, 1:] == codes[:, :-1]) & (codes[:, 1:] >= 0)
    return Mean(repeated.sum(), both.sum())
