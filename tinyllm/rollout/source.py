"""A source of batches that the policy writes itself: to the engine, online alignment is training on data like any other.

step -> micro-batches, as `data.batches.Source`. Every `steps`-th call writes a new rollout: prompts, sampled answers, rewards,
log-probabilities under behaviour policy and reference, values, and, by the algorithm's `credit`, advantages. The calls in between
serve its minibatches. Which prompts, which seed and which order: functions of (seed, rollout number), so a run that was stopped
between rollouts goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyllm.data.batches import Samples, right_padded
from tinyllm.errors import FAILED, UserError
from tinyllm.mean import Mean, masked, over
from tinyllm.model.generate import Completion, Sampling, generate
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer
from tinyllm.rollout.config import RolloutConfig
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
        return total - self.unfinished_penalty * unfinished, parts


class RolloutSource:
    """step number -> micro-batches of `Samples` for this rank.

    Args:
        model: the policy, or policy and critic; `policy` and (for PPO) `critic` are read from it, it is never trained here.
        reference: a context in which `policy` is the reference (LoRA switched off), or a frozen model; None if no KL is asked for.
        credit: samples -> (samples with advantages, metrics).
        batch_size: answers in one optimiser step, over all ranks.
    """

    def __init__(
        self,
        model: CausalLM | ActorCritic,
        prompts: Sequence[TokenPrompt],
        judge: Judge,
        credit: Callable[[Samples], tuple[Samples, dict[str, Mean]]],
        config: RolloutConfig,
        *,
        reference: CausalLM | Callable[[], AbstractContextManager[CausalLM]] | None,
        stop: tuple[int, ...],
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        autocast: Callable[[], AbstractContextManager],
    ):
        per_rank = batch_size * config.minibatches // world_size
        if batch_size % world_size or per_rank % config.group_size:
            raise UserError(
                f"train.batch_size {batch_size} x rollout.minibatches {config.minibatches} over {world_size} rank(s) "
                f"is not a multiple of rollout.group_size {config.group_size}",
                where="train.batch_size",
                fix=f"use train.batch_size {config.group_size * world_size}",
            )
        self.policy = model.policy if isinstance(model, ActorCritic) else model
        self.critic = model.critic if isinstance(model, ActorCritic) else None
        self.prompts, self.judge, self.credit, self.config = prompts, judge, credit, config
        self.reference, self.stop, self.autocast = reference, stop, autocast
        self.answers, self.micro_batch_size = per_rank, micro_batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.device = self.policy.lm_head.weight.device
        self.metrics: dict[str, Mean] = {}
        self._samples: Samples | None = None

    def __call__(self, step: int) -> list[Samples]:
        rollout, phase = divmod(step, self.config.steps)
        if phase == 0 or self._samples is None:
            self._samples, self.metrics = self.write(rollout)
        epoch, minibatch = divmod(phase, self.config.minibatches)
        order = self._random(rollout, 1 + epoch).permutation(self.answers)
        mine = order[minibatch :: self.config.minibatches]
        parts = math.ceil(len(mine) / self.micro_batch_size)
        return [self._samples.rows(part) for part in np.array_split(mine, parts)]

    def _random(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *numbers])

    def chosen_prompts(self, rollout: int) -> list[TokenPrompt]:
        """The prompts of a rollout, this rank's share: every prompt is met once before any is met again."""
        per_rollout = self.answers * self.world_size // self.config.group_size
        numbers = range(rollout * per_rollout + self.rank, (rollout + 1) * per_rollout, self.world_size)
        orders = {n // len(self.prompts) for n in numbers}
        shuffled = {lap: self._random(1 << 20, lap).permutation(len(self.prompts)) for lap in orders}
        return [self.prompts[shuffled[n // len(self.prompts)][n % len(self.prompts)]] for n in numbers]

    def write(self, rollout: int) -> tuple[Samples, dict[str, Mean]]:
        """Write and judge one rollout."""
        prompts = [p for p in self.chosen_prompts(rollout) for _ in range(self.config.group_size)]
        seed = int(self._random(rollout, 0, self.rank).integers(1 << 62))
        sampling = Sampling(self.config.max_new_tokens, self.config.temperature, stop=self.stop, seed=seed)
        answers = generate(self.policy, [p.ids for p in prompts], sampling)
        samples, metrics = self._scored(prompts, answers)
        samples, more = self.credit(samples)
        return samples, metrics | more

    @torch.no_grad()
    def _scored(self, prompts: Sequence[TokenPrompt], answers: Sequence[Completion]) -> tuple[Samples, dict[str, Mean]]:
        starts = [len(p.ids) for p in prompts]
        ids = right_padded([[*p.ids, *a.ids] for p, a in zip(prompts, answers, strict=True)], 0).to(self.device)
        mask = right_padded(
            [[False] * n + [True] * len(a.ids) for n, a in zip(starts, answers, strict=True)], False
        ).to(self.device)
        sampled = right_padded([[0.0] * n + a.log_probs for n, a in zip(starts, answers, strict=True)], 0.0).to(
            self.device
        )
        real = right_padded([[True] * (n + len(a.ids)) for n, a in zip(starts, answers, strict=True)], False).to(
            self.device
        )
        reward, metrics = self.judge(prompts, answers, ids, real)
        old = self._log_probs(self.policy, ids, mask)
        group = torch.arange(len(answers), device=self.device) // self.config.group_size
        finished = torch.tensor([a.finished for a in answers], device=self.device)
        samples = Samples(
            ids, mask, group, finished, reward, sampled, old, self._reference(ids, mask), self._values(ids)
        )
        metrics = {
            "reward": over(reward),
            **metrics,
            "length": over(mask.sum(1).double()),
            "finished": over(finished.double()),
            "sampler_gap": self._agreement(samples),
        }
        if samples.reference is not None:
            metrics["objective/kl"] = over((old - samples.reference).sum(1))  # nats an answer, as PPO's reward sees it
        return samples, metrics

    def _agreement(self, samples: Samples) -> Mean:
        """How far the cached sampler and the training forward are apart about the same tokens: rounding, or a bug."""
        gap = masked((samples.sampled - samples.old).abs(), samples.mask)
        if gap.value > self.config.tolerance:
            raise UserError(
                f"sampler and training disagree by {gap.value:.3g} nats a token, more than rollout.tolerance {self.config.tolerance}",
                fix="set train.precision to fp32",
                code=FAILED,
            )
        return gap

    def _log_probs(self, policy: CausalLM, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, T), a micro-batch at a time, by the very call the loss makes."""
        policy.eval()
        temperature, parts = (
            self.config.temperature,
            zip(ids.split(self.micro_batch_size), mask.split(self.micro_batch_size), strict=True),
        )
        with self.autocast():
            return torch.cat([policy.log_probs(i, m, temperature=temperature).log_probs for i, m in parts])

    def _reference(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        if self.reference is None:
            return None
        if isinstance(self.reference, CausalLM):
            return self._log_probs(self.reference, ids, mask)
        with self.reference() as reference:
            return self._log_probs(reference, ids, mask)

    def _values(self, ids: Tensor) -> Tensor | None:
        if self.critic is None:
            return None
        self.critic.eval()
        with self.autocast():
            scores = torch.cat([self.critic(part) for part in ids.split(self.micro_batch_size)])
        return torch.nn.functional.pad(scores[:, :-1], (1, 0))


def judged(
    policy: CausalLM, prompts: Sequence[TokenPrompt], judge: Judge, sampling: Sampling, rows: int = 64
) -> tuple[dict[str, Mean], list[str]]:
    """Answer held-out prompts once each and judge the answers: reward and its parts, length, finished; and the texts."""
    pooled: dict[str, Mean] = {}
    texts: list[str] = []
    for start in range(0, len(prompts), rows):
        part = prompts[start : start + rows]
        answers = generate(policy, [p.ids for p in part], sampling)
        device = policy.lm_head.weight.device
        ids = right_padded([[*p.ids, *a.ids] for p, a in zip(part, answers, strict=True)], 0).to(device)
        real = right_padded([[True] * (len(p.ids) + len(a.ids)) for p, a in zip(part, answers, strict=True)], False).to(
            device
        )
        reward, metrics = judge(part, answers, ids, real)
        lengths, finished = [float(len(a.ids)) for a in answers], [float(a.finished) for a in answers]
        metrics |= {
            "reward": over(reward),
            "length": Mean(sum(lengths), len(part)),
            "finished": Mean(sum(finished), len(part)),
        }
        pooled = {name: pooled[name] + mean if name in pooled else mean for name, mean in metrics.items()}
        texts += [judge.tokenizer.decode(a.ids) for a in answers]
    return pooled, texts
