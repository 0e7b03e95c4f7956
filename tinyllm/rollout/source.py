"""Batches that the policy samples itself, behind the interface of `data.datasets.batches.Source`.

Every `config.steps`-th step starts a rollout: prompts, sampled answers, rewards, log-probabilities under the behavior policy and the
reference, values, and the algorithm's advantages. The steps in between train on its minibatches. Prompts, seeds and orders depend only
on (seed, rollout number). `state` holds what a run needs that is resumed in the middle of a rollout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tinyllm.console import say
from tinyllm.data.datasets.batches import Samples, ScoredSamples, padded_width, right_padded
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.errors import FAILED, UserError
from tinyllm.mean import Mean, masked, over
from tinyllm.model.decoding import Completion, Sampling, gains_from_bfloat16, generate
from tinyllm.model.transformer import ActorCritic, CausalLM
from tinyllm.rollout.config import RolloutConfig
from tinyllm.rollout.judge import Judge, answer_rows, score_answers

_METRIC = "metrics."
_CHECKED = 10  # of so many rollouts, one is scored only to check the sampler
_FILE_KEYS = {  # names in files that differ from the field's: checkpoints and kept rollouts of earlier versions stay readable
    "sampler_log_probs": "sampled",
    "old_log_probs": "old",
    "ref_log_probs": "reference",
    "advantages": "advantage",
}
_FIELDS = {key: field for field, key in _FILE_KEYS.items()}

ComputeAdvantages = Callable[[Samples], tuple[ScoredSamples, dict[str, Mean]]]
Answered = tuple[TokenPrompt, Completion, float]  # with its reward


class RolloutSource:
    """Map a step number to the micro-batches of `ScoredSamples` of this rank.

    Args:
        model: the policy, or policy and critic; read here, trained elsewhere.
        compute_advantages: samples -> (samples with advantages, metrics).
        reference: a context manager inside which the policy is the reference (LoRA switched off), or a frozen model; None: no KL.
        stop: token ids that end an answer.
        batch_size: answers in an optimizer step over all ranks.
        micro_batch_size: answers in a forward pass, at most.
        keep: a directory to which every rollout is written, one file per rank; None: not written.

    Raises:
        UserError: a rank's share of a rollout is not a multiple of the group size.
    """

    def __init__(
        self,
        model: CausalLM | ActorCritic,
        prompts: Sequence[TokenPrompt],
        judge: Judge,
        compute_advantages: ComputeAdvantages,
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
        config.check_batch(batch_size, world_size, micro_batch_size=micro_batch_size)
        per_rank = batch_size * config.minibatches // world_size
        self.policy = model.policy if isinstance(model, ActorCritic) else model
        self.critic = model.critic if isinstance(model, ActorCritic) else None
        self.prompts, self.judge, self.compute_advantages, self.config = prompts, judge, compute_advantages, config
        self.reference, self.stop, self.autocast = reference, stop, autocast
        self.answers, self.micro_batch_size = per_rank, micro_batch_size
        self.seed, self.rank, self.world_size, self.keep = seed, rank, world_size, keep
        self.device = self.policy.lm_head.weight.device
        self.metrics: dict[str, Mean] = {}
        self._samples: ScoredSamples | None = None
        self._warned = False  # of a sampler that differs
        self._offset = 0  # of the prompt numbers, if steps had another batch size before

    def __call__(self, step: int) -> list[ScoredSamples]:
        number, phase = divmod(step, self.config.steps)
        if phase == 0 or self._samples is None:
            self._samples, self.metrics = self.rollout(number)
        samples = self._samples
        epoch, minibatch = divmod(phase, self.config.minibatches)
        order = self._random(number, 1 + epoch).permutation(self.answers)
        mine = order[minibatch :: self.config.minibatches]
        # answers of a group side by side, so that a micro-batch has few distinct prompts, which are computed once
        mine = mine[np.argsort(samples.group.cpu().numpy()[mine], kind="stable")]
        parts = math.ceil(len(mine) / self.micro_batch_size)
        return [samples.rows(part) for part in np.array_split(mine, parts)]

    def largest(self) -> ScoredSamples:
        """Return a micro-batch of zeros at the largest possible width, to check that a step fits into memory."""
        rows = min(self.micro_batch_size, math.ceil(self.answers / self.config.minibatches))
        longest = max(len(prompt.ids) for prompt in self.prompts)
        zeros = torch.zeros(rows, padded_width(longest + self.config.max_new_tokens), device=self.device)
        mask = zeros.bool()
        mask[:, longest:] = True
        return ScoredSamples(
            ids=zeros.long(),
            mask=mask,
            group=torch.arange(rows, device=self.device) // self.config.group_size,
            finished=torch.ones(rows, dtype=torch.bool, device=self.device),
            reward=zeros[:, 0],
            sampler_log_probs=zeros,
            old_log_probs=zeros,
            ref_log_probs=zeros,
            values=zeros,
            max_new_tokens=self.config.max_new_tokens,
            advantages=zeros,
            returns=zeros,
        )

    def describe(self, step: int) -> str:
        """Return the rollout of a step as text for an error message."""
        return f"rollout {step // self.config.steps}"

    def state(self, step: int) -> dict[str, Tensor]:
        """Return the rollout that step `step` trains on, with its metrics; nothing if that step starts a new one."""
        if step % self.config.steps == 0 or self._samples is None:
            return {}
        metrics = {
            f"{_METRIC}{name}": torch.tensor([float(mean.total), float(mean.count)], dtype=torch.float64)
            for name, mean in self.metrics.items()
        }
        return _to_file(self._samples) | metrics

    def position(self, step: int) -> int:
        """Return the number of prompts used before the rollout of `step`, over all ranks."""
        return step // self.config.steps * self.config.sampling_rounds * self._prompts_per_round + self._offset

    def start_at(self, step: int, position: int) -> None:
        """Let the rollout of `step` begin with prompt number `position`; the batch size may have been another one until then."""
        self._offset += position - self.position(step)

    def restore(self, step: int, tensors: dict[str, Tensor]) -> bool:
        """Restore what `state` returned. From nothing, or a rollout of another size, the next step samples a new one."""
        if not tensors or len(tensors["ids"]) != self.answers:
            return False
        metrics = {name.removeprefix(_METRIC): v for name, v in tensors.items() if name.startswith(_METRIC)}
        self.metrics = {name: Mean(*pair.tolist()) for name, pair in metrics.items()}
        kept = {name: v.to(self.device) for name, v in tensors.items() if not name.startswith(_METRIC)}
        self._samples = _from_file(kept, self.config.max_new_tokens)
        return True

    @property
    def _prompts_per_round(self) -> int:
        return self.answers * self.world_size // self.config.group_size

    def _random(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *numbers])

    def prompts_of(self, number: int) -> list[TokenPrompt]:
        """Return this rank's prompts of a rollout. Every prompt is used once before any is used again."""
        first = number * self._prompts_per_round + self._offset
        positions = range(first + self.rank, first + self._prompts_per_round, self.world_size)
        laps = {n // len(self.prompts) for n in positions}
        shuffled = {lap: self._random(1 << 20, lap).permutation(len(self.prompts)) for lap in laps}
        return [self.prompts[shuffled[n // len(self.prompts)][n % len(self.prompts)]] for n in positions]

    def rollout(self, number: int) -> tuple[ScoredSamples, dict[str, Mean]]:
        """Sample and score a rollout; return it with its metrics.

        Raises:
            UserError: the sampler's log-probabilities differ from those of the training forward pass by more than `tolerance` in the first
                rollout. Later that is a warning: a fault of the sampler shows at once, rounding grows with what is learned.
        """
        self.judge.state.global_step = number * self.config.steps
        with self.judge.watched():
            prompts, answers, reward, metrics = self._sample(number)
        samples = self._measure(prompts, answers, reward, only_step=self._may_skip_scoring(number))
        if not samples.only_step:
            metrics["sampler_gap"] = self._check_sampler(samples, first=number == 0)
        if samples.ref_log_probs is not None:  # nats per answer, as in PPO's reward
            metrics["objective/kl"] = over((samples.old_log_probs - samples.ref_log_probs).sum(1))
        scored, more = self.compute_advantages(samples)
        if self.config.group_size == 1 and "constant_groups" in more and more["constant_groups"].value == 1:
            raise UserError(
                "rollout.group_size 1: an answer is compared with the others to its prompt, and there are none",
                where="rollout.group_size",
                fix="set it to 4 or 8",
            )
        if self.keep is not None:
            self._write(scored, self.keep, number)
        return scored, metrics | more

    def _sample(self, number: int) -> tuple[list[TokenPrompt], list[Completion], Tensor, dict[str, Mean]]:
        """Return a rollout's prompts (one for each answer), answers, rewards, and the metrics of everything sampled.

        With several rounds, groups whose rewards are all equal are replaced (dynamic sampling). If too few groups are left after the
        last round, equal ones fill up the rollout.
        """
        size, rounds = self.config.group_size, self.config.sampling_rounds
        pooled: dict[str, Mean] = {}
        useful: list[Answered] = []
        constant: list[Answered] = []
        for turn in range(rounds):
            prompts, answers, reward, metrics = self._sample_round(number * rounds + turn)
            pooled = {name: pooled[name] + mean if name in pooled else mean for name, mean in metrics.items()}
            rows = list(zip(prompts, answers, reward.tolist(), strict=True))
            differ = reward.view(-1, size).std(1) > 0 if rounds > 1 else torch.ones(len(rows) // size)
            for group, differs in enumerate(differ.tolist()):
                (useful if differs else constant).extend(rows[group * size : (group + 1) * size])
            if len(useful) >= self.answers:
                break
        if rounds > 1:
            pooled["sampling_rounds"] = Mean(turn + 1.0, 1.0)
        chosen = (useful + constant)[: self.answers]
        rewards = reward.new_tensor([value for _, _, value in chosen])
        return [prompt for prompt, _, _ in chosen], [answer for _, answer, _ in chosen], rewards, pooled

    def _sample_round(self, turn: int) -> tuple[list[TokenPrompt], list[Completion], Tensor, dict[str, Mean]]:
        size = self.config.group_size
        prompts = [p for p in self.prompts_of(turn) for _ in range(size)]
        # numbered over all ranks, so that an answer is the same whichever rank samples it
        places = range(self.rank, self._prompts_per_round, self.world_size)
        streams = [place * size + member for place in places for member in range(size)]
        seed = int(self._random(turn, 0).integers(1 << 62))
        sampling = Sampling(self.config.max_new_tokens, self.config.temperature, stop=self.stop, seed=seed)
        with self._precision():
            answers = generate(self.policy, [p.ids for p in prompts], sampling, streams=streams)
        reward, metrics = score_answers(self.judge, prompts, answers, self.device)
        return prompts, answers, reward, metrics

    def _precision(self) -> AbstractContextManager:
        """Return the context of sampling: that of training, or float32 where training in bfloat16 is faster but sampling is not."""
        return self.autocast() if gains_from_bfloat16(self.policy) else nullcontext()

    @torch.no_grad()
    def _measure(
        self, prompts: Sequence[TokenPrompt], answers: Sequence[Completion], reward: Tensor, *, only_step: bool
    ) -> Samples:
        """Return the answers with log-probabilities under behavior policy and reference, and values."""
        ids, _, mask = answer_rows(prompts, answers, self.device)
        group = torch.arange(len(answers), device=self.device) // self.config.group_size
        rows = [[0.0] * len(p.ids) + a.log_probs for p, a in zip(prompts, answers, strict=True)]
        sampled = right_padded(rows, 0.0).to(self.device)
        return Samples(
            ids,
            mask,
            group=group,
            finished=torch.tensor([a.finished for a in answers], device=self.device),
            reward=reward,
            sampler_log_probs=sampled,
            old_log_probs=sampled if only_step else self._log_probs(self.policy, ids, mask, group),
            ref_log_probs=self._ref_log_probs(ids, mask, group),
            values=self._values(ids),
            max_new_tokens=self.config.max_new_tokens,
            only_step=only_step,
        )

    def _may_skip_scoring(self, number: int) -> bool:
        """Return whether log-probabilities under the behavior policy can be those that the step computes anyway.

        A rollout that is kept, compared with a reference or learned from in several steps needs them; so does dropout, in which the
        policy that learns is not the one that samples. Some rollouts are scored all the same, to check the sampler.
        """
        needed = self.config.steps > 1 or self.reference is not None or self.critic is not None or self.keep is not None
        drops = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self.policy.modules())
        return not (needed or drops or number % _CHECKED == 0)

    @torch.no_grad()
    def probe(self, prompts: Sequence[TokenPrompt], answers: Sequence[Completion]) -> dict[str, Mean]:
        """Return the policy's entropy (nats per token) and KL from the reference (nats per answer) on answers sampled from it."""
        ids, _, mask = answer_rows(prompts, answers, self.device)
        self.policy.eval()
        with self.autocast():
            scores = self.policy.token_scores(ids, mask, temperature=self.config.temperature)
        found = {"entropy": masked(scores.entropy, mask)}
        ref_log_probs = self._ref_log_probs(ids, mask, torch.arange(len(ids), device=self.device))
        if ref_log_probs is None:
            return found
        return found | {"objective/kl": over((scores.log_probs - ref_log_probs).sum(1))}

    def _write(self, samples: ScoredSamples, folder: Path, number: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{number:08d}" + (f"-rank{self.rank}" if self.world_size > 1 else "")
        save_file({k: v.contiguous() for k, v in _to_file(samples).items()}, folder / f"{name}.safetensors")

    def _check_sampler(self, samples: Samples, *, first: bool) -> Mean:
        """Return the mean difference between sampler (cached, one token at a time) and training forward pass: rounding, or a bug."""
        gap = masked((samples.sampler_log_probs - samples.old_log_probs).abs(), samples.mask)
        if not gap.value <= self.config.tolerance:  # true for NaN as well
            what = f"sampler and training disagree by {gap.value:.3g} nats a token, more than rollout.tolerance {self.config.tolerance}"
            if first or not math.isfinite(gap.value):
                raise UserError(what, fix="set train.precision to fp32", code=FAILED)
            if not self._warned:
                say(f"warning: {what}; with train.precision=fp32 it would be less")
            self._warned = True
        return gap

    def _log_probs(self, policy: CausalLM, ids: Tensor, mask: Tensor, group: Tensor) -> Tensor:
        """Return log-probabilities (B, T), a micro-batch at a time, by the same call as in the loss."""
        policy.eval()
        temperature, alone = self.config.temperature, self.critic is not None  # with a critic, rows share nothing
        parts = zip(*(x.split(self.micro_batch_size) for x in (ids, mask, group)), strict=True)
        with self.autocast():
            return torch.cat(
                [policy.log_probs(i, m, group=None if alone else g, temperature=temperature) for i, m, g in parts]
            )

    def _ref_log_probs(self, ids: Tensor, mask: Tensor, group: Tensor) -> Tensor | None:
        if self.reference is None:
            return None
        if isinstance(self.reference, CausalLM):
            return self._log_probs(self.reference, ids, mask, group)
        with self.reference() as reference:
            return self._log_probs(reference, ids, mask, group)

    def _values(self, ids: Tensor) -> Tensor | None:
        if self.critic is None:
            return None
        self.critic.eval()
        with self.autocast():
            scores = torch.cat([self.critic(part) for part in ids.split(self.micro_batch_size)])
        return torch.nn.functional.pad(scores[:, :-1], (1, 0))


def _to_file(samples: ScoredSamples) -> dict[str, Tensor]:
    """Return the tensors under their names in files."""
    return {_FILE_KEYS.get(name, name): value for name, value in samples.tensors().items()}


def _from_file(tensors: dict[str, Tensor], max_new_tokens: int) -> ScoredSamples:
    fields: dict[str, Any] = {_FIELDS.get(name, name): value for name, value in tensors.items()}
    return ScoredSamples(**fields, max_new_tokens=max_new_tokens)
