"""Inputs of both sides: a tiny Qwen3 on disk (three sets of weights), records as token ids, and the same records as text.

Weights are of order one: with the usual 0.02 every log-probability is about -ln V whatever the code does. Policy, behaviour policy and
reference differ enough that some tokens are clipped and some are not. The text is ids spelled out ("t7 t12 <eos>"), so that TRL can
prepare its data itself and still sees the very tokens.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from torch import Tensor, nn

from tinyllm.data.datasets.batches import Samples, right_padded
from tinyllm.data.datasets.datasets import TokenPair, TokenUnpaired, UnpairedDataset
from tinyllm.mean import Mean
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer

PAD, EOS = 0, 1
SHAPE = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    max_position_embeddings=64,
)
PAIRS = [
    TokenPair([5, 9, 33], [14, 15, 16, 17, EOS], [8, 2, EOS], margin=0.5),
    TokenPair([50], [11, EOS], [12, 13, 14, 40, 41, EOS], margin=0.0),
    TokenPair([3, 15, 16, 17, 60, 61], [18, 19, 3, EOS], [20, 21, 22, 23, 24, 25, EOS], margin=1.25),
    TokenPair([7, 7], [30, 31, 32, 33, 34, 35, 36, EOS], [44, EOS], margin=0.25),
]
UNPAIRED = [
    TokenUnpaired([5, 9, 33], [14, 15, 16, 17, EOS], True),
    TokenUnpaired([50], [12, 13, 40, EOS], False),
    TokenUnpaired([3, 15, 16, 17, 60, 61], [18, EOS], True),
    TokenUnpaired([7, 7], [44, 45, EOS], False),
    TokenUnpaired([21, 22, 23, 24], [25, 26, 27, 28, 29, EOS], True),
]
PROMPTS = [[5, 9, 33], [50], [3, 15, 16, 17, 60]]
ANSWERS = [  # four to each prompt; those without EOS were cut off by the budget
    [[14, 15, 16, EOS], [8, EOS], [17, 18, 19, 20, 21, 22, 23, 24], [30, 31, EOS]],
    [[EOS], [12, 13, 14, 40, 41, EOS], [9, 10, EOS], [40, 41, 42, 43, 44, 45, 46, 47]],
    [[18, 19, 20, 21, 22, EOS], [20, 2, EOS], [33, EOS], [60, 61, 62, 63, 2, 3, EOS]],
]
REWARDS = [1.0, 0.25, -0.5, 0.75, 0.0, 2.0, 1.5, 0.125, 0.375, 0.0, 1.0, -1.25]
MAX_NEW_TOKENS = 8  # the most tokens an answer may have


class Outcome(NamedTuple):
    """A loss and its gradient by parameter name, with what was seen on the way."""

    loss: float
    gradient: dict[str, Tensor]
    tokens: int = 0
    """tokens of the masks"""
    clipped: float | None = None
    """share of tokens or answers whose gradient was clipped, of an online loss"""

    @property
    def norm(self) -> float:
        """Norm of the gradient."""
        return float(torch.stack([g.double().norm() for g in self.gradient.values()]).norm())


Loss = Callable[[nn.Module, Any], tuple[Mean, dict[str, Mean]]]


@dataclass(frozen=True)
class Bug:
    """A mistake on our side, which the oracle must notice: other settings, or another loss on other batches."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    spoil: Callable[[Loss, list[Any]], tuple[Loss, list[Any]]] = lambda loss, batches: (loss, batches)


NONE = Bug()


class Case(NamedTuple):
    """A comparison."""

    ours: Callable[[Bug], Outcome]
    oracle: Callable[[], Outcome]  # computed once
    source: str  # who the oracle is
    settings: Mapping[str, Any]  # ours, as far as the case sets them


class Difference(NamedTuple):
    """Relative difference of the losses; largest difference of the gradients, relative to the oracle's largest entry."""

    loss: float
    gradient: float


def difference(ours: Outcome, oracle: Outcome) -> Difference:
    """Compare with the oracle. Both must have gradients of the same parameters, and the oracle's must not vanish."""
    assert ours.gradient.keys() == oracle.gradient.keys(), sorted(ours.gradient.keys() ^ oracle.gradient.keys())
    scale = max(float(g.abs().max()) for g in oracle.gradient.values())
    assert scale > 1e-6
    apart = max(float((ours.gradient[n] - g).abs().max()) for n, g in oracle.gradient.items())
    return Difference(abs(ours.loss - oracle.loss) / abs(oracle.loss), apart / scale)


def draw(model: nn.Module, seed: int, std: float) -> None:
    """Add N(0, std^2) to every weight, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)


@cache
def folder() -> Path:
    """Checkpoints written by `hub.save`: `policy`, `old`, `reference`, and the reward models `scorer` and `old_scorer`."""
    root = Path(tempfile.mkdtemp(prefix="parity-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    moved = {"policy": 0.0, "old": 0.015, "reference": 0.03, "scorer": 0.0, "old_scorer": 0.03}
    for seed, (name, distance) in enumerate(moved.items(), start=1):
        model = SequenceScorer(SHAPE) if name.endswith("scorer") else CausalLM(SHAPE)
        for parameter in model.parameters():
            nn.init.constant_(parameter, 1.0 if parameter.ndim == 1 else 0.0)
        draw(model, 0, 0.35)
        draw(model, seed, distance)
        (root / name).mkdir()
        hub.save(model, root / name, bos=None, stop=(EOS,), pad=PAD)
    return root


def policy(name: str = "policy") -> CausalLM:
    return hub.load_causal_lm(folder() / name).double()


def scorer(name: str = "scorer") -> SequenceScorer:
    return hub.load_scorer(folder() / name).double()


@cache
def adapter(config: LoRAConfig) -> Path:
    """An adapter of `policy` as our code writes it, with all weights moved away from their start."""
    model = lora.attach(hub.load_causal_lm(folder() / "policy"), config)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if lora.is_branch(name):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    place = Path(tempfile.mkdtemp(dir=folder()))
    lora.save(model, config, place, str(folder() / "policy"))
    return place


def halves(rows: int) -> list[list[int]]:
    """Record numbers of two micro-batches."""
    return [list(range(rows // 2)), list(range(rows // 2, rows))]


def rotated(data: UnpairedDataset) -> list[int]:
    """The records in an order in which each follows the one whose answer we compare it with. TRL takes its predecessor's answer."""
    order = [0]
    while len(order) < len(data):
        order.append(next(i for i in range(len(data)) if data.mismatched(i) == order[-1]))
    assert data.mismatched(order[0]) == order[-1]
    return order


def text(ids: Sequence[int]) -> str:
    """The text whose tokens are these ids."""
    return " ".join({PAD: "<pad>", EOS: "<eos>"}.get(i, f"t{i}") for i in ids)


@torch.no_grad()
def samples(temperature: float = 1.0, reference: bool = False) -> Samples:
    """The answers above as a rollout of the behavior policy `old`."""
    rows = [(prompt, answer) for prompt, answers in zip(PROMPTS, ANSWERS, strict=True) for answer in answers]
    ids = right_padded([[*prompt, *answer] for prompt, answer in rows], PAD)
    mask = right_padded([[False] * len(prompt) + [True] * len(answer) for prompt, answer in rows], False)
    old = policy("old").log_probs(ids, mask, temperature=temperature)
    base = policy("reference").log_probs(ids, mask, temperature=temperature) if reference else None
    _, values = ActorCritic(policy("old"), scorer("old_scorer")).token_scores_and_values(ids, mask)
    return Samples(
        ids=ids,
        mask=mask,
        group=torch.arange(len(rows)) // len(ANSWERS[0]),
        finished=torch.tensor([answer[-1] == EOS for _, answer in rows]),
        reward=torch.tensor(REWARDS, dtype=torch.float64),
        sampler_log_probs=old,
        old_log_probs=old,
        ref_log_probs=base,
        values=values,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def outcome(model: nn.Module, loss: Loss, batches: Sequence[Any], bug: Bug = NONE) -> tuple[Outcome, dict[str, float]]:
    """Our loss and gradient over micro-batches, pooled as the engine does (sum, then divide once), and the metrics."""
    pooled: dict[str, Mean] = {}
    loss, batches = bug.spoil(loss, list(batches))
    for batch in batches:
        mean, metrics = loss(model, batch)
        mean.total.backward()
        for name, value in {"loss": mean, **metrics}.items():
            pooled[name] = pooled[name] + value if name in pooled else value
    count = float(pooled["loss"].count)
    gradient = {name: p.grad / count for name, p in model.named_parameters() if p.grad is not None}
    metrics = {name: value.value for name, value in pooled.items()}
    tokens = sum(int(batch.mask.sum()) for batch in batches)
    return Outcome(metrics["loss"], gradient, tokens, metrics.get("clip_fraction")), metrics


@torch.no_grad()
def moved(model: nn.Module, is_trained: Callable[[str], bool]) -> None:
    """Move all trained tensors of an adapter away from their start."""
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if is_trained(name):
            generator = torch.Generator().manual_seed(number)
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter))
