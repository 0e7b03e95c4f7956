"""`tinyllm sft`: supervised fine-tuning on conversations, of all weights or with LoRA.

The loss covers what the assistant says, its end token included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tinyllm.algorithms import next_token
from tinyllm.data import validation
from tinyllm.data.config import is_world
from tinyllm.data.loading import length_limit, sft_dataset, token_prompts
from tinyllm.data.records.types import Prompt
from tinyllm.data.splits import read_split
from tinyllm.mean import Mean
from tinyllm.model.transformer import CausalLM
from tinyllm.rollout.judging import evaluate_policy, gold_judge
from tinyllm.stages.checkpoint_files import CheckpointFiles, adapter_base
from tinyllm.stages.common import (
    adapter_settings,
    load_policy,
    make_source,
    run_facts,
    save_dtype,
    set_up,
    stage_result,
)
from tinyllm.stages.config import SftConfig
from tinyllm.stages.held_out import examined, held_out_loss, loss_of_test, rows_of_test
from tinyllm.stages.parents import RUNS, SFT_FULL, SFT_LORA
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.engine import Engine
from tinyllm.train.job import Job
from tinyllm.train.run import Invocation
from tinyllm.train.trainer import Trainer


def run(config: SftConfig, invocation: Invocation) -> dict[str, Any]:
    """Fine-tune the parent and return the stage's result."""
    device = set_up(config)
    model, tokenizer, parent = load_policy("sft", config, invocation, device)
    split = read_split(
        config.data, "conversations", config.seed, system=config.chat.system, wrong=config.wrong, flawed=config.flawed
    )
    limit = length_limit(config.data, model.config.max_position_embeddings)
    dataset = sft_dataset(split.train, tokenizer, limit, "train", packing=config.packing)
    held_out = sft_dataset(split.val, tokenizer, limit, "val")
    make_test = partial(sft_dataset, tokenizer=tokenizer, limit=limit, name="test")
    test = examined(make_test, split.test, rows_of_test(config.train, fast=invocation.fast))
    validation.report_findings(
        validation.check_batch_size(len(dataset), config.train.batch_size, "rows" if config.packing else "records")
    )
    evaluate = held_out_loss(make_source(held_out, config), config)
    examine = loss_of_test(make_source(test, config) if test else None, config)
    if all(map(is_world, config.data.train)):
        own = {"train": ("world:1",), "val": (), "test": (), "test_fraction": None}
        questions = read_split(config.data.model_copy(update=own), "prompts", config.seed, system=config.chat.system)
        evaluate = _with_right_answers(
            evaluate, model, tokenizer, questions.val[: config.train.eval_rows], config.data.max_length
        )
        if test:
            examine["test"] = _with_right_answers(
                examine["test"], model, tokenizer, questions.test[: len(test)], config.data.max_length
            )
    folder = RUNS / (SFT_LORA if config.lora else SFT_FULL) / config.name
    run = invocation.open(folder, run_facts(model, tokenizer, split, config.seed, parent))
    base = adapter_base(model, tokenizer, parent, folder) if config.lora else ""
    job = Job(
        title="sft (LoRA)" if config.lora else "sft",
        model=model,
        files=CheckpointFiles(
            model,
            tokenizer,
            stage="sft",
            adapter=adapter_settings(config, tokenizer),
            base=base,
            dtype=save_dtype(config.train, parent),
        ),
        loss=partial(next_token.loss, next_token.Settings()),
        source=make_source(dataset, config),
        evaluate=evaluate,
        train=config.train,
        optim=config.optim,
        seed=config.seed,
        **examine,
    )
    trained = Trainer(run, job).train()
    return stage_result("sft-lora" if config.lora else "sft", trained, folder, "loss")


def _with_right_answers(
    evaluate: Callable[[Engine], dict[str, Mean]],
    model: CausalLM,
    tokenizer: Tokenizer,
    questions: Sequence[Prompt],
    max_length: int,
) -> Callable[[Engine], dict[str, Mean]]:
    """Return `evaluate` extended by figures of greedy answers to held-out questions of the bundled world, which knows the right ones."""
    prompts = token_prompts(questions, tokenizer, max_length, "questions")
    judge = gold_judge(tokenizer)
    return lambda engine: evaluate(engine) | evaluate_policy(model, prompts, judge, tokenizer, temperature=0.0)
