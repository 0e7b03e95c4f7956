"""`tinyllm align-offline`: a policy from preference pairs without a reward model. Which loss: a file in `algorithms`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinyllm import algorithms, dist
from tinyllm.data.batches import Preferences
from tinyllm.model.transformer import CausalLM
from tinyllm.stages.common import (
    Call,
    Files,
    base_of,
    begin,
    facts_of,
    held_out,
    load_policy,
    preferences_from,
    read_split,
    result,
    source_of,
)
from tinyllm.stages.config import AlignOfflineConfig
from tinyllm.stages.fit import Fit, Job
from tinyllm.stages.parents import OFFLINE, RUNS
from tinyllm.train.engine import autocast, choose_precision
from tinyllm.train.progress import say
from tinyllm.train.run import Run


def run(config: AlignOfflineConfig, call: Call) -> dict[str, Any]:
    algorithm = algorithms.load(config.algorithm, "offline")
    device = begin(config)
    model, tokenizer, parent = load_policy("align-offline", config, call, device)
    train, val, sources = read_split(config.data, "pairs", config.seed)
    dataset = preferences_from(train, tokenizer, config.data.max_length, "train")
    held = preferences_from(val, tokenizer, config.data.max_length, "val")
    folder = RUNS / OFFLINE / f"{config.algorithm}-{config.name}"
    base = base_of(model, tokenizer, parent, folder) if config.lora else ""
    files = Files(model, tokenizer, adapter=config.lora, base=base)
    if algorithm.REFERENCE:
        # The reference is the model as loaded: scored once, before anything is trained, it need not be kept.
        say("scoring the pairs under the reference")
        with autocast(
            choose_precision(config.train.precision, device), device
        ):  # as in training, or the loss would not start at ln 2
            for pairs in (dataset, held):
                pairs.reference = reference_log_probs(model, pairs, config.train.micro_batch_size)
    job = Job(
        title=config.algorithm,
        model=model,
        loss=partial(algorithm.loss, getattr(config, config.algorithm)),
        source=source_of(dataset, config),
        evaluate=held_out(held, config),
        write=files.write,
        restore=files.restore,
        train=config.train,
        optim=config.optim,
        seed=config.seed,
    )
    facts = facts_of(model, tokenizer, sources, config.seed, parent) | {"algorithm": config.algorithm}
    fitted = Fit(Run(folder, call.yaml, facts, resume=call.resume), job).go()
    moved = "rewards/margins" if algorithm.REFERENCE else "rewards/accuracies"
    return result(config.algorithm, fitted, folder, moved, algorithm=config.algorithm)


@torch.no_grad()
def reference_log_probs(model: CausalLM, pairs: Preferences, rows: int) -> Tensor:
    """(N, 2): log-probability of every chosen and rejected answer under the model as it stands. Ranks share the work."""
    model.eval()
    device = model.lm_head.weight.device
    found = torch.zeros(len(pairs), 2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    mine = sorted(range(dist.rank(), len(pairs), dist.world_size()), key=pairs.length)
    for start in range(0, len(mine), rows):
        part = mine[start : start + rows]
        batch = pairs.collate(part, 0, part).to(device)
        scores = model.log_probs(batch.ids, batch.mask).log_probs.sum(1)
        found[part] = scores.view(2, -1).T.to(found.dtype)
    return dist.sum_(found).float().cpu()
