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
from tinyllm.model.architectures import ARCHITECTURES, Architecture, lookup
from tinyllm.model.config import ModelConfig
from tinyllm.model.features import (
    FEATURES,
    LAYERS,
    MAY_BE_NONE,
    ROPE,
    Features,
    activation_named,
    name_of_activation,
)
from tinyllm.model.rope_scaling import read_rope, rope_entries

CONFIG = "config.json"
_OTHER_KINDS = {  # keys of config.json that tell a kind of model
    "num_experts": ": it is a mixture of experts",
    "num_local_experts": ": it is a mixture of experts",
    "vision_config": ": it reads images, too",
    "is_encoder_decoder": ": it is an encoder and a decoder",
}
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
        kind = next((what for key, what in _OTHER_KINDS.items() if found.get(key)), "")
        raise UserError(
            f"model_type {untrusted_files.short_repr(found.get('model_type'))} cannot be loaded{kind}",
            where=str(path),
            fix=f"use one of {', '.join(ARCHITECTURES)}",
        )
    _refuse_unsupported(found, row, path)
    required = [
        key for name in _REQUIRED if (key := row.keys.get(name, name)) != "n_inner"
    ]  # null: four times the width
    if missing := [key for key in required if found.get(key) is None]:
        raise UserError(f"{', '.join(missing)} is missing", where=str(path), fix=COPY, code=INTEGRITY)
    return validate(ModelConfig, _settings(found, row, path), where=path, fix=COPY, code=INTEGRITY), found


def _refuse_unsupported(found: Mapping[str, Any], row: Architecture, path: Path) -> None:
    """Raise for the first value of config.json that the architecture's row does not accept."""
    classes = found.get("architectures")
    own = isinstance(classes, list) and str(next(iter(classes), "")).startswith(row.class_name)
    tests = {
        **row.accepts,
        "auto_map": lambda value: not value or own,
    }  # code beside a class that transformers has; never run
    for key, accepts in tests.items():
        if key in found and key not in row.keys.values() and not accepts(found[key]):
            raise _unsupported(key, found, path)
    activation = row.keys["activation"]
    if found.get(activation) is not None and activation_named(found[activation]) is None:
        raise _unsupported(activation, found, path)


def _unsupported(key: str, found: Mapping[str, Any], path: Path) -> UserError:
    value = untrusted_files.short_repr(found[key])
    return UserError(
        f"{key} = {value} is not supported", where=str(path), fix=f"use a {found['model_type']} checkpoint without it"
    )


def _settings(found: Mapping[str, Any], row: Architecture, path: Path) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that config.json states, with Hugging Face's defaults for those that it lacks.

    Null means that a key is missing, except for features that may be none.
    """
    keys = {
        name: key for name in ModelConfig.model_fields if (key := row.key(name)) and name not in (*ROPE, "rope_theta")
    }
    given = {
        k: found[key] for k, key in keys.items() if found.get(key) is not None or (key in found and k in MAY_BE_NONE)
    }
    given = {**row.absent, **given}
    if "activation" in given:
        given["activation"] = activation_named(given["activation"])
    width, heads = given["hidden_size"], given["num_attention_heads"]
    if "head_dim" not in given and type(width) is type(heads) is int and heads > 0:
        given["head_dim"] = width // heads
    given.setdefault("num_key_value_heads", heads)
    if "intermediate_size" not in given and type(width) is int:
        given["intermediate_size"] = 4 * width  # GPT-2's n_inner
    by_layer = "rope_local_base_freq" in row.keys
    try:
        rope = read_rope(found, row.absent["rope_theta"], by_layer=by_layer)
        given |= {name: value for name, value in rope.items() if name in row.keys or name == "rope_theta"}
        if rope["partial_rotary_factor"] != 1 and "partial_rotary_factor" not in row.keys:
            raise KeyError("partial_rotary_factor")
    except KeyError as unknown:
        key = "rope_scaling" if found.get("rope_scaling") else "rope_parameters"
        raise _unsupported(key if key in found else unknown.args[0], found, path) from None
    return {**given, **{name: value for name, value in row.layers.read(found).items() if name in row.keys}}


def config_entries(config: ModelConfig) -> dict[str, Any]:
    """Return the entries of config.json for a model's shape and features, under the keys of its architecture.

    Old and new spellings stand side by side, because readers differ in which they know. Features that config.json need not state,
    since the Hugging Face class has the same value without them, are left out.
    """
    row = ARCHITECTURES[config.model_type]
    fields = config.model_dump()
    shape = {key: fields[name] for name in fields if name not in FEATURES and (key := row.key(name))}
    rope = rope_entries(
        config.rope_theta, config.rope_scaling, config.partial_rotary_factor, config.rope_local_base_freq
    )
    usual = {**vars(Features()), **row.absent}
    features: dict[str, Any] = {row.keys["activation"]: name_of_activation(config.activation, row.activation)}
    for name in FEATURES:
        stated = name in row.keys and name not in (*ROPE, *LAYERS, "activation")
        if stated and (name == "attention_bias" or vars(config)[name] != usual[name]):
            features[row.keys[name]] = vars(config)[name]
    return {
        **shape,
        **({} if config.learned_positions else rope),
        **features,
        **row.layers.write(config),
        **row.constants,
    }


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
    q_norm = 0 if config.qk_norm_of_all_heads else _size(shapes, f"{block}self_attn.q_norm.weight", 0)
    head = q_norm or config.head_dim
    implied = {
        "vocab_size": _size(shapes, "model.embed_tokens.weight", 0),
        "hidden_size": _size(shapes, "model.embed_tokens.weight", 1),
        "intermediate_size": _size(shapes, f"{block}mlp.gate_proj.weight", 0),
        "num_hidden_layers": max(layers, default=-1) + 1,
        "num_attention_heads": _size(shapes, f"{block}self_attn.q_proj.weight", 0) // head,
        "num_key_value_heads": _size(shapes, f"{block}self_attn.k_proj.weight", 0) // head,
        "head_dim": head,
    }
    there = {key: value for key, value in implied.items() if value} | _architecture_of(config, shapes)
    return differences(config.model_copy(update=there), config, ("weights", "config.json"))


def _architecture_of(config: ModelConfig, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the `model_type` that has the features seen in the tensors, with all its features; empty where the config has them."""
    attention = "model.layers.0.self_attn."
    seen = {"qk_norm": f"{attention}q_norm.weight" in shapes, "attention_bias": f"{attention}q_proj.bias" in shapes}
    if all(vars(config)[feature] == value for feature, value in seen.items()):
        return {}
    for name, row in ARCHITECTURES.items():
        if all(vars(row.features)[feature] == value for feature, value in seen.items()):
            return {"model_type": name, **vars(row.features)}
    return {}


def _size(shapes: Mapping[str, Sequence[int]], name: str, dimension: int) -> int:
    shape = shapes.get(name, ())
    return shape[dimension] if dimension < len(shape) else 0
