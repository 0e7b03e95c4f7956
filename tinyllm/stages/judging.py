"""Looking at answers: held-out prompts, sampled once each, judged by the rules and models that a stage names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tinyllm import dist
from tinyllm.mean import Mean
from tinyllm.model.generate import Sampling
from tinyllm.model.transformer import CausalLM, SequenceScorer
from tinyllm.rollout import rewards
from tinyllm.rollout.config import RolloutConfig
from tinyllm.rollout.judge import Judge, Probe, TokenPrompt, judged
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.engine import pool_over_ranks

REWARD_MODEL = "reward_model"


def judge_of(
    weights: Mapping[str, float], tokenizer: Tokenizer, scorer: SequenceScorer | None, config: RolloutConfig
) -> Judge:
    """The judge a configuration's `rewards` table describes."""
    rules = {
        Path(name).stem if ".py:" in name else name: (rewards.find(name), w)
        for name, w in weights.items()
        if name != REWARD_MODEL
    }
    weight = weights.get(REWARD_MODEL, 0.0)
    return Judge(
        tokenizer, rules, scorer, weight, config.unfinished_penalty, config.max_new_tokens, config.overlong_buffer
    )


def gold_judge(tokenizer: Tokenizer) -> Judge:
    """The bundled world's own: its graded judgement as the reward, and whether the answer was exactly right beside it."""
    rules = {"gold": (rewards.gold, 1.0), "exact_answer": (rewards.exact_answer, 0.0)}
    return Judge(tokenizer, rules, None, 0.0, 0.0)


def answer_figures(
    policy: CausalLM,
    prompts: Sequence[TokenPrompt],
    judge: Judge,
    tokenizer: Tokenizer,
    *,
    temperature: float,
    max_new_tokens: int = 48,
    probe: Probe | None = None,
) -> dict[str, float]:
    """reward, its parts, length, finished, repetition and what `probe` finds, over all prompts; every rank answers its share."""
    sampling = Sampling(max_new_tokens, temperature, stop=tokenizer.stop_ids, seed=dist.rank())
    mine = prompts[dist.rank() :: dist.world_size()]
    with (
        torch.no_grad()
    ):  # a rank without a prompt of its own answers one that does not count, to name the same figures
        pooled = judged(policy, mine or prompts[:1], judge, sampling, probe=probe)
    if not mine:
        pooled = {name: Mean(0.0, 0.0) for name in pooled}
    pooled = pool_over_ranks(pooled, policy.lm_head.weight.device)
    return {name: mean.value for name, mean in pooled.items()}
