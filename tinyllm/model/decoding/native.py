"""One decoding step on a CPU with `native.c` between the matrix products, which makes small models several times faster.

Where it cannot be compiled (`model.native.compilation`), on other devices, in other dtypes and for architectures that it does not cover,
`one_token.py` computes the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tinyllm.model.decoding.completion import Sampling
from tinyllm.model.decoding.few_rows import FewRows
from tinyllm.model.decoding.one_token import RMS, OneToken
from tinyllm.model.decoding.packed import Packed
from tinyllm.model.decoding.products import Head, Product
from tinyllm.model.decoding.ring import Ring
from tinyllm.model.native import compilation
from tinyllm.model.native.compilation import structure

_LARGEST_HEAD = 256  # of native.c
_NAMES = ("norm", "attention", "gate", "draw", "product")


Norm = structure("Norm", "rows width", "eps", "x gain out")
Attention = structure(
    "Attention",
    "rows heads groups width rotated rotation_stride row_stride head_stride place end mask_stride",
    "eps scale",
    "gains cos sin mask qkv keys values scores out",
)
Gate = structure("Gate", "rows width", "", "x out")
Draw = structure("Draw", "rows vocabulary uniform_stride", "scale", "logits uniform scratch ids log_probs")


@cache
def library() -> ctypes.CDLL | None:
    """Return the functions of native.c; None where they cannot be compiled."""
    found = compilation.load(Path(__file__).with_name("native.c"))
    for name in _NAMES if found is not None else ():
        function = getattr(found, name)
        function.argtypes, function.restype = [ctypes.c_void_p], None
    return found


def covers(weights: OneToken) -> bool:
    """Return whether native.c computes what lies between the products of this model."""
    config, layers = weights.config, weights.layers
    return (
        weights.dtype == torch.float32
        and weights.head.device.type == "cpu"
        and config.head_dim <= _LARGEST_HEAD
        and isinstance(weights.norm, RMS)
        and all(layer.plain for layer in layers)
        and config.embedding_scale == config.residual_multiplier == config.logits_scaling == 1
        and config.final_logit_softcapping is None
        and not config.learned_positions
        and not any(rotary.by_length for rotary in weights.rotary.values())
    )


class NativeStep:
    """`OneToken` and `choose` for the rows of one ring, with tensors that are allocated once. See `covers`.

    Args:
        faster: products that are used instead of those of `weights`.
    """

    def __init__(
        self,
        weights: OneToken,
        ring: Ring,
        functions: ctypes.CDLL,
        faster: Mapping[Product | Head, FewRows | Packed] = MappingProxyType({}),
    ):
        self.weights, self.ring, self.functions = weights, ring, functions
        config, rows = weights.config, len(ring.ids)
        q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape)

        self.x, self.normed = empty(rows, config.hidden_size), empty(rows, config.hidden_size)
        self.qkv, self.heads = empty(rows, q + 2 * kv), empty(rows, q)
        self.inner, self.gated = empty(rows, 2 * config.intermediate_size), empty(rows, config.intermediate_size)
        self.logits, self.scratch = empty(rows, config.vocab_size), empty(rows, config.vocab_size)
        self.scores = empty(rows, config.num_attention_heads, ring.capacity)
        self.tables = {base: weights.table(rotary) for base, rotary in weights.rotary.items()}
        self.ids, self.log_probs = torch.empty(rows, dtype=torch.long), empty(rows)
        norm, attention = functions.norm, functions.attention
        self.attentions = [self._attention(number) for number in range(config.num_hidden_layers)]
        self.layers = [
            (
                self._call(norm, self._norm(layer.before_attention)),
                faster.get(layer.qkv, layer.qkv),
                self._call(attention, arguments),
                faster.get(layer.out, layer.out),
                self._call(norm, self._norm(layer.before_mlp)),
                faster.get(layer.inner, layer.inner),
                faster.get(layer.down, layer.down),
            )
            for layer, arguments in zip(weights.layers, self.attentions, strict=True)
        ]
        self.head = faster.get(weights.head, weights.head)
        self.gate = self._call(
            functions.gate, Gate(rows, config.intermediate_size, self.inner.data_ptr(), self.gated.data_ptr())
        )
        self.last = self._call(norm, self._norm(weights.norm))

    @staticmethod
    def _call(function: Any, arguments: ctypes.Structure) -> Callable[[], None]:
        pointer = ctypes.c_void_p(ctypes.addressof(arguments))

        def call(_kept: ctypes.Structure = arguments) -> None:
            function(pointer)

        return call

    def _norm(self, norm: Any) -> ctypes.Structure:
        assert isinstance(norm, RMS)
        x, out = self.x.data_ptr(), self.normed.data_ptr()
        return Norm(len(self.x), self.x.shape[1], norm.eps, x, norm.gain.data_ptr(), out)

    def _attention(self, number: int) -> ctypes.Structure:
        layer, ring, config = self.weights.layers[number], self.ring, self.weights.config
        base, window = self.weights.kinds[number]
        rotated = 0 if base is None else self.tables[base][0].shape[-1]
        keys, values = ring.keys[number], ring.values[number]
        mask = ring.masks.get(ring.windows[window])
        gains = layer.qk_norm.gain if layer.qk_norm else None
        found = Attention(len(self.x), config.num_attention_heads, config.num_key_value_heads, config.head_dim, rotated)
        found.row_stride, found.head_stride = keys.stride(0), keys.stride(1)
        found.eps, found.scale = (layer.qk_norm.eps if layer.qk_norm else 0.0), layer.scale
        found.gains = None if gains is None else gains.data_ptr()
        found.mask, found.mask_stride = (None, 0) if mask is None else (mask.data_ptr(), mask.stride(0))
        found.qkv, found.keys, found.values = self.qkv.data_ptr(), keys.data_ptr(), values.data_ptr()
        found.scores, found.out = self.scores.data_ptr(), self.heads.data_ptr()
        return found

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the logits (B, V) of the tokens that follow `ids` (B,); see `OneToken.__call__`. Overwritten by the next call."""
        ring = self.ring
        end = ring.advance_masks()
        rotations = self._rotations(ring.positions)
        if self.weights.embedding is None:
            self.x.copy_(self.weights.model.model.embed_tokens(ids))
        else:
            torch.index_select(self.weights.embedding, 0, ids, out=self.x)
        for (base, _), arguments in zip(self.weights.kinds, self.attentions, strict=True):
            arguments.place, arguments.end = ring.place, end
            if base is not None:
                arguments.cos, arguments.sin, arguments.rotation_stride = rotations[base][:3]
        x, normed = self.x, self.normed
        for before_attention, to_qkv, attention, out, before_mlp, to_inner, down in self.layers:
            before_attention()
            to_qkv.into(self.qkv, normed)
            attention()
            out.added(x, self.heads)
            before_mlp()
            to_inner.into(self.inner, normed)
            self.gate()
            down.added(x, self.gated)
        self.last()
        return self.head.into(self.logits, normed)

    def _rotations(self, positions: int | Tensor) -> dict[float, tuple[int, int, int, Any]]:
        """Return addresses of cosines and sines, the stride between rows, and the tensors themselves so that they stay."""
        found: dict[float, tuple[int, int, int, Any]] = {}
        for base, (cos, sin) in self.tables.items():
            if isinstance(positions, int):
                found[base] = (cos[positions].data_ptr(), sin[positions].data_ptr(), 0, None)
            else:
                c, s = cos.index_select(0, positions), sin.index_select(0, positions)
                found[base] = (c.data_ptr(), s.data_ptr(), c.stride(0), (c, s))
        return found

    def choose(self, logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return token ids and log-probabilities, (B,) each; see `choosing.choose`. For samples from the whole vocabulary."""
        arguments = Draw(len(logits), logits.shape[1], uniform.stride(0), 1 / sampling.temperature)
        arguments.logits, arguments.uniform, arguments.scratch = (
            logits.data_ptr(),
            uniform.data_ptr(),
            self.scratch.data_ptr(),
        )
        arguments.ids, arguments.log_probs = self.ids.data_ptr(), self.log_probs.data_ptr()
        self.functions.draw(ctypes.addressof(arguments))
        return self.ids, self.log_probs
