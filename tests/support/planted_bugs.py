"""Bugs that `tinyllm verify` must find. Each is a function of `patch`, which sets an attribute (`setattr`, or that of monkeypatch).

`BUGS` lists the checks that must fail, and no others: those that run in one process, and those that start other processes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tinyllm import distributed as dist
from tinyllm.algorithms import grpo, next_token
from tinyllm.mean import Mean
from tinyllm.model import hub, kernels, lora, transformer
from tinyllm.model.transformer import KVCache
from tinyllm.text import tokenizer
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint, engine
from tinyllm.train.engine import Engine

Patch = Callable[[Any, str, Any], None]


def cache_off_by_one(patch: Patch) -> None:
    """New keys and values overwrite the last cached ones."""

    def append(self, layer, keys, values):
        end = self.length + keys.shape[2]
        start = max(0, self.length - 1)
        self.keys[layer, :, :, end - 1 :] = 0
        self.values[layer, :, :, end - 1 :] = 0
        self.keys[layer, :, :, start : start + keys.shape[2]] = keys
        self.values[layer, :, :, start : start + keys.shape[2]] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    patch(KVCache, "append", append)


def merged_with_twice_the_scale(patch: Patch) -> None:
    original = lora.merge

    def merge(model: nn.Module) -> nn.Module:
        for layer in lora.layers(model).values():
            layer.scaling *= 2
        return original(model)

    patch(lora, "merge", merge)


def mean_per_micro_batch(patch: Patch) -> None:
    """The loss is divided per micro-batch, so the engine sums means."""
    original = next_token.loss

    def loss(settings, model, batch):
        mean, metrics = original(settings, model, batch)
        return Mean(mean.total / mean.count, 1.0), metrics

    patch(next_token, "loss", loss)


def grpo_mean_per_micro_batch(patch: Patch) -> None:
    original = grpo.loss

    def loss(settings, model, batch, temperature=1.0):
        mean, metrics = original(settings, model, batch, temperature)
        return Mean(mean.total / batch.mask.sum() * mean.count, mean.count), metrics

    patch(grpo, "loss", loss)


def optimizer_state_not_restored(patch: Patch) -> None:
    patch(Engine, "restore", lambda self, tensors, updates: setattr(self, "updates", updates))


def dropout_not_seeded(patch: Patch) -> None:
    patch(engine, "_mixed_seed", lambda *numbers: random.SystemRandom().getrandbits(63))


def attention_across_documents(patch: Patch) -> None:
    original = transformer._attention_mask
    patch(transformer, "_attention_mask", lambda attend, start, length: original(attend.bool(), start, length))


def gradients_not_summed_over_ranks(patch: Patch) -> None:
    patch(dist, "sum_", lambda tensor: tensor)


def control_tokens_parsed_in_text(patch: Patch) -> None:
    def encode_batch(self, texts):
        return [found.ids for found in self._whole.encode_batch(list(texts), add_special_tokens=False)]

    patch(Tokenizer, "encode_batch", encode_batch)


def template_without_newline(patch: Patch) -> None:
    patch(tokenizer, "CHAT_TEMPLATE", tokenizer.CHAT_TEMPLATE.replace("{{- '\\n' -}}\n", ""))


def manifest_not_verified(patch: Patch) -> None:
    patch(checkpoint, "verify", lambda folder: None)


def wrong_rope_theta_in_config_json(patch: Patch) -> None:
    original = hub.describe
    patch(hub, "describe", lambda model, **ids: {**original(model, **ids), "rope_theta": 20_000.0})


def wrong_rope_theta_for_transformers(patch: Patch) -> None:
    original = hub.describe
    changed = {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}}
    patch(hub, "describe", lambda model, **ids: {**original(model, **ids), **changed})


def norm_too_large_in_bf16(patch: Patch) -> None:
    original = kernels.rms_norm

    def rms_norm(x, weight, eps):
        found = original(x, weight, eps)
        return found if found.dtype == x.dtype == weight.dtype else found * 1.5

    patch(kernels, "rms_norm", rms_norm)


@dataclass(frozen=True)
class Bug:
    plant: Callable[[Patch], None]
    in_process: frozenset[str]  # checks that run in one process and must fail
    in_subprocess: frozenset[str] = (
        frozenset()
    )  # checks that start other processes or import transformers and must fail

    @property
    def failing(self) -> frozenset[str]:
        return self.in_process | self.in_subprocess


def _bug(plant: Callable[[Patch], None], in_process: str = "", in_subprocess: str = "") -> Bug:
    return Bug(plant, frozenset(in_process.split()), frozenset(in_subprocess.split()))


BUGS = {
    bug.plant.__name__: bug
    for bug in (
        _bug(cache_off_by_one, "generation"),
        _bug(merged_with_twice_the_scale, "lora"),
        _bug(mean_per_micro_batch, "micro-batches", "ranks"),
        _bug(grpo_mean_per_micro_batch, "micro-batches", "ranks"),
        _bug(optimizer_state_not_restored, in_subprocess="resume"),
        _bug(dropout_not_seeded, "repeat", "resume"),
        _bug(attention_across_documents, "packing"),
        _bug(gradients_not_summed_over_ranks, in_subprocess="ranks"),
        _bug(control_tokens_parsed_in_text, "tokenizer"),
        _bug(template_without_newline, "template"),
        _bug(manifest_not_verified, "checkpoint"),
        _bug(wrong_rope_theta_in_config_json, "export", "resume"),  # resume refuses a checkpoint of another model
        _bug(wrong_rope_theta_for_transformers, in_subprocess="transformers"),
        _bug(norm_too_large_in_bf16, "precision"),
    )
}
