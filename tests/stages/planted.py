"""Mistakes to be found by `tinyllm verify`: each a function of `put`, which sets an attribute (`setattr`, or a test's monkeypatch).

`PLANTS` says which checks must turn red, and no others: of those that stay in one process, and of those that start others.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tinyllm import dist
from tinyllm.algorithms import grpo, next_token
from tinyllm.mean import Mean
from tinyllm.model import hub, kernels, lora, transformer
from tinyllm.model.transformer import KVCache
from tinyllm.text import tokenizer
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint, engine
from tinyllm.train.engine import Engine

Put = Callable[[Any, str, Any], None]


def cache_off_by_one(put: Put) -> None:
    """New keys overwrite the last ones."""

    def append(self, layer, keys, values):
        end = self.length + keys.shape[2]
        start = max(0, self.length - 1)
        self.keys[layer, :, :, end - 1 :] = 0
        self.values[layer, :, :, end - 1 :] = 0
        self.keys[layer, :, :, start : start + keys.shape[2]] = keys
        self.values[layer, :, :, start : start + keys.shape[2]] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    put(KVCache, "append", append)


def merged_twice_as_strong(put: Put) -> None:
    right = lora.merge

    def merge(model: nn.Module) -> nn.Module:
        for layer in lora.layers(model).values():
            layer.scaling *= 2
        return right(model)

    put(lora, "merge", merge)


def mean_of_each_micro_batch(put: Put) -> None:
    """The loss divided where it is computed, so that the engine adds up means."""
    right = next_token.loss

    def loss(settings, model, batch):
        mean, metrics = right(settings, model, batch)
        return Mean(mean.total / mean.count, 1.0), metrics

    put(next_token, "loss", loss)


def grpo_mean_of_tokens_in_the_micro_batch(put: Put) -> None:
    right = grpo.loss

    def loss(settings, model, batch, temperature=1.0):
        mean, metrics = right(settings, model, batch, temperature)
        return Mean(mean.total / batch.mask.sum() * mean.count, mean.count), metrics

    put(grpo, "loss", loss)


def optimizer_state_dropped(put: Put) -> None:
    put(Engine, "restore", lambda self, tensors, updates: setattr(self, "updates", updates))


def dropout_not_seeded(put: Put) -> None:
    put(engine, "_mixed", lambda *numbers: random.SystemRandom().getrandbits(63))


def documents_see_each_other(put: Put) -> None:
    right = transformer._attention_mask
    put(transformer, "_attention_mask", lambda attend, start, length: right(attend.bool(), start, length))


def ranks_do_not_add_up(put: Put) -> None:
    put(dist, "sum_", lambda tensor: tensor)


def control_tokens_are_read_in_texts(put: Put) -> None:
    def encode_batch(self, texts):
        return [found.ids for found in self._whole.encode_batch(list(texts), add_special_tokens=False)]

    put(Tokenizer, "encode_batch", encode_batch)


def template_without_a_line_break(put: Put) -> None:
    put(tokenizer, "CHAT_TEMPLATE", tokenizer.CHAT_TEMPLATE.replace("{{- '\\n' -}}\n", ""))


def manifest_not_read(put: Put) -> None:
    put(checkpoint, "verify", lambda folder: None)


def another_rotation_in_config_json(put: Put) -> None:
    right = hub.describe
    put(hub, "describe", lambda model, **ids: {**right(model, **ids), "rope_theta": 20_000.0})


def a_rotation_only_others_read(put: Put) -> None:
    right = hub.describe
    changed = {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}}
    put(hub, "describe", lambda model, **ids: {**right(model, **ids), **changed})


def norm_too_large_in_bf16(put: Put) -> None:
    right = kernels.rms_norm

    def rms_norm(x, weight, eps):
        found = right(x, weight, eps)
        return found if found.dtype == x.dtype == weight.dtype else found * 1.5

    put(kernels, "rms_norm", rms_norm)


@dataclass(frozen=True)
class Plant:
    plant: Callable[[Put], None]
    here: frozenset[str]  # checks that stay in this process and must turn red
    apart: frozenset[str] = frozenset()  # those that start other processes, or transformers

    @property
    def red(self) -> frozenset[str]:
        return self.here | self.apart


def _plant(plant: Callable[[Put], None], here: str = "", apart: str = "") -> Plant:
    return Plant(plant, frozenset(here.split()), frozenset(apart.split()))


PLANTS = {
    p.plant.__name__: p
    for p in (
        _plant(cache_off_by_one, "generation"),
        _plant(merged_twice_as_strong, "lora"),
        _plant(mean_of_each_micro_batch, "micro-batches", "ranks"),
        _plant(grpo_mean_of_tokens_in_the_micro_batch, "micro-batches", "ranks"),
        _plant(optimizer_state_dropped, apart="resume"),
        _plant(dropout_not_seeded, "repeat", "resume"),
        _plant(documents_see_each_other, "packing"),
        _plant(ranks_do_not_add_up, apart="ranks"),
        _plant(control_tokens_are_read_in_texts, "tokenizer"),
        _plant(template_without_a_line_break, "template"),
        _plant(manifest_not_read, "checkpoint"),
        _plant(another_rotation_in_config_json, "export", "resume"),  # which refuses a checkpoint of another model
        _plant(a_rotation_only_others_read, apart="transformers"),
        _plant(norm_too_large_in_bf16, "precision"),
    )
}
