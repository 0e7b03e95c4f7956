"""`tinyllm pretrain`: train a model from scratch on raw text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinyllm import distributed as dist
from tinyllm.algorithms import next_token
from tinyllm.console import say
from tinyllm.data import validation
from tinyllm.data.datasets.datasets import PretrainDataset
from tinyllm.data.datasets.packing import PackedPretrainDataset
from tinyllm.data.tokens.shards import Shards
from tinyllm.model.transformer import CausalLM, initialise
from tinyllm.stages import data
from tinyllm.stages.checkpoint_files import CheckpointFiles
from tinyllm.stages.common import make_source, run_facts, set_up, stage_result
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.held_out import score_documents
from tinyllm.stages.parents import PRETRAIN, RUNS
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint
from tinyllm.train.engine import Engine
from tinyllm.train.job import Job
from tinyllm.train.run import FAST_DEV_RUN, Invocation, data_changed, read_facts
from tinyllm.train.trainer import Trainer


def run(config: PretrainConfig, invocation: Invocation) -> dict[str, Any]:
    """Prepare the data unless it is there, train, and return the stage's result."""
    device = set_up(config)
    folder = RUNS / PRETRAIN / config.name
    kept = _kept_tokenizer(config, folder, invocation)
    tokenizer, shards = data.ensure_prepared(config.model_copy(update={"tokenizer": kept}) if kept else config)
    rows, facts = _rows(shards, tokenizer, config)
    model = _fresh_model(config, tokenizer, device)
    say(f"{model.config.parameters():,} parameters, {shards.manifest.train.tokens:,} tokens, on {device}")
    sources = {
        "shards": shards.path.as_posix(),
        "fingerprint": shards.manifest.fingerprint,
        "sources": data.fingerprint(config),
        "tokenizer": kept and kept.as_posix(),
        **facts,
    }
    job = Job(
        title="pretrain",
        model=model,
        files=CheckpointFiles(model, tokenizer, stage="pretrain"),
        loss=partial(next_token.loss, next_token.Settings()),
        source=make_source(rows, config),
        evaluate=_evaluate(shards, tokenizer, config),
        train=config.train,
        optim=config.optim,
        seed=config.seed,
    )
    run = invocation.open(folder, run_facts(model, tokenizer, [sources], config.seed, None))
    trained = Trainer(run, job).train()
    return stage_result("pretrain", trained, folder, "bits_per_byte", parameters=model.config.parameters())


def _fresh_model(config: PretrainConfig, tokenizer: Tokenizer, device: torch.device) -> CausalLM:
    """Return an initialized model with an embedding for every token of the tokenizer."""
    model = CausalLM(config.model.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    initialise(model, config.seed)
    model.to(device)
    freeze_unseen_tokens(model, [i for i in (tokenizer.im_start, tokenizer.im_end, tokenizer.pad) if i is not None])
    return model


def _rows(
    shards: Shards, tokenizer: Tokenizer, config: PretrainConfig
) -> tuple[PretrainDataset | PackedPretrainDataset, dict[str, Any]]:
    """Return the rows to train on, and what run.json records about them beyond their fingerprint."""
    counts = (shards.manifest.train.documents, shards.manifest.val.documents)
    validation.report_findings(validation.check_splits(*counts, 0, data=config.data, what="documents"))
    rows, mixture = (_packed(shards, tokenizer, config), []) if config.packing else _windows(shards, config)
    what = f"rows of {config.data.max_length} tokens"
    validation.report_findings(validation.check_batch_size(len(rows), config.train.batch_size, what))
    return rows, {"mixture": mixture} if mixture else {}


def _packed(shards: Shards, tokenizer: Tokenizer, config: PretrainConfig) -> PackedPretrainDataset:
    """Return rows of whole documents, and report how much padding packing saves."""
    rows = PackedPretrainDataset(
        shards.train, config.data.max_length, end=shards.manifest.endoftext, pad=tokenizer.padding_id
    )
    packed, alone = rows.padding()
    say(
        f"packed {rows.documents:,} documents into {len(rows):,} rows: {packed:.1%} padding, "
        f"with one document per row it would be {alone:.1%}"
    )
    return rows


def _windows(shards: Shards, config: PretrainConfig) -> tuple[PretrainDataset, list[dict[str, Any]]]:
    """Return rows of the token stream, mixed by `data.weights`, and the share and number of epochs of each source."""
    length, weights, train = config.data.max_length, config.data.weights, config.train
    if not weights:
        return PretrainDataset(shards.train, length, seed=config.seed), []
    sizes = {origin.source: origin.tokens for origin in shards.manifest.train.sources}
    windows = PretrainDataset(shards.train, length, seed=config.seed, sources=sizes, weights=weights)
    epochs = windows.mixture.epochs(train.steps * train.batch_size)
    mixture = [
        {"source": source, "tokens": sizes[source], "share": round(share, 6), "epochs": round(count, 4)}
        for source, share, count in zip(sizes, windows.mixture.shares().tolist(), epochs.tolist(), strict=True)
    ]
    for row in mixture:
        say(f"{row['source']}: {row['share']:.1%} of training, {row['tokens']:,} tokens, {row['epochs']:.2f} epochs")
    return windows, mixture


def _kept_tokenizer(config: PretrainConfig, folder: Path, invocation: Invocation) -> Path | None:
    """Return the tokenizer that a resumed run keeps although its data have changed; None if they have not, or nothing is resumed.

    Asked before the data are prepared, which are made again if their sources have changed.
    Raises: UserError (USAGE) if they have changed since the run began and that is not allowed.
    """
    earlier, checkpoints = read_facts(folder), checkpoint.steps(folder / "checkpoints")
    if not (invocation.resume and checkpoints and earlier.get("data")) or folder.name == FAST_DEV_RUN:
        return None
    before = earlier["data"][0]
    if before.get("sources") == data.fingerprint(config):
        return Path(before["tokenizer"]) if before.get("tokenizer") else None
    if not invocation.allow_data_change:
        raise data_changed(folder, [before.get("shards")])
    kept = folder / "tokenizer"
    if dist.is_main():
        Tokenizer.load(checkpoints[-1]).save(kept, model_max_length=config.model.max_position_embeddings)
    dist.barrier()
    return kept


def freeze_unseen_tokens(model: CausalLM, ids: Sequence[int]) -> None:
    """Freeze the embeddings of tokens that raw text never contains (chat's control tokens), at the length of ordinary ones.

    Otherwise the softmax, which sees them only as wrong answers, drives them to where no adapter can bring them back: LoRA on such a base
    never learns to stop. Full fine-tuning can still move them.
    """
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    rows = torch.tensor(ids, dtype=torch.long, device=head.device)
    for weight in [embedding] if head is embedding else [embedding, head]:
        with torch.no_grad():
            weight[rows] *= 1 / (0.02 * math.sqrt(model.config.hidden_size))  # from a length of 0.02 sqrt(D) to one
        weight.register_hook(lambda gradient: gradient.index_fill(0, rows, 0.0))


def _evaluate(shards: Shards, tokenizer: Tokenizer, config: PretrainConfig) -> Callable[[Engine], dict[str, float]]:
    documents = shards.documents("val", config.train.eval_rows)
    rows = config.train.micro_batch_size
    return lambda engine: score_documents(engine, documents, tokenizer, config.data.max_length, rows)
