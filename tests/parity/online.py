"""TRL's GRPO and RLOO trainers given the rollout of `tiny`: they score it, form advantages, and train one step at learning rate 0.

Where sampling would begin the weights become those of `old`, and where rewards are asked for they become the policy's again: so what TRL
scores as the behaviour policy is another model than the one it trains, as in the later minibatches of a real rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from torch import nn
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.parity import oracles, tiny


class _Rollout:
    """Replaces sampler and reward function of a trainer."""

    def __init__(self) -> None:
        self.model: nn.Module = oracles.policy()
        self.weights = {name: oracles.policy(name).state_dict() for name in ("policy", "old", "reference")}
        self.prompts = Dataset.from_list([{"prompt": tiny.text(p)} for p in tiny.PROMPTS])

    def write(self, prompts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        self.model.load_state_dict(self.weights["old"])
        numbers = [[tiny.text(p) for p in tiny.PROMPTS].index(prompt) for prompt in prompts]
        assert numbers == sorted(numbers)
        return [tiny.PROMPTS[n] for n in numbers], [answer for answers in tiny.ANSWERS for answer in answers]

    def judge(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        self.model.load_state_dict(self.weights["policy"])
        answers = [answer for part in tiny.ANSWERS for answer in part]
        return [tiny.REWARDS[answers.index(ids)] for ids in completion_ids]

    def refer(self, trainer: GRPOTrainer | RLOOTrainer) -> None:
        if trainer.ref_model is not None:
            trainer.ref_model.load_state_dict(self.weights["reference"])


def _arguments(parts: int) -> dict[str, Any]:
    return oracles.arguments(len(tiny.REWARDS), parts) | {
        "steps_per_generation": parts,
        "num_iterations": 2,  # of more than one, or TRL takes the policy for the behaviour policy
        "num_generations": len(tiny.ANSWERS[0]),
        "max_completion_length": tiny.MAX_NEW_TOKENS,
        "shuffle_dataset": False,
    }


def grpo(parts: int = 1, **settings: Any) -> tiny.Outcome:
    rollout = _Rollout()

    def write(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        prompt_ids, completion_ids = rollout.write(prompts)
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    trainer = GRPOTrainer(
        rollout.model,
        rollout.judge,
        GRPOConfig(**_arguments(parts), **settings),
        rollout.prompts,
        processing_class=oracles.tokenizer(),
        rollout_func=write,
    )
    rollout.refer(trainer)
    return oracles.one_step(trainer)


def rloo(parts: int = 1, **settings: Any) -> tiny.Outcome:
    rollout = _Rollout()
    trainer = RLOOTrainer(
        rollout.model,
        rollout.judge,
        RLOOConfig(**_arguments(parts), **settings),
        rollout.prompts,
        processing_class=oracles.tokenizer(),
    )
    rollout.refer(trainer)
    trainer._generate = lambda prompts: (*rollout.write(prompts), list(prompts))  # RLOO has no rollout_func
    return oracles.one_step(trainer)
