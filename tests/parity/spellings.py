"""config.json and tensors in other spellings: old ones, lean ones, ones that contradict themselves. The truth is what transformers reads.

All of them must be read alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.parity.architectures import apart, our_logits, their_logits, tokens
from tests.parity.checkpoints import LLAMA3, YARN, Model, edited, folder, new_folder, opened
from tests.parity.edits import FULL, SLIDING, Edit, both, put
from tinyllm.model import hub

LENGTH = 100


@dataclass(frozen=True)
class Spelling:
    """An edit of a row of `MODELS`, and another that computes what a wrong reading would."""

    base: str
    edit: Edit
    mistake: Edit | None = None


# --- rotary embeddings ---------------------------------------------------------------------------------------------------------------

NEW, DEFAULT = {"rope_type": "default", "rope_theta": 100.0}, {"rope_type": "default"}
THETA = put(rope_parameters={"rope_type": "default", "rope_theta": 50.0})


def old(theta: float | None, scaling: Mapping[str, Any] | None) -> Edit:
    """The spelling of transformers 4: rope_theta and rope_scaling."""
    given = {} if theta is None else {"rope_theta": theta}
    return put(rope_parameters=..., rope_scaling=scaling, **given)


ROTATIONS = {
    "rope_theta differs from rope_parameters": Spelling("llama", put(rope_theta=50.0), THETA),
    "rope_theta beside rope_parameters without one": Spelling(
        "llama", both(put(rope_theta=50.0), put(rope_parameters=DEFAULT)), put(rope_parameters=NEW)
    ),
    "rope_scaling beside rope_parameters": Spelling(
        "llama", put(rope_scaling={"rope_type": "linear", "factor": 4.0}), put(rope_parameters=NEW)
    ),
    "rope_scaling beside rope_parameters and rope_theta": Spelling(
        "llama",
        put(rope_theta=50.0, rope_scaling={"rope_type": "linear", "factor": 4.0}),
        put(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}),
    ),
    "default rope_scaling beside scaled rope_parameters": Spelling(
        "llama, rope linear", put(rope_theta=50.0, rope_scaling={"rope_type": "default"}), put(rope_theta=50.0)
    ),
    "rope_scaling of another type than rope_parameters": Spelling(
        "llama, rope llama3",
        put(rope_scaling={"rope_type": "yarn", **YARN, "rope_theta": 70.0}),
        put(rope_parameters={"rope_type": "llama3", **LLAMA3, "rope_theta": 70.0}),
    ),
    "rope_scaling null": Spelling("llama, rope linear", put(rope_scaling=None), put(rope_parameters=NEW)),
    "rope_scaling empty": Spelling("llama, rope linear", put(rope_scaling={}), put(rope_parameters=NEW)),
    "no theta anywhere": Spelling("llama", old(None, None), THETA),
    "old: theta": Spelling("llama", old(50.0, None), put(rope_parameters=NEW)),
    "old: linear by type": Spelling("llama", old(50.0, {"type": "linear", "factor": 4.0}), THETA),
    "old: type and rope_type": Spelling(
        "llama",
        old(50.0, {"type": "linear", "rope_type": "llama3", **LLAMA3}),
        old(50.0, {"type": "linear", "factor": 8.0}),
    ),
    "old: theta inside rope_scaling": Spelling(
        "llama",
        old(50.0, {"type": "linear", "factor": 4.0, "rope_theta": 70.0}),
        old(50.0, {"type": "linear", "factor": 4.0}),
    ),
    "old: llama3": Spelling("llama, rope llama3", old(70.0, {"rope_type": "llama3", **LLAMA3}), old(70.0, None)),
    "old: yarn": Spelling("llama, rope yarn", old(70.0, {"type": "yarn", **YARN}), old(70.0, None)),
    "old: yarn, no original context": Spelling(
        "llama, rope yarn", old(70.0, {"type": "yarn", "factor": 4.0}), old(70.0, {"type": "yarn", **YARN})
    ),
    "original context beside rope_parameters": Spelling(
        "llama, rope yarn",
        put(original_max_position_embeddings=16),
        put(rope_parameters__original_max_position_embeddings=32),
    ),
    "qwen3, yarn": Spelling("qwen3", old(70.0, {"rope_type": "yarn", **YARN}), old(70.0, None)),
    "smollm3, no theta": Spelling("smollm3", old(None, None), old(10000.0, None)),
    "gemma3, old: two bases": Spelling(
        "gemma3",
        put(
            rope_parameters=...,
            rope_theta=900.0,
            rope_local_base_freq=40.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
        ),
        put(rope_parameters=..., rope_theta=900.0, rope_local_base_freq=40.0),
    ),
    "gemma3, old: no bases": Spelling("gemma3", put(rope_parameters=...), put(rope_parameters=..., rope_theta=10000.0)),
}

# --- layers, heads, defaults ---------------------------------------------------------------------------------------------------------

LAYERS = {
    "qwen2, no layer_types": Spelling("qwen2, windows", put(layer_types=...), put(layer_types=[SLIDING] * 3)),
    "qwen2, layer_types against max_window_layers": Spelling(
        "qwen2, windows", put(layer_types=[SLIDING, FULL, SLIDING]), put(layer_types=...)
    ),
    "qwen2, sliding_window without use_sliding_window": Spelling(
        "qwen2",
        put(sliding_window=6, layer_types=...),
        put(use_sliding_window=True, sliding_window=6, max_window_layers=0, layer_types=...),
    ),
    "mistral, window null": Spelling("mistral", put(sliding_window=None), put(sliding_window=6)),
    "gemma2, no layer_types": Spelling("gemma2", put(layer_types=...), put(layer_types=[FULL, SLIDING] * 2)),
    "gemma3, sliding_window_pattern": Spelling(
        "gemma3", put(layer_types=..., sliding_window_pattern=2), put(layer_types=...)
    ),
    "smollm3, interval": Spelling(
        "smollm3", put(no_rope_layers=None, no_rope_layer_interval=3), put(no_rope_layers=[1, 1, 1, 1])
    ),
    "llama, one key head per head": Spelling("llama", put(head_dim=None, rms_norm_eps=0.01)),
}
LEAN: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2},
    "smollm3": {"num_hidden_layers": 4, "num_key_value_heads": 2},
    "gemma2": {"num_key_value_heads": 2},
    "gemma3_text": {"num_key_value_heads": 2, "num_hidden_layers": 7},
    "phi3": {"num_key_value_heads": 2},
    "olmo2": {},
    "granite": {},
    "gpt2": {},
}


@cache
def lean(kind: str) -> Path:
    """A checkpoint of a class's own defaults, whose config.json has only what differs from them."""
    sizes = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "n_embd",
        "n_layer",
        "n_head",
    )
    full = Model(kind, LEAN[kind]).all_settings
    given = {key: value for key, value in full.items() if key in sizes or key.endswith("_token_id")} | LEAN[kind]
    target = new_folder()
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **given), attn_implementation="eager")
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(target)
    (target / "config.json").write_text(json.dumps({"model_type": kind, **given}))
    return target


# --- tensors -------------------------------------------------------------------------------------------------------------------------


def head(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Add a copy of the embedding as the head, as old pickled files have it."""
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def other_head(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    head(config, tensors)
    tensors["lm_head.weight"].neg_()


def only_head(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


def frequencies(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Add the rotary frequencies that transformers 4.0 to 4.31 saved. They are wrong here, and must not be used."""
    for layer in range(config["num_hidden_layers"]):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)


def masks(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Add the causal masks that old files of GPT-2 have as buffers."""
    for layer in range(config["n_layer"]):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)


def without(prefix: str) -> Edit:
    """Take away the prefix of the names, as a decoder without a head is saved."""

    def edit(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix(prefix)] = tensors.pop(name)

    return edit


def in_dtype(dtype: torch.dtype) -> Edit:
    def edit(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        config["dtype"] = str(dtype).removeprefix("torch.")
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)

    return edit


def nothing(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    pass


TENSORS = {
    "tied, the head is there": Spelling("llama, tied", head, other_head),
    "tied, another head is there": Spelling("llama, tied", other_head, nothing),
    "tied, the head alone is there": Spelling("llama, tied", only_head),
    "tied by default, another head is there": Spelling(
        "gemma2", both(put(tie_word_embeddings=...), other_head), nothing
    ),
    "rotary frequencies": Spelling("llama", frequencies),
    "gpt2, masks": Spelling("gpt2", masks),
    "gpt2, names without a prefix": Spelling("gpt2", without("transformer.")),
    "gpt2, names without a prefix, masks": Spelling("gpt2", both(masks, without("transformer."))),
    "llama, names without a prefix": Spelling("llama, tied", without("model.")),
    "bfloat16": Spelling("llama", in_dtype(torch.bfloat16), nothing),
    "float16": Spelling("llama", in_dtype(torch.float16), nothing),
}
SPELLINGS: Mapping[str, Spelling] = {**ROTATIONS, **LAYERS, **TENSORS}


# --- comparison ----------------------------------------------------------------------------------------------------------------------


def compare(name: str) -> tuple[float, float]:
    """Return how far we are from transformers on a spelling, and how far transformers is from itself on the wrong reading."""
    spelling = SPELLINGS[name]
    where = edited(folder(spelling.base), spelling.edit)
    row = tokens(LENGTH)
    expected = their_logits(opened(where), row)
    wrong = float("inf")
    if spelling.mistake is not None:
        wrong = apart(their_logits(opened(edited(folder(spelling.base), spelling.mistake)), row), expected)
    return apart(our_logits(hub.load_causal_lm(where).eval(), [row])[0], expected), wrong


def compare_lean(kind: str) -> float:
    row = tokens(LENGTH)
    ours = hub.load_causal_lm(lean(kind)).eval()
    return apart(our_logits(ours, [row])[0], their_logits(opened(lean(kind)), row))
