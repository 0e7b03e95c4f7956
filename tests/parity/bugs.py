"""Mistakes that every comparison must notice, planted on our side: sign, mask, normalizer, and every setting that the case names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tests.parity.tiny import Bug, Loss
from tinyllm.algorithms import bradley_terry
from tinyllm.mean import Mean

Spoil = Callable[[Loss, list[Any]], tuple[Loss, list[Any]]]


def _negated(loss: Loss, batches: list[Any]) -> tuple[Loss, list[Any]]:
    def wrong(model: nn.Module, batch: Any) -> tuple[Mean, dict[str, Mean]]:
        mean, metrics = loss(model, batch)
        return Mean(-mean.total, mean.count), metrics

    return wrong, batches


def _by_rows(loss: Loss, batches: list[Any]) -> tuple[Loss, list[Any]]:
    """A mean over the micro-batches' means; with one micro-batch, a mean over one more than there are."""

    def wrong(model: nn.Module, batch: Any) -> tuple[Mean, dict[str, Mean]]:
        mean, metrics = loss(model, batch)
        return Mean(mean.total / (mean.count + 1), 1.0), metrics

    return wrong, batches


def _masks(change: Callable[[Tensor], Tensor], loss: Loss, batches: list[Any]) -> tuple[Loss, list[Any]]:
    """Of reward models, which read the last real token and have no use for the mask of the answer, that of real tokens."""
    name = "real" if isinstance(loss, partial) and loss.func is bradley_terry.loss else "mask"
    return loss, [replace(batch, **{name: change(getattr(batch, name))}) for batch in batches]


def _without_last(mask: Tensor) -> Tensor:
    return mask & F.pad(mask[:, 1:], (0, 1))


def _with_the_token_before(mask: Tensor) -> Tensor:
    wider = mask | F.pad(mask[:, 1:], (0, 1))
    wider[:, 0] = False
    return wider


def _changed(name: str, value: Any) -> Any:
    if name == "scale":
        return "none" if value != "none" else "batch"
    if name == "kl_estimator":
        return "k3" if value == "k1" else "k1"
    if isinstance(value, bool):
        return not value
    if "clip" in name:
        return value * 10  # hit hardly any more: each bound must have been
    return value * 1.1 if value and name not in ("gamma", "lam") else value - 0.05 if value else 0.05


def bugs(name: str, settings: Mapping[str, Any]) -> dict[str, Bug]:
    """Return the mistakes that case `name` with our `settings` must notice."""
    found = {"sign": Bug(spoil=_negated), "end token": Bug(spoil=partial(_masks, _without_last))}
    found["normalizer"] = Bug(spoil=_by_rows)
    # Both answers of a pair follow the same prompt, whose share of a difference of sums is 0. Advantages are 0 outside of the answer.
    if not name.startswith(("rm", "dpo / sig", "dpo / hin", "dpo / rob", "dr_grpo")):
        found["prompt token"] = Bug(spoil=partial(_masks, _with_the_token_before))
    for key, value in settings.items():
        if key == "label_smoothing" and not value and not name.startswith("dpo / robust"):
            continue  # TRL ignores it
        found[f"{key} {value}"] = Bug({key: _changed(key, value)})
    return found
