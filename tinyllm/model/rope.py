"""Rotary position embeddings (arXiv 2104.09864): the frequencies of each rule of scaling, and tables of sines and cosines.

Frequencies are computed in float32 and in the order of operations of transformers: other roundings show in the fifth digit of the logits.
Tables grow with the longest text seen, so a context of a million tokens costs nothing until it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tinyllm.model.rope_scaling import RopeScaling

_LEAST_ROWS = 512  # of a table


class Rotary:
    """Sines and cosines for one base and rule of scaling. Holds no parameters, and is shared by all layers that use it.

    Args:
        theta: base of the wavelengths.
        width: dimensions of a head that are rotated.
        scaling: rule for longer contexts, or None.
        context: positions of the model, in tokens.
    """

    def __init__(self, theta: float, width: int, scaling: RopeScaling | None, context: int):
        self.theta, self.width, self.scaling, self.context = theta, width, scaling, context
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def by_length(self) -> bool:
        """True where the rotation of a token depends on how long its text is."""
        return self.scaling is not None and self.scaling.by_length

    def changes_at(self, length: int) -> bool:
        """Return whether the frequencies for texts of `length` tokens are others than for those one token shorter."""
        if self.scaling is None or not self.by_length:
            return False
        if self.scaling.rope_type == "dynamic":
            return length > self.context
        return length - 1 == self.scaling.original_max_position_embeddings

    def at(self, positions: Tensor, lengths: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin (B, 1, T, width / 2) at positions (B, T), all below `end`, of texts that have `lengths` (B, T) tokens."""
        if not self.by_length:
            cos, sin = self._table(end, positions.device)
            return cos[positions][:, None], sin[positions][:, None]
        different, which = lengths.unique(return_inverse=True)
        rules = [self.frequencies(length) for length in different.tolist()]
        frequencies = torch.stack([found for found, _ in rules]).to(positions.device)
        angles = positions[..., None].float() * frequencies[which]
        return (angles.cos() * rules[0][1])[:, None], (angles.sin() * rules[0][1])[:, None]

    def span(self, start: int, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos and sin (1, 1, T, width / 2) of the positions from `start` up to `end` of a text that ends there."""
        if self.by_length:
            positions = torch.arange(start, end, device=device)[None]
            return self.at(positions, torch.full_like(positions, end), end)
        cos, sin = self._table(end, device)
        return cos[None, None, start:end], sin[None, None, start:end]

    def _table(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos and sin (at least `rows`, width / 2), computed on the CPU, so that every device has the same digits."""
        found = self._tables.get(device)
        if found is None or len(found[0]) < rows:
            size = max(_LEAST_ROWS, 1 << (rows - 1).bit_length())
            with torch.inference_mode(False):  # the table stays, and training uses it, too
                frequencies, factor = self.frequencies(1)
                angles = torch.outer(torch.arange(size).float(), frequencies)
                found = (angles.cos() * factor).to(device), (angles.sin() * factor).to(device)
            self._tables[device] = found
        return found

    def frequencies(self, length: int) -> tuple[Tensor, float]:
        """Return radians per position (width / 2,) for a text of `length` tokens, and the factor of sine and cosine."""
        if self.scaling is None:
            return _plain(self.theta, self.width), 1.0
        return _RULES[self.scaling.rope_type](self, self.scaling, length)


def _plain(theta: float, width: int) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, width, 2).float() / width)


def _linear(rope: Rotary, scaling: RopeScaling, _: int) -> tuple[Tensor, float]:
    assert scaling.factor is not None
    return _plain(rope.theta, rope.width) / scaling.factor, 1.0


def _dynamic(rope: Rotary, scaling: RopeScaling, length: int) -> tuple[Tensor, float]:
    assert scaling.factor is not None
    stretch = scaling.factor * max(length, rope.context) / rope.context - (scaling.factor - 1)
    return _plain(rope.theta * stretch ** (rope.width / (rope.width - 2)), rope.width), 1.0


def _llama3(rope: Rotary, scaling: RopeScaling, _: int) -> tuple[Tensor, float]:
    factor, context = scaling.factor, scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert factor is not None
    assert context is not None
    assert low is not None
    assert high is not None
    kept = _plain(rope.theta, rope.width)
    wavelengths = 2 * math.pi / kept
    scaled = torch.where(wavelengths > context / low, kept / factor, kept)
    smooth = (context / wavelengths - low) / (high - low)
    between = (wavelengths >= context / high) & (wavelengths <= context / low)
    return torch.where(between, (1 - smooth) * kept / factor + smooth * kept, scaled), 1.0


def _yarn(rope: Rotary, scaling: RopeScaling, _: int) -> tuple[Tensor, float]:
    """arXiv 2309.00071, sections 3.2 and 3.4: a ramp between waves that are divided by the factor and waves that are kept."""
    factor, context = scaling.factor, scaling.original_max_position_embeddings
    assert factor is not None
    assert context is not None

    def dimension(turns: float) -> float:
        """Return the dimension whose wave turns so often within the original context."""
        return rope.width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.width - 1)
    ramp = ((torch.arange(rope.width // 2).float() - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    periods = rope.theta ** (torch.arange(0, rope.width, 2).float() / rope.width)
    kept = 1 - ramp
    return 1.0 / (factor * periods) * (1 - kept) + 1.0 / periods * kept, _yarn_factor(scaling, factor)


def _yarn_factor(scaling: RopeScaling, factor: float) -> float:
    def of(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return of(scaling.mscale) / of(scaling.mscale_all_dim)
    return of(1.0)


def _longrope(rope: Rotary, scaling: RopeScaling, length: int) -> tuple[Tensor, float]:
    original = scaling.original_max_position_embeddings
    assert original is not None
    factors = torch.tensor(scaling.long_factor if length > original else scaling.short_factor)
    stretch = scaling.factor or rope.context / original
    suggested = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    frequencies = 1.0 / (factors * rope.theta ** (torch.arange(0, rope.width, 2).float() / rope.width))
    return frequencies, suggested if scaling.attention_factor is None else scaling.attention_factor


_RULES: dict[str, Callable[[Rotary, RopeScaling, int], tuple[Tensor, float]]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
