"""Cases of the online algorithms: our advantages and loss over the rollout of `tiny`, compared with TRL's, and PPO's by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from tests.parity import by_hand, online, oracles, tiny
from tests.parity.tiny import Bug, Case, Outcome, halves, outcome
from tinyllm import algorithms
from tinyllm.model.transformer import ActorCritic


def ours(name: str, knobs: dict[str, Any], temperature: float, bug: Bug) -> Outcome:
    """Our advantages over the whole rollout and our loss over two micro-batches of it."""
    algorithm = algorithms.load(name, "online")
    settings = algorithm.settings(**knobs | bug.settings)
    samples, _ = algorithm.compute_advantages(settings, tiny.samples(temperature, algorithm.uses_reference(settings)))
    batches = [samples.rows(part) for part in halves(len(samples.ids))]
    loss = partial(algorithm.loss, settings, temperature=temperature)
    model = ActorCritic(tiny.policy(), tiny.scorer()) if algorithm.needs_critic else tiny.policy()
    return outcome(model, loss, batches, bug)[0]


def group_relative(name: str, settings: dict[str, Any], parts: int, theirs: dict[str, Any]) -> Case:
    """`theirs` are TRL's settings for the same loss; `parts` its micro-batches."""
    temperature = theirs.get("temperature", 1.0)
    oracle = cache(lambda: online.grpo(parts, **theirs))
    return Case(partial(ours, name, settings, temperature), oracle, "TRL GRPO", settings)


def leave_one_out(kl_coef: float) -> Case:
    knobs = {"clip": 0.2, "kl_coef": kl_coef}
    oracle = cache(lambda: online.rloo(2, beta=kl_coef, epsilon=0.2, normalize_advantages=False))
    return Case(partial(ours, "rloo", knobs, 1.0), oracle, "TRL RLOO", knobs)


def proximal(k3: bool, whiten: bool) -> Case:
    knobs = by_hand.Knobs(
        gamma=0.97, lam=0.9, clip=0.2, value_clip=0.2, vf_coef=0.5, kl_coef=0.1, k3=k3, whiten=whiten, temperature=0.8
    )
    settings = {
        "gamma": knobs.gamma,
        "lam": knobs.lam,
        "clip": knobs.clip,
        "value_clip": knobs.value_clip,
        "vf_coef": knobs.vf_coef,
        "kl_coef": knobs.kl_coef,
        "kl_estimator": "k3" if k3 else "k1",
        "whiten": whiten,
    }
    rows = [(prompt, answer) for prompt, answers in zip(tiny.PROMPTS, tiny.ANSWERS, strict=True) for answer in answers]

    @cache
    def oracle() -> Outcome:
        players = by_hand.Players(
            policy=oracles.policy(),
            critic=oracles.scorer(),
            old=oracles.policy("old"),
            old_critic=oracles.scorer("old_scorer"),
            reference=oracles.policy("reference"),
        )
        return by_hand.ppo(knobs, players, rows, tiny.REWARDS)

    return Case(partial(ours, "ppo", settings, knobs.temperature), oracle, "by hand", settings)


_WIDE = {"epsilon": 0.2, "epsilon_high": 0.28}
_GRPO = {**_WIDE, "loss_type": "grpo"}
_GSPO = {"epsilon": 0.05, "epsilon_high": 0.08, "loss_type": "grpo", "importance_sampling_level": "sequence"}
_NARROW = {"clip_low": 0.05, "clip_high": 0.08}
_CLIP = {"clip_low": 0.2, "clip_high": 0.28}
_PLAIN_KL = {"use_bias_correction_kl": False}

_GROUP_RELATIVE: dict[str, tuple[str, dict[str, Any], int, dict[str, Any]]] = {
    "grpo / group std, KL weighted": ("grpo", _CLIP | {"kl_coef": 0.07}, 2, _GRPO | {"beta": 0.07}),
    "grpo / batch std, KL plain": (
        "grpo",
        _CLIP | {"kl_coef": 0.07, "kl_weighted": False, "scale": "batch"},
        2,
        _GRPO | _PLAIN_KL | {"beta": 0.07, "scale_rewards": "batch"},
    ),
    "grpo / no std, temperature": (
        "grpo",
        _CLIP | {"kl_coef": 0.07, "scale": "none"},
        2,
        _GRPO | {"beta": 0.07, "scale_rewards": "none", "temperature": 0.7},
    ),
    "gspo / no KL": ("gspo", _NARROW, 2, _GSPO),
    "gspo / KL plain": (
        "gspo",
        _NARROW | {"kl_coef": 0.1, "kl_weighted": False},
        2,
        _GSPO | _PLAIN_KL | {"beta": 0.1},
    ),
    "dapo / two micro-batches": ("dapo", _CLIP, 2, _WIDE | {"loss_type": "dapo"}),
    "dapo / KL, TRL's bnpo": ("dapo", _CLIP | {"kl_coef": 0.1}, 1, _WIDE | {"loss_type": "bnpo", "beta": 0.1}),
    "dr_grpo / default": (
        "dr_grpo",
        {"clip_low": 0.2, "clip_high": 0.2, "scale": "none"},
        2,
        {"epsilon": 0.2, "loss_type": "dr_grpo", "scale_rewards": "none"},
    ),
    "cispo / default": ("cispo", {"clip_high": 0.3}, 2, {"epsilon_high": 1.3, "loss_type": "cispo"}),
}

ROLLOUTS: dict[str, Callable[[], Case]] = {
    **{name: partial(group_relative, *row) for name, row in _GROUP_RELATIVE.items()},
    "rloo / KL in the reward": partial(leave_one_out, 0.05),
    "rloo / no KL": partial(leave_one_out, 0.0),
    "ppo / k1, whitened": partial(proximal, k3=False, whiten=True),
    "ppo / k3, not whitened": partial(proximal, k3=True, whiten=False),
}
