"""Do the gates see a broken stage? One fault is planted in a stage of a finished life, the stage is trained again, its gates are read.

    tinyllm lifecycle && python benchmarks/planted_faults.py

Run it where `tinyllm lifecycle` was run: parents come from that life, and only the broken stage is trained. Prints a table and exits with
1 if a fault passed every gate of its stage. About a minute a fault on two cores; `--only STAGE` runs its faults alone.
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
from tinyllm.cli.lives import lives
from tinyllm.cli.options import Common
from tinyllm.data.batches import Pairs, Samples
from tinyllm.errors import UserError
from tinyllm.model import lora
from tinyllm.rollout.judge import Judge
from tinyllm.stages import align_offline, reading
from tinyllm.stages.life import Life
from tinyllm.text import chat
from tinyllm.train.engine import Engine


@dataclass(frozen=True)
class Fault:
    name: str
    stage: str
    what: str
    plant: Callable[[], Any]  # a context in which the fault is there


def frozen() -> Any:
    """Gradients are computed and never used."""

    def update(engine: Engine, rate: float) -> None:
        engine.zero_grad()
        engine.updates += 1

    return mock.patch.object(Engine, "_update", update)


def no_end_token() -> Any:
    """The assistant's <|im_end|> is left out of the loss."""
    honest = chat.render_many

    def render_many(tokenizer: Any, conversations: Any, **options: Any) -> list[chat.Rendered]:
        found = honest(tokenizer, conversations, **options)
        return [
            replace(r, mask=[m and token != tokenizer.im_end for m, token in zip(r.mask, r.ids, strict=True)])
            for r in found
        ]

    return mock.patch.object(reading.chat, "render_many", render_many)


def empty_mask() -> Any:
    honest = chat.render_many

    def render_many(tokenizer: Any, conversations: Any, **options: Any) -> list[chat.Rendered]:
        return [replace(r, mask=[False] * len(r.mask)) for r in honest(tokenizer, conversations, **options)]

    return mock.patch.object(reading.chat, "render_many", render_many)


def dead_adapter() -> Any:
    """The low-rank branch is computed without its scale: alpha is 0."""
    honest = lora.LoRALinear.__init__

    def start(layer: lora.LoRALinear, *arguments: Any) -> None:
        honest(layer, *arguments)
        layer.scaling = 1e-6

    return mock.patch.object(lora.LoRALinear, "__init__", start)


def swapped(module: Any) -> Callable[[], Any]:
    """Chosen and rejected change places in the loss, in training only."""

    def plant() -> Any:
        honest = module.loss

        def loss(settings: Any, model: Any, batch: Pairs) -> Any:
            if not torch.is_grad_enabled():
                return honest(settings, model, batch)
            turn = torch.arange(len(batch.ids)).roll(batch.count)
            reference = None if batch.reference is None else batch.reference[turn]
            moved = replace(
                batch, ids=batch.ids[turn], mask=batch.mask[turn], real=batch.real[turn], reference=reference
            )
            return honest(settings, model, moved)

        return mock.patch.object(module, "loss", loss)

    return plant


def shuffled_labels() -> Any:
    """Which of two answers is the chosen one is drawn by lot."""
    honest = reading.preferences_from

    def preferences_from(pairs: Any, tokenizer: Any, length: int, what: str) -> Any:
        found = honest(pairs, tokenizer, length, what)
        if what == "train":
            coin = torch.rand(len(found.pairs), generator=torch.Generator().manual_seed(0)) < 0.5
            found.pairs = [
                replace(p, chosen=p.rejected, rejected=p.chosen) if swap else p
                for p, swap in zip(found.pairs, coin.tolist(), strict=True)
            ]
        return found

    from tinyllm.stages import rm

    return mock.patch.object(rm, "preferences_from", preferences_from)


def random_reference() -> Any:
    """The reference is noise of the size that real log-probabilities have."""
    honest = align_offline.reference_log_probs

    def reference_log_probs(*arguments: Any) -> torch.Tensor:
        real = honest(*arguments)
        noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
        return real.mean() + 20 * real.std() * noise

    return mock.patch.object(align_offline, "reference_log_probs", reference_log_probs)


def shuffled_advantages(module: Any) -> Callable[[], Any]:
    def plant() -> Any:
        honest = module.credit

        def credit(settings: Any, samples: Samples) -> Any:
            generator = torch.Generator().manual_seed(int(samples.ids.sum()))
            order = torch.randperm(len(samples.reward), generator=generator)
            return honest(settings, replace(samples, reward=samples.reward[order]))

        return mock.patch.object(module, "credit", credit)

    return plant


def negated_reward() -> Any:
    honest = Judge.__call__

    def judge(self: Judge, *arguments: Any) -> Any:
        reward, parts = honest(self, *arguments)
        return -reward, parts

    return mock.patch.object(Judge, "__call__", judge)


FAULTS = (
    Fault("frozen model", "pretrain", "gradients are never used", frozen),
    Fault("no end token", "sft", "the end token is not in the loss", no_end_token),
    Fault("empty mask", "sft", "no token is in the loss", empty_mask),
    Fault("dead adapter", "sft-lora", "the branch has no weight", dead_adapter),
    Fault("labels by lot", "rm", "chosen and rejected are drawn by lot", shuffled_labels),
    Fault("swapped reward model", "rm", "the rejected answer is to score higher", swapped(bradley_terry)),
    Fault("swapped pairs", "dpo", "the rejected answer is preferred", swapped(dpo)),
    Fault("random reference", "dpo", "the reference is noise", random_reference),
    Fault("swapped pairs", "orpo", "the rejected answer is preferred", swapped(orpo)),
    Fault("wrong sign", "ppo", "the reward is negated", negated_reward),
    Fault("shuffled advantages", "ppo", "rewards go to other answers", shuffled_advantages(ppo)),
    Fault("shuffled advantages", "gspo", "rewards go to other answers", shuffled_advantages(gspo)),
    Fault("frozen policy", "grpo", "gradients are never used", frozen),
    Fault("shuffled advantages", "grpo", "rewards go to other answers", shuffled_advantages(grpo)),
)


@contextmanager
def broken_life(fault: Fault, good: str, sets: list[str]) -> Iterator[Life]:
    """A life whose earlier stages are the good one's and whose one stage is broken; its files go afterwards."""
    common = Common(set=sets)
    name = f"{good}-fault"
    resolved = lives("laptop", replace(common, name=good), [], 1, os.environ)[good]
    own = lives("laptop", replace(common, name=name), [], 1, os.environ)[name][fault.stage]
    update = {} if fault.stage == "pretrain" else {"parent": resolved[fault.stage].config.parent}
    if fault.stage == "ppo":
        update["reward_model"] = resolved["ppo"].config.reward_model
    own = replace(own, config=own.config.model_copy(update=update))
    order = list(resolved)
    chosen = {stage: resolved[stage] for stage in order[: order.index(fault.stage)]} | {fault.stage: own}
    folder = Path("runs") / "lifecycle" / name
    shutil.rmtree(folder, ignore_errors=True)
    life = Life(name, chosen, resume=True)
    for stage in order[: order.index(fault.stage)]:
        shutil.copy(Path("runs") / "lifecycle" / good / f"{stage}.json", folder)
    shutil.rmtree(life.run_of(fault.stage), ignore_errors=True)
    try:
        yield life
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(life.run_of(fault.stage), ignore_errors=True)


def found_by(fault: Fault, good: str, sets: list[str]) -> list[tuple[str, float, str, float, bool]]:
    """(gate, value, rule, bound, passed) of the broken stage; an error before training counts as a gate that failed."""
    with broken_life(fault, good, sets) as life:
        try:
            with fault.plant():
                record = life.go()[-1]
        except UserError as error:
            return [(f"refused: {error.what}", float("nan"), "", float("nan"), False)]
        return [(g["name"], g["value"], g["rule"], g["bound"], g["passed"]) for g in record["gates"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--life", default="laptop", help="the name of the finished life")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE[/NAME]", help="may be repeated")
    parser.add_argument("--set", action="append", default=[], help="as the life was run with")
    given = parser.parse_args()
    missed, rows = 0, []
    for fault in FAULTS:
        if given.only and not {fault.stage, f"{fault.stage}/{fault.name}"} & set(given.only):
            continue
        gates = found_by(fault, given.life, given.set)
        seen = any(not passed for *_, passed in gates)
        missed += not seen
        rows += [(fault, gate, seen) for gate in gates]
    print(f"{'stage':9} {'fault':21} {'gate':28} {'value':>8}    {'bound':>8}")
    for fault, (gate, value, rule, bound, passed) in ((f, g) for f, g, _ in rows):
        print(
            f"{fault.stage:9} {fault.name:21} {gate[:60]:28} {value:8.3f} {rule:2} {bound:8.3f}  {'passed' if passed else 'RED'}"
        )
    total = len({id(f) for f, _, _ in rows})
    print(f"{total - missed} of {total} faults turned a gate of their stage red")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
