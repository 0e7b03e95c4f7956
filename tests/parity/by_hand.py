"""PPO by hand: the papers' formulas in loops over answers and tokens, on transformers' models. TRL has had no PPO since 1.11.

Shares no code with the package: one unpadded row at a time, a recursion where the package multiplies by a triangular matrix, `statistics`
where it sums tensors. Formulas: arXiv 1506.02438 Eq. 16 (advantages), 1707.06347 Eq. 7 (policy), 1909.08593 section 2 (KL in the
reward), OpenAI's lm-human-preferences for whitening (unbiased variance + 1e-8) and the clipped value loss.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import nn

from tests.parity import tiny


@dataclass(frozen=True)
class Knobs:
    gamma: float
    lam: float
    clip: float
    value_clip: float
    vf_coef: float
    kl_coef: float
    k3: bool
    whiten: bool
    temperature: float


def log_probs(model: nn.Module, prompt: list[int], answer: list[int], temperature: float) -> list[torch.Tensor]:
    """Log-probabilities of the answer's tokens."""
    logits = model(torch.tensor([prompt + answer])).logits[0] / temperature
    first = len(prompt) - 1
    return [logits[first + t].log_softmax(-1)[token] for t, token in enumerate(answer)]


def values(critic: nn.Module, prompt: list[int], answer: list[int]) -> list[torch.Tensor]:
    """Values before each token of the answer."""
    scores = critic.score(critic.model(torch.tensor([prompt + answer])).last_hidden_state)[0, :, 0]
    return [scores[len(prompt) - 1 + t] for t in range(len(answer))]


def advantages(rewards: list[float], expected: list[float], knobs: Knobs) -> list[float]:
    found, later = [0.0] * len(rewards), 0.0
    for t in reversed(range(len(rewards))):
        after = expected[t + 1] if t + 1 < len(rewards) else 0.0
        delta = rewards[t] + knobs.gamma * after - expected[t]
        later = delta + knobs.gamma * knobs.lam * later
        found[t] = later
    return found


def token_rewards(old: list[float], reference: list[float], score: float, knobs: Knobs) -> list[float]:
    rewards = []
    for t in range(len(old)):
        k1 = old[t] - reference[t]
        kl = math.exp(-k1) - 1 + k1 if knobs.k3 else k1
        rewards.append(-knobs.kl_coef * kl + (score if t == len(old) - 1 else 0.0))
    return rewards


@dataclass(frozen=True)
class Players:
    """transformers' models: those that are trained, and those that sampled and scored the rollout."""

    policy: nn.Module
    critic: nn.Module
    old: nn.Module
    old_critic: nn.Module
    reference: nn.Module


def ppo(knobs: Knobs, players: Players, rows: list[tuple[list[int], list[int]]], scores: list[float]) -> tiny.Outcome:
    """Loss and gradient over prompts with their answers and the answers' scores."""
    policy, critic = players.policy, players.critic
    old, v_old, gains, returns = [], [], [], []
    for (prompt, answer), score in zip(rows, scores, strict=True):
        with torch.no_grad():
            old.append([float(x) for x in log_probs(players.old, prompt, answer, knobs.temperature)])
            base = [float(x) for x in log_probs(players.reference, prompt, answer, knobs.temperature)]
            v_old.append([float(x) for x in values(players.old_critic, prompt, answer)])
        gains.append(advantages(token_rewards(old[-1], base, score, knobs), v_old[-1], knobs))
        returns.append([a + v for a, v in zip(gains[-1], v_old[-1], strict=True)])
    if knobs.whiten:
        every = [a for row in gains for a in row]
        mean, spread = statistics.fmean(every), math.sqrt(statistics.variance(every) + 1e-8)
        gains = [[(a - mean) / spread for a in row] for row in gains]
    terms = []
    for i, (prompt, answer) in enumerate(rows):
        new, v_new = log_probs(policy, prompt, answer, knobs.temperature), values(critic, prompt, answer)
        for t in range(len(answer)):
            ratio, gain, goal = torch.exp(new[t] - old[i][t]), gains[i][t], returns[i][t]
            held = ratio.clamp(1 - knobs.clip, 1 + knobs.clip)
            surrogate = max(-gain * ratio, -gain * held)
            near = v_old[i][t] + min(max(v_new[t] - v_old[i][t], -knobs.value_clip), knobs.value_clip)
            terms.append(surrogate + knobs.vf_coef * 0.5 * max((v_new[t] - goal) ** 2, (near - goal) ** 2))
    loss = sum(terms) / len(terms)
    loss.backward()
    gradient = {f"policy.{n}": p.grad for n, p in policy.named_parameters()}
    gradient |= {f"critic.{n}": p.grad for n, p in critic.named_parameters()}
    return tiny.Outcome(loss.item(), gradient)
