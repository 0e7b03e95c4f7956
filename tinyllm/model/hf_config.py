"""config.json: read, checked and written without torch, before any tensor is allocated.

Files written by transformers are accepted with all their other keys. A key that changes the computation in a way that is not
implemented is refused by name, and so is one that asks for code to be run. `model.architectures` holds the rules for each model_type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from tinyllm.config import differences, validate
from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.io import untrusted_files
from tinyllm.model.architectures import ARCHITECTURES, FEATURES, Architecture, lookup
from tinyllm.model.config import ModelConfig

CONFIG = "config.json"
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_ROPE_TABLE_BYTES = 256 << 20  # allowed for rotary tables, even where the weights are smaller
COPY = "copy the checkpoint again from its source"


def read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Return the model's settings and the whole content of config.json.

    Raises:
        UserError: no config.json, a model_type that is not in `ARCHITECTURES`, or a value that is not supported (USAGE); a damaged
            file, a missing key or a value of the wrong type (INTEGRITY).
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError("config.json is missing", where=str(folder), fix="name a checkpoint directory", code=USAGE)
    found = untrusted_files.read_json(path, fix=COPY)
    row = lookup(found.get("model_type"))
    if row is None:
        raise UserError(
            f"model_type {untrusted_files.short_repr(found.get('model_type'))} cannot be loaded",
            where=str(path),
            fix=f"use one of {', '.join(ARCHITECTURES)}",
        )
    _refuse_unsupported(found, row, path)
    required = [row.keys.get(name, name) for name in _REQUIRED]
    if missing := [key for key in required if found.get(key) is None]:
        raise UserError(f"{', '.join(missing)} is missing", where=str(path), fix=COPY, code=INTEGRITY)
    return validate(ModelConfig, _settings(found, row), where=path, fix=COPY, code=INTEGRITY), found


def _refuse_unsupported(found: Mapping[str, Any], row: Architecture, path: Path) -> None:
    """Raise for the first value of config.json that the architecture's row does not accept."""
    for key, accepts in row.accepts.items():
        if key in found and not accepts(found[key]):
            raise UserError(
                f"{key} = {untrusted_files.short_repr(found[key])} is not supported",
                where=str(path),
                fix=f"use a {found['model_type']} checkpoint without it",
            )


def _settings(found: Mapping[str, Any], row: Architecture) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that config.json states, with Hugging Face's defaults for those that it lacks."""
    keys = {name: key for name in ModelConfig.model_fields if (key := row.key(name))}
    given = {name: found[key] for name, key in keys.items() if found.get(key) is not None}
    width, heads = given["hidden_size"], given["num_attention_heads"]
    if "head_dim" not in given and type(width) is type(heads) is int and heads > 0:
        given["head_dim"] = width // heads
    given.setdefault("num_key_value_heads", heads)
    if theta := (found.get("rope_parameters") or {}).get("rope_theta"):
        given.setdefault("rope_theta", theta)
    return {**row.absent, **given}


def config_entries(config: ModelConfig) -> dict[str, Any]:
    """Return the entries of config.json for a model's shape and features, under the keys of its architecture.

    Old and new spellings stand side by side, because readers differ in which they know.
    """
    row = ARCHITECTURES[config.model_type]
    shape = {row.keys.get(name, name): value for name, value in config.model_dump().items() if name not in FEATURES}
    features = {row.keys[name]: getattr(config, name) for name in FEATURES if name in row.keys}
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    return {**shape, "rope_parameters": rope, **features, **row.constants}


def check_shapes(config: ModelConfig, shapes: Mapping[str, Sequence[int]], folder: Path) -> None:
    """Refuse a config.json that describes a larger model than the weights beside it, before anything of that size is allocated.

    Differences that remain are found tensor by tensor (`tensors.mismatch`).

    Args:
        shapes: of the tensors in the file, by name.

    Raises:
        UserError: fewer parameters than config.json describes, or rotary tables far larger than the weights (INTEGRITY).
    """
    there = sum(map(prod, shapes.values()))
    if config.model_copy(update={"tie_word_embeddings": True}).parameters() > there:
        raise UserError(
            f"the weights do not fit config.json: {field_differences(config, shapes) or 'there are too few'}",
            where=str(folder),
            fix=COPY,
            code=INTEGRITY,
        )
    tables = 4 * config.max_position_embeddings * config.head_dim
    if tables > max(_ROPE_TABLE_BYTES, 4 * there):
        raise UserError(
            f"max_position_embeddings {config.max_position_embeddings} needs {tables >> 20:,} MB for rotary tables alone",
            where=str(folder / CONFIG),
            fix="set it to the longest text the model was trained on",
            code=INTEGRITY,
        )


def field_differences(config: ModelConfig, shapes: Mapping[str, Sequence[int]]) -> str:
    """Compare config.json with what the shapes of the tensors imply: `num_hidden_layers: weights 2, config.json 3`, or ""."""
    block = "model.layers.0."
    layers = [int(found[1]) for name in shapes if (found := re.match(r"model\.layers\.(\d{1,9})\.", name))]
    head = _size(shapes, f"{block}self_attn.q_norm.weight", 0) or config.head_dim
    implied = {
        "vocab_size": _size(shapes, "model.embed_tokens.weight", 0),
        "hidden_size": _size(shapes, "model.embed_tokens.weight", 1),
        "intermediate_size": _size(shapes, f"{block}mlp.gate_proj.weight", 0),
        "num_hidden_layers": max(layers, default=-1) + 1,
        "num_attention_heads": _size(shapes, f"{block}self_attn.q_proj.weight", 0) // head,
        "num_key_value_heads": _size(shapes, f"{block}self_attn.k_proj.weight", 0) // head,
        "head_dim": head,
    }
    there = {key: value for key, value in implied.items() if value} | _architecture_of(shapes)
    return differences(config.model_copy(update=there), config, ("weights", "config.json"))


def _architecture_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the `model_type` that has the features seen in the tensors, with all its features; empty where none has them."""
    attention = "model.layers.0.self_attn."
    seen = {"qk_norm": f"{attention}q_norm.weight" in shapes, "attention_bias": f"{attention}q_proj.bias" in shapes}
    for name, row in ARCHITECTURES.items():
        if all(row.fixed().get(feature, value) == value for feature, value in seen.items()):
            return {"model_type": name, **vars(row.features), **seen}
    return {}


def _size(shapes: Mapping[str, Sequence[int]], name: str, dimension: int) -> int:
    shape = shapes.get(name, ())
    return shape[dimension] if dimension < len(shape) else 0
