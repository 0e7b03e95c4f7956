"""Test the acceptance gates: plant one fault in a stage of a finished lifecycle, train the stage again, and check its gates.

    tinyllm lifecycle && python benchmarks/planted_faults.py

Run it in the folder of `tinyllm lifecycle`: parents come from that lifecycle, and only the faulty stage is trained. Prints a table.
Exits with 1 if a fault passes every gate of its stage. About a minute per fault on two cores; `--only STAGE` selects faults.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tinyllm.algorithms import bradley_terry, dpo, grpo, gspo, orpo, ppo
from tinyllm.cli.lifecycle import pipeline_configs
from tinyllm.cli.options import Common
from tinyllm.data import loading
from tinyllm.data.datasets.batches import PreferenceBatch, Samples
from tinyllm.errors import UserError
from tinyllm.lifecycle.pipeline import Pipeline
from tinyllm.model import lora
from tinyllm.rollout.judge import Judge
from tinyllm.stages import align_offline
from tinyllm.text import chat
from tinyllm.train.engine import Engine


@dataclass(frozen=True)
class Fault:
    name: str
    stage: str
    what: str
    plant: Callable[[], Any]  # a context manager that applies the fault


def frozen() -> Any:
    """Compute gradients and never apply them."""

    def update(engine: Engine, rate: float) -> None:
        engine.zero_grad()
        engine.updates += 1

    return mock.patch.object(Engine, "_update", update)


def no_end_token() -> Any:
    """Leave the assistant's <|im_end|> out of the loss."""
    original = chat.render_many

    def render_many(tokenizer: Any, conversations: Any, **options: Any) -> list[chat.Rendered]:
        found = original(tokenizer, conversations, **options)
        return [
            replace(r, mask=[m and token != tokenizer.im_end for m, token in zip(r.mask, r.ids, strict=True)])
            for r in found
        ]

    return mock.patch.object(loading.chat, "render_many", render_many)


def empty_mask() -> Any:
    original = chat.render_many

    def render_many(tokenizer: Any, conversations: Any, **options: Any) -> list[chat.Rendered]:
        return [replace(r, mask=[False] * len(r.mask)) for r in original(tokenizer, conversations, **options)]

    return mock.patch.object(loading.chat, "render_many", render_many)


def dead_adapter() -> Any:
    """Scale the low-rank branch by almost zero."""
    original = lora.LoRALinear.__init__

    def start(layer: lora.LoRALinear, *arguments: Any) -> None:
        original(layer, *arguments)
        layer.scaling = 1e-6

    return mock.patch.object(lora.LoRALinear, "__init__", start)


def swapped(module: Any) -> Callable[[], Any]:
    """Swap chosen and rejected in the training loss."""

    def plant() -> Any:
        original = module.loss

        def loss(settings: Any, model: Any, batch: PreferenceBatch) -> Any:
            if not torch.is_grad_enabled():
                return original(settings, model, batch)
            turn = torch.arange(len(batch.ids)).roll(batch.count)
            reference = None if batch.ref_log_probs is None else batch.ref_log_probs[turn]
            moved = replace(
                batch, ids=batch.ids[turn], mask=batch.mask[turn], real=batch.real[turn], ref_log_probs=reference
            )
            return original(settings, model, moved)

        return mock.patch.object(module, "loss", loss)

    return plant


def shuffled_labels() -> Any:
    """Choose at random which of two answers is the chosen one."""
    original = loading.preference_dataset

    def preference_dataset(pairs: Any, tokenizer: Any, length: int, what: str) -> Any:
        found = original(pairs, tokenizer, length, what)
        if what == "train":
            coin = torch.rand(len(found.pairs), generator=torch.Generator().manual_seed(0)) < 0.5
            found.pairs = [
                replace(p, chosen=p.rejected, rejected=p.chosen) if swap else p
                for p, swap in zip(found.pairs, coin.tolist(), strict=True)
            ]
        return found

    from tinyllm.stages import rm

    return mock.patch.object(rm, "preference_dataset", preference_dataset)


def random_reference() -> Any:
    """Replace reference log-probabilities by noise of a similar scale."""
    original = align_offline.reference_log_probs

    def reference_log_probs(*arguments: Any) -> torch.Tensor:
        real = original(*arguments)
        noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
        return real.mean() + 20 * real.std() * noise

    return mock.patch.object(align_offline, "reference_log_probs", reference_log_probs)


def shuffled_advantages(module: Any) -> Callable[[], Any]:
    def plant() -> Any:
        original = module.compute_advantages

        def compute_advantages(settings: Any, samples: Samples) -> Any:
            generator = torch.Generator().manual_seed(int(samples.ids.sum()))
            order = torch.randperm(len(samples.reward), generator=generator)
            return original(settings, replace(samples, reward=samples.reward[order]))

        return mock.patch.object(module, "compute_advantages", compute_advantages)

    return plant


def negated_reward() -> Any:
    original = Judge.__call__

    def judge(self: Judge, *arguments: Any) -> Any:
        reward, parts = original(self, *arguments)
        return -reward, parts

    return mock.patch.object(Judge, "__call__", judge)


FAULTS = (
    Fault("frozen model", "pretrain", "gradients are never applied", frozen),
    Fault("no end token", "sft", "the end token is not in the loss", no_end_token),
    Fault("empty mask", "sft", "no token is in the loss", empty_mask),
    Fault("dead adapter", "sft-lora", "the low-rank branch has no weight", dead_adapter),
    Fault("shuffled labels", "rm", "chosen and rejected are random", shuffled_labels),
    Fault("swapped reward model", "rm", "the rejected answer is to score higher", swapped(bradley_terry)),
    Fault("swapped pairs", "dpo", "the rejected answer is preferred", swapped(dpo)),
    Fault("random reference", "dpo", "the reference is noise", random_reference),
    Fault("swapped pairs", "orpo", "the rejected answer is preferred", swapped(orpo)),
    Fault("wrong sign", "ppo", "the reward is negated", negated_reward),
    Fault("shuffled advantages", "ppo", "rewards go to other answers", shuffled_advantages(ppo)),
    Fault("shuffled advantages", "gspo", "rewards go to other answers", shuffled_advantages(gspo)),
    Fault("frozen policy", "grpo", "gradients are never applied", frozen),
    Fault("shuffled advantages", "grpo", "rewards go to other answers", shuffled_advantages(grpo)),
)


@contextmanager
def faulty_pipeline(fault: Fault, good: str, sets: list[str]) -> Iterator[Pipeline]:
    """Yield a lifecycle with the good one's earlier stages and one stage still to train. Delete its files afterwards."""
    common = Common(set=sets)
    name = f"{good}-fault"
    resolved = pipeline_configs("laptop", replace(common, name=good), [], 1, os.environ)[good]
    own = pipeline_configs("laptop", replace(common, name=name), [], 1, os.environ)[name][fault.stage]
    config = resolved[fault.stage].config
    update = {key: getattr(config, key) for key in ("parent", "reward_model") if key in type(config).model_fields}
    own = replace(own, config=own.config.model_copy(update=update))
    order = list(resolved)
    earlier = order[: order.index(fault.stage)]
    folder = Path("runs") / "lifecycle" / name
    shutil.rmtree(folder, ignore_errors=True)
    pipeline = Pipeline(name, {stage: resolved[stage] for stage in earlier} | {fault.stage: own}, resume=True)
    for stage in earlier:
        shutil.copy(Path("runs") / "lifecycle" / good / f"{stage}.json", folder)
    shutil.rmtree(pipeline.run_dir(fault.stage), ignore_errors=True)
    try:
        yield pipeline
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(pipeline.run_dir(fault.stage), ignore_errors=True)


def gates_of(fault: Fault, good: str, sets: list[str]) -> list[tuple[str, float, str, float, bool]]:
    """Return (gate, value, rule, bound, passed) of the faulty stage. An error before training counts as a failed gate."""
    with faulty_pipeline(fault, good, sets) as pipeline:
        try:
            with fault.plant():
                record = pipeline.run()[-1]
        except UserError as error:
            return [(f"refused: {error.what}", float("nan"), "", float("nan"), False)]
        return [(g["name"], g["value"], g["rule"], g["bound"], g["passed"]) for g in record["gates"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lifecycle", "--life", default="laptop", help="name of the finished lifecycle")
    parser.add_argument(
        "--only", action="append", default=[], metavar="STAGE[/NAME]", help="faults to plant; repeatable"
    )
    parser.add_argument("--set", action="append", default=[], help="the same as for the finished lifecycle")
    given = parser.parse_args()
    missed, total = 0, 0
    print(f"{'stage':9} {'fault':21} {'gate':28} {'value':>8}    {'bound':>8}")
    for fault in FAULTS:
        if given.only and not {fault.stage, f"{fault.stage}/{fault.name}"} & set(given.only):
            continue
        gates = gates_of(fault, given.lifecycle, given.set)
        total += 1
        missed += all(passed for *_, passed in gates)
        for gate, value, rule, bound, passed in gates:
            outcome = "passed" if passed else "FAILED"
            print(f"{fault.stage:9} {fault.name:21} {gate[:60]:28} {value:8.3f} {rule:2} {bound:8.3f}  {outcome}")
    print(f"{total - missed} of {total} faults were caught by a gate of their stage")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
