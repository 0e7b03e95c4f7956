"""`tinyllm pretrain`: train a model on raw text, from scratch or from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyllm import distributed as dist
from tinyllm.algorithms import next_token
from tinyllm.console import say
from tinyllm.data import validation
from tinyllm.data.datasets.datasets import PretrainDataset
from tinyllm.data.datasets.packing import PackedPretrainDataset
from tinyllm.data.splits import Split, check_disjoint
from tinyllm.data.tokens.documents import document_hash
from tinyllm.data.tokens.shards import Shards
from tinyllm.mean import Mean
from tinyllm.model.transformer import CausalLM, initialise
from tinyllm.stages import data
from tinyllm.stages.checkpoint_files import CheckpointFiles
from tinyllm.stages.common import load_language_model, make_source, run_facts, save_dtype, set_up, stage_result
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.continued import with_checkpoint
from tinyllm.stages.documents import held_out_documents
from tinyllm.stages.held_out import NO_TEST, rows_of_test, score_documents
from tinyllm.stages.origin import read_origin
from tinyllm.stages.parents import PRETRAIN, RUNS, Parent, find_checkpoint
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint, resuming
from tinyllm.train.engine import Engine
from tinyllm.train.job import Job
from tinyllm.train.run import Invocation, read_facts
from tinyllm.train.trainer import Trainer


def run(config: PretrainConfig, invocation: Invocation) -> dict[str, Any]:
    """Prepare the data unless it is there, train, and return the stage's result."""
    device, config = set_up(config), with_checkpoint(config)
    folder = RUNS / PRETRAIN / config.name
    invocation.lock_existing(folder)
    kept = _kept_tokenizer(config, folder, invocation)
    own = {"tokenizer": kept} if kept else {}
    tokenizer, shards = data.ensure_prepared(config.model_copy(update=own), replace=invocation.fast)
    rows, facts = _rows(shards, tokenizer, config)
    model, parent = (
        _continued_model(config, tokenizer, device) if config.parent else _fresh_model(config, tokenizer, device)
    )
    say(f"{model.config.parameters():,} parameters, {shards.manifest.train.tokens:,} tokens, on {device}")
    limits = {"val": config.train.eval_rows, "test": rows_of_test(config.train, fast=invocation.fast)}
    documents = {part: held_out_documents(config, shards, tokenizer, part, limit) for part, limit in limits.items()}
    if not documents["test"]:
        say(f"note: {NO_TEST}")
    job = Job(
        title="pretrain",
        model=model,
        files=CheckpointFiles(model, tokenizer, stage="pretrain", dtype=save_dtype(config.train, parent)),
        loss=partial(next_token.loss, next_token.Settings()),
        source=make_source(rows, config),
        evaluate=_score(documents["val"], tokenizer, config),
        train=config.train,
        optim=config.optim,
        seed=config.seed,
        test=_score(documents["test"], tokenizer, config) if documents["test"] else None,
        test_records=len(documents["test"]),
    )
    split_facts = _split_facts(shards, documents, named=bool(config.data.test))
    found = Split([], [], [], [facts | _made_from(config, kept)], split_facts)
    run = invocation.open(folder, run_facts(model, tokenizer, found, config.seed, parent))
    trained = Trainer(run, job).train()
    return stage_result("pretrain", trained, folder, "bits_per_byte", parameters=model.config.parameters())


def _made_from(config: PretrainConfig, kept: Path | None) -> dict[str, Any]:
    """Return what `_kept_tokenizer` compares when the run is resumed."""
    return {"sources": data.fingerprint(config), "tokenizer": kept and kept.as_posix()}


def _fresh_model(config: PretrainConfig, tokenizer: Tokenizer, device: torch.device) -> tuple[CausalLM, None]:
    """Return an initialized model with an embedding for every token of the tokenizer."""
    model = CausalLM(config.model.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    initialise(model, config.seed)
    model.to(device)
    freeze_unseen_tokens(model, _control_tokens(tokenizer))
    return model, None


def _continued_model(config: PretrainConfig, tokenizer: Tokenizer, device: torch.device) -> tuple[CausalLM, Parent]:
    """Return the model of the checkpoint. Raises: UserError (USAGE) if its tokenizer is not that of the data."""
    parent = find_checkpoint("pretrain", config.parent, fast=False, base=config.base)
    say(f"continuing from {parent.folder}, with a new optimizer and schedule")
    kind = read_origin(parent.folder).kind
    model, own = load_language_model(parent, device)
    if own.sha256 != tokenizer.sha256:
        raise data.other_tokenizer(RUNS / "data", parent.folder)
    if kind == "chat" and own.chat_template is not None:
        say("warning: the checkpoint is a chat model; after training on plain text it is saved as a base model")
    freeze_unseen_tokens(model, _control_tokens(tokenizer), new=False)
    return model, parent


def _control_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that raw text never contains."""
    tokens = (tokenizer.im_start, tokenizer.im_end, tokenizer.pad)
    return [i for i in tokens if i not in (None, tokenizer.endoftext)]  # padding may be the token that ends documents


def _rows(
    shards: Shards, tokenizer: Tokenizer, config: PretrainConfig
) -> tuple[PretrainDataset | PackedPretrainDataset, dict[str, Any]]:
    """Return the rows to train on, and what run.json records about them beyond their fingerprint."""
    counts = (shards.manifest.train.documents, shards.manifest.val.documents)
    validation.report_findings(validation.check_splits(*counts, 0, data=config.data, what="documents"))
    rows, mixture = (_packed(shards, tokenizer, config), []) if config.packing else _windows(shards, config)
    what = f"rows of {config.data.max_length} tokens"
    facts = {"shards": shards.path.as_posix(), "fingerprint": shards.manifest.fingerprint}
    validation.report_findings(validation.check_batch_size(len(rows), config.train.batch_size, what))
    return rows, facts | ({"mixture": mixture} if mixture else {})


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
    Raises: UserError (USAGE) if they, or settings, have changed since the run began and that is not allowed.
    """
    checkpoints = checkpoint.steps(folder / "checkpoints")
    if not (invocation.resume and checkpoints) or invocation.fast:
        return None
    facts = read_facts(folder)
    resuming.refuse_unknown_origin(folder, facts, invocation.allow_data_change)
    resuming.changed_settings(folder, invocation.yaml, facts, invocation.change)  # other settings are not changed data
    recorded = facts.get("data")
    before = recorded[0] if isinstance(recorded, list) and recorded and isinstance(recorded[0], dict) else {}
    if before.get("sources") == data.fingerprint(config):
        return Path(before["tokenizer"]) if before.get("tokenizer") else None
    if not invocation.allow_data_change:
        raise resuming.data_changed(folder, [before.get("shards")])
    kept = folder / "tokenizer"
    if dist.is_main():
        Tokenizer.load(checkpoints[-1]).save(kept, model_max_length=config.model.max_position_embeddings)
    dist.barrier()
    return kept


def freeze_unseen_tokens(model: CausalLM, ids: Sequence[int], *, new: bool = True) -> None:
    """Freeze the embeddings of tokens that raw text never contains (chat's control tokens); new ones at the length of ordinary ones.

    Otherwise the softmax, which sees them only as wrong answers, drives them to where no adapter can bring them back: LoRA on such a base
    never learns to stop. Full fine-tuning can still move them.
    """
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    rows = torch.tensor(ids, dtype=torch.long, device=head.device)
    for weight in [embedding] if head is embedding else [embedding, head]:
        if new:
            with torch.no_grad():
                weight[rows] *= 1 / (0.02 * math.sqrt(model.config.hidden_size))  # from a length of 0.02 sqrt(D) to one
        weight.register_hook(lambda gradient: gradient.index_fill(0, rows, 0.0))


def _split_facts(
    shards: Shards, documents: Mapping[str, Sequence[np.ndarray]], *, named: bool
) -> dict[str, dict[str, Any]]:
    """Return the entries of run.json: counts, and hashes of the held-out documents in use.

    Args:
        named: the user chose the documents of test, so one that is also in val is counted, and no fault of this program.

    Raises: RuntimeError if this program put a document into val and test.
    """
    hashes = {part: list(map(document_hash, some)) for part, some in documents.items()}
    if named:
        selecting = set(hashes["val"])
        shared = sum(one in selecting for one in hashes["test"])
        validation.report_findings(validation.check_same_documents(shared, len(hashes["test"])))
        found = {part: check_disjoint({part: some})[part] for part, some in hashes.items()}
    else:
        found = check_disjoint(hashes)
    facts = {part: {"documents": len(some), **found[part]} for part, some in documents.items()}
    return {
        "train": {"documents": shards.manifest.train.documents, "fingerprint": shards.manifest.fingerprint},
        **facts,
    }


def _score(
    documents: Sequence[np.ndarray], tokenizer: Tokenizer, config: PretrainConfig
) -> Callable[[Engine], dict[str, Mean | float]]:
    rows = config.train.micro_batch_size
    return lambda engine: score_documents(engine, documents, tokenizer, config.data.max_length, rows)
