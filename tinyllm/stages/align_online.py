"""`tinyllm align-online`: align a policy with rewards for its own answers. The algorithm is a file in `algorithms`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from tinyllm import algorithms
from tinyllm import distributed as dist
from tinyllm.data import validation
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.data.loading import length_limit, token_prompts
from tinyllm.data.records.types import Prompt
from tinyllm.data.splits import read_split
from tinyllm.errors import UserError
from tinyllm.mean import Mean
from tinyllm.model import hub, lora
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer
from tinyllm.rollout import checks
from tinyllm.rollout.judge import Judge
from tinyllm.rollout.judging import evaluate_policy, make_judge
from tinyllm.rollout.rewards import REWARD_MODEL, names, old_names
from tinyllm.rollout.source import RolloutSource
from tinyllm.stages.checkpoint_files import CheckpointFiles, adapter_base
from tinyllm.stages.common import (
    adapter_settings,
    load_policy,
    load_reward_model,
    run_facts,
    save_dtype,
    set_up,
    stage_result,
)
from tinyllm.stages.config import AlignOnlineConfig
from tinyllm.stages.held_out import examined
from tinyllm.stages.parents import ONLINE, RUNS
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.config import TrainConfig
from tinyllm.train.engine import Engine, autocast, choose_precision
from tinyllm.train.job import Job
from tinyllm.train.run import Invocation
from tinyllm.train.trainer import Trainer


def run(config: AlignOnlineConfig, invocation: Invocation) -> dict[str, Any]:
    """Align the parent and return the stage's result."""
    algorithm, settings = algorithms.load(config.algorithm, "online"), config.settings()
    assert algorithm.compute_advantages is not None  # `algorithms.load` checks that online algorithms have it
    device = set_up(config)
    best_by = _best_by(config)
    split = read_split(config.data, "prompts", config.seed, system=config.chat.system, task=config.task or None)
    records = checks.check(config.rewards, split.records(), on_bad_line=config.data.on_bad_line)
    policy, tokenizer, parent = load_policy("align-online", config, invocation, device)
    prompts, held_out, test = _prompts(config, records, policy, tokenizer)
    judge, scorer, judge_facts = _judge(config, tokenizer, invocation, device)
    folder = RUNS / ONLINE / f"{algorithm.name}-{config.name}"
    facts = run_facts(policy, tokenizer, split, config.seed, parent) | judge_facts | {"algorithm": algorithm.name}
    run = invocation.open(folder, facts)
    base = adapter_base(policy, tokenizer, parent, folder) if config.lora else ""
    # the frozen copy is made before a critic or an update exists
    precision = choose_precision(config.train.precision, device)
    reference = _reference(policy, config, precision) if config.track_kl or algorithm.uses_reference(settings) else None
    model = ActorCritic(policy, _critic(policy, scorer, config.seed)) if algorithm.needs_critic else policy
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
    judge.state.max_steps = config.train.steps
    evaluate = partial(
        evaluate_policy,
        policy,
        judge=judge,
        tokenizer=tokenizer,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        probe=source.probe,
    )
    job = Job(
        title=algorithm.name,
        model=model,
        files=CheckpointFiles(
            model,
            tokenizer,
            stage=algorithm.name,
            adapter=adapter_settings(config, tokenizer),
            base=base,
            dtype=save_dtype(config.train, parent),
        ),
        loss=partial(algorithm.loss, settings, temperature=config.rollout.temperature),
        source=source,
        evaluate=lambda engine: _at_step(judge, engine, evaluate, held_out),
        train=_uncompiled(config.train),
        optim=config.optim,
        seed=config.seed,
        best=(best_by, "max"),
        boundary=config.rollout.steps,
        test=(lambda engine: _at_step(judge, engine, evaluate, test)) if test else None,
        test_records=len(test),
    )
    return stage_result(algorithm.name, Trainer(run, job).train(), folder, "reward", algorithm=algorithm.name)


def _at_step(
    judge: Judge, engine: Engine, evaluate: Callable[..., dict[str, Mean]], prompts: Sequence[TokenPrompt]
) -> dict[str, Mean]:
    judge.state.global_step = engine.updates
    return evaluate(prompts=prompts)


def _prompts(
    config: AlignOnlineConfig, records: Mapping[str, Sequence[Prompt]], policy: CausalLM, tokenizer: Tokenizer
) -> tuple[list[TokenPrompt], ...]:
    """Return the prompts of train, val and test. Each leaves room for an answer."""
    limit = length_limit(config.data, policy.config.max_position_embeddings, config.rollout.max_new_tokens)
    prompts, held_out = (token_prompts(records[split], tokenizer, limit, split) for split in ("train", "val"))
    make_test = partial(token_prompts, tokenizer=tokenizer, limit=limit, name="test")
    test = examined(make_test, records["test"], len(records["test"])) or []
    needed = config.train.batch_size * config.rollout.minibatches // config.rollout.group_size
    validation.report_findings(validation.check_rollout_size(len(prompts), needed))
    return prompts, held_out[: config.train.eval_rows], test[: config.train.eval_rows]


def _judge(
    config: AlignOnlineConfig, tokenizer: Tokenizer, invocation: Invocation, device: torch.device
) -> tuple[Judge, SequenceScorer | None, dict[str, Any]]:
    """Return the judge of the answers, the reward model if one is used, and what run.json records about it."""
    scorer, facts = None, {}
    if REWARD_MODEL in config.rewards:
        scorer, parent = load_reward_model(tokenizer, config.reward_model, device, fast=invocation.fast)
        facts = {"reward_model": parent.facts()}
    return make_judge(config.rewards, tokenizer, scorer, config.rollout), scorer, facts


def _best_by(config: AlignOnlineConfig) -> str:
    """Return the held-out figure that decides `ckpt_best`. Raises: UserError if there is none of that name."""
    known = ["reward", *(f"rewards/{name}" for name in names(config.rewards).values()), "finished"]
    found = config.best_by if config.best_by in known else old_names(config.rewards).get(config.best_by, "")
    if not found:
        raise UserError(
            f"best_by is {config.best_by!r}, which is not among the held-out figures: {', '.join(known)}",
            where="best_by",
            fix="name one of them; a reward with weight 0 is measured and not trained on",
        )
    return found


def _uncompiled(train: TrainConfig) -> TrainConfig:
    """Return the settings without automatic compilation: it does not pay, since most of an online step is sampling."""
    return train.model_copy(update={"compile": "off"}) if train.compile == "auto" else train


def _reference(
    policy: CausalLM, config: Any, precision: str
) -> CausalLM | Callable[[], AbstractContextManager[CausalLM]]:
    """Return the policy as loaded: a context in which its adapter is disabled, or a frozen copy."""
    if config.lora is not None:
        return partial(lora.disabled, policy)
    return hub.frozen_copy(policy, narrow=precision == "bf16")


def _critic(policy: CausalLM, scorer: SequenceScorer | None, seed: int) -> SequenceScorer:
    """Return a critic that starts from the reward model if there is one of the same shape, else from the policy's decoder."""
    if scorer is not None and scorer.config == policy.config:
        return copy.deepcopy(scorer).requires_grad_(True)
    return hub.scorer_from(policy, seed)
