"""`tinyllm eval`: how well a checkpoint predicts held-out text: perplexity and bits per byte, every token counted once."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

from tinyllm import dist
from tinyllm.algorithms import next_token
from tinyllm.data import records, world
from tinyllm.errors import UserError
from tinyllm.model import hub
from tinyllm.stages.common import Call, begin, is_world
from tinyllm.stages.config import EvalConfig
from tinyllm.stages.parents import find
from tinyllm.stages.pretrain import text_figures
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine
from tinyllm.train.progress import say


def run(config: EvalConfig, call: Call) -> dict[str, Any]:
    started = time.monotonic()
    device = begin(config)
    parent = find("eval", config.parent, fast=call.fast)
    model, tokenizer = hub.load_causal_lm(parent.folder, device), Tokenizer.load(parent.folder)
    # evaluation is always in float32: what is compared across machines must not depend on their arithmetic
    engine = Engine(
        model, partial(next_token.loss, next_token.Settings()), OptimConfig(), 1, precision="fp32", seed=config.seed
    )
    model.eval()
    ids = [[*d, tokenizer.endoftext] for d in tokenizer.encode_batch(_texts(config))]
    context = min(config.data.max_length, model.config.max_position_embeddings)
    figures = text_figures(engine, ids, tokenizer, context, config.batch_size)
    uniform = figures["tokens"] * math.log2(model.config.vocab_size) / figures["bytes"]
    dist.barrier()
    return {
        "schema_version": 1,
        "stage": "eval",
        "checkpoint": parent.folder.as_posix(),
        "manifest_sha256": parent.sha256 or None,
        "seconds": round(time.monotonic() - started, 2),
        "documents": len(ids),
        "context": context,
        **figures,
        "moved": {"what": "bits per byte (from: knowing nothing)", "from": uniform, "to": figures["bits_per_byte"]},
    }


def _texts(config: EvalConfig) -> list[str]:
    data, found = config.data, []
    sources = data.val or data.train
    for source in sources:
        if is_world(source):
            count = int(source.partition(":")[2] or config.rows)
            found += [row["text"] for row in world.documents(count, seed=config.seed, split="val")]
        else:
            reader = records.read(
                [source], "documents", format=data.format, field=data.field, on_bad_line=data.on_bad_line
            )
            found += [record.text for record in reader]
            for line in reader.report.lines():
                say(line)
    if not found:
        raise UserError("no documents to evaluate on", where="data.val", fix="name a file: --set data.val=[file.txt]")
    return found[: config.rows]
