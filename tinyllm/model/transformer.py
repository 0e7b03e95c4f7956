"""The decoder: embeddings, blocks of attention and gated MLP, a final norm, a head.

The features of `ModelConfig` decide what a block computes; no architecture is known by name. Tensor names and layouts are those of
Hugging Face (half-split rotary embedding, `model.layers.0.self_attn.q_proj.weight`), so a state dict needs no translation. `forward`
returns final hidden states, not logits: losses need log-probabilities at some positions (`CausalLM.log_probs`), generation needs
logits at one (`CausalLM.logits`), and a (B, T, V) tensor is never made.

Shapes: B rows, T tokens, S keys, D width, H heads, K key-value heads, V vocabulary.
Left out: mixture of experts, sliding windows, rope scaling, biases of the output projection and of the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.model import kernels
from tinyllm.model.architectures import Activation, Norm
from tinyllm.model.config import ModelConfig
from tinyllm.model.heads import TokenScores, last_token, token_log_probs, token_scores


class KVCache:
    """Keys and values of the tokens seen so far, allocated once: (layers, B, K, capacity, head_dim) each.

    Args:
        rows: B, sequences decoded together.
        capacity: tokens per row, prompt and answer together.
    """

    def __init__(self, config: ModelConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype):
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, K, T, head_dim) of one layer and return all of its own so far, (B, K, S, head_dim) each.

        `length` is advanced by the decoder once per forward pass, not once per layer.
        """
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keep the rows with these indices and drop the others."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)


_NORMS: Mapping[Norm, Callable[[int, float], nn.Module]] = {"rms_norm": RMSNorm}
_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {"silu": F.silu}


def _norm(config: ModelConfig, size: int) -> nn.Module:
    """Return a normalization layer over the last dimension, of the kind the model has."""
    return _NORMS[config.norm](size, config.rms_norm_eps)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245), with biases on q, k and v or QK-norm (arXiv 2302.05442) where the model has them."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, config.num_attention_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, width, bias=False)
        self.q_norm = _norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = _norm(config, config.head_dim) if config.qk_norm else nn.Identity()

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
    """Gated MLP (arXiv 2002.05202): down(activation(gate(x)) * up(x)); with silu it is SwiGLU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = _ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)). Dropout acts on what is added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = _norm(config, config.hidden_size)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = _norm(config, config.hidden_size)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin, mask, cache))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    """Token ids to final hidden states: the part that a language model and a reward model share."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = _norm(config, config.hidden_size)
        # In float32 and in this order, as transformers does: other roundings show in the fifth digit of the logits.
        frequencies = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        # Rounded up to a multiple of 16: batches are padded to such widths, and padding has positions, too.
        positions = -(-config.max_position_embeddings // 16) * 16
        angles = torch.outer(torch.arange(positions).float(), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)  # (positions, head_dim / 2)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor, attend: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Return the final hidden states (B, T, D) of `ids` (B, T).

        Args:
            attend: (B, S), the document each token belongs to: numbers from 1 in a packed row, true (1) for real tokens of an ordinary
                one, 0 for padding. S is T, or the number of tokens cached so far plus T. A token sees only its own document, and
                positions start anew with each, so a packed or left-padded row gives the states its documents would have alone.
                Rows padded on the right need none: causal attention never sees what follows, and losses mask padding.
            cache: keys and values of earlier tokens; those of `ids` are appended.

        Raises:
            ValueError: several tokens after cached ones without `attend`.
        """
        x = self.embed_tokens(ids)
        start, length = (cache.length if cache else 0), ids.shape[1]
        if attend is None:
            mask = None
            cos, sin = self.cos[start : start + length][None, None], self.sin[start : start + length][None, None]
            if start and length > 1:
                raise ValueError("several tokens after cached ones need an attend mask")
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
    """Return (B, 1, T, S) bool: query i sees the keys of its document up to itself. Padding sees itself, since a softmax over no keys
    is NaN."""
    queries = torch.arange(start, start + length, device=attend.device)[:, None]
    keys = torch.arange(start + length, device=attend.device)[None, :]
    same = attend[:, start:, None] == attend[:, None, :]  # (B, T, S)
    return (((keys <= queries) & same & attend.bool()[:, None, :]) | (keys == queries))[:, None]


def _positions(attend: Tensor) -> Tensor:
    """Return each token's position in its document (B, S), counted from the document's first token in the row."""
    place = torch.arange(attend.shape[1], device=attend.device).expand(attend.shape)
    first = F.pad(attend[:, 1:] != attend[:, :-1], (1, 0), value=True)
    return place - place.where(first, 0).cummax(1).values


class CausalLM(nn.Module):
    """A decoder with a head over the vocabulary: `...ForCausalLM` in Hugging Face's naming."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids: Tensor, attend: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Return the final hidden states (B, T, D) that `logits` and `log_probs` read; see `Decoder.forward`."""
        return self.model(ids, attend, cache)

    def log_probs(self, ids: Tensor, mask: Tensor, *, attend: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Return log p(ids[t] | ids[:t]) in nats where `mask` (B, T) is set and 0 elsewhere, (B, T); see `heads.token_log_probs`.

        Calls the module itself, never a part of it, so that the hooks of torch.distributed run.

        Args:
            mask: bool; the first column must be unset.
            attend: see `Decoder.forward`.
            temperature: of the softmax.
        """
        return token_log_probs(self(ids, attend), self.lm_head.weight, ids, mask, temperature=temperature)

    def token_scores(
        self, ids: Tensor, mask: Tensor, *, attend: Tensor | None = None, temperature: float = 1.0
    ) -> TokenScores:
        """Return log-probabilities and entropies, each (B, T); see `log_probs`."""
        return token_scores(self(ids, attend), self.lm_head.weight, ids, mask, temperature=temperature)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of hidden states (..., D)."""
        return self.lm_head(hidden)


class SequenceScorer(nn.Module):
    """A decoder with one score per token, for reward models and critics: `...ForSequenceClassification` with one label."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, ids: Tensor, attend: Tensor | None = None) -> Tensor:
        """Return scores (B, T), in float32 at least: entry t scores the text up to and including token t."""
        scores = self.score(self.model(ids, attend)).squeeze(-1)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def rewards(self, ids: Tensor, real: Tensor, attend: Tensor | None = None) -> Tensor:
        """Return the score of each row at its last real token, (B,). real: (B, T) bool, unset for padding."""
        return last_token(self(ids, attend), real)


class ActorCritic(nn.Module):
    """A policy and a separate critic that predicts the return, trained together by PPO (arXiv 1707.06347). One call runs both."""

    def __init__(self, policy: CausalLM, critic: SequenceScorer):
        super().__init__()
        self.policy, self.critic = policy, critic

    def forward(self, ids: Tensor, attend: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the policy's hidden states (B, T, D) and the critic's scores (B, T)."""
        return self.policy(ids, attend), self.critic(ids, attend)

    def token_scores_and_values(
        self, ids: Tensor, mask: Tensor, *, attend: Tensor | None = None, temperature: float = 1.0
    ) -> tuple[TokenScores, Tensor]:
        """Return token scores as `CausalLM.token_scores` does, and values (B, T): entry t is the expected return *before* token t is
        chosen, that is the critic's score at t - 1; entry 0 is 0."""
        hidden, scores = self(ids, attend)
        values = F.pad(scores[:, :-1], (1, 0))
        return token_scores(hidden, self.policy.lm_head.weight, ids, mask, temperature=temperature), values


def initialise(model: CausalLM | SequenceScorer, seed: int) -> None:
    """Draw new weights, in place, as a function of the seed.

    Matrices are N(0, 1/fan_in), those that write into the residual stream smaller by sqrt(2 layers). Embeddings and heads are
    N(0, 0.02^2), so that a tied head starts at a loss of ln V. A score head is N(0, 1/(D+1)), so that rewards start small and unequal.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = model.config.num_hidden_layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                continue  # norm gains stay one; biases are zeroed below
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
    """Compile every block in place. All blocks share one compilation, and hooks on the root module are kept."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set the dropout probability of every block. It belongs to training, so it is not saved with the model.

    The dropout of an adapter's branches is their own (`LoRAConfig.dropout`) and stays.
    """
    for module in model.modules():
        if isinstance(module, Block):
            module.dropout.p = probability
