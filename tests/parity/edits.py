"""Edits of a checkpoint: functions that change config.json and the tensors in place, as another reader or writer would have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Edit = Callable[[dict[str, Any], dict[str, Tensor]], None]
FULL, SLIDING = "full_attention", "sliding_attention"  # entries of layer_types


def put(**values: Any) -> Edit:
    """Set keys of config.json; `...` removes one. A name with two underscores reaches into a dict: `rope_parameters__factor`."""

    def edit(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for path, value in values.items():
            *parents, last = path.split("__")
            where = config
            for parent in parents:
                where = where[parent]
            if value is ...:
                where.pop(last, None)
            else:
                where[last] = value

    return edit


def unscaled(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Keep the base of the rotary embeddings only."""
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_parameters"]["rope_theta"]}


def zeroed(*endings: str) -> Edit:
    """Zero the tensors whose names end so."""

    def edit(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        names = [name for name in tensors if name.endswith(endings)]
        assert names, endings
        for name in names:
            tensors[name] = torch.zeros_like(tensors[name])

    return edit


def gains(amount: float, ending: str = "norm.weight") -> Edit:
    """Add a number to gains: -1 where the formula is (1 + w)."""

    def edit(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        names = [name for name in tensors if name.endswith(ending)]
        assert names, ending
        for name in names:
            tensors[name] = tensors[name] + amount

    return edit


def unscaled_embedding(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Undo the factor of the embedding, and of nothing else: the head becomes a tensor of its own."""
    config["tie_word_embeddings"] = False
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] / config["hidden_size"] ** 0.5


def layers_of(kind: str) -> Edit:
    return lambda config, tensors: config.update(layer_types=[kind] * config["num_hidden_layers"])


def transposed(ending: str) -> Edit:
    def edit(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(ending)]:
            tensors[name] = tensors[name].T.contiguous()

    return edit


def both(*edits: Edit) -> Edit:
    def edit(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for one in edits:
            one(config, tensors)

    return edit
