"""What a model looks like and how it is adapted: settings alone, so that they can be checked without importing torch."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from tinyllm.config import Config


class ModelConfig(Config):
    """The shape of a model. Field names are those of Hugging Face's config.json."""

    model_type: Literal["qwen3", "llama", "qwen2"] = "qwen3"
    """qwen3 normalises queries and keys per head; llama does not; qwen2 has biases on q, k and v instead"""
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

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelConfig:
        heads, kv = self.num_attention_heads, self.num_key_value_heads
        if heads % kv:
            fits = next(n for n in range(min(heads, kv), 0, -1) if heads % n == 0)
            raise ValueError(
                f"num_attention_heads {heads} must be a multiple of num_key_value_heads {kv}; that may be {fits}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim {self.head_dim} must be even, it may be {self.head_dim + 1}: the rotary embedding turns pairs"
            )
        return self

    def training_bytes(self, rows: int, length: int) -> tuple[int, int]:
        """About what training takes: weights with gradients and Adam's two moments; the activations of a micro-batch."""
        per_token = self.num_hidden_layers * (14 * self.hidden_size + 4 * self.intermediate_size) * 4
        return self.parameters() * 16, rows * length * per_token

    def parameters(self) -> int:
        """How many parameters a `CausalLM` of this shape has, by arithmetic (for --dry-run, before anything is allocated)."""
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * q + 2 * kv)
        attention += {"qwen3": 2 * self.head_dim, "llama": 0, "qwen2": q + 2 * kv}[self.model_type]
        block = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * block + self.hidden_size


class LoRAConfig(Config):
    """Which layers are adapted, and how strongly."""

    r: int = Field(8, ge=1)
    """rank of the update"""
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """names of linear layers; every layer so named is adapted. all-linear: all of them but the head"""
    rslora: bool = False
    """divide alpha by the root of r instead of r, so that a larger rank still moves"""
    dora: bool = False
    """train the length of every output row apart from its direction"""

    @property
    def scaling(self) -> float:
        return self.alpha / math.sqrt(self.r) if self.rslora else self.alpha / self.r
