"""Charts as inline SVG, for the report: lines, dots with intervals, bars.

Plain strings, well-formed XML, colours by CSS class (`report.css`), the same bytes for the same data. Every text goes
through `escape`. What is not a finite number is not drawn: a line breaks there, a row has no dot, and a chart with
nothing left is the empty string. Left out: legends (labels stand at the lines' ends), stacked areas, second y axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from tinyllm.stages.report_words import escape, finite, number, short

_LETTER = 6.6  # width of a letter of the charts' type, in px; generous
_LONGEST = 16  # letters of a name
_MOST_POINTS = 200  # in one line; more are averaged


# --- axes

_BENDS: dict[str, Callable[[float], float]] = {
    "linear": float,
    "log": lambda v: math.log10(v) if v > 0 else -math.inf,
    "sqrt": lambda v: math.sqrt(v) if v >= 0 else -math.inf,
}


_UNITS = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))  # from what size on, divided by what, written how


def _nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((m * power for m in (1, 2, 2.5, 5) if m * power >= step * (1 - 1e-9)), 10 * power)


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range one can divide by."""
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    room = 0.1 * abs(low) or 1.0
    return low - room, high + room


@dataclass(frozen=True)
class Axis:
    """Values in [low, high] to pixels in [start, end]."""

    low: float
    high: float
    start: float
    end: float
    scale: str = "linear"
    step: float = 0.0  # between ticks, where that was settled with the range

    def __call__(self, value: float) -> float:
        bend = _BENDS[self.scale]
        low, high = bend(self.low), bend(self.high)
        return self.start + (bend(value) - low) / (high - low) * (self.end - self.start)

    def ticks(self, apart: float) -> list[float]:
        """Round values, about `apart` pixels from each other; more where the scale is bent."""
        if self.scale != "linear":
            found = self._bent_ticks(apart)
            if len(found) > 1:
                return found
        step = self.step or _nice((self.high - self.low) / max(1, int(abs(self.end - self.start) / apart)))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _bent_ticks(self, apart: float) -> list[float]:
        """Zero, powers of ten, and where there is room 5 and 2 times these."""
        top = math.floor(math.log10(self.high))
        found = [0.0] if self.low <= 0 else []
        for value in [m * 10.0**power for m in (1, 5, 2) for power in range(top, top - 12, -1)]:
            inside = self.low <= value <= self.high
            if inside and all(abs(self(value) - self(other)) >= apart for other in found):
                found.append(value)
        return sorted(found)

    def labels(self, apart: float, *, percent: bool = False) -> list[tuple[float, str]]:
        """(position, text) of every tick."""
        ticks = self.ticks(apart)
        return [(self(t), _tick(t, ticks if self.scale == "linear" else [t], percent)) for t in ticks]


def _tick(value: float, ticks: Sequence[float], percent: bool = False) -> str:
    """A tick's label: the fewest decimals that tell it from its neighbours, thousands and millions by letter."""
    gap = min((b - a for a, b in pairwise(ticks)), default=abs(value) or 1.0)
    most = max(abs(t) for t in ticks)
    unit, letter = next(((u, c) for least, u, c in _UNITS if most >= least), (1.0, ""))
    shown = gap / unit * (100 if percent else 1)
    digits = next((d for d in range(6) if abs(round(shown, d) - shown) < 1e-6 * shown), 6)
    return number(value / unit, digits, percent=percent) + (letter if value else "")


def _axis(values: Sequence[float], start: float, end: float, apart: float) -> Axis:
    """A straight axis around the values. It ends at ticks, or at a value that goes only a little beyond one."""
    low, high = _widened(min(values), max(values))
    step = _nice((high - low) / max(1, int(abs(end - start) / apart)))
    down, up = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    low = low if up - down > 1 and (down + 1) * step - low < step / 4 else down * step
    high = high if up - down > 1 and high - (up - 1) * step < step / 4 else up * step
    return Axis(low, high, start, end, step=step)


def svg(width: float, height: float, title: str, body: Iterable[str], kind: str = "chart") -> str:
    return (
        f'<svg role="img" class="{kind}" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def label(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{f"{kind} {anchor}".strip()}">{escape(text)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


# --- lines


class Series(NamedTuple):
    """One line. `points` are (x, y); `tone` picks the colour and the marker; a `soft` line is pale and has no markers."""

    name: str
    points: Sequence[Sequence[Any]]
    tone: int = 1
    soft: bool = False


class Mark(NamedTuple):
    """A vertical line at x with a label; points that stand exactly there get a ring."""

    x: float
    label: str
    tone: int = 3


_MARKERS = {
    1: '<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>',
    2: '<path d="M{x:.1f} {y:.1f}m-2.6 -2.6h5.2v5.2h-5.2z"/>',
    3: '<path d="M{x:.1f} {y:.1f}m0 -3.6l3.6 3.6l-3.6 3.6l-3.6 -3.6z"/>',
    4: '<path d="M{x:.1f} {y:.1f}m0 -3.4l3.4 5.8h-6.8z"/>',
}


def _pieces(points: Sequence[Sequence[Any]], scale: str) -> list[list[tuple[float, float]]]:
    """The stretches of a line without a hole; long ones averaged to at most _MOST_POINTS points."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y, *_ in points:
        if finite(x) and finite(y) and _BENDS[scale](x) > -math.inf:
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [_thinned(piece) for piece in pieces if piece]


def _thinned(piece: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(piece) / _MOST_POINTS)
    groups = [piece[i : i + size] for i in range(0, len(piece), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    x_scale: str = "linear",
    marks: Sequence[Mark] = (),
    width: int = 280,
    height: int = 170,
    gutter: float = 0,
) -> str:
    """Lines over a common x axis (`linear`, `log` or `sqrt`), each with its name at its end.

    `gutter` is the least room left and right of the lines: with a common one, charts above each other are aligned.
    """
    drawn = [(s._replace(name=short(s.name, _LONGEST)), _pieces(s.points, x_scale)) for s in series]
    drawn = [(s, pieces) for s, pieces in drawn if pieces]
    if not drawn:
        return ""
    every = [point for _, pieces in drawn for piece in pieces for point in piece]
    low, high = min(x for x, _ in every), max(x for x, _ in every)
    marks = [m for m in marks if finite(m.x) and low <= m.x <= high]
    top, bottom = 8 + 15 * sum(bool(m.label) for m in marks), height - (35 if x_label else 22)
    apart = 26 if height > 120 else 18
    y = _axis([v for _, v in every], bottom, top, apart)
    y_labels = y.labels(apart)
    left = max([gutter, *(10 + _LETTER * len(text) for _, text in y_labels)])
    right = width - max([gutter, 16, *(10 + _LETTER * len(s.name) for s, _ in drawn)])
    if low == high:
        low, high = (low / 2, high * 2) if x_scale != "linear" and low > 0 else (low, low + 1)
    x = Axis(low, high, left, right, x_scale)
    body = [line(left, at, right, at, "grid") for at, _ in y_labels]
    body += [label(left - 6, at + 4, text, anchor="end") for at, text in y_labels]
    body += _x_axis(x, bottom, x_label)
    body += _marks(marks, x, top, bottom, width)
    body += [_drawn(s, pieces, x, y, marks) for s, pieces in drawn]
    body += _names(drawn, right, y)
    ends = [f"{s.name} from {number(p[0][0][1])} to {number(p[-1][-1][1])}".strip() for s, p in drawn]
    return svg(width, height, f"{title}: {', '.join(ends)}", body)


def _x_axis(x: Axis, bottom: float, name: str, percent: bool = False) -> list[str]:
    found = [line(x.start, bottom, x.end, bottom, "axis")]
    for at, text in x.labels(44, percent=percent):
        found += [line(at, bottom, at, bottom + 4, "axis"), label(at, bottom + 16, text, anchor="middle")]
    return [*found, label((x.start + x.end) / 2, bottom + 31, name, anchor="middle")] if name else found


def _marks(marks: Sequence[Mark], x: Axis, top: float, bottom: float, width: float) -> list[str]:
    """Labels in rows above the lines: of the leftmost to the left, of the others to the right, where there is room."""
    placed = []
    for i, mark in enumerate(sorted(marks)):
        at, long = x(mark.x), 6 + _LETTER * len(mark.label)
        leftwards = at + long > width or (i == 0 and len(marks) > 1 and at > long)
        placed.append((mark, at, leftwards))
    if placed and placed[-1][2]:
        placed.reverse()  # a label that points left stands above the lines it passes
    found, up = [], 7.0
    for mark, at, leftwards in placed:
        found.append(f'<g class="t{mark.tone}">{line(at, up - 4 if mark.label else top, at, bottom, "mark")}')
        found.append(label(at - 5 if leftwards else at + 5, up + 4, mark.label, "tone", "end" if leftwards else ""))
        found.append("</g>")
        up += 15 * bool(mark.label)
    return found


def _drawn(series: Series, pieces: list[list[tuple[float, float]]], x: Axis, y: Axis, marks: Sequence[Mark]) -> str:
    path = "".join("M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in piece) for piece in pieces)
    found = [f'<g class="t{series.tone}"><path d="{path}" class="{"soft" if series.soft else "line"}"/>']
    points = [point for piece in pieces for point in piece]
    alone = [piece[0] for piece in pieces if len(piece) == 1]
    marker = _MARKERS.get(series.tone, _MARKERS[1])
    shown = points if not series.soft and len(points) <= 40 else alone
    found += [marker.format(x=x(a), y=y(b)) for a, b in shown]
    ringed = [(a, b) for a, b in points if any(a == m.x for m in marks)]
    found += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="5" class="ring"/>' for a, b in ringed]
    return "".join([*found, "</g>"])


def _names(drawn: Sequence[tuple[Series, list[list[tuple[float, float]]]]], right: float, y: Axis) -> list[str]:
    """Names beside the last points, pushed apart where they would overlap."""
    wanted = sorted((y(pieces[-1][-1][1]), s.tone, s.name) for s, pieces in drawn)
    heights: list[float] = []
    for at, _, _ in wanted:
        heights.append(max(at, heights[-1] + 13) if heights else at)
    lift = max(0.0, heights[-1] - y.start)
    return [
        f'<g class="t{tone}">{label(right + 8, at - lift + 4, name, "tone")}</g>'
        for at, (_, tone, name) in zip(heights, wanted, strict=True)
    ]


# --- rows


class Dot(NamedTuple):
    """A value with its confidence interval, where there is one."""

    name: str
    value: Any
    low: Any = None
    high: Any = None


def interval_chart(
    dots: Sequence[Dot], *, title: str, x_label: str, digits: int | None = None, percent: bool = False, width: int = 360
) -> str:
    """A row a dot: its name, the interval as a bar through it, and the figure at the right."""
    dots = [d._replace(name=short(d.name, _LONGEST)) for d in dots if finite(d.value)]
    if not dots:
        return ""
    left = 12 + _LETTER * max(len(d.name) for d in dots)
    shown = [number(d.value, digits, percent=percent) for d in dots]
    right = width - 14 - _LETTER * max(len(text) for text in shown)
    bottom = 6 + 25 * len(dots)
    x = _axis([v for d in dots for v in (d.value, d.low, d.high) if finite(v)], left, right, 44)
    body = [line(x(t), 4, x(t), bottom, "zero" if t == 0 else "grid") for t in x.ticks(44)]
    body += _x_axis(x, bottom, x_label, percent)
    for i, (dot, text) in enumerate(zip(dots, shown, strict=True)):
        at = 18 + 25 * i
        body.append(label(left - 8, at + 4, dot.name, "name", "end"))
        body.append('<g class="t1">')
        if finite(dot.low) and finite(dot.high):
            body.append(line(x(dot.low), at, x(dot.high), at, "interval"))
        body.append(f'<circle cx="{x(dot.value):.1f}" cy="{at}" r="4.5"/></g>')
        body.append(label(width - 2, at + 4, text, "figure", "end"))
    told = ", ".join(f"{d.name} {text}" for d, text in zip(dots, shown, strict=True))
    return svg(width, bottom + 38, f"{title}: {told}", body)


def bar_chart(rows: Sequence[tuple[str, Any, str]], *, title: str, width: int = 360) -> str:
    """A bar a row, from zero: (name, value, the value as text)."""
    rows = [(short(name, _LONGEST), value, text) for name, value, text in rows if finite(value) and value >= 0]
    if not rows:
        return ""
    left = 12 + _LETTER * max(len(name) for name, _, _ in rows)
    room = width - left - 12 - _LETTER * max(len(text) for _, _, text in rows)
    most = max(value for _, value, _ in rows) or 1.0
    body = []
    for i, (name, value, text) in enumerate(rows):
        at, length = 4 + 25 * i, max(1.0, room * value / most)
        body.append(label(left - 8, at + 13, name, "name", "end"))
        body.append(f'<rect x="{left:.1f}" y="{at}" width="{length:.1f}" height="17" rx="2" class="bar"/>')
        body.append(label(left + length + 6, at + 13, text, "figure"))
    told = ", ".join(f"{name} {text}" for name, _, text in rows)
    return svg(width, 4 + 25 * len(rows), f"{title}: {told}", body)
