"""The forward pass of a model for one more token of each row.

The same computation as `transformer.Decoder`, for inputs without a dimension of length: small operations are few, q, k and v are one
product, gate and up another, and attention at one query is two products. `tests/model/test_decoding.py` compares the two for every
architecture. The weights of small models, and those that have another dtype than the products, are copied once per call of `generate`, with
adapters merged; those of large ones are used where they are.

Shapes: B rows, S columns of the cache, D width, H heads, K key-value heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.model import kernels, sampling_memory
from tinyllm.model.decoding.products import Head, Product
from tinyllm.model.heads import head_matrix
from tinyllm.model.rope import Rotary
from tinyllm.model.transformer import Block, CausalLM, RMSNorm


class Columns(NamedTuple):
    """The place of the new tokens in the cache."""

    keys: Sequence[Tensor]  # of each layer: (B K, S, head_dim), with the column of the new token
    values: Sequence[Tensor]
    # of each layer: (B, K, head_dim), the column of the new token; with `place`, all columns, (B, K, S, head_dim)
    new_keys: Sequence[Tensor]
    new_values: Sequence[Tensor]
    masks: Mapping[int | None, Tensor]  # by window: (B, S), 0 or -inf; none where all rows see all columns
    place: Tensor | None = None  # (1,) int64, the column of the new token where it is a number on the device

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write the keys and values (B, K, head_dim) of the new token."""
        for found, new in ((self.new_keys[layer], keys), (self.new_values[layer], values)):
            if self.place is None:
                found.copy_(new)
            else:  # which does not convert
                found.index_copy_(2, self.place, new[:, :, None].to(found.dtype))


class OneToken:
    """Computes logits of one more token of each row, with the weights of `model` as they are now.

    Args:
        dtype: of the products, and of the cache.
        length: tokens in a text, at most.
    """

    def __init__(self, model: CausalLM, dtype: torch.dtype, length: int):
        decoder, config = model.model, model.config
        self.model, self.config, self.dtype, self.length = model, config, dtype, length
        self.wide = torch.promote_types(dtype, torch.float32)
        self.size = sum(p.numel() * p.element_size() for p in decoder.parameters())  # bytes
        copied = self.size <= sampling_memory.COPIED_BYTES
        self.layers = [_Layer(cast(Block, layer), dtype, copied) for layer in decoder.layers]
        self.norm = _normalization(decoder.norm, dtype)
        rows = decoder.embed_tokens.weight.detach()
        # None where the rows are not read as they are: an adapter's, or in another dtype
        self.embedding = rows if type(decoder.embed_tokens) is nn.Embedding and rows.dtype == self.wide else None
        head = head_matrix(model.lm_head).detach().to(dtype)
        self.head = Head(head, copied and dtype == self.wide)
        self.kinds, self.rotary = decoder.kinds, decoder.rotary
        self._tables: dict[float, tuple[Tensor, Tensor]] = {}

    def __call__(self, ids: Tensor, positions: int | Tensor, columns: Columns) -> Tensor:
        """Return the logits (B, V), in float32 at least, of the tokens that follow `ids` (B,), and write the new keys and values.

        Args:
            positions: of the tokens in their texts, (B,) or one for all.
        """
        config, decoder = self.config, self.model.model
        x = decoder.embed_tokens(ids).to(self.wide)
        if config.embedding_scale != 1:
            x = x * config.embedding_scale
        if config.learned_positions:
            place = torch.as_tensor(positions, device=ids.device).clamp(max=config.max_position_embeddings - 1)
            x = x + decoder.embed_positions(place)
        rotations = {base: self._rotation(rotary, positions, len(ids)) for base, rotary in self.rotary.items()}
        for number, (layer, (base, window)) in enumerate(zip(self.layers, self.kinds, strict=True)):
            x = layer(x, None if base is None else rotations[base], columns, number, columns.masks.get(window))
        x = self.norm(x)
        return self.logits(x if config.logits_scaling == 1 else x / config.logits_scaling)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (B, V), in float32 at least, of final hidden states (B, D) as `CausalLM.forward` returns them."""
        hidden = hidden.to(self.dtype)
        found = self.head(hidden) if self.dtype == self.wide else kernels.wide_product(hidden, self.head.weight)
        return kernels.soft_capped(found, self.config.final_logit_softcapping)

    @property
    def products(self) -> list[Product | Head]:
        """The products of all layers, and that of the head."""
        return [p for layer in self.layers for p in layer.products] + [self.head]

    def table(self, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Return the factors of all positions, (length, rotated dimensions) each; see `_rotation`."""
        if rotary.theta not in self._tables:
            cos, sin = rotary.span(0, self.length, self.head.device)
            self._tables[rotary.theta] = _doubled(cos[0, 0], sin[0, 0], self.dtype)
        return self._tables[rotary.theta]

    def _rotation(self, rotary: Rotary, positions: int | Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Return the factors of a head's numbers and of those of its other half, (B or 1, 1, rotated dimensions) each."""
        if rotary.by_length:
            device = self.head.device
            place = (
                torch.full((rows, 1), positions, device=device) if isinstance(positions, int) else positions[:, None]
            )
            cos, sin = (part[:, 0] for part in rotary.at(place, place + 1, int(place.max()) + 1))
            return _doubled(cos, sin, self.dtype)
        cos, sin = self.table(rotary)
        if isinstance(positions, int):
            return cos[positions], sin[positions]
        return cos.index_select(0, positions)[:, None], sin.index_select(0, positions)[:, None]


def _doubled(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the factors for both halves of a head, of which the second is turned the other way."""
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


class _Layer:
    """A `transformer.Block` for one token a row."""

    def __init__(self, block: Block, dtype: torch.dtype, copied: bool):
        attention, mlp = block.self_attn, block.mlp
        before_attention, self.after_attention, before_mlp, self.after_mlp = (
            None if name is None else _normalization(getattr(block, name), dtype) for name in block.norms
        )
        narrow: Normalization = lambda x: x.to(dtype)  # noqa: E731
        self.before_attention, self.before_mlp = before_attention or narrow, before_mlp or narrow
        q, k, v = ("q_proj", "k_proj", "v_proj")
        self.qkv = Product(
            [attention.qkv_proj] if attention.fused else [getattr(attention, n) for n in (q, k, v)], dtype, copied
        )
        self.out = Product([attention.o_proj], dtype, copied)
        if mlp.gated:
            self.inner = Product([mlp.gate_up_proj] if mlp.fused else [mlp.gate_proj, mlp.up_proj], dtype, copied)
        else:
            self.inner = Product([mlp.up_proj], dtype, copied)
        self.down = Product([mlp.down_proj], dtype, copied)
        self.activation, self.gated, self.multiplier = mlp.activation, mlp.gated, block.residual_multiplier
        self.inner_width = mlp.down_proj.in_features
        self.width, self.widths = attention.head_dim, attention.widths
        self.heads, self.groups = self.widths[0] // self.width, self.widths[1] // self.width
        self.scale = self.width**-0.5 if attention.scale is None else attention.scale
        self.softcap = attention.softcap
        normed, together = not isinstance(attention.q_norm, nn.Identity), attention.norm_all_heads
        self.qk_norm: RMS | None = None  # of each head
        self.norms: tuple[Normalization, Normalization] | None = None  # of all heads together
        if normed and together:
            self.norms = _normalization(attention.q_norm, dtype), _normalization(attention.k_norm, dtype)
        elif normed:
            self.qk_norm = _normalization_of_heads(attention.q_norm, attention.k_norm, self.heads, self.groups, dtype)
        self.nothing = torch.zeros(1, 1, 1, dtype=dtype, device=self.out.device)

    @property
    def products(self) -> list[Product | Head]:
        return [self.qkv, self.out, self.inner, self.down]

    @property
    def plain(self) -> bool:
        """Whether the layer is that of Qwen and Llama: RMS norms before attention and a gated MLP with silu, nothing after them."""
        before = isinstance(self.before_attention, RMS) and isinstance(self.before_mlp, RMS)
        after = self.after_attention is None and self.after_mlp is None and self.norms is None
        return before and after and self.gated and self.activation is F.silu and self.softcap is None

    def __call__(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, columns: Columns, number: int, mask: Tensor | None
    ) -> Tensor:
        """Return the residual stream (B, D) behind this layer. `x` is overwritten."""
        q = self._write(self.qkv(self.before_attention(x)), rotation, columns, number)
        y = self._attend(q, columns.keys[number], columns.values[number], mask)
        x = self._add(x, self.out, y, self.after_attention)
        inner = self.inner(self.before_mlp(x))
        if self.gated:  # slices cost less than `chunk`
            inner = self.activation(inner[:, : self.inner_width]).mul_(inner[:, self.inner_width :])
        else:
            inner = self.activation(inner)
        return self._add(x, self.down, inner, self.after_mlp)

    def _add(self, x: Tensor, product: Product, y: Tensor, norm: Normalization | None) -> Tensor:
        if norm is None and self.multiplier == 1:
            return product.added(x, y)
        y = product(y)
        return x.add_(y if norm is None else norm(y), alpha=self.multiplier)

    def _write(self, qkv: Tensor, rotation: tuple[Tensor, Tensor] | None, columns: Columns, number: int) -> Tensor:
        """Write the new keys and values and return the queries, (B, H, head_dim)."""
        rows, both = len(qkv), self.heads + self.groups
        if self.norms is not None:
            q, k, v = qkv.split(self.widths, -1)
            qkv = torch.cat((self.norms[0](q), self.norms[1](k), v), -1)
        heads = qkv.view(rows, both + self.groups, self.width)
        qk = heads[:, :both]
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        if rotation is not None:
            qk = _rotated(qk, *rotation)
        columns.write(number, qk[:, self.heads :], heads[:, both:])
        return qk[:, : self.heads]

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Return the heads' outputs side by side, (B, H head_dim)."""
        rows, shared = len(q), self.heads // self.groups
        q = q.reshape(rows * self.groups, shared, self.width)
        scores = torch.baddbmm(self.nothing, q, keys.transpose(1, 2), beta=0, alpha=self.scale)
        if self.softcap is not None:
            scores = kernels.soft_capped(scores, self.softcap)
        if mask is not None:
            scores.view(rows, self.heads, -1).add_(mask[:, None])
        return torch.bmm(scores.softmax(-1), values).view(rows, self.heads * self.width)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return heads (B, n, head_dim) rotated by their positions; dimensions that are not rotated are kept. See `kernels.rotate`."""
    width = cos.shape[-1]
    turned, kept = (x, None) if width == x.shape[-1] else (x[..., :width], x[..., width:])
    halves = turned.unflatten(-1, (2, width // 2)).flip(-2).flatten(-2)
    turned = torch.addcmul(turned * cos, halves, sin)
    return turned if kept is None else torch.cat((turned, kept), -1)


Normalization = Callable[[Tensor], Tensor]


class RMS:
    """`kernels.rms_norm` without a gradient.

    Args:
        gain: (D,), or (heads, D) where each head has its own.
        dtype: of the result.
    """

    def __init__(self, gain: Tensor, eps: float, dtype: torch.dtype):
        self.wide = torch.promote_types(dtype, torch.float32)
        self.gain, self.narrow_gain, self.eps, self.dtype = gain.to(self.wide).contiguous(), gain.to(dtype), eps, dtype
        self._least = torch.tensor(eps, dtype=self.wide, device=gain.device)
        self._share = 1 / gain.shape[-1]

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (..., D) with a root mean square of one, times the gain."""
        if self.dtype == self.wide:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return (x * torch.addcmul(self._least, length, length, value=self._share).rsqrt_()).mul_(self.gain)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.wide)
        scale = torch.addcmul(self._least, length, length, value=self._share).rsqrt_().to(x.dtype)
        return (x * scale).mul_(self.gain if x.dtype == self.wide else self.narrow_gain).to(self.dtype)


def _normalization(norm: nn.Module, dtype: torch.dtype) -> Normalization:
    """Return a normalization layer over the last dimension, with its result in `dtype`."""
    if isinstance(norm, RMSNorm):
        return RMS(norm.gain.detach(), norm.eps, dtype)
    assert isinstance(norm, nn.LayerNorm)
    weight, bias, shape, eps = norm.weight.detach(), norm.bias.detach(), norm.normalized_shape, norm.eps
    return lambda x: F.layer_norm(x, shape, weight.to(x.dtype), bias.to(x.dtype), eps).to(dtype)


def _normalization_of_heads(q: nn.Module, k: nn.Module, heads: int, groups: int, dtype: torch.dtype) -> RMS:
    """Return the normalization of queries and keys (B, H + K, head_dim), each head by itself."""
    assert isinstance(q, RMSNorm)
    assert isinstance(k, RMSNorm)
    return RMS(torch.cat((q.gain.detach().expand(heads, -1), k.gain.detach().expand(groups, -1))), q.eps, dtype)
