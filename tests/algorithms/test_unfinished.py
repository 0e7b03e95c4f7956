"""Every online algorithm against loops over answers and tokens, on a rollout without convenient coincidences.

Two groups of three; every length differs; three answers were cut off, two of them at the limit and one, whose prompt was long, before it.
Policy, behavior policy and reference differ, ratios are clipped on both sides, and no coefficient is 0 or 1 or its default. Value and
derivative with respect to every log-probability (and value) are compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyllm import algorithms
from tinyllm.data.datasets.batches import Samples
from tinyllm.model.heads import TokenScores

LENGTHS = [5, 2, 8, 1, 8, 3]
STARTS = [3, 3, 3, 2, 2, 2]
FINISHED = [True, True, False, True, False, False]
REWARDS = [1.0, 0.25, -0.5, 0.75, 1.5, -1.25]
LONGEST, LIMIT = 8, 11  # the longest answer here, and the longest one that the configuration allows
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"clip_low": 0.1, "clip_high": 0.15, "kl_coef": 0.3},
    "dapo": {"clip_low": 0.1, "clip_high": 0.15, "kl_coef": 0.3, "kl_weighted": False, "scale": "batch"},
    "dr_grpo": {"clip_low": 0.1, "clip_high": 0.15, "kl_coef": 0.3},
    "gspo": {"clip_low": 0.02, "clip_high": 0.03, "kl_coef": 0.3},
    "cispo": {"clip_high": 0.1},
    "rloo": {"clip": 0.2, "kl_coef": 0.3},
    "ppo": {
        "gamma": 0.9,
        "lam": 0.8,
        "clip": 0.1,
        "value_clip": 0.15,
        "vf_coef": 0.7,
        "kl_coef": 0.3,
    },
}


class Given(nn.Module):
    """Log-probabilities and values as parameters, (B, T) each."""

    def __init__(self, log_probs: Tensor, values: Tensor) -> None:
        super().__init__()
        self.log_probs, self.values = nn.Parameter(log_probs), nn.Parameter(values)

    def token_scores(self, ids: Tensor, mask: Tensor, **_: Any) -> TokenScores:
        return TokenScores(self.log_probs * mask, torch.zeros_like(self.log_probs))

    def token_scores_and_values(self, ids: Tensor, mask: Tensor, **_: Any) -> tuple[TokenScores, Tensor]:
        return self.token_scores(ids, mask), self.values


def rollout() -> tuple[Samples, Given]:
    generator = torch.Generator().manual_seed(3)
    shape = (6, 16)

    def drawn(scale: float) -> Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    mask = torch.zeros(shape, dtype=torch.bool)
    for row, (start, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        mask[row, start : start + length] = True
    old, values = -2 + drawn(1.0), drawn(1.0)
    model = Given(old + drawn(0.2), values + drawn(0.2))
    samples = Samples(
        ids=torch.ones(shape, dtype=torch.long),
        mask=mask,
        group=torch.tensor([0, 0, 0, 1, 1, 1]),
        finished=torch.tensor(FINISHED),
        reward=torch.tensor(REWARDS, dtype=torch.float64),
        sampler_log_probs=old * mask,
        old_log_probs=old * mask,
        ref_log_probs=(old + drawn(0.3)) * mask,
        values=values,
        max_new_tokens=LIMIT,
    )
    return samples, model


class ByHand:
    """The rollout as lists of each answer's tokens, and the formulas of `docs/algorithms.md` on them."""

    def __init__(self, samples: Samples, model: Given, settings: Any) -> None:
        self.s = settings
        rows = [samples.mask[i].nonzero().flatten().tolist() for i in range(6)]
        self.new = [[model.log_probs[i, t] for t in row] for i, row in enumerate(rows)]
        self.value = [[model.values[i, t] for t in row] for i, row in enumerate(rows)]
        self.old, self.ref, self.old_value = (
            [[float(table[i, t]) for t in row] for i, row in enumerate(rows)]
            for table in (samples.old_log_probs, samples.ref_log_probs, samples.values)
        )
        self.clipped: list[bool] = []

    def surrogate(self, ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
        held = ratio.clamp(1 - low, 1 + high)
        self.clipped.append(bool(held * advantage < ratio * advantage))
        return -torch.minimum(ratio * advantage, held * advantage)

    def k3(self, i: int, t: int) -> Tensor:
        d = self.new[i][t] - self.ref[i][t]
        plain = torch.exp(-d) - 1 + d
        return plain * torch.exp(self.new[i][t] - self.old[i][t]) if self.s.kl_weighted else plain

    def group_advantages(self) -> list[float]:
        found = []
        for i, reward in enumerate(REWARDS):
            group = REWARDS[:3] if i < 3 else REWARDS[3:]
            spread = {"group": statistics.stdev(group), "batch": statistics.stdev(REWARDS), "none": 1 - 1e-4}
            found.append((reward - statistics.fmean(group)) / (spread[self.s.scale] + 1e-4))
        return found

    def per_token(self) -> list[list[Tensor]]:
        gains, found = self.group_advantages(), []
        for i, gain in enumerate(gains):
            ratios = [torch.exp(n - o) for n, o in zip(self.new[i], self.old[i], strict=True)]
            terms = [self.surrogate(r, gain, self.s.clip_low, self.s.clip_high) for r in ratios]
            found.append([term + self.s.kl_coef * self.k3(i, t) for t, term in enumerate(terms)])
        return found

    def grpo(self) -> Tensor:
        return sum(sum(row) / len(row) for row in self.per_token()) / 6

    def dapo(self) -> Tensor:
        return sum(sum(row) for row in self.per_token()) / sum(LENGTHS)

    def dr_grpo(self) -> Tensor:
        return sum(sum(row) for row in self.per_token()) / (6 * LIMIT)

    def gspo(self) -> Tensor:
        total = 0.0
        for i, gain in enumerate(self.group_advantages()):
            logs = [n - o for n, o in zip(self.new[i], self.old[i], strict=True)]
            total += self.surrogate(torch.exp(sum(logs) / len(logs)), gain, self.s.clip_low, self.s.clip_high)
            total += self.s.kl_coef * sum(self.k3(i, t) for t in range(len(logs))) / len(logs)
        return total / 6

    def cispo(self) -> Tensor:
        total = 0.0
        for i, gain in enumerate(self.group_advantages()):
            for new, old in zip(self.new[i], self.old[i], strict=True):
                ratio = math.exp(new.item() - old)
                self.clipped.append(ratio > 1 + self.s.clip_high)
                total += -min(ratio, 1 + self.s.clip_high) * gain * new
        return total / sum(LENGTHS)

    def rloo(self) -> Tensor:
        worth = [r - self.s.kl_coef * (sum(self.old[i]) - sum(self.ref[i])) for i, r in enumerate(REWARDS)]
        total = 0.0
        for i in range(6):
            others = [worth[j] for j in range(6) if j // 3 == i // 3 and j != i]
            ratio = torch.exp(sum(self.new[i]) - sum(self.old[i]))
            total += self.surrogate(ratio, worth[i] - statistics.fmean(others), self.s.clip, self.s.clip)
        return total / 6

    def ppo(self) -> Tensor:
        gains, goals = [], []
        for i, score in enumerate(REWARDS):
            later, found = 0.0, []
            for t in reversed(range(LENGTHS[i])):
                reward = -self.s.kl_coef * (self.old[i][t] - self.ref[i][t]) + (t == LENGTHS[i] - 1) * score
                after = self.old_value[i][t + 1] if t + 1 < LENGTHS[i] else 0.0
                later = reward + self.s.gamma * after - self.old_value[i][t] + self.s.gamma * self.s.lam * later
                found.insert(0, later)
            gains.append(found)
            goals.append([a + v for a, v in zip(found, self.old_value[i], strict=True)])
        every = [a for row in gains for a in row]
        mean, spread = statistics.fmean(every), math.sqrt(statistics.variance(every) + 1e-8)
        total = 0.0
        for i in range(6):
            for t in range(LENGTHS[i]):
                ratio, value, goal = torch.exp(self.new[i][t] - self.old[i][t]), self.value[i][t], goals[i][t]
                total += self.surrogate(ratio, (gains[i][t] - mean) / spread, self.s.clip, self.s.clip)
                near = self.old_value[i][t] + (value - self.old_value[i][t]).clamp(
                    -self.s.value_clip, self.s.value_clip
                )
                total += self.s.vf_coef * 0.5 * torch.maximum((value - goal) ** 2, (near - goal) ** 2)
        return total / sum(LENGTHS)


def ours(name: str) -> tuple[Samples, Given, Any, Tensor, dict[str, Any]]:
    algorithm = algorithms.load(name, "online")
    settings = algorithm.settings(**SETTINGS[name])
    samples, model = rollout()
    scored, _ = algorithm.compute_advantages(settings, samples)
    found, metrics = algorithm.loss(settings, model, scored)
    return samples, model, settings, found.total / found.count, metrics


def test_every_online_algorithm_is_here() -> None:
    assert sorted(SETTINGS) == algorithms.names("online")


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_derivatives_equal_the_loops(name: str) -> None:
    samples, model, settings, loss, metrics = ours(name)
    by_hand = ByHand(samples, model, settings)
    formula: Callable[[], Tensor] = getattr(by_hand, name)
    want = formula()
    assert 0 < sum(by_hand.clipped) < len(by_hand.clipped), "all or nothing is clipped"
    assert metrics["clip_fraction"].value == pytest.approx(sum(by_hand.clipped) / len(by_hand.clipped))
    if name != "cispo":  # its value is not the one it descends
        torch.testing.assert_close(loss, want, atol=1e-12, rtol=1e-10)
    parameters = [model.log_probs, model.values][: 2 if name == "ppo" else 1]
    got, expected = (torch.autograd.grad(x, parameters) for x in (loss, want))
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-10)
    assert not got[0][~samples.mask].any()
    learned = [bool(row.any()) for row in got[0]]
    assert any(learned[i] for i in range(6) if not FINISHED[i]), "nothing is learned from an answer that was cut off"
