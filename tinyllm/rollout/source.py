"""A source of batches that the policy writes itself: to the engine, online alignment is training on data like any other.

step -> micro-batches, as `data.batches.Source`. Every `steps`-th call writes a new rollout: prompts, sampled answers, rewards,
log-probabilities under behaviour policy and reference, values, and, by the algorithm's `credit`, advantages. The calls in between
serve its minibatches. Which prompts, which seed and which order: functions of (seed, rollout number). A run that was stopped in the
middle of a rollout's minibatches goes on as if it had not been: `state` is what the rest of them needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tinyllm.data.batches import Samples, right_padded, rounded_up
from tinyllm.errors import FAILED, UserError
from tinyllm.mean import Mean, masked, over
from tinyllm.model.generate import Completion, Sampling, generate
from tinyllm.model.transformer import ActorCritic, CausalLM
from tinyllm.rollout.config import RolloutConfig
from tinyllm.rollout.judge import Judge, TokenPrompt, answer_rows, marks

_FIGURE = "metrics."


class RolloutSource:
    """step number -> micro-batches of `Samples` for this rank.

    Args:
        model: the policy, or policy and critic; `policy` and (for PPO) `critic` are read from it, it is never trained here.
        reference: a context in which `policy` is the reference (LoRA switched off), or a frozen model; None if no KL is asked for.
        credit: samples -> (samples with advantages, metrics).
        batch_size: answers in one optimiser step, over all ranks.
        keep: a folder that every rollout is written to, one file a rank; None keeps nothing.
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
        keep: Path | None = None,
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
        self.seed, self.rank, self.world_size, self.keep = seed, rank, world_size, keep
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

    def largest(self) -> Samples:
        """A micro-batch as wide as they can get, of zeros: for the memory of a step."""
        rows = min(self.micro_batch_size, math.ceil(self.answers / self.config.minibatches))
        longest = max(len(prompt.ids) for prompt in self.prompts)
        zeros = torch.zeros(rows, rounded_up(longest + self.config.max_new_tokens), device=self.device)
        mask = zeros.bool()
        mask[:, longest:] = True
        each = {name: zeros for name in ("sampled", "old", "reference", "values", "advantage", "returns")}
        group = torch.arange(rows, device=self.device) // self.config.group_size
        finished = torch.ones(rows, dtype=torch.bool, device=self.device)
        return Samples(zeros.long(), mask, group, finished, zeros[:, 0], budget=self.config.max_new_tokens, **each)

    def describe(self, step: int) -> str:
        return f"rollout {step // self.config.steps}"

    def state(self, step: int) -> dict[str, Tensor]:
        """The rollout that step `step` goes on with, and its figures; nothing where a new one is due."""
        if step % self.config.steps == 0 or self._samples is None:
            return {}
        found = {name: value for name, value in vars(self._samples).items() if isinstance(value, Tensor)}
        figures = {
            f"{_FIGURE}{name}": torch.tensor([float(mean.total), float(mean.count)], dtype=torch.float64)
            for name, mean in self.metrics.items()
        }
        return found | figures

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Take up where `state` was taken. With nothing to take up, the policy as it is writes a new rollout."""
        if not tensors:
            return
        figures = {name.removeprefix(_FIGURE): v for name, v in tensors.items() if name.startswith(_FIGURE)}
        self.metrics = {name: Mean(*pair.tolist()) for name, pair in figures.items()}
        kept = {name: v.to(self.device) for name, v in tensors.items() if not name.startswith(_FIGURE)}
        self._samples = Samples(**kept, budget=self.config.max_new_tokens)

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
        prompts, answers, reward, metrics = self._answers(rollout)
        samples = self._scored(prompts, answers, reward)
        metrics["sampler_gap"] = self._agreement(samples)
        if samples.reference is not None:  # nats an answer, as PPO's reward sees it
            metrics["objective/kl"] = over((samples.old - samples.reference).sum(1))
        samples, more = self.credit(samples)
        if self.keep is not None:
            self._keep(samples, rollout)
        return samples, metrics | more

    def _answers(self, rollout: int) -> tuple[list[TokenPrompt], list[Completion], Tensor, dict[str, Mean]]:
        """A rollout's prompts (each as often as it was answered), answers, rewards, and the figures of all that was sampled.

        With several rounds, groups that all earned the same are replaced (dynamic sampling); what is missing after the last
        round is filled up with them.
        """
        size, pooled = self.config.group_size, {}
        kept: list[tuple[TokenPrompt, Completion, float]] = []
        spare: list[tuple[TokenPrompt, Completion, float]] = []
        for number in range(self.config.sampling_rounds):
            prompts, answers, reward, metrics = self._round(rollout, number)
            pooled = {name: pooled[name] + mean if name in pooled else mean for name, mean in metrics.items()}
            rows = list(zip(prompts, answers, reward.tolist(), strict=True))
            differ = (
                reward.view(-1, size).std(1) > 0 if self.config.sampling_rounds > 1 else torch.ones(len(rows) // size)
            )
            for group, useful in enumerate(differ.tolist()):
                (kept if useful else spare).extend(rows[group * size : (group + 1) * size])
            if len(kept) >= self.answers:
                break
        if self.config.sampling_rounds > 1:
            pooled["sampling_rounds"] = Mean(number + 1.0, 1.0)
        chosen = (kept + spare)[: self.answers]
        worth = reward.new_tensor([worth for _, _, worth in chosen])
        return [prompt for prompt, _, _ in chosen], [answer for _, answer, _ in chosen], worth, pooled

    def _round(self, rollout: int, number: int) -> tuple[list[TokenPrompt], list[Completion], Tensor, dict[str, Mean]]:
        turn = rollout * self.config.sampling_rounds + number
        prompts = [p for p in self.chosen_prompts(turn) for _ in range(self.config.group_size)]
        seed = int(self._random(turn, 0, self.rank).integers(1 << 62))
        sampling = Sampling(self.config.max_new_tokens, self.config.temperature, stop=self.stop, seed=seed)
        answers = generate(self.policy, [p.ids for p in prompts], sampling)
        reward, metrics = marks(self.judge, prompts, answers, self.device)
        return prompts, answers, reward, metrics

    @torch.no_grad()
    def _scored(self, prompts: Sequence[TokenPrompt], answers: Sequence[Completion], reward: Tensor) -> Samples:
        """What is known about the answers before anything is learned from them."""
        ids, _, mask = answer_rows(prompts, answers, self.device)
        sampled = [[0.0] * len(p.ids) + a.log_probs for p, a in zip(prompts, answers, strict=True)]
        return Samples(
            ids,
            mask,
            group=torch.arange(len(answers), device=self.device) // self.config.group_size,
            finished=torch.tensor([a.finished for a in answers], device=self.device),
            reward=reward,
            sampled=right_padded(sampled, 0.0).to(self.device),
            old=self._log_probs(self.policy, ids, mask),
            reference=self._reference(ids, mask),
            values=self._values(ids),
            budget=self.config.max_new_tokens,
        )

    @torch.no_grad()
    def probe(self, prompts: Sequence[TokenPrompt], answers: Sequence[Completion]) -> dict[str, Mean]:
        """How uncertain the policy is (nats a token), and how far from its reference (nats an answer), on answers it wrote."""
        ids, _, mask = answer_rows(prompts, answers, self.device)
        self.policy.eval()
        with self.autocast():
            scores = self.policy.log_probs(ids, mask, temperature=self.config.temperature, entropy=True)
        found = {"entropy": masked(scores.entropy, mask)}
        reference = self._reference(ids, mask)
        return found if reference is None else found | {"objective/kl": over((scores.log_probs - reference).sum(1))}

    def _keep(self, samples: Samples, rollout: int) -> None:
        self.keep.mkdir(parents=True, exist_ok=True)
        tensors = {name: value for name, value in vars(samples).items() if isinstance(value, Tensor)}
        name = f"{rollout:08d}" + (f"-rank{self.rank}" if self.world_size > 1 else "")
        save_file({k: v.contiguous() for k, v in tensors.items()}, self.keep / f"{name}.safetensors")

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
