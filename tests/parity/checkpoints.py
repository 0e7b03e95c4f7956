"""Tiny random checkpoints of every architecture, written by transformers, and copies of them with one feature switched off.

Every tensor matters: biases and gains are random too, the epsilon of norms is large, windows are a few tokens wide, and caps cut the
scores. Sizes are odd where an architecture allows it, so that no two dimensions are equal by chance.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.parity.edits import (
    FULL,
    SLIDING,
    Edit,
    gains,
    layers_of,
    put,
    transposed,
    unscaled,
    unscaled_embedding,
    zeroed,
)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

PAD, BOS, EOS, VOCABULARY, CONTEXT = 0, 1, 2, 101, 128
SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-2,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_inner": 44, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}


def rope(kind: str = "default", theta: float = 100.0, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **settings}}


# --- breaks: what a reader that ignores a feature would compute ------------------------------------------------------------------

WINDOW = {"window off by one": put(sliding_window=5), "window ignored": put(sliding_window=4096)}
ROPE = {"base of the rotation": put(rope_parameters__rope_theta=120.0)}


# --- the table -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A checkpoint: its model_type, settings for transformers' configuration, and the edits that must show."""

    kind: str
    settings: Mapping[str, Any]
    breaks: Mapping[str, Edit] = field(default_factory=dict)

    @property
    def all_settings(self) -> dict[str, Any]:
        shape = GPT2 if self.kind == "gpt2" else SHAPE
        ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
        return {**shape, **ids, "tie_word_embeddings": False, **self.settings}


TIED = {"tie_word_embeddings": True}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
GEMMA = {**TIED, "hidden_activation": "gelu_pytorch_tanh", "head_dim": 12, "query_pre_attn_scalar": 20}
GEMMA_BREAKS = {
    "1 + gain": gains(-1.0),
    "scale of the embedding": unscaled_embedding,
    "query_pre_attn_scalar": put(query_pre_attn_scalar=12),
    "activation": put(hidden_activation="silu"),
    "all layers see everything": layers_of(FULL),
    "all layers have windows": layers_of(SLIDING),
    "window off by one": put(sliding_window=5),
}
MODELS: Mapping[str, Model] = {
    "llama": Model("llama", rope(), {**ROPE, "epsilon": put(rms_norm_eps=1e-6)}),
    "llama, tied": Model("llama", {**TIED, **rope(), "head_dim": 12}, ROPE),
    "llama, biases": Model(
        "llama",
        {"attention_bias": True, "mlp_bias": True, **rope()},
        {
            "bias of q": zeroed("q_proj.bias"),
            "bias of o": zeroed("o_proj.bias"),
            "bias of the gate": zeroed("gate_proj.bias"),
            "bias of down": zeroed("down_proj.bias"),
        },
    ),
    "llama, rope llama3": Model(
        "llama",
        {"head_dim": 16, **rope("llama3", **LLAMA3)},
        {
            "scaling ignored": unscaled,
            "factor": put(rope_parameters__factor=4.0),
            "low_freq_factor": put(rope_parameters__low_freq_factor=2.0),
            "high_freq_factor": put(rope_parameters__high_freq_factor=3.0),
            "original context": put(rope_parameters__original_max_position_embeddings=128),
        },
    ),
    "llama, rope linear": Model("llama", rope("linear", factor=4.0), {"scaling ignored": unscaled}),
    "llama, rope dynamic": Model("llama", rope("dynamic", factor=4.0)),
    "llama, rope yarn": Model(
        "llama",
        {"head_dim": 16, **rope("yarn", **YARN)},
        {
            "scaling ignored": unscaled,
            "factor": put(rope_parameters__factor=2.0),
            "factor of cos and sin": put(rope_parameters__attention_factor=1.0),
            "original context": put(rope_parameters__original_max_position_embeddings=64),
        },
    ),
    "llama, rope yarn, all settings": Model(
        "llama",
        {
            "head_dim": 16,
            **rope("yarn", **YARN, beta_fast=5.0, beta_slow=0.7, mscale=1.3, mscale_all_dim=0.4, truncate=False),
        },
        {
            "beta_fast": put(rope_parameters__beta_fast=...),
            "beta_slow": put(rope_parameters__beta_slow=...),
            "mscale": put(rope_parameters__mscale=...),
            "mscale_all_dim": put(rope_parameters__mscale_all_dim=1.0),
            "truncate": put(rope_parameters__truncate=True),
        },
    ),
    "mistral": Model("mistral", {"sliding_window": 6, **rope()}, WINDOW),
    "qwen2": Model("qwen2", rope(), {"bias of q": zeroed("q_proj.bias"), "bias of v": zeroed("v_proj.bias")}),
    "qwen2, windows": Model(
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, **rope()},
        {**WINDOW, "all layers have windows": layers_of(SLIDING), "no layer has one": layers_of(FULL)},
    ),
    "qwen3": Model("qwen3", {"head_dim": 12, **rope()}, {"norm of q": gains(1.0, "q_norm.weight")}),
    "qwen3, windows": Model(
        "qwen3",
        {"head_dim": 12, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2, **rope()},
        {**WINDOW, "all layers have windows": layers_of(SLIDING)},
    ),
    "smollm3": Model(
        "smollm3",
        {**TIED, "num_hidden_layers": 4, "no_rope_layers": [1, 1, 0, 1], **rope()},
        {"all layers rotate": put(no_rope_layers=[1, 1, 1, 1]), "another layer": put(no_rope_layers=[1, 1, 1, 0])},
    ),
    "smollm3, windows": Model(
        "smollm3",
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 6, **rope()},
        {"no layer has a window": layers_of(FULL), "window off by one": put(sliding_window=5)},
    ),
    "gemma2": Model(
        "gemma2",
        {
            **GEMMA,
            "num_hidden_layers": 4,
            "sliding_window": 6,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
            **rope(),
        },
        {
            **GEMMA_BREAKS,
            "cap of the scores": put(attn_logit_softcapping=None),
            "cap of the logits": put(final_logit_softcapping=None),
        },
    ),
    "gemma3": Model(
        "gemma3_text",
        {
            **GEMMA,
            "sliding_window": 6,
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                SLIDING: {"rope_type": "default", "rope_theta": 50.0},
            },
        },
        {
            **GEMMA_BREAKS,
            "factor of the global layers": put(rope_parameters__full_attention__factor=1.0),
            "base of the global layers": put(rope_parameters__full_attention__rope_theta=50.0),
            "base of the local layers": put(rope_parameters__sliding_attention__rope_theta=1000.0),
            "norm of q": gains(1.0, "q_norm.weight"),
        },
    ),
    "phi3": Model("phi3", rope(partial_rotary_factor=1.0), ROPE),
    "phi3, half of a head rotates": Model(
        "phi3", rope(partial_rotary_factor=0.5), {"all of it rotates": put(rope_parameters__partial_rotary_factor=1.0)}
    ),
    "phi3, longrope": Model(
        "phi3",
        {
            "original_max_position_embeddings": 32,
            **rope(
                "longrope",
                short_factor=[1.0, 1.5, 2.0, 3.0],
                long_factor=[1.0, 2.0, 4.0, 8.0],
                partial_rotary_factor=1.0,
            ),
        },
        {
            "long_factor": put(rope_parameters__long_factor=[1.0, 1.5, 2.0, 3.0]),
            "original context": put(original_max_position_embeddings=128),
        },
    ),
    "phi3, window": Model("phi3", {"sliding_window": 6, **rope(partial_rotary_factor=1.0)}, WINDOW),
    "olmo2": Model(
        "olmo2",
        rope(),
        {"norm of k": gains(1.0, "k_norm.weight"), "norm of attention": gains(1.0, "post_attention_layernorm.weight")},
    ),
    "granite": Model(
        "granite",
        {
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.5,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.15,
            **rope(),
        },
        {
            "embedding_multiplier": put(embedding_multiplier=1.0),
            "logits_scaling": put(logits_scaling=1.0),
            "residual_multiplier": put(residual_multiplier=1.0),
            "attention_multiplier": put(attention_multiplier=8**-0.5),
        },
    ),
    "gpt2": Model(
        "gpt2",
        {**TIED, "layer_norm_epsilon": 1e-2},
        {
            "positions": zeroed("wpe.weight"),
            "bias of qkv": zeroed("c_attn.bias"),
            "bias of the norms": zeroed("ln_1.bias"),
            "bias of the last norm": zeroed("ln_f.bias"),
            "epsilon": put(layer_norm_epsilon=1e-5),
            "layout of the square matrices": transposed("attn.c_proj.weight"),
        },
    ),
}
REFUSED: Mapping[str, tuple[Model, str]] = {  # what is not covered, and the words that must say so
    "qwen3_moe": (
        Model("qwen3_moe", {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20, **rope()}),
        "model_type 'qwen3_moe' cannot be loaded: it is a mixture of experts",
    ),
    "llama, half of a head rotates": (Model("llama", rope(partial_rotary_factor=0.5)), "partial_rotary_factor"),
    "gpt2, scores by layer": (
        Model("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        "scale_attn_by_inverse_layer_idx",
    ),
    "gemma3, both directions": (
        Model("gemma3_text", {"use_bidirectional_attention": True, "sliding_window": 6}),
        "use_bidirectional_attention",
    ),
    "llama, another activation": (Model("llama", {"hidden_act": "quick_gelu"}), "hidden_act"),
}


# --- on disk -------------------------------------------------------------------------------------------------------------------------


@cache
def root() -> Path:
    place = Path(tempfile.mkdtemp(prefix="architectures-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def new_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=root()))


def randomize(model: nn.Module, plus_one: bool) -> None:
    """Draw every parameter from a normal distribution: gains around what means 1, all others around 0."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = parameter.ndim == 1 and name.endswith(".weight")
            center = 1.0 if gain and not plus_one else 0.0
            parameter.copy_(center + 0.3 * torch.randn(parameter.shape, generator=generator))


def write(model: Model, folder: Path) -> Path:
    """Write a checkpoint of random weights with transformers."""
    config = AutoConfig.for_model(model.kind, **model.all_settings)
    made = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomize(made, plus_one=model.kind.startswith("gemma"))
    made.save_pretrained(folder)
    return folder


@cache
def folder(name: str) -> Path:
    """The checkpoint of a row of `MODELS`."""
    return write(MODELS[name], new_folder())


def edited(source: Path, edit: Edit) -> Path:
    """A copy of a checkpoint after an edit of config.json and the tensors."""
    target = new_folder()
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    edit(config, tensors)
    (target / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def opened(where: Path) -> nn.Module:
    """A checkpoint as transformers loads it, in float32 with its plainest attention."""
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@cache
def theirs(name: str) -> nn.Module:
    """The checkpoint of a row of `MODELS` as transformers loads it."""
    return opened(folder(name))
