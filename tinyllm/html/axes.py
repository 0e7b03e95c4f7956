"""Axes of charts: scales, round ticks and their labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tinyllm.html.text import number

SCALES: dict[str, Callable[[float], float]] = {
    "linear": float,
    "log": lambda v: math.log10(v) if v > 0 else -math.inf,
    "sqrt": lambda v: math.sqrt(v) if v >= 0 else -math.inf,
}


_UNITS = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))  # threshold, divisor, suffix


def _round_step(step: float) -> float:
    """Return the least of 1, 2, 2.5 and 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((m * power for m in (1, 2, 2.5, 5) if m * power >= step * (1 - 1e-9)), 10 * power)


def _nonempty_range(low: float, high: float) -> tuple[float, float]:
    """Widen a range without extent, so that dividing by it is possible."""
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    room = 0.1 * abs(low) or 1.0
    return low - room, high + room


@dataclass(frozen=True)
class Axis:
    """A map from values in [low, high] to pixels in [start, end]."""

    low: float
    high: float
    start: float
    end: float
    scale: str = "linear"
    step: float = 0.0  # between ticks; 0: chosen by `ticks`

    def __call__(self, value: float) -> float:
        transform = SCALES[self.scale]
        low, high = transform(self.low), transform(self.high)
        return self.start + (transform(value) - low) / (high - low) * (self.end - self.start)

    def ticks(self, apart: float) -> list[float]:
        """Return round values about `apart` pixels from each other; further apart on scales that are not linear."""
        if self.scale != "linear":
            found = self._nonlinear_ticks(apart)
            if len(found) > 1:
                return found
        step = self.step or _round_step((self.high - self.low) / max(1, int(abs(self.end - self.start) / apart)))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _nonlinear_ticks(self, apart: float) -> list[float]:
        """Return zero, powers of ten and, if there is room, 5 and 2 times these."""
        top = math.floor(math.log10(self.high))
        found = [0.0] if self.low <= 0 else []
        for value in [m * 10.0**power for m in (1, 5, 2) for power in range(top, top - 12, -1)]:
            inside = self.low <= value <= self.high
            if inside and all(abs(self(value) - self(other)) >= apart for other in found):
                found.append(value)
        return sorted(found)

    def labels(self, apart: float, *, percent: bool = False) -> list[tuple[float, str]]:
        """Return (position, text) of every tick."""
        ticks = self.ticks(apart)
        return [(self(t), _tick(t, ticks if self.scale == "linear" else [t], percent)) for t in ticks]


def _tick(value: float, ticks: Sequence[float], percent: bool = False) -> str:
    """Format a tick with the fewest decimals that distinguish it from its neighbors, thousands and millions by suffix."""
    gap = min((b - a for a, b in pairwise(ticks)), default=abs(value) or 1.0)
    most = max(abs(t) for t in ticks)
    unit, letter = next(((u, c) for least, u, c in _UNITS if most >= least), (1.0, ""))
    shown = gap / unit * (100 if percent else 1)
    digits = next((d for d in range(6) if abs(round(shown, d) - shown) < 1e-6 * shown), 6)
    return number(value / unit, digits, percent=percent) + (letter if value else "")


def axis_around(values: Sequence[float], start: float, end: float, apart: float) -> Axis:
    """Return a linear axis around the values. It ends at a tick, or at a value slightly beyond one."""
    low, high = _nonempty_range(min(values), max(values))
    step = _round_step((high - low) / max(1, int(abs(end - start) / apart)))
    down, up = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    low = low if up - down > 1 and (down + 1) * step - low < step / 4 else down * step
    high = high if up - down > 1 and high - (up - 1) * step < step / 4 else up * step
    return Axis(low, high, start, end, step=step)
