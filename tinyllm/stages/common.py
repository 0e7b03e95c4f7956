"""Shared by the training stages: device and ranks, the checkpoint to start from, the facts in run.json, and the result."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinyllm import __version__
from tinyllm import distributed as dist
from tinyllm.console import say
from tinyllm.data.datasets.batches import Dataset, Source
from tinyllm.data.splits import Split
from tinyllm.errors import UserError
from tinyllm.io import hub_cache
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig
from tinyllm.model.resize import grow_vocabulary
from tinyllm.model.transformer import CausalLM, SequenceScorer
from tinyllm.stages.config import PretrainConfig, StageConfig, TunedConfig
from tinyllm.stages.origin import read_origin
from tinyllm.stages.parents import Parent, can_start_from, expected_parent, find_checkpoint, tokenizer_of
from tinyllm.stages.planning import memory as memory_plan
from tinyllm.text.chat_format import choose
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import names
from tinyllm.train.config import TrainConfig
from tinyllm.train.engine import choose_device, choose_precision
from tinyllm.train.run import Invocation
from tinyllm.train.trainer import TrainResult


def set_up(config: StageConfig) -> torch.device:
    """Choose the device, join the other ranks and seed torch.

    Raises: UserError where the device or a rank is missing (RESOURCES), or versions or configurations of the ranks differ (USAGE).
    """
    device = choose_device(config.device)
    dist.start(device)
    if started := dist.launched():
        say(f"rank 0 of {started.size}, started by {started.launcher}; the others join at {dist.address()}")
    if tasks := dist.idle_tasks():
        say(f"warning: SLURM allocated {tasks} tasks, and this is one process; start it with srun, or with --nproc")
    if device.type == "cpu" and dist.is_overloaded():
        say(f"warning: {dist.local_world_size()} ranks share {dist.cores()} cores; --nproc {dist.cores()} is faster")
    dist.require_equal({"tinyllm": __version__, "torch": str(torch.__version__), **config.model_dump(mode="json")})
    torch.manual_seed(config.seed)
    return device


def make_source(dataset: Dataset, config: PretrainConfig | TunedConfig) -> Source:
    """Return this rank's source of batches over a dataset."""
    batch, micro = config.train.batch_size, config.train.micro_batch_size
    return Source(dataset, batch, micro, seed=config.seed, rank=dist.rank(), world_size=dist.world_size())


# --- models ----------------------------------------------------------------------------------------------------------------------


def load_language_model(parent: Parent, device: torch.device, *, narrow: bool = False) -> tuple[CausalLM, Tokenizer]:
    """Load a checkpoint and its tokenizer; an adapter is merged into its base. For `narrow` see `hub.load_causal_lm`.

    Raises: UserError for a reward model (USAGE), and for files that do not fit each other or change while they are read (INTEGRITY).
    """
    if read_origin(parent.folder).kind == "reward_model":
        what = "this is a reward model: it scores answers and does not generate text"
        name, usable = parent.folder.parent.parent.name, partial(can_start_from, "chat")
        raise names.unknown(name, option="--checkpoint", accepts=usable, what=what, where=str(parent.folder))
    if not narrow:
        memory_plan.refuse_too_large_to_load(parent.folder, parent.base)
    model = hub.load_causal_lm(parent.folder, device, base=parent.base, narrow=narrow)
    for note in model.load_notes:
        say(f"note: {note}")
    tokenizer = load_tokenizer(model, parent.folder, parent.base)
    parent.check_unchanged()
    return model, tokenizer


def load_policy(
    stage: str, config: TunedConfig, invocation: Invocation, device: torch.device, *, adapt: bool = True
) -> tuple[CausalLM, Tokenizer, Parent]:
    """Load the checkpoint to train, and attach LoRA if it is configured.

    Args:
        adapt: attach it here; a reward model is adapted once it is made.
    """
    if config.parent is not None and config.base is None:
        described = expected_parent(stage, config.parent, fast=invocation.fast)
        if described and hub_cache.name_of(described):  # refused before its weights are downloaded
            memory_plan.refuse_too_large(config, described)
    parent = find_checkpoint(stage, config.parent, fast=invocation.fast, base=config.base)
    say(f"starting from {parent.folder}")
    memory_plan.refuse_too_large(config, parent.folder, parent.base)
    # only what is trained needs float32 weights
    narrow = config.lora is not None and choose_precision(config.train.precision, device) == "bf16"
    model, tokenizer = load_language_model(parent, device, narrow=narrow)
    chosen = choose(config.chat, tokenizer, trains=True)
    tokenizer = chosen.tokenizer
    if chosen.line:
        say(chosen.line)
    grow_vocabulary(model, tokenizer.vocab_size, config.seed, tokenizer.new_ids)
    positions = model.config.max_position_embeddings
    if config.data.max_length > positions:
        what = f"data.max_length {config.data.max_length} is more than the model's {positions} positions"
        raise UserError(what, where="data.max_length", fix=f"set it to {positions}")
    if config.lora is not None and adapt:
        lora.attach(model, config.lora, seed=config.seed, token_rows=tokenizer.new_ids)
    dropout = max(config.train.dropout, config.lora.dropout if config.lora else 0.0)
    if dropout and stage.startswith("align-"):
        say(
            f"note: dropout {dropout:g} acts in the loss only; reference and old log-probabilities are computed without it, so DPO's "
            "loss starts near ln 2, and the first ratios of a rollout are near 1"
        )
    return model, tokenizer, parent


def save_dtype(train: TrainConfig, parent: Parent | None) -> torch.dtype:
    """Return the dtype of the weights that a run writes: by default that of its parent's files, float32 without a parent."""
    if train.save_dtype == "auto":
        return hub.file_dtype(parent.folder, parent.base) if parent else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[train.save_dtype]


def adapter_settings(config: TunedConfig, tokenizer: Tokenizer) -> LoRAConfig | None:
    """Return the settings of the adapter that a stage writes, with the rows of chat tokens that were added; None without LoRA."""
    return None if config.lora is None else lora.with_token_rows(config.lora, tokenizer.new_ids)


def load_tokenizer(model: CausalLM | SequenceScorer, folder: Path, base: Path | None = None) -> Tokenizer:
    """Load the tokenizer of a checkpoint; see `parents.tokenizer_of`.

    Raises: UserError (USAGE) if it has ids without an embedding in the model.
    """
    tokenizer = tokenizer_of(folder, base)
    if tokenizer.vocab_size > model.config.vocab_size:
        what = f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
        raise UserError(what, where=str(folder), fix="use the model's own tokenizer")
    return tokenizer


def load_reward_model(
    tokenizer: Tokenizer, given: Path | None, device: torch.device, *, fast: bool
) -> tuple[SequenceScorer, Parent]:
    """Load the reward model `given`, or the newest one, frozen.

    Raises: UserError (USAGE) where there is none, it is no reward model, or its tokenizer is not the policy's.
    """
    parent = find_checkpoint("reward model", given, fast=fast)
    own = tokenizer_of(parent.folder, parent.base)
    if own.sha256 != tokenizer.sha256:
        raise UserError(
            "the reward model was trained with another tokenizer than the policy",
            where=str(parent.folder),
            fix="train a reward model on this policy's parent",
        )
    if own.chat_template != tokenizer.chat_template:
        say("warning: the reward model was trained with another chat template than the policy's")
    scorer = hub.load_scorer(parent.folder, device, base=parent.base).eval().requires_grad_(False)
    parent.check_unchanged()
    return scorer, parent


# --- records of a run ------------------------------------------------------------------------------------------------------------


def run_facts(model: nn.Module, tokenizer: Tokenizer, data: Split, seed: int, parent: Parent | None) -> dict[str, Any]:
    """Return what run.json records about a run's origin: parent, data, their splits, tokenizer, seed and parameter counts."""
    parameters = {id(p): p for p in model.parameters()}.values()
    return {
        "parent": parent.facts() if parent else None,
        "data": data.sources,
        "splits": data.facts,
        "tokenizer_sha256": tokenizer.sha256,
        "seed": seed,
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }


def stage_result(stage: str, trained: TrainResult, folder: Path, moved: str, **more: Any) -> dict[str, Any]:
    """Return what a training stage reports.

    Args:
        moved: the figure that changes only if the model learned; see `moved_figure`.
        more: further keys.
    """
    return {
        "schema_version": 1,
        "stage": stage,
        "run": folder.as_posix(),
        "checkpoint": (folder / "checkpoints" / "ckpt_best").as_posix(),
        "steps": trained.steps,
        "tokens": trained.tokens,
        "seconds": round(trained.seconds, 2),
        "moved": moved_figure(trained, moved),
        "test": trained.test,
        "before": trained.before,
        "best": trained.best,
        "last": trained.last,
        **more,
    }


def moved_figure(trained: TrainResult, what: str) -> dict[str, Any]:
    """Return a figure before the first step and after training, in which nothing was chosen by it, so it can fall as well as rise.

    These are the test figures of the best checkpoint. Without test records they are val's of the last checkpoint: val has chosen the best.
    """
    if (test := trained.test) and test["best"]:
        before, best = test["before"] or {"figures": {}}, test["best"]
        count = best["counts"].get(what)
        found = {"from": before["figures"].get(what), "to": best["figures"].get(what)}
        return {"what": what, **found, "split": "test", "step": best["step"], "count": count}
    found = {"from": trained.before.get(what), "to": trained.last.get(what)}
    return {"what": what, **found, "split": "val", "step": trained.steps, "count": None}
