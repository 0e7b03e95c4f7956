"""The `rewards` table of a configuration as a `Judge`, and evaluation of a policy on held-out prompts over all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tinyllm import distributed as dist
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.mean import Mean
from tinyllm.model.decoding import Sampling
from tinyllm.model.transformer import CausalLM, SequenceScorer
from tinyllm.rollout import rewards
from tinyllm.rollout.config import RolloutConfig
from tinyllm.rollout.judge import Judge, Probe, generate_and_score
from tinyllm.rollout.rewards import REWARD_MODEL
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.engine import pool_over_ranks


def make_judge(
    weights: Mapping[str, float], tokenizer: Tokenizer, scorer: SequenceScorer | None, config: RolloutConfig
) -> Judge:
    """Return the judge that a configuration's `rewards` table describes."""
    rules = [(rule, weights[key]) for key, rule in rewards.load_rewards(weights).items()]
    weight = weights.get(REWARD_MODEL, 0.0)
    return Judge(
        tokenizer, rules, scorer, weight, config.unfinished_penalty, config.max_new_tokens, config.overlong_buffer
    )


def gold_judge(tokenizer: Tokenizer) -> Judge:
    """Return the bundled world's judge: its graded reward, and exact answers measured beside it."""
    rules = [(rewards.REWARDS["gold"], 1.0), (rewards.REWARDS["exact_answer"], 0.0)]
    return Judge(tokenizer, rules, None, 0.0, 0.0)


def evaluate_policy(
    policy: CausalLM,
    prompts: Sequence[TokenPrompt],
    judge: Judge,
    tokenizer: Tokenizer,
    *,
    temperature: float,
    max_new_tokens: int = 48,
    probe: Probe | None = None,
) -> dict[str, Mean]:
    """Sample one answer to each prompt and return the mean metrics of `generate_and_score`. The ranks share the prompts."""
    sampling = Sampling(max_new_tokens, temperature, stop=tokenizer.stop_ids, seed=0)
    places = range(dist.rank(), len(prompts), dist.world_size())
    mine = [prompts[place] for place in places]
    with (
        torch.no_grad()
    ):  # a rank without prompts answers one that does not count, to report the same metrics as the others
        pooled = generate_and_score(policy, mine or prompts[:1], judge, sampling, streams=places or None, probe=probe)
    if not mine:
        pooled = {name: Mean(0.0, 0.0) for name in pooled}
    return pool_over_ranks(pooled, policy.lm_head.weight.device)
