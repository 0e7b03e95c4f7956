"""`tinyllm align-offline`: a policy from preferences, without a reward model. Which loss: a file in `algorithms`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tinyllm import algorithms, dist
from tinyllm.data.batches import Source
from tinyllm.data.datasets import Judgements, Preferences
from tinyllm.model.transformer import CausalLM
from tinyllm.stages import preflight
from tinyllm.stages.common import Call, Files, base_of, begin, facts_of, held_out, load_policy, result, source_of
from tinyllm.stages.config import AlignOfflineConfig
from tinyllm.stages.fit import Fit, Job
from tinyllm.stages.parents import OFFLINE, RUNS
from tinyllm.stages.reading import judgements_from, preferences_from, read_split, room_of
from tinyllm.train.engine import autocast, choose_precision
from tinyllm.train.progress import say

_MAKE = {"pairs": preferences_from, "judgements": judgements_from}


def run(config: AlignOfflineConfig, call: Call) -> dict[str, Any]:
    algorithm = algorithms.load(config.algorithm, "offline")
    settings = getattr(config, config.algorithm)
    device = begin(config)
    model, tokenizer, parent = load_policy("align-offline", config, call, device)
    train, val, sources = read_split(config.data, algorithm.DATA, config.seed, noise=config.noise)
    room = room_of(config, model.config.max_position_embeddings)
    dataset, held = (
        _MAKE[algorithm.DATA](records, tokenizer, room, what) for records, what in ((train, "train"), (val, "val"))
    )
    preflight.settle(preflight.batch(len(dataset), config.train.batch_size, algorithm.DATA))
    folder = RUNS / OFFLINE / f"{config.algorithm}-{config.name}"
    facts = facts_of(model, tokenizer, sources, config.seed, parent) | {"algorithm": config.algorithm}
    run = call.open(folder, facts)
    base = base_of(model, tokenizer, parent, folder) if config.lora else ""
    files = Files(model, tokenizer, adapter=config.lora, base=base)
    precision = choose_precision(config.train.precision, device)
    forward = partial(autocast, precision, device)
    if algorithm.REFERENCE:
        # The reference is the model as loaded: scored once, before anything is trained, it need not be kept.
        say("scoring the answers under the reference")
        with forward():  # as in training, or the loss would not start at ln 2
            for scored in (dataset, held):
                scored.reference = reference_log_probs(model, scored, config.train.micro_batch_size)
    source, held_source = source_of(dataset, config), source_of(held, config)
    if "prepare" in vars(algorithm):
        ready = partial(algorithm.prepare, settings, model)
        source, held_source = (Prepared(s, ready, model, forward) for s in (source, held_source))
    job = Job(
        title=config.algorithm,
        model=model,
        loss=partial(algorithm.loss, settings),
        source=source,
        evaluate=held_out(held_source, config),
        write=files.write,
        restore=files.restore,
        train=config.train,
        optim=config.optim,
        seed=config.seed,
    )
    fitted = Fit(run, job).go()
    return result(config.algorithm, fitted, folder, "rewards/margins", algorithm=config.algorithm)


class Prepared:
    """A source whose batches the algorithm makes ready, a whole optimiser step at once, before any of them is trained on."""

    def __init__(
        self,
        source: Source,
        prepare: Callable[[Sequence[Any]], list[Any]],
        model: nn.Module,
        forward: Callable[[], AbstractContextManager],
    ):
        self.source, self.prepare, self.model, self.forward = source, prepare, model, forward
        self.metrics, self.dataset, self.spare = source.metrics, source.dataset, source.spare
        self.describe, self.state, self.restore = source.describe, source.state, source.restore

    def __call__(self, step: int) -> list[Any]:
        return self._ready(self.source(step))

    def largest(self) -> Any:
        return self._ready([self.source.largest()])[0]

    def passes(self, limit: int) -> Iterator[Any]:
        yield from self._ready(list(self.source.passes(limit)))

    @torch.no_grad()
    def _ready(self, batches: list[Any]) -> list[Any]:
        self.model.eval()  # no dropout; the engine switches it on again
        device = self.model.lm_head.weight.device
        with self.forward():
            return self.prepare([batch.to(device) for batch in batches])


@torch.no_grad()
def reference_log_probs(model: CausalLM, pairs: Preferences | Judgements, rows: int) -> Tensor:
    """(N, 2): log-probability of both answers of every record under the model as it stands. Ranks share the work."""
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
