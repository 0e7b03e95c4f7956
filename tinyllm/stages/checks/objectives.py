"""One optimiser step of every objective on a few records written down here: what micro-batches and ranks must not change.

Lengths, shares of scored tokens and rewards are very unequal, so a mean of means is far from the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinyllm import algorithms, dist
from tinyllm.algorithms import bradley_terry, next_token
from tinyllm.data.batches import Samples, Source
from tinyllm.data.datasets import Answers, Judgements, Preferences, TokenJudgement, TokenPair
from tinyllm.model import hub
from tinyllm.model.config import ModelConfig
from tinyllm.model.transformer import ActorCritic, CausalLM, initialise, set_dropout
from tinyllm.stages.align_offline import Prepared
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine

ROWS = 8  # records in a step, and half as many prompts answered twice
_VOCABULARY = 64
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
    """next_token, bradley_terry, and every file of `algorithms`."""
    return ["next_token", "bradley_terry", *algorithms.names("offline"), *algorithms.names("online")]


def fresh() -> CausalLM:
    model = CausalLM(_SHAPE)
    initialise(model, 0)
    return model


def build(name: str, micro: int, device: torch.device) -> tuple[Engine, Callable[[int], list[Any]]]:
    """An engine and its source; `micro` rows a forward pass. Adam with beta1 = 0: its first moment is the gradient itself."""
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0, beta1=0.0, eps=1e-3, clip_norm=1e6)
    model = fresh().to(device)
    trained: Any = model
    if name in algorithms.names("online"):
        module = algorithms.load(name, "online")
        trained = ActorCritic(model, hub.scorer_from(model, 0)) if module.CRITIC else model
        source: Any = partial(_rollout, micro, partial(module.credit, module.Settings()))
    else:
        module = {"next_token": next_token, "bradley_terry": bradley_terry}.get(name) or algorithms.load(
            name, "offline"
        )
        trained = hub.scorer_from(model, 0) if module is bradley_terry else model
        source = Source(_records(module), ROWS, micro, seed=3, rank=dist.rank(), world_size=dist.world_size())
        if "prepare" in vars(module):
            source = Prepared(source, partial(module.prepare, module.Settings(), model), model, nullcontext)
    loss = partial(module.loss, module.Settings())
    return Engine(trained, loss, optim, total_steps=2, precision="fp32", seed=0), source


def stepped(name: str, micro: int, device: torch.device, dropout: float = 0.0) -> Engine:
    """The engine after one step."""
    engine, source = build(name, micro, device)
    set_dropout(engine.model, dropout)
    engine.step([batch.to(device) for batch in source(0)])
    return engine


def gradients(name: str, micro: int, device: torch.device) -> dict[str, Tensor]:
    """The gradient of one step, divided as the engine divides it, by parameter."""
    state = stepped(name, micro, device).state()
    return {key.removeprefix("exp_avg."): value for key, value in state.items() if key.startswith("exp_avg.")}


# --- records ---------------------------------------------------------------------------------------------------------------------


def _ids(seed: int, count: int) -> list[int]:
    return torch.randint(1, _VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def conversations(count: int = ROWS) -> Answers:
    rows = []
    for i in range(count):
        length = 4 + (i * 7) % 23
        rows.append((_ids(i, length), [t > length * (0.1 + 0.8 * (i % 3) / 2) for t in range(length)]))
    return Answers(rows, pad=0)


def _records(module: Any) -> Answers | Preferences | Judgements:
    if module is next_token:
        return conversations()
    pairs = [TokenPair(_ids(i, 3 + i % 5), _ids(90 + i, 2 + i % 7), _ids(180 + i, 1 + i % 4)) for i in range(ROWS)]
    data: Preferences | Judgements = Preferences(pairs, pad=0)
    if module is not bradley_terry and module.DATA == "judgements":
        answers = [(p, p.chosen if i % 3 else p.rejected, i % 3 > 0) for i, p in enumerate(pairs)]
        data = Judgements([TokenJudgement(p.prompt, answer, good) for p, answer, good in answers], pad=0)
    data.reference = torch.linspace(-40, -10, 2 * ROWS).view(ROWS, 2)
    return data


def _rollout(micro: int, credit: Callable[[Samples], tuple[Samples, Any]], step: int) -> list[Samples]:
    """Answers written down instead of sampled: this rank's groups, credited, in micro-batches."""
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
        sampled=old,
        old=old,
        reference=old - 0.1,
        values=torch.randn(ROWS, 14, generator=generator),
        budget=10,
    )
    groups = torch.arange(ROWS).view(-1, 2)
    samples, _ = credit(whole.rows(groups[dist.rank() :: dist.world_size()].flatten().tolist()))
    return [samples.rows(part.tolist()) for part in torch.arange(len(samples.ids)).split(micro)]
