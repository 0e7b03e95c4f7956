"""Three optimiser steps of each algorithm on fixed records: run in the test's own process, and again by every rank of a torchrun.

As a script: `scenarios.py OUT` runs all of them and writes weights and losses to OUT from rank 0.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from tinyllm import algorithms, dist
from tinyllm.algorithms import bradley_terry, next_token
from tinyllm.data.batches import Samples, Source
from tinyllm.data.datasets import Answers, Judgements, Preferences, TokenJudgement, TokenPair
from tinyllm.data.packing import Packed
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.model.transformer import ActorCritic, CausalLM, initialise
from tinyllm.stages.align_offline import Prepared
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine

SHAPE = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
)
STEPS = 3
OFFLINE, ONLINE = algorithms.names("offline"), algorithms.names("online")
NAMES = ("next_token", "packed", "lora", "dora", "bradley_terry", *OFFLINE, *ONLINE, "muon")


def fresh() -> CausalLM:
    model = CausalLM(SHAPE)
    initialise(model, 0)
    return model


def numbers(seed: int, low: int, high: int, n: int) -> list[int]:
    return torch.randint(low, high, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def conversations() -> list[tuple[list[int], list[bool]]]:
    """Rows of very unequal lengths and very unequal shares of scored tokens: means of means would show."""
    rows = []
    for i in range(24):
        length = 4 + (i * 7) % 23
        rows.append((numbers(i, 1, 64, length), [t > length * (0.1 + 0.8 * (i % 3) / 2) for t in range(length)]))
    return rows


def judgements() -> Judgements:
    items = [
        TokenJudgement(p.prompt, p.chosen if i % 3 else p.rejected, i % 3 > 0) for i, p in enumerate(pairs().pairs)
    ]
    data = Judgements(items, pad=0)
    data.reference = torch.linspace(-40, -10, 48).view(24, 2)
    return data


def pairs() -> Preferences:
    found = [
        TokenPair(numbers(i, 1, 64, 3 + i % 5), numbers(90 + i, 1, 64, 2 + i % 7), numbers(180 + i, 1, 64, 1 + i % 4))
        for i in range(24)
    ]
    data = Preferences(found, pad=0)
    data.reference = torch.linspace(-40, -10, 48).view(24, 2)
    return data


class RolledOut:
    """Samples written down instead of sampled: a source whose rows the ranks and micro-batches share as a rollout's would be."""

    def __init__(self, micro: int, credit):
        self.micro, self.credit = micro, credit

    def __call__(self, step: int) -> list[Samples]:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(1, 64, (8, 14), generator=generator)
        mask = torch.zeros(8, 14, dtype=torch.bool)
        for row in range(8):
            mask[row, 4 : 5 + (row * 3) % 9] = True
        old = -3 + torch.randn(8, 14, generator=generator) * 0.2
        whole = Samples(
            ids,
            mask,
            torch.arange(8) // 2,
            torch.ones(8, dtype=torch.bool),
            torch.randn(8, generator=generator),
            old,
            old,
            old - 0.1,
            torch.randn(8, 14, generator=generator),
            budget=10,
        )
        mine = torch.arange(8).view(4, 2)[dist.rank() :: dist.world_size()].flatten()  # whole groups
        credited, _ = self.credit(
            replace(
                whole,
                **{
                    k: getattr(whole, k)[mine]
                    for k in ("ids", "mask", "group", "finished", "reward", "sampled", "old", "reference", "values")
                },
            )
        )
        return [credited.rows(part) for part in torch.arange(len(mine)).split(self.micro)]


def _data(name: str, module) -> Answers | Packed | Preferences | Judgements:
    if name == "packed":
        return Packed(conversations(), pad=0, length=40)
    if module is next_token:
        return Answers(conversations(), pad=0)
    return judgements() if module is not bradley_terry and module.DATA == "judgements" else pairs()


def build(name: str, micro: int) -> tuple[Engine, object]:
    """The engine and its source; `micro` rows a forward pass."""
    model, optim = (
        fresh(),
        OptimConfig(
            learning_rate=3e-3, warmup_steps=0, optimizer="muon" if name == "muon" else "adamw", eps=1e-3, clip_norm=1e6
        ),
    )
    if name in ONLINE:
        module = algorithms.load(name, "online")
        settings = module.Settings()
        source = RolledOut(micro, partial(module.credit, settings))
        trained = ActorCritic(model, hub.scorer_from(model, 0)) if module.CRITIC else model
        loss = partial(module.loss, settings)
    else:
        module = (
            algorithms.load(name, "offline")
            if name in OFFLINE
            else bradley_terry
            if name == "bradley_terry"
            else next_token
        )
        data = _data(name, module)
        source = Source(data, 8, micro, seed=3, rank=dist.rank(), world_size=dist.world_size())
        trained = hub.scorer_from(model, 0) if name == "bradley_terry" else model
        if name in ("lora", "dora"):
            lora.attach(model, LoRAConfig(r=4, dora=name == "dora"))
        settings = module.Settings()
        if "prepare" in vars(module):
            source = Prepared(source, partial(module.prepare, settings, model), model, nullcontext)
        loss = partial(module.loss, settings)
    return Engine(trained, loss, optim, STEPS, precision="fp32", seed=0), source


def trained(name: str, micro: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after three steps and the loss of each."""
    engine, source = build(name, micro)
    losses = [engine.step(source(step))["loss"] for step in range(STEPS)]
    return {k: p.detach().clone() for k, p in engine.trained.items()}, losses


if __name__ == "__main__":
    dist.start(torch.device("cpu"))
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    weights, losses = {}, {}
    for scenario in NAMES:
        found, losses[scenario] = trained(scenario, 2)
        weights |= {f"{scenario}/{k}": v for k, v in found.items()}
    if dist.is_main():
        save_file(weights, out / "weights.safetensors")
        (out / "losses.json").write_text(json.dumps(losses))
    dist.stop()
