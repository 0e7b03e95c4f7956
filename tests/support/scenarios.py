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

from tinyllm import algorithms
from tinyllm import distributed as dist
from tinyllm.algorithms import Algorithm
from tinyllm.data.datasets.batches import Samples, Source
from tinyllm.data.datasets.datasets import PreferenceDataset, SFTDataset, TokenPair, TokenUnpaired, UnpairedDataset
from tinyllm.data.datasets.packing import PackedSFTDataset
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.model.transformer import ActorCritic, CausalLM, initialise
from tinyllm.stages.align_offline import PreparedSource
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


def unpaired() -> UnpairedDataset:
    items = [TokenUnpaired(p.prompt, p.chosen if i % 3 else p.rejected, i % 3 > 0) for i, p in enumerate(pairs().pairs)]
    data = UnpairedDataset(items, pad=0)
    data.ref_log_probs = torch.linspace(-40, -10, 48).view(24, 2)
    return data


def pairs() -> PreferenceDataset:
    found = [
        TokenPair(numbers(i, 1, 64, 3 + i % 5), numbers(90 + i, 1, 64, 2 + i % 7), numbers(180 + i, 1, 64, 1 + i % 4))
        for i in range(24)
    ]
    data = PreferenceDataset(found, pad=0)
    data.ref_log_probs = torch.linspace(-40, -10, 48).view(24, 2)
    return data


class RolledOut:
    """Samples written down instead of sampled: a source whose rows the ranks and micro-batches share as a rollout's would be."""

    def __init__(self, micro: int, compute_advantages):
        self.micro, self.compute_advantages = micro, compute_advantages

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
            max_new_tokens=10,
        )
        mine = torch.arange(8).view(4, 2)[dist.rank() :: dist.world_size()].flatten()  # whole groups
        samples, _ = self.compute_advantages(
            replace(
                whole,
                **{
                    k: getattr(whole, k)[mine]
                    for k in (
                        "ids",
                        "mask",
                        "group",
                        "finished",
                        "reward",
                        "sampler_log_probs",
                        "old_log_probs",
                        "ref_log_probs",
                        "values",
                    )
                },
            )
        )
        return [samples.rows(part) for part in torch.arange(len(mine)).split(self.micro)]


def _data(name: str, algorithm: Algorithm) -> SFTDataset | PackedSFTDataset | PreferenceDataset | UnpairedDataset:
    if name == "packed":
        return PackedSFTDataset(conversations(), pad=0, length=40)
    if algorithm.family == "supervised":
        return SFTDataset(conversations(), pad=0)
    return unpaired() if algorithm.data == "unpaired" else pairs()


def _algorithm(name: str) -> Algorithm:
    if name in ONLINE:
        return algorithms.load(name, "online")
    if name in OFFLINE:
        return algorithms.load(name, "offline")
    return algorithms.load(name, "reward") if name == "bradley_terry" else algorithms.load("next_token", "supervised")


def build(name: str, micro: int) -> tuple[Engine, object]:
    """The engine and its source; `micro` rows a forward pass."""
    optimizer = "muon" if name == "muon" else "adamw"
    optim = OptimConfig(learning_rate=3e-3, warmup_steps=0, optimizer=optimizer, eps=1e-3, clip_norm=1e6)
    model, algorithm = fresh(), _algorithm(name)
    settings = algorithm.settings()
    if name in ONLINE:
        source = RolledOut(micro, partial(algorithm.compute_advantages, settings))
        trained = ActorCritic(model, hub.scorer_from(model, 0)) if algorithm.needs_critic else model
    else:
        source = Source(_data(name, algorithm), 8, micro, seed=3, rank=dist.rank(), world_size=dist.world_size())
        trained = hub.scorer_from(model, 0) if name == "bradley_terry" else model
        if name in ("lora", "dora"):
            lora.attach(model, LoRAConfig(r=4, dora=name == "dora"))
        if algorithm.prepare is not None:
            source = PreparedSource(source, partial(algorithm.prepare, settings, model), model, nullcontext)
    return Engine(trained, partial(algorithm.loss, settings), optim, STEPS, precision="fp32", seed=0), source


def trained(name: str, micro: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after three steps and the loss of each."""
    engine, source = build(name, micro)
    losses = [engine.step(source(step))["loss"] for step in range(STEPS)]
    return {k: p.detach().clone() for k, p in engine.trainable.items()}, losses


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
