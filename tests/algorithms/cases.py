"""A model and a batch for every algorithm, found by its file: inputs of the property tests.

Weights are of order one (with std 0.02 every log-probability is about -ln V and mistakes hide), lengths are unequal, and policy,
behaviour policy and reference differ, so that ratios are clipped on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from tinyllm import algorithms
from tinyllm.algorithms import Algorithm
from tinyllm.config import Config
from tinyllm.data.datasets.batches import Samples
from tinyllm.data.datasets.datasets import PreferenceDataset, SFTDataset, TokenPair, TokenUnpaired, UnpairedDataset
from tinyllm.model import hub
from tinyllm.model.config import ModelConfig
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer

SHAPE = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
NAMES = {family: algorithms.names(family) for family in ("supervised", "reward", "offline", "online")}
ALL = [(family, name) for family, names in NAMES.items() for name in names]


def rough(seed: int, kind: type = CausalLM, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A model with weights of order one."""
    model = kind(SHAPE).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * (0.4 if p.ndim > 1 else 1))
    return model.eval()


def near(model: CausalLM, seed: int, distance: float) -> CausalLM:
    """A model at a small distance from `model`."""
    other = rough(0)
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p += distance * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return other


def numbers(seed: int, n: int) -> list[int]:
    return torch.randint(1, 31, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass(frozen=True)
class Case:
    """An algorithm with a model and a batch of six records."""

    algorithm: Algorithm
    settings: Config
    model: torch.nn.Module
    part: Callable[[Sequence[int]], Any]  # the batch of these records, as a micro-batch of the whole step

    RECORDS = 6  # online: rows, in groups of two

    @property
    def batch(self) -> Any:
        return self.part(range(self.RECORDS))

    def loss(self, batch: Any = None, model: torch.nn.Module | None = None) -> Tensor:
        found, _ = self.algorithm.loss(self.settings, model or self.model, self.batch if batch is None else batch)
        return found.total / found.count

    def split(self, *parts: Sequence[int]) -> Tensor:
        """The loss from micro-batches: summed, then divided once."""
        found = [self.algorithm.loss(self.settings, self.model, self.part(part))[0] for part in parts]
        return sum(f.total for f in found) / sum(f.count for f in found)

    def gradient(self, loss: Tensor, model: torch.nn.Module | None = None) -> Tensor:
        parameters = [p for p in (model or self.model).parameters() if p.requires_grad]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def of(family: str, name: str) -> Case:
    algorithm = algorithms.load(name, family)
    build = {"supervised": _supervised, "reward": _pairs, "offline": _offline, "online": _online}[family]
    return build(algorithm)


def _supervised(algorithm: Algorithm) -> Case:
    rows = [(numbers(i, 4 + 3 * i), [t > 1 + i for t in range(4 + 3 * i)]) for i in range(Case.RECORDS)]
    data = SFTDataset(rows, pad=0)
    return Case(algorithm, algorithm.settings(), rough(0), lambda part: data.collate(part, 0, range(Case.RECORDS)))


def _preferences() -> PreferenceDataset:
    pairs = [
        TokenPair(numbers(i, 2 + i), numbers(50 + i, 1 + (3 * i) % 5), numbers(90 + i, 2 + i % 4), margin=0.1 * i)
        for i in range(Case.RECORDS)
    ]
    return PreferenceDataset(pairs, pad=0)


def _pairs(algorithm: Algorithm) -> Case:
    data, scorer = _preferences(), rough(1, SequenceScorer)
    return Case(algorithm, algorithm.settings(), scorer, lambda part: _wide(data.collate(part, 0, range(Case.RECORDS))))


def _wide(batch: Any) -> Any:
    """In float64, as the models are."""
    floats = {
        f.name: v.double()
        for f in fields(batch)
        if isinstance(v := getattr(batch, f.name), Tensor) and v.is_floating_point()
    }
    return replace(batch, **floats)


def _offline(algorithm: Algorithm) -> Case:
    policy, settings, data = rough(0), algorithm.settings(), _preferences()
    if algorithm.data == "unpaired":
        items = [
            TokenUnpaired(p.prompt, p.chosen if i % 2 else p.rejected, i % 2 == 1) for i, p in enumerate(data.pairs)
        ]
        data = UnpairedDataset(items, pad=0)
    everything = range(Case.RECORDS)
    if algorithm.uses_reference(settings):
        whole = data.collate(everything, 0, everything)
        with torch.no_grad():
            scores = near(policy, 3, 0.05).log_probs(whole.ids, whole.mask).sum(1)
        data.ref_log_probs = scores.view(2, -1).T
    known = {}
    if algorithm.prepare is not None:
        ready = algorithm.prepare(settings, policy, [data.collate(everything, 0, everything)])
        known = {"kl": ready[0].kl + 0.3}  # away from the clamp at zero
    return Case(algorithm, settings, policy, lambda part: replace(_wide(data.collate(part, 0, everything)), **known))


def _online(algorithm: Algorithm) -> Case:
    policy = rough(0)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 31, (Case.RECORDS, 16), generator=generator)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (start, length) in enumerate([(3, 5), (3, 2), (2, 4), (2, 1), (5, 9), (5, 3)]):
        mask[row, start : start + length] = True
        ids[row, start + length :] = 0
    behaviour, reference = near(policy, 1, 0.03), near(policy, 2, 0.05)
    with torch.no_grad():
        old, base = (m.log_probs(ids, mask) for m in (behaviour, reference))
    reward = torch.tensor([1.0, 0.0, 0.25, 0.75, -0.5, 0.5], dtype=torch.float64)
    values = torch.randn(ids.shape, generator=generator, dtype=torch.float64)
    samples = Samples(
        ids,
        mask,
        torch.arange(6) // 2,
        torch.ones(6, dtype=torch.bool),
        reward,
        old,
        old,
        base,
        values,
        max_new_tokens=9,
    )
    weights = {"kl_coef": 0.3} if "kl_coef" in algorithm.settings.model_fields else {}
    settings = algorithm.settings(**weights)
    if not algorithm.uses_reference(settings):
        samples = replace(samples, ref_log_probs=None)
    scored, _ = algorithm.compute_advantages(settings, samples)
    model = ActorCritic(policy, hub.scorer_from(rough(4).float(), 0).double()) if algorithm.needs_critic else policy
    return Case(algorithm, settings, model, lambda part: scored.rows(list(part)))
