"""The decoder: embeddings, blocks of attention and SwiGLU, a norm, a head. `qwen3`, `llama` and `qwen2` are the same code.

Tensor names and layouts are Hugging Face's (half-split rotary embedding, `model.layers.0.self_attn.q_proj.weight`), so a state
dict needs no translation. `forward` returns final hidden states, not logits: losses need log-probabilities at a few positions
(`CausalLM.log_probs`), generation needs logits at one (`CausalLM.logits`), and nobody needs a (B, T, V) tensor.

Shapes: B rows, T tokens, S keys, D width, H heads, K key-value heads, V vocabulary.
Left out: mixture of experts, sliding windows, rope scaling, attention biases other than qwen2's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.model import kernels
from tinyllm.model.config import ModelConfig
from tinyllm.model.heads import TokenScores, last_token, token_scores


class KVCache:
    """Keys and values of the tokens seen so far, allocated once: (layers, B, K, capacity, head_dim) each."""

    def __init__(self, config: ModelConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype):
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, K, T, head_dim) behind what is there and return all of it. `length` moves once a forward, not once a layer."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices)."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245), with QK-norm for qwen3 (arXiv 2302.05442)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, bias = config.hidden_size, config.model_type == "qwen2"
        self.q_proj = nn.Linear(width, config.num_attention_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, width, bias=False)
        if config.model_type == "qwen3":
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        rows, length, _ = x.shape
        heads = (rows, length, -1, self.head_dim)
        q = kernels.rotate(self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2), cos, sin)  # (B, H, T, head_dim)
        k = kernels.rotate(self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2), cos, sin)  # (B, K, T, head_dim)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        y = kernels.attention(q, k, v, mask)
        return self.o_proj(y.transpose(1, 2).reshape(rows, length, -1))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x)). Dropout acts on what is added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin, mask, cache))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    """Token ids to final hidden states; what a language model and a reward model have in common."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # in float32 and in this order, as transformers does: other roundings show in the fifth digit of the logits
        frequencies = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        # a few positions more than a text may have: batches are padded to widths of 16, and padding has positions, too
        positions = -(-config.max_position_embeddings // 16) * 16
        angles = torch.outer(torch.arange(positions).float(), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)  # (positions, head_dim / 2)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor, attend: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Final hidden states (B, T, D) of `ids` (B, T).

        attend: (B, S), which document each token belongs to: numbers from 1 in a packed row, true (1) for real tokens of an
        ordinary one, 0 for padding; S = T, or all tokens cached so far and T. A token sees its own document only, and positions
        start anew with each, so a packed or left-padded row reads as its documents would alone. Rows that are padded on the right
        need none: causal attention never looks to the right of a real token, and what is computed at padding is masked by the loss.
        """
        x = self.embed_tokens(ids)
        start, length = (cache.length if cache else 0), ids.shape[1]
        if attend is None:
            mask = None
            cos, sin = self.cos[start : start + length][None, None], self.sin[start : start + length][None, None]
            if start and length > 1:
                raise ValueError("several tokens behind a cache need an attend mask")
        else:
            mask = _attention_mask(attend, start, length)
            positions = _positions(attend)[:, start:]
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        for layer in self.layers:
            x = layer(x, cos, sin, mask, cache)
        if cache is not None:
            cache.length += length
        return self.norm(x)


def _attention_mask(attend: Tensor, start: int, length: int) -> Tensor:
    """(B, 1, T, S) bool: query i sees the keys of its document up to itself; padding sees itself, or softmax would have nothing to
    share."""
    queries = torch.arange(start, start + length, device=attend.device)[:, None]
    keys = torch.arange(start + length, device=attend.device)[None, :]
    same = attend[:, start:, None] == attend[:, None, :]  # (B, T, S)
    return (((keys <= queries) & same & attend.bool()[:, None, :]) | (keys == queries))[:, None]


def _positions(attend: Tensor) -> Tensor:
    """(B, S): each token's place in its document, counted from the document's first token in the row."""
    place = torch.arange(attend.shape[1], device=attend.device).expand(attend.shape)
    first = F.pad(attend[:, 1:] != attend[:, :-1], (1, 0), value=True)
    return place - place.where(first, 0).cummax(1).values


class CausalLM(nn.Module):
    """A decoder and its head; `...ForCausalLM` in Hugging Face's naming."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids: Tensor, attend: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Final hidden states (B, T, D), see `Decoder.forward`; `logits` and `log_probs` read them."""
        return self.model(ids, attend, cache)

    def log_probs(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        attend: Tensor | None = None,
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> TokenScores:
        """log p(ids[t] | ids[:t]) for the tokens of `ids` (B, T) where `mask` (B, T) is set; see `heads.token_scores`.

        Calls the module itself, never a part of it, so that hooks placed on it by torch.distributed run.
        """
        return token_scores(self(ids, attend), self.lm_head.weight, ids, mask, temperature=temperature, entropy=entropy)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) to (…, V)."""
        return self.lm_head(hidden)


class SequenceScorer(nn.Module):
    """A decoder with one number per token: reward models and critics. Hugging Face: `...ForSequenceClassification`, one label."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, ids: Tensor, attend: Tensor | None = None) -> Tensor:
        """Scores (B, T): entry t judges the text up to and including token t."""
        scores = self.score(self.model(ids, attend)).squeeze(-1)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def rewards(self, ids: Tensor, real: Tensor, attend: Tensor | None = None) -> Tensor:
        """The score of each row at its last token that is not padding; real (B, T) bool, returns (B,)."""
        return last_token(self(ids, attend), real)


class ActorCritic(nn.Module):
    """A policy and, beside it, a network of its own that predicts the return: what PPO trains. One call serves both."""

    def __init__(self, policy: CausalLM, critic: SequenceScorer):
        super().__init__()
        self.policy, self.critic = policy, critic

    def forward(self, ids: Tensor, attend: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The policy's hidden states (B, T, D) and the critic's scores (B, T)."""
        return self.policy(ids, attend), self.critic(ids, attend)

    def log_probs_and_values(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        attend: Tensor | None = None,
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> tuple[TokenScores, Tensor]:
        """Token scores as `CausalLM.log_probs`, and values (B, T): entry t is the expected return *before* token t is chosen."""
        hidden, scores = self(ids, attend)
        head = self.policy.lm_head.weight
        values = F.pad(scores[:, :-1], (1, 0))
        return token_scores(hidden, head, ids, mask, temperature=temperature, entropy=entropy), values


def initialise(model: nn.Module, seed: int) -> None:
    """Draw fresh weights: matrices N(0, 1/fan_in), those that write into the residual stream scaled down by sqrt(2 layers), embeddings
    N(0, 0.02^2), so that a tied head starts at a loss of ln V. A score head N(0, 1/(D+1)) starts with small, unequal rewards."""
    generator = torch.Generator().manual_seed(seed)
    layers = model.config.num_hidden_layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                continue  # norm gains stay one, biases are zeroed by their modules below
            std = 1 / math.sqrt(parameter.shape[1])
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * layers)
            elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
                std = 0.02
            elif name.endswith("score.weight"):
                std = 1 / math.sqrt(parameter.shape[1] + 1)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()


def compile_blocks(model: nn.Module) -> None:
    """Compile every block in place. Blocks are alike, so one compilation serves all of them; hooks on the root stay untouched."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()


def set_dropout(model: nn.Module, probability: float) -> None:
    """Dropout is a matter of training, not of the model's file: set it from outside on every block."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
