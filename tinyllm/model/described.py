"""config.json and adapter_config.json: what a checkpoint says of itself, read and checked before anything is allocated, without torch.

Files written by transformers and PEFT open here, with all that they say beside what we read. A key that changes the mathematics in a
way that we do not compute is refused by name, and so is one that asks for code to be run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from tinyllm import foreign
from tinyllm.config import checked, differences
from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.model.config import LoRAConfig, ModelConfig

CONFIG, ADAPTER = "config.json", "adapter_config.json"
CLASSES = {"qwen3": "Qwen3", "llama": "Llama", "qwen2": "Qwen2"}
ALL_LINEAR = "all-linear"
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_LARGEST_TABLES = 256 << 20  # bytes for rotary tables, where the weights are smaller than that
_COPY = "copy the checkpoint again from where it came"


def read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The model's shape, and all of config.json."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(
            "no model here: config.json is missing", where=str(folder), fix="name a checkpoint directory", code=USAGE
        )
    found = foreign.read_json(path, fix=_COPY)
    kind = found.get("model_type")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise UserError(
            f"model_type {foreign.short(kind)} cannot be loaded",
            where=str(path),
            fix=f"use one of {', '.join(CLASSES)}",
        )
    _refuse_what_we_do_not_compute(found, path)
    missing = [key for key in _NEEDED if found.get(key) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} is missing", where=str(path), fix=_COPY, code=INTEGRITY)
    shape = {key: found[key] for key in ModelConfig.model_fields if found.get(key) is not None}
    width, heads = found["hidden_size"], found["num_attention_heads"]
    if found.get("head_dim") is None and type(width) is type(heads) is int and heads > 0:
        shape["head_dim"] = width // heads
    shape.setdefault("num_key_value_heads", heads)
    shape.setdefault("rope_theta", (found.get("rope_parameters") or {}).get("rope_theta") or 10000.0)
    shape.setdefault("tie_word_embeddings", False)  # absent means that in Hugging Face's files, whatever our default is
    return checked(ModelConfig, shape, where=path, fix=_COPY, code=INTEGRITY), found


def _refuse_what_we_do_not_compute(found: dict[str, Any], path: Path) -> None:
    """A key that changes the mathematics must not be passed over in silence."""
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    plain = isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default")) == "default"
    kinds = found.get("layer_types") or []
    wrong = {
        "auto_map": bool(found.get("auto_map")),  # code in the checkpoint: never run, so what it does is not known
        "hidden_act": found.get("hidden_act", "silu") != "silu",
        "rope_parameters" if "rope_parameters" in found else "rope_scaling": not plain,
        "attention_bias": bool(found.get("attention_bias")) and found["model_type"] != "qwen2",
        "mlp_bias": bool(found.get("mlp_bias")),
        "use_sliding_window": bool(found.get("use_sliding_window")),
        "layer_types": not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds),
        "quantization_config": bool(found.get("quantization_config")),
    }
    for key in (key for key, is_wrong in wrong.items() if is_wrong):
        raise UserError(
            f"{key} = {foreign.short(found.get(key))} is not supported",
            where=str(path),
            fix="convert it to plain weights",
        )


def check_shapes(config: ModelConfig, shapes: Mapping[str, Sequence[int]], folder: Path) -> None:
    """Refuse a config.json that promises more than the weights beside it hold, before anything of the promised size is made.

    shapes: of the tensors in the file. What is refused here is told field by field; what may still be wrong, tensor by tensor.
    """
    there = sum(map(prod, shapes.values()))
    if config.model_copy(update={"tie_word_embeddings": True}).parameters() > there:
        raise UserError(
            f"the weights do not fit config.json: {field_differences(config, shapes) or 'they are fewer'}",
            where=str(folder),
            fix=_COPY,
            code=INTEGRITY,
        )
    tables = 4 * config.max_position_embeddings * config.head_dim
    if tables > max(_LARGEST_TABLES, 4 * there):
        raise UserError(
            f"max_position_embeddings {config.max_position_embeddings} would take {tables >> 20:,} MB of tables alone",
            where=str(folder / CONFIG),
            fix="set it to the longest text the model was trained on",
            code=INTEGRITY,
        )


def field_differences(config: ModelConfig, shapes: Mapping[str, Sequence[int]]) -> str:
    """`num_hidden_layers: weights 2, config.json 3`: what tensors say of the model they are from, where config.json says otherwise."""
    block = "model.layers.0."
    layers = [int(found[1]) for name in shapes if (found := re.match(r"model\.layers\.(\d{1,9})\.", name))]
    head = _size(shapes, f"{block}self_attn.q_norm.weight", 0) or config.head_dim
    kind = "qwen2" if f"{block}self_attn.q_proj.bias" in shapes else "llama"
    said = {
        "model_type": "qwen3" if f"{block}self_attn.q_norm.weight" in shapes else kind,
        "vocab_size": _size(shapes, "model.embed_tokens.weight", 0),
        "hidden_size": _size(shapes, "model.embed_tokens.weight", 1),
        "intermediate_size": _size(shapes, f"{block}mlp.gate_proj.weight", 0),
        "num_hidden_layers": max(layers, default=-1) + 1,
        "num_attention_heads": _size(shapes, f"{block}self_attn.q_proj.weight", 0) // head,
        "num_key_value_heads": _size(shapes, f"{block}self_attn.k_proj.weight", 0) // head,
        "head_dim": head,
    }
    there = config.model_copy(update={key: value for key, value in said.items() if value})
    return differences(there, config, ("weights", "config.json"))


def _size(shapes: Mapping[str, Sequence[int]], name: str, dimension: int) -> int:
    shape = shapes.get(name, ())
    return shape[dimension] if dimension < len(shape) else 0


# --- adapters --------------------------------------------------------------------------------------------------------------------


def read_adapter(folder: Path) -> tuple[LoRAConfig, str]:
    """The adapter's settings, PEFT's own files included, and the path of its base model.

    Keys that change the mathematics and that we do not implement are refused; all others are PEFT's bookkeeping.
    """
    path = folder / ADAPTER
    if not path.is_file():
        raise UserError("the adapter's description is missing", where=str(path), fix=_COPY, code=INTEGRITY)
    found = foreign.read_json(path, fix=_COPY)
    others = ("rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save", "lora_bias")
    for key in (*others, "layer_replication", "alora_invocation_tokens"):
        if found.get(key):
            raise UserError(f"adapters with {key} cannot be loaded", where=str(path), fix="merge it with PEFT first")
    if found.get("peft_type") != "LORA" or found.get("bias", "none") != "none":
        raise UserError(
            "only LoRA adapters without biases can be loaded", where=str(path), fix="merge it with PEFT first"
        )
    targets = found.get("target_modules")
    if isinstance(targets, str) and targets != ALL_LINEAR:
        raise UserError("target_modules is a pattern, not a list", where=str(path), fix="list the layer names")
    names = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora", "dora": "use_dora"}
    values = {ours: found[theirs] for ours, theirs in names.items() if found.get(theirs) is not None}
    values["targets"] = [targets] if isinstance(targets, str) else targets
    base = found.get("base_model_name_or_path") or ""
    missing = [names[key] for key in ("r", "alpha") if key not in values]
    if missing or not isinstance(base, str):
        what = f"{missing[0]} is missing" if missing else f"base_model_name_or_path {foreign.short(base)} is no path"
        raise UserError(what, where=str(path), fix=_COPY, code=INTEGRITY)
    config = checked(LoRAConfig, values, where=path, fix=_COPY, code=INTEGRITY)
    return config.model_copy(update={"targets": tuple(sorted(config.targets))}), base


def base_folder(adapter: Path, base: str) -> Path:
    """Where an adapter's base lies. Its path is absolute, or starts from a folder above the adapter or from where the command runs.

    Raises: UserError (INTEGRITY) where it is not there, or is an adapter, too.
    """
    places = (adapter, *adapter.resolve().parents, Path())
    found = next((place / base for place in places if base and _is_model(place / base)), None)
    if found is None:
        what = f"the adapter's base model {foreign.short(base)} is not there"
        raise UserError(what, where=str(adapter), fix="restore that checkpoint", code=INTEGRITY)
    if (found / ADAPTER).is_file():
        what = f"the adapter's base {found} is itself an adapter"
        raise UserError(what, where=str(adapter), fix="merge that one with PEFT first", code=INTEGRITY)
    here = Path.cwd()
    return found.relative_to(here) if found.is_relative_to(here) else found


def _is_model(folder: Path) -> bool:
    try:
        return (folder / CONFIG).is_file()
    except (OSError, ValueError):  # no name of a file
        return False
