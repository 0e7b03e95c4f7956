"""Causes of trouble for real runs, one or more for every symptom: settings, rewards, records, or bugs patched into the code."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.support.real_runs import STEPS, WORDS, Records, answer, pairs
from tinyllm.mean import Mean
from tinyllm.rollout.source import RolloutSource
from tinyllm.train.engine import Engine
from tinyllm.train.examination import Examination
from tinyllm.train.run import Run

Patch = Callable[[Any, str, Any], None]


@dataclass(frozen=True)
class Cause:
    """Trouble planted in a run of one stage or algorithm.

    settings: by dotted key. base: those of the run without the trouble as well. records, held_out: rows of data, instead of good ones.
    severity: "" where any will do.
    """

    check: str
    stage: str
    what: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    plant: Callable[[Patch], None] | None = None
    records: Records | None = None
    held_out: Records | None = None
    severity: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.stage}, {self.what}"


# --- records ----------------------------------------------------------------------------------------------------------------------


def _swapped() -> list[dict[str, Any]]:
    return pairs(12, swapped=lambda i: True)


def _half_swapped() -> list[dict[str, Any]]:
    return pairs(12, swapped=lambda i: i % 2 == 0)


def _random_labels() -> list[dict[str, Any]]:
    return pairs(swapped=lambda i: bool(torch.randint(0, 2, (), generator=torch.Generator().manual_seed(i))))


def _nearly_equal() -> list[dict[str, Any]]:
    return [{"prompt": f"What is {i}?", "chosen": answer(i), "rejected": answer(i) + " 7"} for i in range(40)]


def _without_rule() -> list[dict[str, Any]]:
    """Return a few conversations whose answers follow no rule."""
    generator = torch.Generator().manual_seed(0)
    words = [WORDS[int(n)] for n in torch.randint(0, 5, (200,), generator=generator)]
    return [{"prompt": f"What is {i}?", "completion": " ".join(words[5 * i : 5 * i + 5])} for i in range(10)]


# --- bugs, each a patch of the code ----------------------------------------------------------------------------------------------


def frozen_update(patch: Patch) -> None:
    """The optimizer does not step."""

    def update(self: Engine, rate: float) -> None:
        self.zero_grad()
        self.updates += 1

    patch(Engine, "_update", update)


def changed_loss(change: Callable[[Engine, Mean], Mean]) -> Callable[[Patch], None]:
    """Return the patch that changes the loss of every training step."""

    def plant(patch: Patch) -> None:
        original = Engine.step

        def step(self: Engine, batches: Any, extra: Any = None) -> dict[str, float]:
            loss = self.loss

            def changed(model: Any, batch: Any) -> tuple[Mean, dict[str, Mean]]:
                mean, metrics = loss(model, batch)
                return change(self, mean), metrics

            self.loss = changed
            try:
                return original(self, batches, extra)
            finally:
                self.loss = loss

        patch(Engine, "step", step)

    return plant


def _nan_at_step_3(engine: Engine, mean: Mean) -> Mean:
    return Mean(mean.total * float("nan"), mean.count) if engine.updates == 2 else mean


def _hundredfold_at_step_15(engine: Engine, mean: Mean) -> Mean:
    return Mean(mean.total * 100, mean.count) if engine.updates == 14 else mean


def _slow_in_the_second_half(engine: Engine, mean: Mean) -> Mean:
    time.sleep(0.15 if engine.updates >= 14 else 0)
    return mean


def _interrupted_at_step_5(engine: Engine, mean: Mean) -> Mean:
    if engine.updates == 4:
        os.kill(os.getpid(), signal.SIGINT)
    return mean


def interrupted_in_the_first_evaluation(patch: Patch) -> None:
    def stop(self: Examination) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    patch(Examination, "begin", stop)


def lines_are_lost(patch: Patch) -> None:
    original = Run.log
    patch(Run, "log", lambda self, row: original(self, row) if row["step"] % 5 else None)


def last_line_is_cut(patch: Patch) -> None:
    original = Run.log

    def log(self: Run, row: dict[str, Any]) -> None:
        original(self, row)
        if row["step"] == STEPS["sft"] and row["split"] == "eval":
            self.metrics.write_text(self.metrics.read_text()[:-30])

    patch(Run, "log", log)


def sampler_is_off(patch: Patch) -> None:
    """The sampler reports log-probabilities that are 0.07 too low."""
    original = RolloutSource._measure

    def measure(self: RolloutSource, *args: Any) -> Any:
        samples = original(self, *args)
        samples.sampler_log_probs.sub_(0.07 * samples.mask)
        return samples

    patch(RolloutSource, "_measure", measure)


def reward_level_runs_away(patch: Patch) -> None:
    """The centering term has the wrong sign."""
    from tinyllm.algorithms import bradley_terry

    def loss(settings: Any, model: Any, batch: Any) -> tuple[Mean, dict[str, Mean]]:
        mean, metrics = original(settings, model, batch)
        level = model.rewards(batch.ids, batch.real).sum()
        return Mean(mean.total - 2.0 * level, mean.count), metrics

    original = bradley_terry.loss
    patch(bradley_terry, "loss", loss)


def masked_answers(patch: Patch) -> None:
    """Pairs lose what is scored: the log-probability of every answer is 0."""
    from tinyllm.model.transformer import CausalLM

    original = CausalLM.log_probs
    patch(CausalLM, "log_probs", lambda self, ids, mask, **options: original(self, ids, mask, **options) * 0.0)


def no_gradient(patch: Patch) -> None:
    from tinyllm.algorithms import next_token

    original = next_token.loss

    def loss(settings: Any, model: Any, batch: Any) -> tuple[Mean, dict[str, Mean]]:
        mean, metrics = original(settings, model, batch)
        return Mean(mean.total.detach() + 0.0 * mean.total, mean.count), metrics

    patch(next_token, "loss", loss)


def diverges_after_step_8(patch: Patch) -> None:
    original = Engine._update
    patch(Engine, "_update", lambda self, rate: original(self, rate * (50 if self.updates >= 8 else 1)))


LR = "optim.learning_rate"
FAST = {LR: 0.1, "grpo.kl_coef": 0.0}
REUSED = {"rollout.epochs": 4, "train.steps": 24}
ONE_ANSWER = {"rewards": {"rule.py:one": 1.0}, "train.steps": 24}
CAUSES = (
    Cause("failed", "sft", "a loss that is NaN", plant=changed_loss(_nan_at_step_3)),
    Cause("not_finite", "sft", "a loss that is NaN", plant=changed_loss(_nan_at_step_3)),
    Cause("nothing_logged", "sft", "stopped in its first evaluation", plant=interrupted_in_the_first_evaluation),
    Cause("unfinished", "sft", "interrupted", plant=changed_loss(_interrupted_at_step_5)),
    Cause("rows_missing", "sft", "lines are lost", plant=lines_are_lost),
    Cause("damaged_lines", "sft", "the last line is cut", plant=last_line_is_cut),
    Cause("slowed", "sft", "the second half is slow", plant=changed_loss(_slow_in_the_second_half)),
    Cause("still_warming", "sft", "a warm-up of the whole run", {"optim.warmup_steps": 24}),
    Cause("never_moved", "sft", "a frozen update", plant=frozen_update),
    Cause("never_moved", "pretrain", "a tiny learning rate", {LR: 1e-9}),
    Cause("never_moved", "sft", "no gradient", plant=no_gradient),
    Cause("eval_turned", "sft", "ten records by heart", {LR: 3e-2}, {"train.steps": 40}, records=_without_rule),
    Cause("gradient_spikes", "sft", "one batch weighs a hundredfold", plant=changed_loss(_hundredfold_at_step_15)),
    Cause("never_improved", "dpo", "held-out pairs are swapped", held_out=_swapped),
    Cause("at_chance", "rm", "random labels", {LR: 1e-3}, records=_random_labels),
    Cause("memorised", "rm", "held-out labels follow no rule", held_out=_half_swapped),
    Cause("rewards_drift", "rm", "the centering term has the wrong sign", plant=reward_level_runs_away),
    Cause("stuck", "dpo", "a tiny learning rate", {LR: 1e-9}),
    Cause("stuck", "dpo", "answers are masked", plant=masked_answers),
    Cause("stuck", "orpo", "a frozen update", plant=frozen_update),
    Cause("below_chance", "dpo", "held-out pairs are swapped", held_out=_swapped),
    Cause("chosen_falls", "dpo", "nearly equal answers", {LR: 0.1}, records=_nearly_equal, severity="warning"),
    Cause("margin_explodes", "dpo", "a large beta", {"dpo.beta": 5.0}),
    Cause("memorised", "dpo", "held-out labels follow no rule", held_out=_half_swapped),
    Cause("zero_reward", "grpo", "a reward that is always 0", {"rewards": {"rule.py:nothing": 1.0}}),
    Cause("constant_groups", "grpo", "a constant reward", {"rewards": {"rule.py:same": 1.0}}),
    Cause("clipping", "grpo", "narrow clip bounds", {"grpo.clip_low": 1e-5, "grpo.clip_high": 1e-5}, REUSED),
    Cause("on_policy", "grpo", "a frozen update", plant=frozen_update, severity="broken"),
    Cause("on_policy", "ppo", "a frozen update", plant=frozen_update, severity="broken"),
    Cause("kl_spike", "grpo", "a learning rate of 0.1", FAST),
    Cause("far_from_parent", "grpo", "a learning rate of 0.1", FAST),
    Cause("entropy_collapse", "grpo", "a learning rate of 0.03", {LR: 0.03, "grpo.kl_coef": 0.0}, ONE_ANSWER),
    Cause("repeats", "grpo", "a learning rate of 0.1", FAST),
    Cause("endless", "grpo", "a learning rate of 0.1", FAST),
    Cause("length_runs_away", "grpo", "a learning rate of 0.1", FAST),
    Cause("sampler_gap", "grpo", "the sampler is off by 0.07 nats", plant=sampler_is_off),
    Cause("idle_critic", "ppo", "no weight", {"ppo.vf_coef": 0.0}, {"rewards": {"rule.py:same": 1.0}}),
    Cause("reward_stays", "grpo", "a tiny learning rate", {LR: 1e-9}),
    Cause("reward_fell", "grpo", "the learning rate rises to 0.1", plant=diverges_after_step_8),
)
