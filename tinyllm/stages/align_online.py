"""`tinyllm align-online`: a policy from rewards for its own answers. Which algorithm: a file in `algorithms`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinyllm import algorithms, dist
from tinyllm.config import Config
from tinyllm.errors import UserError
from tinyllm.model import hub, lora
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer
from tinyllm.rollout.judge import Judge, TokenPrompt
from tinyllm.rollout.rewards import NEEDS, check_columns
from tinyllm.rollout.source import RolloutSource
from tinyllm.stages import preflight
from tinyllm.stages.common import Call, Files, base_of, begin, facts_of, load_policy, result, scorer_for
from tinyllm.stages.config import AlignOnlineConfig
from tinyllm.stages.fit import Fit, Job
from tinyllm.stages.judging import REWARD_MODEL, answer_figures, judge_of
from tinyllm.stages.parents import ONLINE, RUNS
from tinyllm.stages.reading import prompts_from, read_split, room_of
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.config import TrainConfig
from tinyllm.train.engine import autocast, choose_precision


def run(config: AlignOnlineConfig, call: Call) -> dict[str, Any]:
    algorithm = algorithms.load(config.algorithm, "online")
    settings: Config = getattr(config, config.algorithm)
    device = begin(config)
    policy, tokenizer, parent = load_policy("align-online", config, call, device)
    prompts, held, sources = _prompts(config, policy, tokenizer)
    _check_best_by(config)

    judge, scorer, judge_facts = _judge(config, tokenizer, call, device)
    folder = RUNS / ONLINE / f"{config.algorithm}-{config.name}"
    facts = facts_of(policy, tokenizer, sources, config.seed, parent) | judge_facts | {"algorithm": config.algorithm}
    run = call.open(folder, facts)
    base = base_of(policy, tokenizer, parent, folder) if config.lora else ""
    # the frozen copy is made before a critic or an update exists
    reference = _reference(policy, config) if config.track_kl or algorithm.uses_reference(settings) else None
    model = ActorCritic(policy, _critic(policy, scorer, config.seed)) if algorithm.CRITIC else policy
    files = Files(model, tokenizer, adapter=config.lora, base=base)
    precision = choose_precision(config.train.precision, device)
    source = RolloutSource(
        model,
        prompts,
        judge,
        partial(algorithm.credit, settings),
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

    job = Job(
        title=config.algorithm,
        model=model,
        loss=partial(algorithm.loss, settings, temperature=config.rollout.temperature),
        source=source,
        evaluate=lambda engine: answer_figures(
            policy,
            held,
            judge,
            tokenizer,
            temperature=config.rollout.temperature,
            max_new_tokens=config.rollout.max_new_tokens,
            probe=source.probe,
        ),
        write=files.write,
        restore=files.restore,
        train=_uncompiled(config.train),
        optim=config.optim,
        seed=config.seed,
        best=(config.best_by, "max"),
        boundary=config.rollout.steps,
    )
    fitted = Fit(run, job).go()
    return result(config.algorithm, fitted, folder, "reward", algorithm=config.algorithm)


def _prompts(
    config: AlignOnlineConfig, policy: CausalLM, tokenizer: Tokenizer
) -> tuple[list[TokenPrompt], list[TokenPrompt], list[dict[str, Any]]]:
    """Prompts to train on and held-out ones, both short enough to leave room for an answer, and what run.json says of them."""
    train, val, sources = read_split(config.data, "prompts", config.seed, task=config.task or None)
    room = room_of(config, policy.config.max_position_embeddings, config.rollout.max_new_tokens)
    prompts, held = (
        _with_columns(prompts_from(found, tokenizer, room, what), config.rewards, what)
        for found, what in ((train, "train"), (val, "val"))
    )
    asked = config.train.batch_size * config.rollout.minibatches // config.rollout.group_size
    preflight.settle(preflight.rollout(len(prompts), asked))
    return prompts, held[: config.train.eval_rows], sources


def _with_columns(prompts: list[TokenPrompt], names: Iterable[str], what: str) -> list[TokenPrompt]:
    """Those that have every column the rewards read; one that has not would end the run in its middle."""
    needed = {column for name in names for column in NEEDS.get(name, ())}
    kept = [prompt for prompt in prompts if needed <= prompt.columns.keys()]
    if not kept:
        check_columns(names, prompts[0].columns, "rewards")
    preflight.settle(preflight.columns(len(prompts) - len(kept), len(prompts), sorted(needed), what))
    return kept


def _judge(
    config: AlignOnlineConfig, tokenizer: Tokenizer, call: Call, device: torch.device
) -> tuple[Judge, SequenceScorer | None, dict[str, Any]]:
    """Who rewards the answers, the reward model among them if there is one, and what run.json says of it."""
    scorer, facts = None, {}
    if REWARD_MODEL in config.rewards:
        scorer, parent = scorer_for(tokenizer, config.reward_model, device, fast=call.fast)
        facts = {"reward_model": parent.facts()}
    return judge_of(config.rewards, tokenizer, scorer, config.rollout), scorer, facts


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
    """Most of an online step is sampling, which is never compiled: compiling by itself would not pay."""
    return train.model_copy(update={"compile": "off"}) if train.compile == "auto" else train


def _reference(policy: CausalLM, config: Any) -> CausalLM | Callable[[], Any]:
    """The policy as loaded: without its adapter, or a frozen copy."""
    if config.lora is not None:
        return partial(lora.disabled, policy)
    return copy.deepcopy(policy).eval().requires_grad_(False)


def _critic(policy: CausalLM, scorer: SequenceScorer | None, seed: int) -> SequenceScorer:
    """A critic that starts where judging is known already: at the reward model if there is one, else at the policy's decoder."""
    if scorer is not None and scorer.config == policy.config:
        return copy.deepcopy(scorer).requires_grad_(True)
    return hub.scorer_from(policy, seed)
