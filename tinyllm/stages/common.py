"""What the training stages share: how they begin, evaluate, load a parent, write themselves down and report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tinyllm import __version__, dist
from tinyllm.data.batches import Source
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.mean import Mean
from tinyllm.model import hub, lora, tensors
from tinyllm.model.config import LoRAConfig
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer
from tinyllm.stages.call import Call
from tinyllm.stages.config import StageConfig, TunedConfig
from tinyllm.stages.fit import Fitted
from tinyllm.stages.parents import Parent, find
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint
from tinyllm.train.engine import Engine, choose_device, detached, pool_over_ranks
from tinyllm.train.progress import say


def begin(config: StageConfig) -> torch.device:
    """Choose the device and join the other ranks."""
    device = choose_device(config.device)
    dist.start(device)
    if device.type == "cpu" and dist.local_world_size() > dist.cores():
        say(
            f"warning: {dist.local_world_size()} ranks take turns on {dist.cores()} cores; --nproc {dist.cores()} is faster"
        )
    dist.agree({"tinyllm": __version__, "torch": str(torch.__version__), **config.model_dump(mode="json")})
    torch.manual_seed(config.seed)
    return device


# --- batches ---------------------------------------------------------------------------------------------------------------------


def source_of(dataset: Any, config: TunedConfig) -> Source:
    batch, micro = config.train.batch_size, config.train.micro_batch_size
    return Source(dataset, batch, micro, seed=config.seed, rank=dist.rank(), world_size=dist.world_size())


def held_out(source: Source, config: TunedConfig) -> Callable[[Engine], dict[str, float]]:
    """An `evaluate` for `fit`: the loss and its metrics over the validation records, pooled over batches and ranks."""

    def evaluate(engine: Engine) -> dict[str, float]:
        return {name: mean.value for name, mean in pooled_loss(engine, source, config.train.eval_rows).items()}

    return evaluate


def pooled_loss(engine: Engine, source: Source, rows: int) -> dict[str, Mean]:
    """The engine's loss over the first `rows` records of `source`, over all ranks. A rank without a record still takes part."""
    pooled: dict[str, Mean] = {}
    batches = list(source.passes(rows))
    idle = not batches
    for batch in batches or source.spare():
        with engine.autocast():
            loss, metrics = engine.loss(engine.model, batch.to(engine.device))
        for name, mean in {"loss": loss, **metrics}.items():
            mean = Mean(detached(mean).total * (not idle), detached(mean).count * (not idle))
            pooled[name] = pooled[name] + mean if name in pooled else mean
    return pool_over_ranks(pooled, engine.device)


# --- models ----------------------------------------------------------------------------------------------------------------------


def load_policy(
    stage: str, config: TunedConfig, call: Call, device: torch.device
) -> tuple[CausalLM, Tokenizer, Parent]:
    """The checkpoint to start from, adapted if the configuration says so."""
    parent = find(stage, config.parent, fast=call.fast)
    say(f"starting from {parent.folder}")
    model = hub.load_causal_lm(parent.folder, device)
    tokenizer = tokenizer_of(model, parent.folder)
    parent.unchanged()
    if config.data.max_length > model.config.max_position_embeddings:
        raise UserError(
            f"data.max_length {config.data.max_length} is more than the model's {model.config.max_position_embeddings} positions",
            where="data.max_length",
            fix=f"set it to {model.config.max_position_embeddings}",
        )
    if config.lora is not None:
        lora.attach(model, config.lora, seed=config.seed)
    return model, tokenizer, parent


def tokenizer_of(model: CausalLM, folder: Path) -> Tokenizer:
    """The tokenizer beside a model; refused where it has ids that the model has no embedding for."""
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}",
            where=str(folder),
            fix="use the model's own",
        )
    return tokenizer


class Files:
    """Writes a model into a checkpoint directory, and reads it back when a run goes on.

    A policy is written as a complete model or, adapted, as a PEFT adapter; a critic goes to `trainer/`, since nobody opens it elsewhere.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, *, adapter: LoRAConfig | None = None, base: str = ""):
        self.model = model.policy if isinstance(model, ActorCritic) else model
        self.critic = model.critic if isinstance(model, ActorCritic) else None
        self.tokenizer, self.adapter, self.base = tokenizer, adapter, base
        self.base_sha256 = tensors.sha256(Path(base)) if adapter and Path(base).is_dir() else ""

    def write(self, folder: Path) -> None:
        tokenizer = self.tokenizer
        tokenizer.save(folder, model_max_length=self.model.config.max_position_embeddings)
        if self.adapter is not None:
            lora.save(self.model, self.adapter, folder, self.base, base_sha256=self.base_sha256)
        else:
            hub.save(self.model, folder, bos=tokenizer.bos, stop=tokenizer.stop_ids, pad=tokenizer.pad)
        if self.critic is not None:
            (folder / "trainer").mkdir(exist_ok=True)
            save_file(hub.tensors_of(self.critic), folder / "trainer" / "critic.safetensors")

    def restore(self, folder: Path) -> None:
        """Put the weights of a checkpoint back, all of them. UserError (INTEGRITY) where it is one of another model or vocabulary."""
        there = Tokenizer.load(folder).sha256
        if there != self.tokenizer.sha256:
            raise UserError(
                f"a checkpoint with another vocabulary: sha256 {there[:12]}, this run's {self.tokenizer.sha256[:12]}",
                where=str(folder / "tokenizer.json"),
                fix=hub.START_OVER,
                code=INTEGRITY,
            )
        if self.adapter is not None:
            self._refuse_other_base(folder)
            lora.restore(self.model, self.adapter, folder)
        else:
            hub.restore(self.model, folder)
        if self.critic is not None:
            path = folder / "trainer" / "critic.safetensors"
            tensors.fill(self.critic, tensors.read([path]), self.critic.state_dict(), path)

    def _refuse_other_base(self, folder: Path) -> None:
        there = tensors.note(folder / lora.WEIGHTS, lora.BASE_SHA256)
        self.base_sha256 = self.base_sha256 or there
        if there and there != self.base_sha256:
            raise lora.other_base(folder, self.base, there, self.base_sha256, hub.START_OVER)


def base_of(model: CausalLM, tokenizer: Tokenizer, parent: Parent, folder: Path) -> str:
    """The path an adapter names as its base. If the parent is itself an adapter, the model it was merged into is written down first."""
    if not (parent.folder / "adapter_config.json").is_file():
        return parent.folder.as_posix()
    there = dist.broadcast_text(next((p.as_posix() for p in checkpoint.steps(folder / "base")), ""))

    def write(draft: Path) -> None:
        if dist.is_main():
            Files(model, tokenizer).write(draft)

    return there or checkpoint.save(folder / "base", 0, write).as_posix()


def facts_of(
    model: nn.Module, tokenizer: Tokenizer, sources: Iterable[Mapping[str, Any]], seed: int, parent: Parent | None
) -> dict[str, Any]:
    """What run.json records about where a run came from."""
    parameters = {id(p): p for p in model.parameters()}.values()
    return {
        "parent": parent.facts() if parent else None,
        "data": list(sources),
        "tokenizer_sha256": tokenizer.sha256,
        "seed": seed,
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }


def result(stage: str, fitted: Fitted, folder: Path, moved: str, **more: Any) -> dict[str, Any]:
    """What a stage reports: where it wrote, and the figure that only learning moves, before and after (at the best checkpoint)."""
    return {
        "schema_version": 1,
        "stage": stage,
        "run": folder.as_posix(),
        "checkpoint": (folder / "checkpoints" / "ckpt_best").as_posix(),
        "steps": fitted.steps,
        "tokens": fitted.tokens,
        "seconds": round(fitted.seconds, 2),
        "moved": {"what": moved, "from": fitted.before[moved], "to": fitted.best[moved]},
        "before": fitted.before,
        "best": fitted.best,
        "last": fitted.last,
        **more,
    }


def scorer_for(
    tokenizer: Tokenizer, given: Path | None, device: torch.device, *, fast: bool
) -> tuple[SequenceScorer, Parent]:
    """The reward model; refused where it reads other tokens than the policy writes."""
    parent = find("reward model", given, fast=fast)
    if Tokenizer.load(parent.folder).sha256 != tokenizer.sha256:
        raise UserError(
            "the reward model was trained with another tokenizer than the policy",
            where=str(parent.folder),
            fix="train one from this policy's parent",
        )
    scorer = hub.load_scorer(parent.folder, device).eval().requires_grad_(False)
    parent.unchanged()
    return scorer, parent


def plain_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
