"""`tinyllm rm`: train a reward model on preference pairs, starting from the decoder of a fine-tuned model."""

from __future__ import annotations

from functools import partial
from typing import Any

from tinyllm.algorithms import bradley_terry
from tinyllm.console import say
from tinyllm.data import validation
from tinyllm.data.loading import length_limit, preference_dataset
from tinyllm.data.splits import read_split
from tinyllm.model import hub, lora
from tinyllm.model.architectures import ARCHITECTURES
from tinyllm.stages.checkpoint_files import CheckpointFiles, adapter_base
from tinyllm.stages.common import load_policy, make_source, run_facts, save_dtype, set_up, stage_result
from tinyllm.stages.config import RmConfig
from tinyllm.stages.held_out import examined, held_out_loss, loss_of_test, rows_of_test
from tinyllm.stages.parents import REWARD, RUNS
from tinyllm.train.job import Job
from tinyllm.train.run import Invocation
from tinyllm.train.trainer import Trainer


def run(config: RmConfig, invocation: Invocation) -> dict[str, Any]:
    """Train a reward model and return the stage's result."""
    device = set_up(config)
    policy, tokenizer, parent = load_policy("rm", config, invocation, device, adapt=False)
    kind = policy.config.model_type
    if ARCHITECTURES[kind].scorer_name == "":
        say(f"note: transformers has no reward models of type {kind}: what is trained opens here only")
    split = read_split(config.data, "pairs", config.seed, system=config.chat.system, noise=config.noise)
    limit = length_limit(config.data, policy.config.max_position_embeddings)
    dataset = preference_dataset(split.train, tokenizer, limit, "train")
    held_out = preference_dataset(split.val, tokenizer, limit, "val")
    make_test = partial(preference_dataset, tokenizer=tokenizer, limit=limit, name="test")
    test = examined(make_test, split.test, rows_of_test(config.train, fast=invocation.fast))
    validation.report_findings(validation.check_batch_size(len(dataset), config.train.batch_size, "pairs"))
    folder = RUNS / REWARD / config.name
    model = hub.scorer_from(policy, config.seed, copied=False)
    adapter = lora.attach_scorer(model, config.lora, config.seed) if config.lora else None
    run = invocation.open(folder, run_facts(model, tokenizer, split, config.seed, parent))
    base = adapter_base(policy, tokenizer, parent, folder) if adapter else ""
    job = Job(
        title="rm (LoRA)" if adapter else "rm",
        model=model,
        files=CheckpointFiles(
            model, tokenizer, stage="rm", adapter=adapter, base=base, dtype=save_dtype(config.train, parent)
        ),
        loss=partial(bradley_terry.loss, config.bradley_terry),
        source=make_source(dataset, config),
        evaluate=held_out_loss(make_source(held_out, config), config),
        train=config.train,
        optim=config.optim,
        seed=config.seed,
        **loss_of_test(make_source(test, config) if test else None, config),
    )
    return stage_result("rm", Trainer(run, job).train(), folder, "accuracy")
