"""The decoder: embeddings, blocks of attention and gated MLP, a final norm, a head.

The features of `ModelConfig` decide what a block computes; no architecture is known by name. Tensor names and layouts are those of
Hugging Face (half-split rotary embedding, `model.layers.0.self_attn.q_proj.weight`), so a state dict needs no translation. `forward`
returns final hidden states, not logits: losses need log-probabilities at some positions (`CausalLM.log_probs`), generation needs
logits at one (`CausalLM.logits`), and a (B, T, V) tensor is never made.

Shapes: B rows, T tokens, S keys, D width, H heads, K key-value heads, V vocabulary.
Left out: mixture of experts.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinyllm.model import kernels
from tinyllm.model.config import ModelConfig
from tinyllm.model.features import Activation, Norm, NormPlacement
from tinyllm.model.heads import (
    TokenScores,
    head_matrix,
    last_token,
    log_prob_total,
    logits,
    token_log_probs,
    token_scores,
)
from tinyllm.model.positions import Branches, Documents, Place, attention_mask, document_bounds, positions_in_documents
from tinyllm.model.prefixes import SharedPrompts
from tinyllm.model.rope import Rotary


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


class Linear(nn.Linear):
    """x W^T + b of a block; see `kernels.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return kernels.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467).

    Args:
        offset: added to the weight, which then starts at 0 where the gain is 1.
    """

    def __init__(self, size: int, eps: float, offset: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    @property
    def gain(self) -> Tensor:
        """What x / rms(x) is multiplied by."""
        return self.weight + self.offset if self.offset else self.weight

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.gain, self.eps)


_NORMS: Mapping[Norm, Callable[[int, float], nn.Module]] = {
    "rms_norm": RMSNorm,
    "rms_norm_1p": partial(RMSNorm, offset=1.0),
    "layer_norm": nn.LayerNorm,
}
_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


def _norm(config: ModelConfig, size: int) -> nn.Module:
    """Return a normalization layer over the last dimension, of the kind the model has."""
    return _NORMS[config.norm](size, config.rms_norm_eps)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245), with QK-norm (arXiv 2302.05442) and a sliding window where the model has them."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.scale, self.softcap = config.attention_scale, config.attn_logit_softcapping
        width, bias = config.hidden_size, config.attention_bias
        q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.widths = (q, kv, kv)
        self.fused = config.fused_projections
        if self.fused:
            self.qkv_proj = Linear(width, q + 2 * kv, bias=bias)
        else:
            self.q_proj = Linear(width, q, bias=bias)
            self.k_proj = Linear(width, kv, bias=bias)
            self.v_proj = Linear(width, kv, bias=bias)
        self.o_proj = Linear(q, width, bias=bias and config.output_bias)
        self.norm_all_heads = config.qk_norm_of_all_heads
        q, kv = (q, kv) if self.norm_all_heads else (config.head_dim, config.head_dim)
        self.q_norm = _norm(config, q) if config.qk_norm else nn.Identity()
        self.k_norm = _norm(config, kv) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, place: Place, cache: KVCache | None) -> Tensor:
        q, k, v = (
            self.qkv_proj(x).split(self.widths, -1) if self.fused else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        if place.branches is not None:
            return self.o_proj(self._attend_in_branches(q, k, v, place, place.branches))
        q, k, v = self._placed((q, k, v), place)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        return self.o_proj(self._attend(q, k, v, place))

    def _attend_in_branches(self, q: Tensor, k: Tensor, v: Tensor, place: Place, branches: Branches) -> Tensor:
        """Return attention (1, N, heads * head_dim) where answers share prompts; q, k and v are products of the sequence, (1, N, ...)."""
        prompts, answers = branches.prompts[0] * branches.prompts[1], len(branches.which)
        of_prompts, of_answers = zip(*(x[0].split((prompts, x.shape[1] - prompts)) for x in (q, k, v)), strict=True)
        q, k, v = self._placed([x.unflatten(0, branches.prompts) for x in of_prompts], place)
        first = self._attend(q, k, v, place)
        own = self._placed([x.unflatten(0, (answers, -1)) for x in of_answers], branches.place)
        k, v = (torch.cat((x.index_select(0, branches.which), y), 2) for x, y in ((k, own[1]), (v, own[2])))
        then = self._attend(own[0], k, v, branches.place)
        return torch.cat((first.flatten(0, 1), then.flatten(0, 1)))[None]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Tensor:
        if place.documents is not None:
            kernel, bounds, window = place.documents
            return kernels.attention_in_documents(kernel, q, k, v, bounds, window, scale=self.scale)
        return kernels.attention(q, k, v, place.mask, scale=self.scale, softcap=self.softcap)

    def _placed(self, products: Sequence[Tensor], place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, heads, T, head_dim) of their products (B, T, heads * head_dim)."""
        q, k, v = products
        q, k = self._heads(q, self.q_norm, place), self._heads(k, self.k_norm, place)
        return q, k, kernels.heads(v, self.head_dim, None, 0.0, None, None)

    def _heads(self, x: Tensor, norm: nn.Module, place: Place) -> Tensor:
        """Return queries or keys (B, heads, T, head_dim) of their product (B, T, heads * head_dim)."""
        if isinstance(norm, RMSNorm) and not self.norm_all_heads:
            return kernels.heads(x, self.head_dim, norm.gain, norm.eps, place.cos, place.sin)
        if self.norm_all_heads:
            x = norm(x)
        else:
            x = norm(x.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        return kernels.heads(x, self.head_dim, None, 0.0, place.cos, place.sin)


class MLP(nn.Module):
    """Gated MLP (arXiv 2002.05202): down(activation(gate(x)) * up(x)), with silu SwiGLU; or down(activation(up(x)))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gated, self.fused = config.gated_mlp, config.gated_mlp and config.fused_projections
        if self.fused:
            self.gate_up_proj = Linear(width, 2 * inner, bias=bias)
        else:
            if self.gated:
                self.gate_proj = Linear(width, inner, bias=bias)
            self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)
        self.activation = _ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.down_proj(self.activation(self.up_proj(x)))
        gate, up = self.gate_up_proj(x).chunk(2, -1) if self.fused else (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(kernels.gated(gate, up, self.activation))


_PLACEMENTS: Mapping[NormPlacement, tuple[str | None, str | None, str | None, str | None]] = {
    # norms before and after attention, before and after the MLP, under Hugging Face's names
    "pre": ("input_layernorm", None, "post_attention_layernorm", None),
    "post": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "pre_and_post": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}


class Block(nn.Module):
    """x + attention(x), then x + mlp(x), each with norms before it, behind it or both.

    Dropout acts on what is added to the residual stream.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.norms = _PLACEMENTS[config.norm_placement]
        names = [name for name in self.norms if name is not None]
        first = names[: self.norms.index(names[0]) == 0]  # parameters keep the order in which they are used
        for name in first:
            self.add_module(name, _norm(config, config.hidden_size))
        self.self_attn = Attention(config, layer)
        for name in names[len(first) :]:
            self.add_module(name, _norm(config, config.hidden_size))
        self.mlp = MLP(config)
        self.residual_multiplier = config.residual_multiplier
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, place: Place, cache: KVCache | None) -> Tensor:
        before_attention, after_attention, before_mlp, after_mlp = self.norms
        y = self._normed(after_attention, self.self_attn(self._normed(before_attention, x), place, cache))
        x = x + self.dropout(self._scaled(y))
        y = self._normed(after_mlp, self.mlp(self._normed(before_mlp, x)))
        return x + self.dropout(self._scaled(y))

    def _normed(self, name: str | None, x: Tensor) -> Tensor:
        return x if name is None else getattr(self, name)(x)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.residual_multiplier == 1 else x * self.residual_multiplier


def _embedding(rows: int, width: int) -> nn.Embedding:
    """Return an embedding: on the device "meta" without random numbers, for which torch would import its compiler (two seconds)."""
    weight = torch.empty(rows, width) if torch.empty(0).is_meta else None
    return nn.Embedding(rows, width, _weight=weight)


class Decoder(nn.Module):
    """Token ids to final hidden states: the part that a language model and a reward model share."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.checkpointing = False  # see `set_activation_checkpointing`
        self.embed_tokens = _embedding(config.vocab_size, config.hidden_size)
        if config.learned_positions:
            self.embed_positions = _embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = _norm(config, config.hidden_size)
        # Layers differ in the base of their rotary embeddings and in their window: what they share is computed once.
        self.kinds = [(config.rope_base(layer), config.window(layer)) for layer in range(config.num_hidden_layers)]
        self.rotary = {base: _rotary(config, base) for base, _ in self.kinds if base is not None}

    def forward(
        self,
        ids: Tensor,
        attend: Tensor | None = None,
        cache: KVCache | None = None,
        shared: SharedPrompts | None = None,
    ) -> Tensor:
        """Return the final hidden states (B, T, D) of `ids` (B, T).

        Args:
            attend: (B, S), the document each token belongs to: numbers from 1 in a packed row, true (1) for real tokens of an ordinary
                one, 0 for padding. S is T, or the number of tokens cached so far plus T. A token sees only its own document, and
                positions start anew with each, so a packed or left-padded row gives the states its documents would have alone.
                Rows padded on the right need none: causal attention never sees what follows, and losses mask padding.
            cache: keys and values of earlier tokens; those of `ids` are appended.
            shared: the layout of `ids` in which prompts are computed once; without `attend` and `cache`.

        Raises:
            ValueError: several tokens after cached ones without `attend`.
        """
        start, length = (cache.length if cache else 0), ids.shape[1]
        if attend is None and start and length > 1:
            raise ValueError("several tokens after cached ones need an attend mask")
        if shared is None:
            places = self._places(ids.device, attend, start, length)
        else:
            places, ids = self._branched(shared), shared.tokens
        x = self._embedded(ids)
        if self.config.learned_positions:
            positions = _positions(attend, start, length, ids) if shared is None else shared.sequence_positions()
            last = self.config.max_position_embeddings - 1  # padding may be further to the right
            x = x + self.embed_positions(positions.clamp(max=last))
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            if recompute:  # random numbers and autocast are those of the first computation
                x = checkpoint(layer, x, places[kind], cache, use_reentrant=False)
            else:
                x = layer(x, places[kind], cache)
        if cache is not None:
            cache.length += length
        x = self.norm(x)
        return x if shared is None else shared.rows(x)

    def _embedded(self, ids: Tensor) -> Tensor:
        """Return the embeddings of tokens (B, T, D), in float32 at least."""
        x = self.embed_tokens(ids)
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # the residual stream of a bf16 model is float32
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        return x

    def _branched(self, shared: SharedPrompts) -> dict[tuple[float | None, int | None], Place]:
        """Return rotation and mask of each kind of layer, for prompts and for the answers that share them."""
        _, positions = shared.positions()
        end = int(positions.max()) + 1
        found = self._places(positions.device, None, 0, shared.prompts[1])
        masks = {window: shared.mask(window) for _, window in self.kinds}
        for (base, window), place in found.items():
            cos, sin = (None, None) if base is None else self.rotary[base].at(positions, positions + 1, end)
            branches = Branches(shared.prompts, shared.which, Place(cos, sin, masks[window]))
            found[base, window] = place._replace(branches=branches)
        return found

    @property
    def forgetful(self) -> bool:
        """True where the rotation of tokens depends on the length of their text, see `forgets_at`."""
        return any(rotary.by_length for rotary in self.rotary.values())

    def forgets_at(self, length: int) -> bool:
        """Return whether a text that grows to `length` tokens rotates its earlier tokens in another way than before, so that a cache of
        them must be made anew."""
        return any(rotary.changes_at(length) for rotary in self.rotary.values())

    def _places(
        self, device: torch.device, attend: Tensor | None, start: int, length: int
    ) -> dict[tuple[float | None, int | None], Place]:
        """Return rotation and mask of each kind of layer."""
        rotations: dict[float | None, tuple[Tensor | None, Tensor | None]] = {None: (None, None)}
        for base, rotary in self.rotary.items():
            if attend is None:
                rotations[base] = rotary.span(start, start + length, device)
            else:
                positions, lengths = positions_in_documents(attend)
                rotations[base] = rotary.at(positions[:, start:], lengths[:, start:], start + length)
        kernel = self._documents_kernel(device) if attend is not None and not start else None
        if attend is not None and kernel is not None:
            bounds = document_bounds(attend)
            found = {window: Documents(kernel, bounds, window) for _, window in self.kinds}
            return {(base, window): Place(*rotations[base], None, None, found[window]) for base, window in self.kinds}
        masks = {window: attention_mask(device, attend, start, length, window) for _, window in self.kinds}
        return {(base, window): Place(*rotations[base], masks[window]) for base, window in self.kinds}

    def _documents_kernel(self, device: torch.device) -> kernels.DocumentsKernel | None:
        """Return `kernels.documents_kernel`, which has no soft caps."""
        if self.config.attn_logit_softcapping is not None:
            return None
        dtype = kernels.compute_dtype(self.embed_tokens.weight)
        return kernels.documents_kernel(device, dtype, self.config.head_dim)


def _positions(attend: Tensor | None, start: int, length: int, ids: Tensor) -> Tensor:
    """Return the positions of the last `length` tokens in their texts, (T,) or (B, T)."""
    if attend is None:
        return torch.arange(start, start + length, device=ids.device)
    return positions_in_documents(attend)[0][..., -length:]


def _rotary(config: ModelConfig, base: float) -> Rotary:
    """Return the rotary embeddings of one base. Rules of scaling belong to `rope_theta`, not to the base of local layers."""
    width = int(config.head_dim * config.partial_rotary_factor)
    return Rotary(
        base, width, config.rope_scaling if base == config.rope_theta else None, config.max_position_embeddings
    )


class Loaded(nn.Module):
    """A model with what is remembered of the files that it came from."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.loaded_config: Mapping[str, Any] = {}
        """the content of its config.json, of which entries that nothing here reads are written back"""
        self.load_notes: tuple[str, ...] = ()
        """what was understood in another way than the files say, for people"""


class CausalLM(Loaded):
    """A decoder with a head over the vocabulary: `...ForCausalLM` in Hugging Face's naming."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.compiled = False  # see `compile_blocks`
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        ids: Tensor,
        attend: Tensor | None = None,
        cache: KVCache | None = None,
        shared: SharedPrompts | None = None,
    ) -> Tensor:
        """Return the final hidden states (B, T, D) that `logits` and `log_probs` read; see `Decoder.forward`."""
        hidden = self.model(ids, attend, cache, shared)
        return hidden if self.config.logits_scaling == 1 else hidden / self.config.logits_scaling

    def log_probs(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        attend: Tensor | None = None,
        group: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Return log p(ids[t] | ids[:t]) in nats where `mask` (B, T) is set and 0 elsewhere, (B, T); see `heads.token_log_probs`.

        Calls the module itself, never a part of it, so that the hooks of torch.distributed run.

        Args:
            mask: bool; the first column must be unset.
            attend: see `Decoder.forward`.
            group: (B,) int64, equal for rows that begin with the same tokens up to the first that is scored: these are computed once.
            temperature: of the softmax.
        """
        softcap, head = self.config.final_logit_softcapping, head_matrix(self.lm_head)
        hidden = self._hidden(ids, mask, attend, group)
        return token_log_probs(hidden, head, ids, mask, temperature=temperature, softcap=softcap)

    def log_prob_total(self, ids: Tensor, mask: Tensor, *, attend: Tensor | None = None) -> Tensor:
        """Return the sum of `log_probs`, a scalar, which costs less where its gradient is wanted; see `heads.log_prob_total`."""
        softcap, head = self.config.final_logit_softcapping, head_matrix(self.lm_head)
        # the last token predicts nothing; without it, rows of a dataset have a length that kernels like (256, not 257)
        length = ids.shape[1] - (not self.model.forgetful)
        hidden = self(ids[:, :length], None if attend is None else attend[:, :length])
        return log_prob_total(hidden, head, ids, mask, softcap=softcap, compiled=self.compiled)

    def token_scores(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        attend: Tensor | None = None,
        group: Tensor | None = None,
        temperature: float = 1.0,
    ) -> TokenScores:
        """Return log-probabilities and entropies, each (B, T); see `log_probs`."""
        softcap, head = self.config.final_logit_softcapping, head_matrix(self.lm_head)
        hidden = self._hidden(ids, mask, attend, group)
        return token_scores(hidden, head, ids, mask, temperature=temperature, softcap=softcap)

    def _hidden(self, ids: Tensor, mask: Tensor, attend: Tensor | None, group: Tensor | None) -> Tensor:
        """Return `forward`, with prompts computed once where rows of a group share them and that saves time.

        Not in bfloat16: plain rows have another kernel of attention, whose roundings differ by hundredths of a nat, and what is compared
        with the policy (a reference, the behavior policy) may have been computed in batches that share less.
        """
        wide = kernels.compute_dtype(self.lm_head.weight) not in (torch.bfloat16, torch.float16)
        shareable = group is not None and attend is None and wide and not self.model.forgetful
        shared = SharedPrompts.of(ids, mask, group) if shareable and group is not None else None
        return self(ids, attend) if shared is None else self(ids, shared=shared)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of hidden states (..., D), in float32 at least."""
        return kernels.soft_capped(logits(hidden, self.lm_head), self.config.final_logit_softcapping)


class SequenceScorer(Loaded):
    """A decoder with one score per token, for reward models and critics: `...ForSequenceClassification` with one label."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
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
        softcap, head = self.policy.config.final_logit_softcapping, head_matrix(self.policy.lm_head)
        return token_scores(hidden, head, ids, mask, temperature=temperature, softcap=softcap), values


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
            elif name.endswith(("embed_tokens.weight", "embed_positions.weight", "lm_head.weight")):
                std = 0.02
            elif name.endswith("score.weight"):
                std = 1 / math.sqrt(parameter.shape[1] + 1)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()


def compile_blocks(model: nn.Module) -> None:
    """Compile every block in place, and what `log_prob_total` computes between products.

    All blocks share one compilation, and hooks on the root module are kept. On a CPU, vectors have 256 bits: with 512, torch 2.13
    compiles transpositions in bfloat16 whose results are NaN where a row has a multiple of 64 tokens.
    """
    on_x86 = next(model.parameters()).device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(options={"cpp.simdlen": 256} if on_x86 else None)
        elif isinstance(module, CausalLM):
            module.compiled = True


def set_activation_checkpointing(model: nn.Module, enabled: bool) -> None:
    """Keep only each block's input for the backward pass, and compute the rest of the block again there (arXiv 1604.06174).

    Losses and gradients stay the same, bit for bit. A step takes about 40 % longer.
    """
    for module in model.modules():
        if isinstance(module, Decoder):
            module.checkpointing = enabled


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set the dropout probability of every block. It belongs to training, so it is not saved with the model.

    The dropout of an adapter's branches is their own (`LoRAConfig.dropout`) and stays.
    """
    for module in model.modules():
        if isinstance(module, Block):
            module.dropout.p = probability
