"""The Hugging Face architectures that can be loaded and saved: one row of `ARCHITECTURES` per `model_type`.

A row names the Hugging Face classes, the features they fix, the config.json keys that state everything else, and the values of
config.json that are refused because they change the computation in a way that is not implemented. `ModelConfig` checks settings
against the row, `hf_config` reads config.json by it and `hub` writes config.json by it. The decoder reads features only.

To add an architecture, add its name to `ModelType` and a row to the table. A feature that the decoder lacks is added to `Features`,
to `ModelConfig` and to the module that computes it; existing rows keep its default.
Free of torch, so that settings and files are checked without importing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

ModelType = Literal["qwen3", "llama", "qwen2"]
Norm = Literal["rms_norm"]
Activation = Literal["silu"]

DEFAULT_TYPE: ModelType = "qwen3"


@dataclass(frozen=True)
class Features:
    """The features in which architectures differ. `ModelConfig` has a field of the same name for each, and documents it."""

    qk_norm: bool = False
    attention_bias: bool = False
    norm: Norm = "rms_norm"
    activation: Activation = "silu"


FEATURES = tuple(feature.name for feature in fields(Features))


# --- tests of values in config.json ----------------------------------------------------------------------------------------------


def _unset(value: Any) -> bool:
    """Return True for null, false, zero and empty values."""
    return not value


def _only(expected: Any) -> Callable[[Any], bool]:
    """Return a test that accepts one value."""
    return lambda value: value == expected


def _unscaled_rope(value: Any) -> bool:
    """Return True for rotary embeddings without scaling, in the spelling of transformers 4 or 5."""
    return not value or (isinstance(value, dict) and value.get("rope_type", value.get("type", "default")) == "default")


def _full_attention(value: Any) -> bool:
    """Return True where every layer attends to the whole context."""
    return not value or (isinstance(value, list) and all(kind == "full_attention" for kind in value))


_FOR_ALL: Mapping[str, Callable[[Any], bool]] = {
    "auto_map": _unset,  # code in the checkpoint, which is never run
    "hidden_act": _only("silu"),
    "rope_parameters": _unscaled_rope,
    "rope_scaling": _unscaled_rope,
    "mlp_bias": _unset,
    "use_sliding_window": _unset,
    "layer_types": _full_attention,
    "quantization_config": _unset,
}


# --- the table -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """One `model_type` of config.json."""

    class_name: str
    """the prefix of the Hugging Face classes: `Qwen3` for `Qwen3ForCausalLM` and `Qwen3ForSequenceClassification`"""
    features: Features = Features()
    """what the architecture implies: fixed values, and defaults of the features that `keys` lists"""
    keys: Mapping[str, str] = field(default_factory=lambda: {"activation": "hidden_act"})
    """field of `ModelConfig` -> the config.json key that states it. A feature that is not listed is fixed: it is never read from
    config.json, and another value is refused. A field that is not a feature and not listed has a key of its own name."""
    accepts: Mapping[str, Callable[[Any], bool]] = field(default_factory=lambda: {**_FOR_ALL, "attention_bias": _unset})
    """config.json key -> test of its value. A file with a value that fails is refused; a missing key passes"""
    absent: Mapping[str, Any] = field(default_factory=lambda: {"tie_word_embeddings": False, "rope_theta": 10000.0})
    """field of `ModelConfig` -> its value where config.json lacks the key, if that is not `ModelConfig`'s own default"""
    constants: Mapping[str, Any] = field(default_factory=lambda: {"attention_bias": False, "attention_dropout": 0.0})
    """config.json keys that are written with the same value for every model"""

    def key(self, name: str) -> str | None:
        """Return the config.json key that states a field of `ModelConfig`, or None for a feature that is fixed."""
        return self.keys.get(name, None if name in FEATURES else name)

    def fixed(self) -> dict[str, Any]:
        """Return the features that no config.json of this architecture can change, by name."""
        return {name: value for name, value in vars(self.features).items() if name not in self.keys}


ARCHITECTURES: Mapping[ModelType, Architecture] = {
    "qwen3": Architecture("Qwen3", Features(qk_norm=True)),
    "llama": Architecture("Llama"),
    # Qwen2 has the biases whatever the file says: `attention_bias` is no key of its configuration
    "qwen2": Architecture("Qwen2", Features(attention_bias=True), accepts=_FOR_ALL),
}


def lookup(model_type: object) -> Architecture | None:
    """Return the row of a `model_type` read from a file, or None where it is unknown."""
    return next((row for name, row in ARCHITECTURES.items() if name == model_type), None)
