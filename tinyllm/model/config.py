"""Settings of a model and of its LoRA adapter. Free of torch, so that they are checked before it is imported."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tinyllm.config import Config
from tinyllm.model.architectures import ARCHITECTURES, DEFAULT_TYPE, Activation, ModelType, Norm, lookup


class ModelConfig(Config):
    """Shape and features of a model. Fields are named after Hugging Face's config.json.

    Features that are not given are those of `model_type` (`model.architectures`). When dumped, features that `model_type` implies
    are left out, so that files written before a feature existed compare equal to files written now.
    """

    model_type: ModelType = DEFAULT_TYPE
    """architecture of the Hugging Face files; decides the features below"""
    vocab_size: int = Field(4096, ge=1)
    """upper bound while the tokenizer is trained, exact afterwards"""
    hidden_size: int = Field(128, ge=1)
    intermediate_size: int = Field(384, ge=1)
    num_hidden_layers: int = Field(4, ge=1)
    num_attention_heads: int = Field(2, ge=1)
    num_key_value_heads: int = Field(2, ge=1)
    head_dim: int = Field(64, ge=2)
    max_position_embeddings: int = Field(512, ge=1)
    """the longest sequence, prompt and answer together"""
    rms_norm_eps: float = Field(1e-6, ge=0)
    rope_theta: float = Field(10000.0, gt=0)
    tie_word_embeddings: bool = True
    """use the embedding matrix as the output head, too"""
    qk_norm: bool = True
    """normalize queries and keys per head; as model_type implies"""
    attention_bias: bool = False
    """biases on the query, key and value projections; as model_type implies"""
    norm: Norm = "rms_norm"
    """kind of the normalization layers"""
    activation: Activation = "silu"
    """activation of the gated MLP; config.json calls it hidden_act"""

    @model_validator(mode="before")
    @classmethod
    def _complete_features(cls, values: Any) -> Any:
        """Take the features that are not given from the row of `model_type`. An unknown type is left to the field's own check."""
        row = lookup(values.get("model_type", DEFAULT_TYPE)) if isinstance(values, dict) else None
        return {**vars(row.features), **values} if row else values

    @model_serializer(mode="wrap")
    def _leave_out_implied_features(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        implied = vars(ARCHITECTURES[self.model_type].features)
        return {key: value for key, value in serialize(self).items() if key not in implied or value != implied[key]}

    @model_validator(mode="after")
    def _features_exist(self) -> ModelConfig:
        """Refuse a combination of features that no Hugging Face class of this `model_type` could load."""
        for name, value in ARCHITECTURES[self.model_type].fixed().items():
            found = getattr(self, name)
            if found != value:
                others = [other for other, row in ARCHITECTURES.items() if row.fixed().get(name, found) == found]
                raise ValueError(
                    f"{name} {_shown(found)} contradicts model_type {self.model_type}, where it is always {_shown(value)}"
                    + (f"; it needs model_type {' or '.join(others)}" if others else "")
                )
        return self

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelConfig:
        heads, kv = self.num_attention_heads, self.num_key_value_heads
        if heads % kv:
            fits = next(n for n in range(min(heads, kv), 0, -1) if heads % n == 0)
            raise ValueError(
                f"num_attention_heads {heads} must be a multiple of num_key_value_heads {kv}; the largest that fits is {fits}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim {self.head_dim} must be even, for example {self.head_dim + 1}: rotary embeddings rotate pairs"
            )
        return self

    def training_bytes(self, rows: int, length: int) -> tuple[int, int]:
        """Estimate the memory of training in float32, in bytes.

        Args:
            rows: sequences in a micro-batch.
            length: tokens in a sequence.

        Returns:
            the bytes of weights, gradients and Adam's two moments; the bytes of a micro-batch's activations.
        """
        per_token = self.num_hidden_layers * (14 * self.hidden_size + 4 * self.intermediate_size) * 4
        return self.parameters() * 16, rows * length * per_token

    def parameters(self) -> int:
        """Return the number of parameters of a `CausalLM` of this shape, by arithmetic: for --dry-run, before anything is allocated."""
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * q + 2 * kv)
        attention += 2 * self.head_dim if self.qk_norm else 0
        attention += q + 2 * kv if self.attention_bias else 0
        block = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * block + self.hidden_size


def _shown(value: bool | str) -> str:
    """Return a feature's value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else value


class LoRAConfig(Config):
    """Settings of a LoRA adapter (arXiv 2106.09685)."""

    r: int = Field(8, ge=1)
    """rank of the update"""
    alpha: float = Field(16.0, gt=0)
    """strength of the update, which is scaled by alpha / r"""
    dropout: float = Field(0.0, ge=0, lt=1)
    """on the input of the adapter's branches, while training"""
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """names of the linear layers to adapt, in every block. all-linear: all linear layers except the head"""
    rslora: bool = False
    """divide alpha by the square root of r instead of r, so that the update keeps its size as r grows (arXiv 2312.03732)"""
    dora: bool = False
    """train the norm of every weight row separately from its direction (arXiv 2402.09353)"""

    @property
    def scaling(self) -> float:
        """Factor of the low-rank update."""
        return self.alpha / math.sqrt(self.r) if self.rslora else self.alpha / self.r
