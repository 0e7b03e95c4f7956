"""What the training stages share: records into token rows, parents into policies, policies into files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tinyllm import dist
from tinyllm.data import records, shards, world
from tinyllm.data.batches import Answers, Preferences, Source, TokenPair
from tinyllm.errors import UserError
from tinyllm.mean import Mean
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer
from tinyllm.rollout.source import TokenPrompt
from tinyllm.stages.config import DataConfig, StageConfig, TunedConfig
from tinyllm.stages.fit import Fitted
from tinyllm.stages.parents import Parent, find
from tinyllm.text import chat
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.engine import Engine, choose_device, detached, pool_over_ranks
from tinyllm.train.progress import say

_WORLD_VAL = 256  # held-out records of the world that a stage looks at


@dataclass(frozen=True)
class Call:
    """How a stage was called, beside its configuration."""

    yaml: str  # the resolved configuration
    fast: bool = False
    resume: bool = True


def begin(config: StageConfig) -> torch.device:
    """Choose the device and join the other ranks."""
    device = choose_device(config.device)
    dist.start(device)
    torch.manual_seed(config.seed)
    return device


# --- records ---------------------------------------------------------------------------------------------------------------------


def is_world(source: str) -> bool:
    return source == "world" or source.startswith("world:")


def _from_world(kind: str, source: str, split: str, seed: int, options: Mapping[str, Any]) -> list[Any]:
    """`world:N` as records."""
    _, _, number = source.partition(":")
    if not number.isdecimal() or not int(number):
        raise UserError(f"{source!r} does not say how many records", where="data", fix="write for example world:20000")
    count, settings = int(number), {"seed": seed, "split": split, **options}
    if kind == "documents":
        return [records.Document(row["text"]) for row in world.documents(count, **settings)]
    if kind == "conversations":
        return [records.Conversation(tuple(row["messages"])) for row in world.conversations(count, **settings)]
    if kind == "pairs":
        found = world.pairs(count, **settings)
        return [records.Pair(tuple(row["prompt"]), tuple(row["chosen"]), tuple(row["rejected"])) for row in found]
    rows = world.prompts(count, **settings)
    return [records.Prompt(tuple(row["prompt"]), {k: v for k, v in row.items() if k != "prompt"}) for row in rows]


def read_split(
    data: DataConfig, kind: str, seed: int, **world_options: Any
) -> tuple[list[Any], list[Any], list[dict[str, Any]]]:
    """Training records, held-out records and what run.json says about the sources.

    Held-out records are `data.val`; without it the world holds out its own, and of files every record whose content hashes below
    `data.val_fraction` (at least one) is set aside, so equal records are never on both sides.
    """
    facts: list[dict[str, Any]] = []
    files = [s for s in data.train if not is_world(s)]
    train = [r for s in data.train if is_world(s) for r in _from_world(kind, s, "train", seed, world_options)]
    facts += [{"source": s, "seed": seed} for s in data.train if is_world(s)]
    val = [r for s in data.val if is_world(s) for r in _from_world(kind, s, "val", seed, world_options)]
    from_files = _read_files(files, kind, data, facts)
    val += _read_files([s for s in data.val if not is_world(s)], kind, data, facts)
    if not data.val:
        if train:
            val += _from_world(
                kind, f"world:{_WORLD_VAL}", "val", seed, {k: v for k, v in world_options.items() if k == "task"}
            )
        places = ["val" if shards.place_of(repr(r).encode()) < data.val_fraction else "train" for r in from_files]
        if from_files and len(from_files) > 1 and "val" not in places:
            places[-1] = "val"
        val += [r for r, place in zip(from_files, places, strict=True) if place == "val"]
        from_files = [r for r, place in zip(from_files, places, strict=True) if place == "train"]
    train += from_files
    if not train or not val:
        raise UserError(
            f"{len(train)} records to train on and {len(val)} to validate with",
            where="data",
            fix="name more records in data.train",
        )
    return train, val, facts


def _read_files(sources: Sequence[str], kind: str, data: DataConfig, facts: list[dict[str, Any]]) -> list[Any]:
    if not sources:
        return []
    reader = records.read(list(sources), kind, format=data.format, field=data.field, on_bad_line=data.on_bad_line)
    found = list(reader)
    for line in reader.report.lines():
        say(line)
    facts += reader.report.sources()
    return found


def answers_from(conversations: Sequence[Any], tokenizer: Tokenizer, max_length: int, what: str) -> Answers:
    """Conversations as rows; those cut off are counted aloud, those with nothing left to learn are dropped."""
    rendered = chat.render_many(tokenizer, [c.messages for c in conversations])
    rows = [(r.ids[:max_length], r.mask[:max_length]) for r in rendered]
    cut = sum(len(r.ids) > max_length for r in rendered)
    kept = [(ids, mask) for ids, mask in rows if any(mask[1:])]
    _tell(what, len(rows), cut, len(rows) - len(kept), max_length)
    return Answers(kept, _pad(tokenizer))


def preferences_from(pairs: Sequence[Any], tokenizer: Tokenizer, max_length: int, what: str) -> Preferences:
    """Pairs as token ids. Too long a prompt loses its beginning, too long an answer its end; equal answers teach nothing and go."""
    cut, kept = 0, []
    for pair in pairs:
        prompt, chosen = chat.completion_ids(tokenizer, pair.prompt, pair.chosen)
        _, rejected = chat.completion_ids(tokenizer, pair.prompt, pair.rejected)
        longest = max(len(chosen), len(rejected))
        if len(prompt) + longest > max_length:
            cut += 1
            prompt = prompt[-max(max_length // 2, max_length - longest) :]
            chosen, rejected = chosen[: max_length - len(prompt)], rejected[: max_length - len(prompt)]
        if chosen != rejected:
            kept.append(TokenPair(prompt, chosen, rejected, pair.margin or 0.0))
    _tell(what, len(pairs), cut, len(pairs) - len(kept), max_length)
    return Preferences(kept, _pad(tokenizer))


def prompts_from(prompts: Sequence[Any], tokenizer: Tokenizer, max_length: int, what: str) -> list[TokenPrompt]:
    """Prompts up to the assistant's header; those that leave no room in the context are dropped, and counted."""
    rendered = chat.render_many(tokenizer, [p.messages for p in prompts], generation_prompt=True)
    kept = [
        TokenPrompt(r.ids, {"prompt": list(p.messages), **p.columns})
        for r, p in zip(rendered, prompts, strict=True)
        if len(r.ids) <= max_length
    ]
    _tell(what, len(prompts), 0, len(prompts) - len(kept), max_length)
    return kept


def _tell(what: str, total: int, cut: int, dropped: int, max_length: int) -> None:
    if total == dropped:
        raise UserError(
            f"none of {total} {what} records can be learned from at {max_length} tokens",
            where="data.max_length",
            fix="raise data.max_length",
        )
    parts = [f"{cut} cut to {max_length} tokens"] * bool(cut) + [f"{dropped} dropped"] * bool(dropped)
    say(f"{what}: {total - dropped:,} records" + (f" ({', '.join(parts)})" if parts else ""))


def _pad(tokenizer: Tokenizer) -> int:
    return tokenizer.endoftext if tokenizer.pad is None else tokenizer.pad


# --- batches ---------------------------------------------------------------------------------------------------------------------


def source_of(dataset: Any, config: TunedConfig) -> Source:
    batch, micro = config.train.batch_size, config.train.micro_batch_size
    return Source(dataset, batch, micro, seed=config.seed, rank=dist.rank(), world_size=dist.world_size())


def held_out(dataset: Any, config: TunedConfig) -> Callable[[Engine], dict[str, float]]:
    """An `evaluate` for `fit`: the loss and its metrics over the validation records, pooled over batches and ranks."""
    source = source_of(dataset, config)

    def evaluate(engine: Engine) -> dict[str, float]:
        return {name: mean.value for name, mean in pooled_loss(engine, source, config.train.eval_rows).items()}

    return evaluate


def pooled_loss(engine: Engine, source: Source, rows: int) -> dict[str, Mean]:
    """The engine's loss over the first `rows` records of `source`, over all ranks. A rank without a record still takes part."""
    pooled: dict[str, Mean] = {}
    batches = list(source.passes(rows)) or list(source.passes(1 + dist.rank()))[:1]
    idle = dist.rank() >= min(rows, len(source.dataset))
    for batch in batches:
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
    tokenizer = Tokenizer.load(parent.folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}",
            where=str(parent.folder),
            fix="use the model's own",
        )
    if config.data.max_length > model.config.max_position_embeddings:
        raise UserError(
            f"data.max_length {config.data.max_length} is more than the model's {model.config.max_position_embeddings} positions",
            where="data.max_length",
            fix=f"set it to {model.config.max_position_embeddings}",
        )
    if config.lora is not None:
        lora.attach(model, config.lora, seed=config.seed)
    return model, tokenizer, parent


class Files:
    """Writes a model into a checkpoint directory, and reads it back when a run goes on.

    A policy is written as a complete model or, adapted, as a PEFT adapter; a critic goes to `trainer/`, since nobody opens it elsewhere.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, *, adapter: LoRAConfig | None = None, base: str = ""):
        self.model = model.policy if isinstance(model, ActorCritic) else model
        self.critic = model.critic if isinstance(model, ActorCritic) else None
        self.tokenizer, self.adapter, self.base = tokenizer, adapter, base

    def write(self, folder: Path) -> None:
        tokenizer = self.tokenizer
        tokenizer.save(folder, model_max_length=self.model.config.max_position_embeddings)
        if self.adapter is not None:
            lora.save(self.model, self.adapter, folder, self.base)
        else:
            hub.save(self.model, folder, bos=tokenizer.bos, stop=tokenizer.stop_ids, pad=tokenizer.pad)
        if self.critic is not None:
            (folder / "trainer").mkdir(exist_ok=True)
            save_file(hub.tensors_of(self.critic), folder / "trainer" / "critic.safetensors")

    def restore(self, folder: Path) -> None:
        if self.adapter is not None:
            found = load_file(folder / "adapter_model.safetensors")
            found = {k.removeprefix("base_model.model."): v for k, v in found.items()}
        else:
            found = load_file(folder / "model.safetensors")
        self.model.load_state_dict(found, strict=False)
        if self.critic is not None:
            self.critic.load_state_dict(load_file(folder / "trainer" / "critic.safetensors"))


def base_of(model: CausalLM, tokenizer: Tokenizer, parent: Parent, folder: Path) -> str:
    """The path an adapter names as its base. If the parent is itself an adapter, the model it was merged into is written down first."""
    if not (parent.folder / "adapter_config.json").is_file():
        return parent.folder.as_posix()
    base = folder / "base"
    if dist.is_main() and not base.exists():
        base.mkdir(parents=True)
        hub.save(model, base, bos=tokenizer.bos, stop=tokenizer.stop_ids, pad=tokenizer.pad)
        tokenizer.save(base, model_max_length=model.config.max_position_embeddings)
    return base.as_posix()


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
    return hub.load_scorer(parent.folder, device).eval().requires_grad_(False), parent


def plain_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
