"""The features in which Hugging Face's decoder architectures differ, and their values in config.json. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from tinyllm.model.rope_scaling import RopeScaling

ModelType = Literal[
    "qwen3", "llama", "qwen2", "mistral", "smollm3", "gemma2", "gemma3_text", "phi3", "olmo2", "granite", "gpt2"
]
Norm = Literal["rms_norm", "rms_norm_1p", "layer_norm"]
NormPlacement = Literal["pre", "post", "pre_and_post"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
LayerType = Literal["full_attention", "sliding_attention"]

DEFAULT_TYPE: ModelType = "qwen3"


@dataclass(frozen=True)
class Features:
    """The features in which architectures differ. `ModelConfig` has a field of the same name for each, and documents it.

    Where None is a value, it is the default here.
    """

    qk_norm: bool = False
    norm: Norm = "rms_norm"
    norm_placement: NormPlacement = "pre"
    qk_norm_of_all_heads: bool = False
    activation: Activation = "silu"
    attention_bias: bool = False
    output_bias: bool = True
    mlp_bias: bool = False
    gated_mlp: bool = True
    fused_projections: bool = False
    learned_positions: bool = False
    rope_scaling: RopeScaling | None = None
    partial_rotary_factor: float = 1.0
    rope_local_base_freq: float | None = None
    no_rope_layers: tuple[int, ...] = ()
    sliding_window: int | None = None
    layer_types: tuple[LayerType, ...] = ()
    query_pre_attn_scalar: int | None = None
    attention_multiplier: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    scaled_embedding: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0


FEATURES = tuple(feature.name for feature in fields(Features))
MAY_BE_NONE = tuple(feature.name for feature in fields(Features) if feature.default is None)
# read and written together by `rope_scaling`
ROPE = ("rope_scaling", "partial_rotary_factor", "rope_local_base_freq")
# read and written by the `LayerPattern` of a row
LAYERS = ("sliding_window", "layer_types", "no_rope_layers", "query_pre_attn_scalar")
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def activation_named(name: object) -> Activation | None:
    """Return the activation that config.json names, or None for one that is not implemented."""
    return _ACTIVATIONS.get(name) if isinstance(name, str) else None


def name_of_activation(activation: Activation, spelling: str) -> str:
    """Return the name of an activation in config.json: `spelling`, where that means the same."""
    return (
        spelling
        if _ACTIVATIONS.get(spelling) == activation
        else next(k for k, v in _ACTIVATIONS.items() if v == activation)
    )
