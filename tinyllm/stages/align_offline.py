"""`tinyllm align-offline`: align a policy with preferences, without a reward model. The loss is a file in `algorithms`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinyllm import algorithms
from tinyllm import distributed as dist
from tinyllm.console import ProgressBar
from tinyllm.data import validation
from tinyllm.data.datasets.batches import Source
from tinyllm.data.datasets.datasets import PreferenceDataset, UnpairedDataset
from tinyllm.data.loading import length_limit, preference_dataset, unpaired_dataset
from tinyllm.data.records.formats import TITLES
from tinyllm.data.splits import read_split
from tinyllm.model.transformer import CausalLM
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
from tinyllm.stages.config import AlignOfflineConfig
from tinyllm.stages.held_out import examined, held_out_loss, loss_of_test, rows_of_test
from tinyllm.stages.parents import OFFLINE, RUNS
from tinyllm.train.engine import autocast, choose_precision
from tinyllm.train.job import Job
from tinyllm.train.run import Invocation
from tinyllm.train.trainer import Trainer

_DATASETS: dict[str, Callable[..., PreferenceDataset | UnpairedDataset]] = {
    "pairs": preference_dataset,
    "unpaired": unpaired_dataset,
}


def run(config: AlignOfflineConfig, invocation: Invocation) -> dict[str, Any]:
    """Align the parent and return the stage's result."""
    algorithm = algorithms.load(config.algorithm, "offline")
    settings = config.settings()
    device = set_up(config)
    model, tokenizer, parent = load_policy("align-offline", config, invocation, device)
    split = read_split(config.data, algorithm.data, config.seed, system=config.chat.system, noise=config.noise)
    limit = length_limit(config.data, model.config.max_position_embeddings)
    make_dataset = _DATASETS[algorithm.data]
    dataset, held_out = (
        make_dataset(split.train, tokenizer, limit, "train"),
        make_dataset(split.val, tokenizer, limit, "val"),
    )
    make_test = partial(make_dataset, tokenizer=tokenizer, limit=limit, name="test")
    test = examined(make_test, split.test, rows_of_test(config.train, fast=invocation.fast))
    validation.report_findings(
        validation.check_batch_size(len(dataset), config.train.batch_size, TITLES[algorithm.data])
    )
    parts = {"train": dataset, "val": held_out} | ({"test": test} if test else {})
    folder = RUNS / OFFLINE / f"{algorithm.name}-{config.name}"
    facts = run_facts(model, tokenizer, split, config.seed, parent) | {"algorithm": algorithm.name}
    run = invocation.open(folder, facts)
    base = adapter_base(model, tokenizer, parent, folder) if config.lora else ""
    forward = partial(autocast, choose_precision(config.train.precision, device), device)
    if algorithm.uses_reference(settings):
        # The reference is the model as loaded. Scored once before training, it need not be kept.
        with forward():  # in the precision of training, or the loss would not start at ln 2
            for part, scored in parts.items():
                title = f"{part}: scoring under the reference"
                scored.ref_log_probs = reference_log_probs(model, scored, config.train.micro_batch_size, title)
    sources = {part: make_source(scored, config) for part, scored in parts.items()}
    if algorithm.prepare is not None:
        prepare = partial(algorithm.prepare, settings, model)
        sources = {part: PreparedSource(source, prepare, model, forward) for part, source in sources.items()}
    job = Job(
        title=algorithm.name,
        model=model,
        files=CheckpointFiles(
            model,
            tokenizer,
            stage=algorithm.name,
            adapter=adapter_settings(config, tokenizer),
            base=base,
            dtype=save_dtype(config.train, parent),
        ),
        loss=partial(algorithm.loss, settings),
        source=sources["train"],
        evaluate=held_out_loss(sources["val"], config),
        train=config.train,
        optim=config.optim,
        seed=config.seed,
        **loss_of_test(sources.get("test"), config),
    )
    trained = Trainer(run, job).train()
    return stage_result(algorithm.name, trained, folder, "rewards/margins", algorithm=algorithm.name)


class PreparedSource(Source):
    """A source whose micro-batches an algorithm prepares together, a whole optimizer step at once, before any is trained on.

    Args:
        prepare: this rank's micro-batches of a step -> the same with what the algorithm adds.
        model: evaluated while preparing, without dropout and gradients.
        forward: the context of a forward pass.
    """

    def __init__(
        self,
        source: Source,
        prepare: Callable[[Sequence[Any]], list[Any]],
        model: CausalLM,
        forward: Callable[[], AbstractContextManager],
    ):
        super().__init__(
            source.dataset,
            source.batch_size,
            source.micro_batch_size,
            seed=source.seed,
            rank=source.rank,
            world_size=source.world_size,
        )
        self.prepare, self.model, self.forward = prepare, model, forward

    def __call__(self, step: int) -> list[Any]:
        """Return the prepared micro-batches of a step."""
        return self._prepared(super().__call__(step))

    def largest(self) -> Any:
        """Return a prepared micro-batch that needs as much memory as any."""
        return self._prepared([super().largest()])[0]

    def in_order(self, limit: int) -> Iterator[Any]:
        """Yield the prepared batches of the first `limit` records, for evaluation."""
        yield from self._prepared(list(super().in_order(limit)))

    @torch.no_grad()
    def _prepared(self, batches: list[Any]) -> list[Any]:
        self.model.eval()  # no dropout; the engine switches it on again
        device = self.model.lm_head.weight.device
        with self.forward():
            return self.prepare([batch.to(device) for batch in batches])


@torch.no_grad()
def reference_log_probs(
    model: CausalLM, dataset: PreferenceDataset | UnpairedDataset, rows: int, title: str = "reference"
) -> Tensor:
    """Return the log-probability of both answers of every record under the model as it is, (N, 2). Ranks share the work.

    Args:
        rows: records in a forward pass.
        title: of the progress bar.
    """
    model.eval()
    device = model.lm_head.weight.device
    found = torch.zeros(len(dataset), 2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    mine = sorted(range(dist.rank(), len(dataset), dist.world_size()), key=dataset.length)
    with ProgressBar(title, len(mine), line_at_once=True) as bar:
        for start in range(0, len(mine), rows):
            part = mine[start : start + rows]
            batch = dataset.collate(part, 0, part).to(device)
            scores = model.log_probs(batch.ids, batch.mask, group=batch.group).sum(1)
            found[part] = scores.view(2, -1).T.to(found.dtype)
            done = start + len(part)
            bar.update(done, f"{done:,}/{len(mine):,} records", f"{done:,}/{len(mine):,} records {bar.eta(done)}")
    return dist.sum_(found).float().cpu()
