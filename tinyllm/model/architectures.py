"""The Hugging Face architectures that can be loaded and saved: one row of `ARCHITECTURES` per `model_type`.

A row names the Hugging Face classes, the features they fix, the config.json keys that state everything else, and the values of
config.json that are refused because they change the computation in a way that is not implemented. `ModelConfig` checks settings
against the row, `hf_config` reads config.json by it and `hub` writes config.json by it. The decoder reads features only.

To add an architecture, add its name to `ModelType` and a row to the table. A feature that the decoder lacks is added to
`features.Features`, to `ModelConfig` and to the module that computes it; existing rows keep its default.
Free of torch, so that settings and files are checked without importing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinyllm.model.features import FEATURES, Features, ModelType
from tinyllm.model.layer_patterns import (
    FULL,
    NO_PATTERN,
    LayerPattern,
    from_layer,
    gemma,
    late_window,
    phi3,
    same_window,
    smollm3,
)

# --- tests of values in config.json ----------------------------------------------------------------------------------------------


def _unset(value: Any) -> bool:
    """Return True for null, false, zero and empty values."""
    return not value


def _only(*expected: Any) -> Callable[[Any], bool]:
    """Return a test that accepts some values."""
    return lambda value: value in expected


def _count(value: Any) -> bool:
    """Return True for a number of layers, and for null."""
    return value is None or type(value) is int


def _full_attention(value: Any) -> bool:
    """Return True where every layer attends to the whole context."""
    return not value or (isinstance(value, list) and all(kind == FULL for kind in value))


_Tests = Mapping[str, Callable[[Any], bool]]
_FOR_ALL: _Tests = {
    "quantization_config": _unset,
    "partial_rotary_factor": _only(None, 1, 1.0),
    "clip_qkv": _unset,
    "attention_bias": _unset,
    "mlp_bias": _unset,
}
_NO_WINDOW: _Tests = {"use_sliding_window": _unset, "layer_types": _full_attention}


# --- the table -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """One `model_type` of config.json."""

    class_name: str
    """the prefix of the Hugging Face classes: `Qwen3` for `Qwen3ForCausalLM` and `Qwen3ForSequenceClassification`"""
    features: Features = field(default_factory=Features)
    """what the architecture implies: fixed values, and defaults of the features that `keys` lists"""
    keys: Mapping[str, str] = field(default_factory=dict)
    """field of `ModelConfig` -> the config.json key that states it. A feature that is not listed is fixed: it is never read from
    config.json, and another value is refused. A field that is not a feature and not listed has a key of its own name."""
    layers: LayerPattern = NO_PATTERN
    """the features in `LAYERS`, which follow from several keys of config.json"""
    accepts: _Tests = field(default_factory=lambda: {**_FOR_ALL, **_NO_WINDOW})
    """config.json key -> test of its value, unless a feature is read from it. A file with a value that fails is refused; a missing key
    passes"""
    absent: Mapping[str, Any] = field(default_factory=dict)
    """field of `ModelConfig` -> its value where config.json lacks the key: the default of the Hugging Face class"""
    constants: Mapping[str, Any] = field(default_factory=lambda: {"attention_dropout": 0.0})
    """config.json keys that are written with the same value for every model"""
    derived: frozenset[str] = frozenset()
    """fields that the architecture derives from others: they have no key, and no other value"""
    activation: str = "silu"
    """how config.json spells the usual activation"""
    lm_name: str | None = None
    """class of language models, where it is not the prefix and `ForCausalLM`"""
    scorer_name: str | None = None
    """prefix of the class of reward models, where it is another one; empty where transformers has none"""
    names: tuple[tuple[str, str], ...] = ()
    """prefixes of tensor names, ours -> those in files, where they differ; `*` stands for the number of a layer"""
    transposed: frozenset[str] = frozenset()
    """linear layers whose weights are stored (in, out) instead of (out, in)"""

    def key(self, name: str) -> str | None:
        """Return the config.json key that states a field of `ModelConfig`, or None for one that is fixed or derived."""
        return None if name in self.derived else self.keys.get(name, None if name in FEATURES else name)

    def fixed(self) -> dict[str, Any]:
        """Return the features that no config.json of this architecture can change, by name."""
        return {name: value for name, value in vars(self.features).items() if name not in self.keys}


def _keys(*features: str, activation: str = "hidden_act") -> dict[str, str]:
    """Return keys that are named like the feature, and that of the activation."""
    return {name: name for name in features} | {"activation": activation}


_SCALED = ("rope_scaling",)
_LAYER_WINDOWS = ("sliding_window", "layer_types")
_LLAMA = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}
_GEMMA = {
    "tie_word_embeddings": True,
    "head_dim": 256,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
}
_GEMMA_FEATURES: dict[str, Any] = {
    "norm": "rms_norm_1p",
    "norm_placement": "pre_and_post",
    "activation": "gelu_tanh",
    "scaled_embedding": True,
}
_GEMMA_TESTS: _Tests = {**_FOR_ALL, "use_bidirectional_attention": _unset}
_GPT2_LAYER = {
    "input_layernorm": "ln_1",
    "self_attn.qkv_proj": "attn.c_attn",
    "self_attn.o_proj": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}

ARCHITECTURES: Mapping[ModelType, Architecture] = {
    "qwen3": Architecture(
        "Qwen3",
        Features(qk_norm=True),
        keys=_keys("attention_bias", *_SCALED, *_LAYER_WINDOWS),
        layers=late_window(4096, from_layer(28)),
        accepts={**_FOR_ALL, "max_window_layers": _count},
        absent={**_LLAMA, "max_position_embeddings": 32768, "head_dim": 128},
    ),
    "llama": Architecture("Llama", keys=_keys("attention_bias", "mlp_bias", *_SCALED), absent=_LLAMA),
    "qwen2": Architecture(
        "Qwen2",
        # the biases are there whatever the file says: `attention_bias` is no key of its configuration
        Features(attention_bias=True, output_bias=False),
        keys=_keys(*_SCALED, *_LAYER_WINDOWS),
        layers=late_window(4096, from_layer(28)),
        accepts={**_FOR_ALL, "max_window_layers": _count, "use_mrope": _unset, "attention_bias": lambda value: True},
        absent={**_LLAMA, "max_position_embeddings": 32768},
        constants={"attention_bias": False, "attention_dropout": 0.0},
    ),
    "mistral": Architecture(
        "Mistral",
        keys=_keys(*_SCALED, "sliding_window"),
        layers=same_window(4096),
        accepts={**_FOR_ALL, "layer_types": _unset},
        absent={**_LLAMA, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "smollm3": Architecture(
        "SmolLM3",
        keys=_keys("attention_bias", "mlp_bias", *_SCALED, "no_rope_layers", *_LAYER_WINDOWS),
        layers=smollm3(),
        accepts=_FOR_ALL,
        absent={
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 2000000.0,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
        },
    ),
    "gemma2": Architecture(
        "Gemma2",
        Features(**_GEMMA_FEATURES, attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
        keys=_keys(
            "attention_bias",
            *_SCALED,
            *_LAYER_WINDOWS,
            "query_pre_attn_scalar",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            activation="hidden_activation",
        ),
        layers=gemma(2),
        accepts=_GEMMA_TESTS,
        absent={
            **_LLAMA,
            **_GEMMA,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        activation="gelu_pytorch_tanh",
    ),
    "gemma3_text": Architecture(
        "Gemma3",
        Features(**_GEMMA_FEATURES, qk_norm=True, rope_local_base_freq=10000.0),
        keys=_keys(
            "attention_bias",
            *_SCALED,
            "rope_local_base_freq",
            *_LAYER_WINDOWS,
            "query_pre_attn_scalar",
            "final_logit_softcapping",
            activation="hidden_activation",
        ),
        layers=gemma(6),
        accepts={**_GEMMA_TESTS, "attn_logit_softcapping": _unset},
        absent={**_LLAMA, **_GEMMA, "max_position_embeddings": 131072, "rope_theta": 1000000.0},
        activation="gelu_pytorch_tanh",
        scorer_name="Gemma3Text",
    ),
    "phi3": Architecture(
        "Phi3",
        Features(fused_projections=True),
        keys=_keys(*_SCALED, "partial_rotary_factor", "sliding_window"),
        layers=phi3(),
        accepts={**_FOR_ALL, "layer_types": _full_attention},
        absent={**_LLAMA, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    ),
    "olmo2": Architecture(
        "Olmo2",
        Features(norm_placement="post", qk_norm=True, qk_norm_of_all_heads=True),
        keys=_keys("attention_bias", *_SCALED),
        absent={**_LLAMA, "rms_norm_eps": 1e-5},
    ),
    "granite": Architecture(
        "Granite",
        Features(attention_multiplier=1.0),
        keys=_keys(
            "attention_bias",
            "mlp_bias",
            *_SCALED,
            "embedding_multiplier",
            "residual_multiplier",
            "attention_multiplier",
            "logits_scaling",
        ),
        absent=_LLAMA,
        scorer_name="",
    ),
    "gpt2": Architecture(
        "GPT2",
        Features(
            norm="layer_norm",
            activation="gelu_tanh",
            attention_bias=True,
            mlp_bias=True,
            gated_mlp=False,
            fused_projections=True,
            learned_positions=True,
        ),
        keys={
            "hidden_size": "n_embd",
            "intermediate_size": "n_inner",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
            "rms_norm_eps": "layer_norm_epsilon",
            "activation": "activation_function",
        },
        accepts={
            **_FOR_ALL,
            "scale_attn_weights": _only(True, None),
            "scale_attn_by_inverse_layer_idx": _unset,
            "add_cross_attention": _unset,
        },
        absent={
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_theta": 10000.0,
        },
        constants={},
        derived=frozenset({"num_key_value_heads", "head_dim", "rope_theta"}),
        activation="gelu_new",
        lm_name="GPT2LMHeadModel",
        names=(
            ("model.embed_tokens", "transformer.wte"),
            ("model.embed_positions", "transformer.wpe"),
            *((f"model.layers.*.{ours}", f"transformer.h.*.{theirs}") for ours, theirs in _GPT2_LAYER.items()),
            ("model.norm", "transformer.ln_f"),
        ),
        transposed=frozenset({"qkv_proj", "o_proj", "up_proj", "down_proj"}),
    ),
}


def lookup(model_type: object) -> Architecture | None:
    """Return the row of a `model_type` read from a file, or None where it is unknown."""
    return next((row for name, row in ARCHITECTURES.items() if name == model_type), None)
