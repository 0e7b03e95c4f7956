"""The faults of `planted_faults.py`: each is planted in one stage, and names the gates, or the refusal, that must catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import torch

from tinyllm.algorithms import bradley_terry, dpo, grpo, gspo, next_token, orpo, ppo
from tinyllm.data import loading
from tinyllm.data.datasets.batches import PreferenceBatch, Samples
from tinyllm.model import lora
from tinyllm.text import chat
from tinyllm.train.engine import Engine


@dataclass(frozen=True)
class Fault:
    """A fault in one stage.

    Attributes:
        plant: returns a context manager that applies it.
        gates: the gates that must fail, each on a figure of something.
        empty: the gates that must fail because nothing could be measured: the checkpoint answers as its parent does.
        refusal: words of the error that must stop the stage before it trains; instead of gates.
        checkpoint: the one whose gates are judged. Selection among evaluations keeps a parent that only got worse as the best one, so
            the faults of alignment are judged at the last.
        data: the lifecycle it is planted in: of the bundled world, or of files.
        sets: settings of the stage that belong to the fault.
    """

    name: str
    stage: str
    what: str
    plant: Callable[[], Any]
    gates: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    refusal: str = ""
    checkpoint: Literal["best", "last"] = "best"
    data: Literal["world", "user"] = "world"
    sets: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.data}/{self.stage}/{self.name}"


def frozen() -> Any:
    """Compute gradients and never apply them."""

    def update(engine: Engine, rate: float) -> None:
        engine.zero_grad()
        engine.updates += 1

    return mock.patch.object(Engine, "_update", update)


def no_end_token() -> Any:
    """Leave the assistant's <|im_end|> out of the loss."""
    original = chat.render_many

    def render_many(tokenizer: Any, conversations: Any, **options: Any) -> list[chat.Rendered]:
        found = original(tokenizer, conversations, **options)
        return [
            replace(r, mask=[m and token != tokenizer.im_end for m, token in zip(r.mask, r.ids, strict=True)])
            for r in found
        ]

    return mock.patch.object(chat, "render_many", render_many)


def end_without_loss() -> Any:
    """Leave the last token of every answer out of the training loss, below the check of the data."""
    original = next_token.loss

    def loss(settings: Any, model: Any, batch: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(settings, model, batch)
        goes_on = torch.nn.functional.pad(batch.mask[:, 1:], (0, 1))
        return original(settings, model, replace(batch, mask=batch.mask & goes_on))

    return mock.patch.object(next_token, "loss", loss)


def empty_mask() -> Any:
    original = chat.render_many

    def render_many(tokenizer: Any, conversations: Any, **options: Any) -> list[chat.Rendered]:
        return [replace(r, mask=[False] * len(r.mask)) for r in original(tokenizer, conversations, **options)]

    return mock.patch.object(chat, "render_many", render_many)


def dead_adapter() -> Any:
    """Scale the low-rank branch by almost zero."""
    original = lora.LoRALinear.__init__

    def start(layer: lora.LoRALinear, *arguments: Any) -> None:
        original(layer, *arguments)
        layer.scaling = 1e-6

    return mock.patch.object(lora.LoRALinear, "__init__", start)


def swapped(module: Any) -> Callable[[], Any]:
    """Swap chosen and rejected in the training loss."""

    def plant() -> Any:
        original = module.loss

        def loss(settings: Any, model: Any, batch: PreferenceBatch) -> Any:
            if not torch.is_grad_enabled():
                return original(settings, model, batch)
            turn = torch.arange(len(batch.ids)).roll(batch.count)
            reference = None if batch.ref_log_probs is None else batch.ref_log_probs[turn]
            moved = replace(
                batch, ids=batch.ids[turn], mask=batch.mask[turn], real=batch.real[turn], ref_log_probs=reference
            )
            return original(settings, model, moved)

        return mock.patch.object(module, "loss", loss)

    return plant


def shuffled_labels() -> Any:
    """Choose at random which of two answers is the chosen one."""
    original = loading.preference_dataset

    def preference_dataset(pairs: Any, tokenizer: Any, limit: Any, name: str) -> Any:
        found = original(pairs, tokenizer, limit, name)
        if name == "train":
            coin = torch.rand(len(found.pairs), generator=torch.Generator().manual_seed(0)) < 0.5
            found.pairs = [
                replace(p, chosen=p.rejected, rejected=p.chosen) if swap else p
                for p, swap in zip(found.pairs, coin.tolist(), strict=True)
            ]
        return found

    from tinyllm.stages import rm

    return mock.patch.object(rm, "preference_dataset", preference_dataset)


def shuffled_advantages(module: Any) -> Callable[[], Any]:
    def plant() -> Any:
        original = module.compute_advantages

        def compute_advantages(settings: Any, samples: Samples) -> Any:
            generator = torch.Generator().manual_seed(int(samples.ids.sum()))
            order = torch.randperm(len(samples.reward), generator=generator)
            return original(settings, replace(samples, reward=samples.reward[order]))

        return mock.patch.object(module, "compute_advantages", compute_advantages)

    return plant


def negated_reward(module: Any) -> Callable[[], Any]:
    """Negate the reward that the policy learns from; evaluations see the true one."""

    def plant() -> Any:
        original = module.compute_advantages

        def compute_advantages(settings: Any, samples: Samples) -> Any:
            return original(settings, replace(samples, reward=-samples.reward))

        return mock.patch.object(module, "compute_advantages", compute_advantages)

    return plant


WINS, GOLD, KL = "wins against parent", "improves gold reward", "KL within bound"
_AWAY = ("grpo.kl_coef=0", "optim.learning_rate=1e-2")

FAULTS = (
    Fault("frozen model", "pretrain", "gradients are never applied", frozen, ("beats n-gram baseline",)),
    Fault("no end token", "sft", "the end token is not in the mask", no_end_token, refusal="trains an end token"),
    Fault(
        "end without loss",
        "sft",
        "the loss leaves the end token out",
        end_without_loss,
        ("emits EOS", "improves on pretrained"),
    ),
    Fault("empty mask", "sft", "no token is in the loss", empty_mask, refusal="can be trained on"),
    Fault("dead adapter", "sft-lora", "the low-rank branch has no weight", dead_adapter, ("near full fine-tuning",)),
    Fault("shuffled labels", "rm", "chosen and rejected are random", shuffled_labels, ("near label-noise ceiling",)),
    Fault(
        "swapped reward model",
        "rm",
        "the rejected answer is to score higher",
        swapped(bradley_terry),
        ("near label-noise ceiling", "correlates with gold"),
        checkpoint="last",
    ),
    Fault("swapped pairs", "dpo", "the rejected answer is preferred", swapped(dpo), (WINS, GOLD), checkpoint="last"),
    Fault("swapped pairs", "orpo", "the rejected answer is preferred", swapped(orpo), (WINS, GOLD), checkpoint="last"),
    Fault("wrong sign", "ppo", "the reward is negated", negated_reward(ppo), (WINS, GOLD), checkpoint="last"),
    Fault(
        "shuffled advantages",
        "ppo",
        "rewards go to other answers",
        shuffled_advantages(ppo),
        (GOLD,),
        checkpoint="last",
    ),
    Fault(
        "shuffled advantages",
        "gspo",
        "rewards go to other answers",
        shuffled_advantages(gspo),
        (GOLD,),
        checkpoint="last",
    ),
    Fault("frozen policy", "grpo", "gradients are never applied", frozen, (GOLD,), (WINS,), checkpoint="last"),
    Fault(
        "shuffled advantages",
        "grpo",
        "rewards go to other answers",
        shuffled_advantages(grpo),
        (GOLD,),
        checkpoint="last",
    ),
    Fault(
        "runaway",
        "grpo",
        "no KL penalty, a learning rate far too high, the reward negated",
        negated_reward(grpo),
        (KL,),
        checkpoint="last",
        sets=_AWAY,
    ),
    Fault("frozen model", "sft", "gradients are never applied", frozen, ("lowers held-out loss",), data="user"),
    Fault(
        "swapped reward model",
        "rm",
        "the rejected answer is to score higher",
        swapped(bradley_terry),
        ("accuracy above chance",),
        checkpoint="last",
        data="user",
    ),
    Fault(
        "swapped pairs",
        "dpo",
        "the rejected answer is preferred",
        swapped(dpo),
        ("ranks chosen above rejected",),
        checkpoint="last",
        data="user",
    ),
    Fault(
        "wrong sign",
        "grpo",
        "the reward is negated",
        negated_reward(grpo),
        ("improves reward",),
        checkpoint="last",
        data="user",
    ),
)
