"""One optimizer step of every objective on fixed records. Its gradient must not depend on micro-batches or ranks.

Lengths, shares of masked tokens and rewards are very unequal, so that a mean of means is far from the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinyllm import algorithms
from tinyllm import distributed as dist
from tinyllm.algorithms import Algorithm, DataKind, Family
from tinyllm.data.datasets.batches import Samples, ScoredSamples, Source
from tinyllm.data.datasets.datasets import PreferenceDataset, SFTDataset, TokenPair, TokenUnpaired, UnpairedDataset
from tinyllm.model import hub
from tinyllm.model.config import ModelConfig
from tinyllm.model.transformer import ActorCritic, CausalLM, initialise, set_dropout
from tinyllm.stages.align_offline import PreparedSource
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine

FAMILIES: tuple[Family, ...] = ("supervised", "reward", "offline", "online")
ROWS = 8  # records per step; online, half as many prompts with two completions each
_VOCABULARY, _PAD = 64, 0
_SHAPE = ModelConfig(
    vocab_size=_VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=32,
)


def names() -> list[str]:
    """Return the names of all built-in algorithms."""
    return [name for family in FAMILIES for name in algorithms.names(family)]


def _load(name: str) -> Algorithm:
    return algorithms.load(name, next(family for family in FAMILIES if name in algorithms.names(family)))


def new_model() -> CausalLM:
    model = CausalLM(_SHAPE)
    initialise(model, 0)
    return model


def make_engine(name: str, micro: int, device: torch.device) -> tuple[Engine, Callable[[int], list[Any]]]:
    """Build an engine and its source of batches, with `micro` rows per micro-batch.

    Adam runs with beta1 = 0, so its first moment is the gradient itself.
    """
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0, beta1=0.0, eps=1e-3, clip_norm=1e6)
    model, algorithm = new_model().to(device), _load(name)
    settings = algorithm.settings()
    loss = partial(algorithm.loss, settings)
    if algorithm.compute_advantages is not None:
        actor = ActorCritic(model, hub.scorer_from(model, 0)) if algorithm.needs_critic else model
        rollouts = partial(_rollout_batches, micro, partial(algorithm.compute_advantages, settings))
        return Engine(actor, loss, optim, total_steps=2, precision="fp32", seed=0), rollouts
    trained = hub.scorer_from(model, 0) if algorithm.family == "reward" else model
    source = Source(_dataset(algorithm.data), ROWS, micro, seed=3, rank=dist.rank(), world_size=dist.world_size())
    if algorithm.prepare is not None:
        source = PreparedSource(source, partial(algorithm.prepare, settings, model), model, nullcontext)
    return Engine(trained, loss, optim, total_steps=2, precision="fp32", seed=0), source


class Step(NamedTuple):
    """One optimizer step.

    before: the weights before it.
    rows: token ids of every row that was trained on, without padding.
    """

    engine: Engine
    before: dict[str, Tensor]
    rows: list[tuple[int, ...]]

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradient by parameter name, normalized by the engine."""
        state = self.engine.state()
        return {key.removeprefix("exp_avg."): value for key, value in state.items() if key.startswith("exp_avg.")}


def take_step(name: str, micro: int, device: torch.device, *, dropout: float = 0.0, seed: int = 0) -> Step:
    """Do one optimizer step of a new model, with `micro` rows per micro-batch. `seed` is that of dropout."""
    engine, source = make_engine(name, micro, device)
    engine.seed = seed
    set_dropout(engine.model, dropout)
    before = {key: p.detach().clone() for key, p in engine.trainable.items()}
    batches = source(0)
    engine.step([batch.to(device) for batch in batches])
    rows = [tuple(i for i in row if i != _PAD) for batch in batches for row in batch.ids.tolist()]
    return Step(engine, before, rows)


# --- records ---------------------------------------------------------------------------------------------------------------------


def _random_ids(seed: int, count: int) -> list[int]:
    return torch.randint(1, _VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def sft_dataset(count: int = ROWS) -> SFTDataset:
    rows = []
    for i in range(count):
        length = 4 + (i * 7) % 23
        rows.append((_random_ids(i, length), [t > length * (0.1 + 0.8 * (i % 3) / 2) for t in range(length)]))
    return SFTDataset(rows, pad=_PAD)


def _dataset(kind: DataKind) -> SFTDataset | PreferenceDataset | UnpairedDataset:
    if kind == "conversations":
        return sft_dataset()
    pairs = [
        TokenPair(_random_ids(i, 3 + i % 5), _random_ids(90 + i, 2 + i % 7), _random_ids(180 + i, 1 + i % 4))
        for i in range(ROWS)
    ]
    data: PreferenceDataset | UnpairedDataset = PreferenceDataset(pairs, pad=_PAD)
    if kind == "unpaired":
        answers = [(p, p.chosen if i % 3 else p.rejected, i % 3 > 0) for i, p in enumerate(pairs)]
        data = UnpairedDataset([TokenUnpaired(p.prompt, answer, good) for p, answer, good in answers], pad=_PAD)
    data.ref_log_probs = torch.linspace(-40, -10, 2 * ROWS).view(ROWS, 2)
    return data


def _rollout_batches(
    micro: int, compute_advantages: Callable[[Samples], tuple[ScoredSamples, Any]], step: int
) -> list[ScoredSamples]:
    """Return fixed completions in place of sampled ones: the groups of this rank with advantages, in micro-batches."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(1, _VOCABULARY, (ROWS, 14), generator=generator)
    first, last = 4, torch.tensor([5 + (row * 3) % 9 for row in range(ROWS)])
    place = torch.arange(14)
    mask = (place >= first) & (place < last[:, None])
    old = -3 + torch.randn(ROWS, 14, generator=generator) * 0.2
    whole = Samples(
        ids,
        mask,
        group=torch.arange(ROWS) // 2,
        finished=torch.ones(ROWS, dtype=torch.bool),
        reward=torch.randn(ROWS, generator=generator),
        sampler_log_probs=old,
        old_log_probs=old,
        ref_log_probs=old - 0.1,
        values=torch.randn(ROWS, 14, generator=generator),
        max_new_tokens=10,
    )
    groups = torch.arange(ROWS).view(-1, 2)
    samples, _ = compute_advantages(whole.rows(groups[dist.rank() :: dist.world_size()].flatten().tolist()))
    return [samples.rows(part.tolist()) for part in torch.arange(len(samples.ids)).split(micro)]
