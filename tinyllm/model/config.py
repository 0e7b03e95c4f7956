"""Settings of a model and of its LoRA adapter. Free of torch, so that they are checked before it is imported."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tinyllm.config import Config, list_to_tuple
from tinyllm.model.architectures import ARCHITECTURES, lookup
from tinyllm.model.features import DEFAULT_TYPE, Activation, LayerType, ModelType, Norm, NormPlacement
from tinyllm.model.layer_patterns import SLIDING
from tinyllm.model.rope_scaling import RopeScaling


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
    """of every normalization layer"""
    rope_theta: float = Field(10000.0, gt=0)
    tie_word_embeddings: bool = True
    """use the embedding matrix as the output head, too"""
    qk_norm: bool = True
    """normalize queries and keys per head; as model_type implies"""
    norm: Norm = "rms_norm"
    """kind of the normalization layers; rms_norm_1p multiplies by 1 + weight"""
    norm_placement: NormPlacement = "pre"
    """normalize what a sublayer reads (pre), what it writes (post), or both"""
    qk_norm_of_all_heads: bool = False
    """normalize queries and keys over all heads together"""
    activation: Activation = "silu"
    """activation of the MLP; config.json calls it hidden_act"""
    attention_bias: bool = False
    """biases on the query, key and value projections"""
    output_bias: bool = True
    """attention_bias includes the output projection"""
    mlp_bias: bool = False
    """biases in the MLP"""
    gated_mlp: bool = True
    """down(activation(gate(x)) * up(x)), otherwise down(activation(up(x)))"""
    fused_projections: bool = False
    """one matrix for queries, keys and values, and one for gate and up"""
    learned_positions: bool = False
    """an embedding of positions instead of rotary embeddings"""
    rope_scaling: RopeScaling | None = None
    """how rotary embeddings reach beyond the context of pretraining"""
    partial_rotary_factor: float = Field(1.0, gt=0, le=1)
    """the share of each head that is rotated"""
    rope_local_base_freq: float | None = Field(None, gt=0)
    """rope_theta of the layers with a sliding window, where that differs"""
    no_rope_layers: Annotated[tuple[int, ...], BeforeValidator(list_to_tuple)] = ()
    """for each layer 1 with rotary embeddings, 0 without, as Hugging Face has it; empty: all with"""
    sliding_window: int | None = Field(None, ge=1)
    """a token attends to so many tokens, itself included; none: to all before it"""
    layer_types: Annotated[tuple[LayerType, ...], BeforeValidator(list_to_tuple)] = ()
    """for each layer full_attention or sliding_attention; empty: all alike"""
    query_pre_attn_scalar: int | None = Field(None, gt=0)
    """attention scores are divided by its square root; none: head_dim"""
    attention_multiplier: float | None = Field(None, gt=0)
    """attention scores are multiplied by it; none: see query_pre_attn_scalar"""
    attn_logit_softcapping: float | None = Field(None, gt=0)
    """attention scores are limited to plus and minus this by a tanh; none: not"""
    final_logit_softcapping: float | None = Field(None, gt=0)
    """the same for the logits"""
    scaled_embedding: bool = False
    """multiply embeddings by the square root of hidden_size"""
    embedding_multiplier: float = Field(1.0, gt=0)
    residual_multiplier: float = Field(1.0, gt=0)
    """of what every sublayer adds to the residual stream"""
    logits_scaling: float = Field(1.0, gt=0)
    """divides the logits"""

    @model_validator(mode="before")
    @classmethod
    def _complete_features(cls, values: Any) -> Any:
        """Take the features that are not given from the row of `model_type`. An unknown type is left to the field's own check."""
        row = lookup(values.get("model_type", DEFAULT_TYPE)) if isinstance(values, dict) else None
        return {**vars(row.features), **values} if row else values

    @model_serializer(mode="wrap")
    def _leave_out_implied_features(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        implied = vars(ARCHITECTURES[self.model_type].features)
        values = vars(self)  # not as they are serialized: a tuple is a list there
        return {k: v for k, v in serialize(self).items() if k not in implied or values[k] != implied[k]}

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

    @model_validator(mode="after")
    def _layers_are_all_named(self) -> ModelConfig:
        for name in ("layer_types", "no_rope_layers"):
            if (found := len(getattr(self, name))) not in (0, self.num_hidden_layers):
                raise ValueError(f"{name} names {found} layers, but num_hidden_layers is {self.num_hidden_layers}")
        if SLIDING in self.layer_types and self.sliding_window is None:
            raise ValueError(f"layer_types has {SLIDING}, but there is no sliding_window")
        return self

    @model_validator(mode="after")
    def _derived_values_agree(self) -> ModelConfig:
        """Refuse a shape that the architecture's files cannot state."""
        heads, row = self.num_attention_heads, ARCHITECTURES[self.model_type]
        wanted = {"num_key_value_heads": heads, "head_dim": self.hidden_size // heads}
        for name, value in wanted.items():
            if name in row.derived and getattr(self, name) != value:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, and {self.model_type} always has {value} with this width"
                )
        return self

    # --- what follows from the features ------------------------------------------------------------------------------------------

    def window(self, layer: int) -> int | None:
        """Return the sliding window of a layer, in tokens; None for one that attends to everything before."""
        return self.sliding_window if not self.layer_types or self.layer_types[layer] == SLIDING else None

    def rope_base(self, layer: int) -> float | None:
        """Return the base of a layer's rotary embeddings; None for a layer without."""
        if self.learned_positions or (self.no_rope_layers and not self.no_rope_layers[layer]):
            return None
        local = self.rope_local_base_freq
        return self.rope_theta if local is None or self.window(layer) is None else local

    @property
    def attention_scale(self) -> float | None:
        """Factor of the attention scores; None for the usual 1 / sqrt(head_dim)."""
        if self.attention_multiplier is not None:
            return self.attention_multiplier
        return None if self.query_pre_attn_scalar is None else self.query_pre_attn_scalar**-0.5

    @property
    def embedding_scale(self) -> float:
        """Factor of the embeddings."""
        return self.embedding_multiplier * (math.sqrt(self.hidden_size) if self.scaled_embedding else 1.0)

    def parameters(self) -> int:
        """Return the number of parameters of a `CausalLM` of this shape, by arithmetic: for --dry-run, before anything is allocated."""
        width, inner = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = width * (2 * q + 2 * kv)
        if self.qk_norm:
            attention += q + kv if self.qk_norm_of_all_heads else 2 * self.head_dim
        if self.attention_bias:
            attention += q + 2 * kv + (width if self.output_bias else 0)
        matrices = 3 if self.gated_mlp else 2
        mlp = matrices * width * inner + (((matrices - 1) * inner + width) if self.mlp_bias else 0)
        norm = width * (2 if self.norm == "layer_norm" else 1)
        block = attention + mlp + norm * (4 if self.norm_placement == "pre_and_post" else 2)
        embeddings = self.vocab_size * width * (1 if self.tie_word_embeddings else 2)
        positions = self.max_position_embeddings * width if self.learned_positions else 0
        return embeddings + positions + self.num_hidden_layers * block + norm


def _shown(value: Any) -> str:
    """Return a feature's value as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


class LoRAConfig(Config):
    """Settings of a LoRA adapter (arXiv 2106.09685). PEFT's names of them are in `model.adapter_config`."""

    r: int = Field(8, ge=1)
    """rank of the update"""
    alpha: float = Field(16.0, gt=0)
    """strength of the update, which is scaled by alpha / r"""
    dropout: float = Field(0.0, ge=0, lt=1)
    """on the input of the adapter's branches, while training"""
    targets: tuple[str, ...] | str = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """the layers to adapt: names, in every block, or full names; all-linear: all linear layers except the head; as a string instead of
    a list: a regular expression for full names"""
    exclude: tuple[str, ...] | str = ()
    """targets that are not adapted; names, full names or a regular expression"""
    layers: tuple[int, ...] = ()
    """numbers of the blocks to adapt, from 0; empty: all"""
    layers_pattern: tuple[str, ...] = ()
    """name of the list of blocks that `layers` counts, where a model has several"""
    rank_pattern: dict[str, int] = Field({}, examples=[{"down_proj": 16}])
    """name or regular expression: rank of the layers whose names end so"""
    alpha_pattern: dict[str, float] = Field({}, examples=[{"down_proj": 32.0}])
    """name or regular expression: strength of the layers whose names end so"""
    modules_to_save: tuple[str, ...] = ()
    """modules to train whole, and to save with the adapter: embed_tokens, lm_head, norm"""
    token_rows: tuple[int, ...] | dict[str, tuple[int, ...]] = ()
    """ids of tokens whose rows are trained, in the embedding and in a head of its own; by module: {embed_tokens: [7], lm_head: [7]}"""
    tied: bool = False
    """where head and embedding share their weight, let them share what the adapter adds to the embedding"""
    rslora: bool = False
    """divide alpha by the square root of r instead of r, so that the update keeps its size as r grows (arXiv 2312.03732)"""
    dora: bool = False
    """train the norm of every weight row separately from its direction (arXiv 2402.09353)"""
    init: Literal["default", "gaussian", "pissa", "olora"] = "default"
    """start of the update: A uniform or gaussian and B zero, or both factors from the weight's largest singular vectors (pissa, arXiv
    2404.02948) or from its QR decomposition (olora, arXiv 2406.01775), which the frozen weight loses"""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @model_validator(mode="after")
    def _settings_fit(self) -> LoRAConfig:
        for key, ranks in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            for name, value in ranks.items():
                if value <= 0:
                    raise ValueError(f"{key} gives {name} {value:g}, and it must be more than 0")
        if any(number < 0 for number in self.layers):
            raise ValueError(f"layers counts blocks from 0, found {min(self.layers)}")
        if self.layers and isinstance(self.targets, str) and self.targets.lower() != "all-linear":
            raise ValueError("layers needs a list of targets; a regular expression can name the blocks itself")
        if self.layers_pattern and not self.layers:
            raise ValueError("layers_pattern needs layers, the numbers of the blocks")
        for name, rows in self.rows().items():
            if len(set(rows)) < len(rows) or any(row < 0 for row in rows):
                raise ValueError(f"token_rows of {name} must be ids of different tokens")
            if name in self.modules_to_save:
                raise ValueError(
                    f"{name} is in modules_to_save and in token_rows: it is trained whole, or some rows of it"
                )
        return self

    def rows(self) -> dict[str, tuple[int, ...]]:
        """Return the ids of the tokens whose rows are trained, by module; a plain list is of the embedding and of an untied head."""
        rows = self.token_rows
        return rows if isinstance(rows, dict) else dict.fromkeys(("embed_tokens", "lm_head"), rows) if rows else {}

    @property
    def scaling(self) -> float:
        """Factor of the low-rank update."""
        return self.alpha / math.sqrt(self.r) if self.rslora else self.alpha / self.r
