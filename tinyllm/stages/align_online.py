"""`tinyllm align-online`: align a policy with rewards for its own answers. The algorithm is a file in `algorithms`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinyllm import algorithms
from tinyllm import distributed as dist
from tinyllm.data import validation
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.data.loading import length_limit, token_prompts
from tinyllm.data.splits import read_split
from tinyllm.errors import UserError
from tinyllm.model import hub, lora
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer
from tinyllm.rollout.judge import Judge
from tinyllm.rollout.judging import REWARD_MODEL, evaluate_policy, make_judge
from tinyllm.rollout.rewards import REQUIRED_COLUMNS, check_columns
from tinyllm.rollout.source import RolloutSource
from tinyllm.stages.checkpoint_files import CheckpointFiles, adapter_base
from tinyllm.stages.common import load_policy, load_reward_model, run_facts, set_up, stage_result
from tinyllm.stages.config import AlignOnlineConfig
from tinyllm.stages.parents import ONLINE, RUNS
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.config import TrainConfig
from tinyllm.train.engine import autocast, choose_precision
from tinyllm.train.job import Job
from tinyllm.train.run import Invocation
from tinyllm.train.trainer import Trainer


def run(config: AlignOnlineConfig, invocation: Invocation) -> dict[str, Any]:
    """Align the parent and return the stage's result."""
    algorithm = algorithms.load(config.algorithm, "online")
    settings = config.settings()
    assert algorithm.compute_advantages is not None  # `algorithms.load` checks that online algorithms have it
    device = set_up(config)
    policy, tokenizer, parent = load_policy("align-online", config, invocation, device)
    prompts, held_out, sources = _prompts(config, policy, tokenizer)
    _check_best_by(config)
    judge, scorer, judge_facts = _judge(config, tokenizer, invocation, device)
    folder = RUNS / ONLINE / f"{algorithm.name}-{config.name}"
    facts = run_facts(policy, tokenizer, sources, config.seed, parent) | judge_facts | {"algorithm": algorithm.name}
    run = invocation.open(folder, facts)
    base = adapter_base(policy, tokenizer, parent, folder) if config.lora else ""
    # the frozen copy is made before a critic or an update exists
    reference = _reference(policy, config) if config.track_kl or algorithm.uses_reference(settings) else None
    model = ActorCritic(policy, _critic(policy, scorer, config.seed)) if algorithm.needs_critic else policy
    precision = choose_precision(config.train.precision, device)
    source = RolloutSource(
        model,
        prompts,
        judge,
        partial(algorithm.compute_advantages, settings),
        config.rollout,
        reference=reference,
        stop=tokenizer.stop_ids,
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.micro_batch_size,
        seed=config.seed,
        rank=dist.rank(),
        world_size=dist.world_size(),
        autocast=partial(autocast, precision, device),
        keep=folder / "logs" / "rollouts" if config.rollout.keep else None,
    )
    evaluate = partial(
        evaluate_policy,
        policy,
        held_out,
        judge,
        tokenizer,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        probe=source.probe,
    )
    job = Job(
        title=algorithm.name,
        model=model,
        files=CheckpointFiles(model, tokenizer, stage=algorithm.name, adapter=config.lora, base=base),
        loss=partial(algorithm.loss, settings, temperature=config.rollout.temperature),
        source=source,
        evaluate=lambda engine: evaluate(),
        train=_uncompiled(config.train),
        optim=config.optim,
        seed=config.seed,
        best=(config.best_by, "max"),
        boundary=config.rollout.steps,
    )
    trained = Trainer(run, job).train()
    return stage_result(algorithm.name, trained, folder, "reward", algorithm=algorithm.name)


def _prompts(
    config: AlignOnlineConfig, policy: CausalLM, tokenizer: Tokenizer
) -> tuple[list[TokenPrompt], list[TokenPrompt], list[dict[str, Any]]]:
    """Return prompts to train on, held-out prompts, and the facts about their sources. Each prompt leaves room for an answer."""
    train, val, sources = read_split(config.data, "prompts", config.seed, task=config.task or None)
    limit = length_limit(config.data, policy.config.max_position_embeddings, config.rollout.max_new_tokens)
    prompts, held_out = (
        _with_columns(token_prompts(records, tokenizer, limit, split), config.rewards, split)
        for records, split in ((train, "train"), (val, "val"))
    )
    needed = config.train.batch_size * config.rollout.minibatches // config.rollout.group_size
    validation.report_findings(validation.check_rollout_size(len(prompts), needed))
    return prompts, held_out[: config.train.eval_rows], sources


def _with_columns(prompts: list[TokenPrompt], names: Iterable[str], split: str) -> list[TokenPrompt]:
    """Return the prompts with all columns that the rewards read: any other would end the run midway."""
    needed = {column for name in names for column in REQUIRED_COLUMNS.get(name, ())}
    kept = [prompt for prompt in prompts if needed <= prompt.columns.keys()]
    if not kept:
        check_columns(names, prompts[0].columns, "rewards")
    validation.report_findings(validation.check_columns(len(prompts) - len(kept), len(prompts), sorted(needed), split))
    return kept


def _judge(
    config: AlignOnlineConfig, tokenizer: Tokenizer, invocation: Invocation, device: torch.device
) -> tuple[Judge, SequenceScorer | None, dict[str, Any]]:
    """Return the judge of the answers, the reward model if one is used, and what run.json records about it."""
    scorer, facts = None, {}
    if REWARD_MODEL in config.rewards:
        scorer, parent = load_reward_model(tokenizer, config.reward_model, device, fast=invocation.fast)
        facts = {"reward_model": parent.facts()}
    return make_judge(config.rewards, tokenizer, scorer, config.rollout), scorer, facts


def _check_best_by(config: AlignOnlineConfig) -> None:
    names = [Path(name).stem if ".py:" in name else name for name in config.rewards]
    known = ["reward", *(f"rewards/{name}" for name in names), "finished"]
    if config.best_by not in known:
        raise UserError(
            f"best_by is {config.best_by!r}, which is not among the held-out figures: {', '.join(known)}",
            where="best_by",
            fix="name one of them; a reward with weight 0 is measured and not trained on",
        )


def _uncompiled(train: TrainConfig) -> TrainConfig:
    """Return the settings without automatic compilation: it does not pay, since most of an online step is sampling."""
    return train.model_copy(update={"compile": "off"}) if train.compile == "auto" else train


def _reference(policy: CausalLM, config: Any) -> CausalLM | Callable[[], AbstractContextManager[CausalLM]]:
    """Return the policy as loaded: a context in which its adapter is disabled, or a frozen copy."""
    if config.lora is not None:
        return partial(lora.disabled, policy)
    return copy.deepcopy(policy).eval().requires_grad_(False)


def _critic(policy: CausalLM, scorer: SequenceScorer | None, seed: int) -> SequenceScorer:
    """Return a critic that starts from the reward model if there is one of the same shape, else from the policy's decoder."""
    if scorer is not None and scorer.config == policy.config:
        return copy.deepcopy(scorer).requires_grad_(True)
    return hub.scorer_from(policy, seed)
