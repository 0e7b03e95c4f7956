"""The table of comparisons: name -> our outcome, the oracle's, and who the oracle is. Online: `rollouts`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from tests.parity import oracles, tiny
from tests.parity.rollouts import ROLLOUTS
from tests.parity.tiny import Bug, Case, Outcome, halves, outcome
from tinyllm.algorithms import bradley_terry, dpo, kto, next_token, orpo, simpo
from tinyllm.data.datasets.batches import PreferenceBatch
from tinyllm.data.datasets.datasets import PreferenceDataset, SFTDataset, UnpairedDataset
from tinyllm.data.datasets.packing import PackedSFTDataset
from tinyllm.model import hub
from tinyllm.model.config import LoRAConfig

ROWS = [(pair.prompt, pair.chosen) for pair in tiny.PAIRS]
MASKED = [([*prompt, *answer], [False] * len(prompt) + [True] * len(answer)) for prompt, answer in ROWS]
sft_loss = partial(next_token.loss, next_token.Settings())


def case(ours: Callable[[Bug], Outcome], oracle: Callable[[], Outcome], source: str, **settings: Any) -> Case:
    return Case(ours, cache(oracle), source, settings)


def supervised(parts: int) -> Case:
    data = SFTDataset(MASKED, tiny.PAD)
    split = [list(range(len(data)))] if parts == 1 else halves(len(data))
    batches = [data.collate(part, 0, range(len(data))) for part in split]
    return case(
        lambda bug: outcome(tiny.policy(), sft_loss, batches, bug)[0], lambda: oracles.sft(ROWS, parts), "TRL SFT"
    )


def packed() -> Case:
    data = PackedSFTDataset(MASKED, tiny.PAD, 20)
    assert len(data) < len(ROWS), "nothing was packed"
    batches = [data.collate(range(len(data)), 0, range(len(data)))]
    theirs = {"packing": True, "max_length": 20, "per_device_train_batch_size": len(data)}
    return case(
        lambda bug: outcome(tiny.policy(), sft_loss, batches, bug)[0],
        lambda: oracles.sft(ROWS, **theirs),
        "TRL SFT, packing",
    )


def adapted(config: LoRAConfig) -> Case:
    """Gradients of an adapter that we wrote and PEFT read."""
    data = SFTDataset(MASKED, tiny.PAD)
    batches = [data.collate(part, 0, range(len(data))) for part in halves(len(data))]

    def ours(bug: Bug) -> Outcome:
        return outcome(hub.load_causal_lm(tiny.adapter(config), merged=False).double(), sft_loss, batches, bug)[0]

    return case(ours, lambda: oracles.sft(ROWS, model=oracles.adapted(tiny.adapter(config))), "TRL SFT, PEFT")


@torch.no_grad()
def pair_batches(reference: bool = False) -> list[PreferenceBatch]:
    """The pairs in two micro-batches."""
    data = PreferenceDataset(tiny.PAIRS, tiny.PAD)
    everything = range(len(data))
    if reference:
        whole = data.collate(everything, 0, everything)
        data.ref_log_probs = tiny.policy("reference").log_probs(whole.ids, whole.mask).sum(1).view(2, -1).T
    return [data.collate(part, 0, everything) for part in halves(len(data))]


def reward_model(margin: bool, centering: float) -> Case:
    def ours(bug: Bug) -> Outcome:
        batches = [b if margin else replace(b, margin=torch.zeros_like(b.margin)) for b in pair_batches()]
        settings = bradley_terry.Settings(**{"centering": centering} | bug.settings)
        return outcome(tiny.scorer(), partial(bradley_terry.loss, settings), batches, bug)[0]

    return case(ours, lambda: oracles.reward(margin, centering or None), "TRL Reward", centering=centering)


def direct(variant: str, smoothing: float = 0.0) -> Case:
    knobs = {"beta": 0.3, "label_smoothing": smoothing}

    def ours(bug: Bug) -> Outcome:
        settings = dpo.Settings(variant=variant, **knobs | bug.settings)
        return outcome(tiny.policy(), partial(dpo.loss, settings), pair_batches(reference=True), bug)[0]

    return case(ours, lambda: oracles.dpo(loss_type=variant, **knobs), "TRL DPO", **knobs)


def smoothed() -> Case:
    """TRL's DPO ignores smoothing where the loss is `sigmoid`; its CPO does not, and is DPO with a reference of 0."""
    knobs = {"beta": 0.3, "label_smoothing": 0.15}

    def ours(bug: Bug) -> Outcome:
        batches = [replace(b, ref_log_probs=torch.zeros(2 * b.count, dtype=torch.float64)) for b in pair_batches()]
        return outcome(tiny.policy(), partial(dpo.loss, dpo.Settings(**knobs | bug.settings)), batches, bug)[0]

    return case(ours, lambda: oracles.cpo(loss_type="sigmoid", **knobs), "TRL CPO", **knobs)


def odds_ratio() -> Case:
    def ours(bug: Bug) -> Outcome:
        settings = orpo.Settings(**{"weight": 0.7} | bug.settings)
        return outcome(tiny.policy(), partial(orpo.loss, settings), pair_batches(), bug)[0]

    return case(ours, lambda: oracles.orpo(0.7), "TRL ORPO", weight=0.7, prompt_loss=True)


def simple() -> Case:
    knobs = {"beta": 2.0, "gamma": 0.8}

    def ours(bug: Bug) -> Outcome:
        settings = simpo.Settings(**knobs | bug.settings)
        return outcome(tiny.policy(), partial(simpo.loss, settings), pair_batches(), bug)[0]

    return case(ours, lambda: oracles.cpo(beta=2.0, loss_type="simpo", simpo_gamma=0.8), "TRL CPO", **knobs)


def kahneman_tversky(trained: str, reference: str, clamped: bool) -> Case:
    knobs = {"beta": 0.2, "desirable_weight": 0.9, "undesirable_weight": 1.3}
    data = UnpairedDataset(tiny.UNPAIRED, tiny.PAD)
    everything = range(len(data))

    def ours(bug: Bug) -> Outcome:
        settings, model = kto.Settings(**knobs | bug.settings), tiny.policy(trained)
        with torch.no_grad():
            whole = data.collate(everything, 0, everything)
            scores = tiny.policy(reference).log_probs(whole.ids, whole.mask)
            data.ref_log_probs = scores.sum(1).view(2, -1).T
            batches = kto.prepare(settings, model, [data.collate(part, 0, everything) for part in halves(len(data))])
        found, metrics = outcome(model, partial(kto.loss, settings), batches, bug)
        assert (metrics["kl"] == 0) == clamped
        return found

    return case(ours, lambda: oracles.kto(tiny.rotated(data), trained, reference, **knobs), "TRL KTO", **knobs)


CASES: dict[str, Callable[[], Case]] = {
    "sft / one batch": partial(supervised, 1),
    "sft / two micro-batches": partial(supervised, 2),
    "sft / packed": packed,
    "sft / lora": partial(adapted, LoRAConfig(r=3, alpha=5, targets=("q_proj", "v_proj", "down_proj"))),
    "sft / rslora": partial(adapted, LoRAConfig(r=3, alpha=5, rslora=True)),
    "sft / dora": partial(adapted, LoRAConfig(r=3, alpha=5, dora=True)),
    "rm / plain": partial(reward_model, margin=False, centering=0.0),
    "rm / margin": partial(reward_model, margin=True, centering=0.0),
    "rm / centering": partial(reward_model, margin=False, centering=0.05),
    "dpo / sigmoid": partial(direct, "sigmoid"),
    "dpo / sigmoid, smoothed": smoothed,
    "dpo / hinge": partial(direct, "hinge"),
    "dpo / ipo": partial(direct, "ipo"),
    "dpo / robust": partial(direct, "robust", 0.15),
    "orpo / prompt loss": odds_ratio,
    "simpo / default": simple,
    "kto / z above 0": partial(kahneman_tversky, "reference", "policy", clamped=False),
    "kto / z clamped": partial(kahneman_tversky, "policy", "reference", clamped=True),
    **ROLLOUTS,
}


@cache
def of(name: str) -> Case:
    return CASES[name]()
