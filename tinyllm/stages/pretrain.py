"""`tinyllm pretrain`: a model from raw text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyllm import dist
from tinyllm.algorithms import next_token
from tinyllm.data.batches import Source
from tinyllm.data.datasets import Answers, Windows, scored_documents
from tinyllm.data.packing import PackedDocuments
from tinyllm.data.shards import Shards
from tinyllm.model.transformer import CausalLM, initialise
from tinyllm.stages import data, preflight
from tinyllm.stages.common import Call, Files, begin, facts_of, pooled_loss, result
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.fit import Fit, Job
from tinyllm.stages.parents import PRETRAIN, RUNS
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint
from tinyllm.train.engine import Engine
from tinyllm.train.progress import say
from tinyllm.train.run import FAST_DEV_RUN, data_changed, read_facts


def run(config: PretrainConfig, call: Call) -> dict[str, Any]:
    device = begin(config)
    folder = RUNS / PRETRAIN / config.name
    kept = _kept_tokenizer(config, folder, call)
    tokenizer, shards = data.ensure(config.model_copy(update={"tokenizer": kept}) if kept else config)
    documents = (shards.manifest.train.documents, shards.manifest.val.documents)
    preflight.settle(preflight.sides(*documents, 0, data=config.data, what="documents"))
    shape = config.model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    model = CausalLM(shape)
    initialise(model, config.seed)
    model.to(device)
    keep_unseen(model, [i for i in (tokenizer.im_start, tokenizer.im_end, tokenizer.pad) if i is not None])
    say(f"{shape.parameters():,} parameters, {shards.manifest.train.tokens:,} tokens, on {device}")

    train = config.train
    rows, shares = _packed(shards, tokenizer, config) if config.packing else _windows(shards, config)
    preflight.settle(preflight.batch(len(rows), train.batch_size, f"rows of {config.data.max_length} tokens"))
    source = Source(
        rows,
        train.batch_size,
        train.micro_batch_size,
        seed=config.seed,
        rank=dist.rank(),
        world_size=dist.world_size(),
    )
    facts = facts_of(
        model,
        tokenizer,
        [
            {"shards": shards.path.as_posix(), "fingerprint": shards.manifest.fingerprint}
            | {"sources": data.fingerprint(config), "tokenizer": kept and kept.as_posix()}
            | ({"mixture": shares} if shares else {})
        ],
        config.seed,
        None,
    )
    files = Files(model, tokenizer)
    job = Job(
        title="pretrain",
        model=model,
        loss=partial(next_token.loss, next_token.Settings()),
        source=source,
        evaluate=_evaluate(shards, tokenizer, config),
        write=files.write,
        restore=files.restore,
        train=train,
        optim=config.optim,
        seed=config.seed,
    )
    fitted = Fit(call.open(folder, facts), job).go()
    return result("pretrain", fitted, folder, "bits_per_byte", parameters=shape.parameters())


def _packed(shards: Shards, tokenizer: Tokenizer, config: PretrainConfig) -> tuple[PackedDocuments, list[Any]]:
    """Rows of whole documents, and what packing them has saved."""
    pad = tokenizer.endoftext if tokenizer.pad is None else tokenizer.pad
    rows = PackedDocuments(shards.train, config.data.max_length, end=shards.manifest.endoftext, pad=pad)
    packed, alone = rows.padding()
    say(
        f"packed {rows.documents:,} documents into {len(rows):,} rows: {packed:.1%} of them is padding, "
        f"with one document a row it would be {alone:.1%}"
    )
    return rows, []


def _windows(shards: Shards, config: PretrainConfig) -> tuple[Windows, list[dict[str, Any]]]:
    """Rows of the training tokens, mixed by `data.weights`; and of each source its share and how often the run goes through it."""
    length, weights, train = config.data.max_length, config.data.weights, config.train
    if not weights:
        return Windows(shards.train, length, seed=config.seed), []
    sizes = {origin.source: origin.tokens for origin in shards.manifest.train.sources}
    windows = Windows(shards.train, length, seed=config.seed, sources=sizes, weights=weights)
    laps = windows.mixture.laps(train.steps * train.batch_size)
    found = [
        {"source": source, "tokens": sizes[source], "share": round(share, 6), "epochs": round(lap, 4)}
        for source, share, lap in zip(sizes, windows.mixture.shares().tolist(), laps.tolist(), strict=True)
    ]
    for row in found:
        say(
            f"{row['source']}: {row['share']:.1%} of training, {row['tokens']:,} tokens, {row['epochs']:.2f} times in all"
        )
    return windows, found


def _kept_tokenizer(config: PretrainConfig, folder: Path, call: Call) -> Path | None:
    """A run that goes on with changed data keeps its tokenizer: where it is to be found; None where nothing has changed.

    The data are made anew where their sources have changed, so this is asked before that.
    Raises: UserError where they have changed since the run began, and nobody has allowed it.
    """
    earlier, there = read_facts(folder), checkpoint.steps(folder / "checkpoints")
    if not (call.resume and there and earlier.get("data")) or folder.name == FAST_DEV_RUN:
        return None
    then = earlier["data"][0]
    if then.get("sources") == data.fingerprint(config):
        return Path(then["tokenizer"]) if then.get("tokenizer") else None
    if not call.allow_data_change:
        raise data_changed(folder, [then.get("shards")])
    kept = folder / "tokenizer"
    if dist.is_main():
        Tokenizer.load(there[-1]).save(kept, model_max_length=config.model.max_position_embeddings)
    dist.barrier()
    return kept


def keep_unseen(model: CausalLM, ids: Sequence[int]) -> None:
    """Give tokens that raw text never contains (chat's control tokens) an embedding of ordinary length, and leave it alone.

    Left in the softmax's hands, which only ever sees them as wrong, they end where no adapter can bring them back: LoRA on such a
    base never learns to stop. Full fine-tuning moves them as it likes.
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
    return lambda engine: text_figures(engine, documents, tokenizer, config.data.max_length, rows)


@torch.no_grad()
def text_figures(
    engine: Engine, documents: Iterable[Sequence[int]], tokenizer: Tokenizer, context: int, rows: int
) -> dict[str, float]:
    """How well documents (ids, each ending in end-of-text) are predicted: nats a token, perplexity, bits a byte.

    Every token counts once and alike, whatever document, batch or rank it is in. Bits per byte divides by the UTF-8 bytes of the text,
    so models with different vocabularies compare; the end of the document is paid for like everything else.
    """
    documents = [np.asarray(d, dtype=np.int64) for d in documents]
    begin = tokenizer.endoftext if tokenizer.bos is None else tokenizer.bos
    scored = sorted(scored_documents(documents, context, begin), key=lambda row: len(row[0]))
    source = Source(
        Answers(scored, tokenizer.endoftext),
        rows * dist.world_size(),
        rows,
        seed=0,
        rank=dist.rank(),
        world_size=dist.world_size(),
    )
    loss = pooled_loss(engine, source, len(scored))["loss"]
    lengths = tokenizer.byte_lengths()
    size = sum(int(lengths[d].sum()) for d in documents)
    return {
        "loss": loss.value,
        "perplexity": math.exp(min(loss.value, 700.0)),
        "bits_per_byte": loss.total / math.log(2) / size,
        "tokens": loss.count,
        "bytes": size,
    }
