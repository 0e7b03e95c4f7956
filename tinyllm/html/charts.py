"""Charts as inline SVG: lines, dots with intervals, bars.

Well-formed XML, colors by CSS class (`report.css`), the same bytes for the same data. All text is escaped. Values that are not finite are
not drawn: a line has a gap, a row has no dot, and a chart without any value is the empty string. Left out: legends (labels are at the ends
of lines), stacked areas, second y axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tinyllm.html.axes import SCALES, Axis, axis_around
from tinyllm.html.text import escape, finite, number, short

_LETTER = 6.6  # upper estimate of the width of a character, in px
_MAX_NAME = 16  # characters
_MAX_POINTS = 200  # of one line; more are averaged


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
    """One line. `points` are (x, y); `color` selects color and marker; a `muted` line is pale and has no markers."""

    name: str
    points: Sequence[Sequence[Any]]
    color: int = 1
    muted: bool = False


class Mark(NamedTuple):
    """A vertical line at x with a label; points at exactly x get a ring."""

    x: float
    label: str
    color: int = 3


_MARKERS = {
    1: '<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>',
    2: '<path d="M{x:.1f} {y:.1f}m-2.6 -2.6h5.2v5.2h-5.2z"/>',
    3: '<path d="M{x:.1f} {y:.1f}m0 -3.6l3.6 3.6l-3.6 3.6l-3.6 -3.6z"/>',
    4: '<path d="M{x:.1f} {y:.1f}m0 -3.4l3.4 5.8h-6.8z"/>',
}


def _segments(points: Sequence[Sequence[Any]], scale: str) -> list[list[tuple[float, float]]]:
    """Return the segments of a line between gaps, long ones averaged to at most _MAX_POINTS points."""
    segments: list[list[tuple[float, float]]] = [[]]
    for x, y, *_ in points:
        if finite(x) and finite(y) and SCALES[scale](x) > -math.inf:
            segments[-1].append((x, y))
        elif segments[-1]:
            segments.append([])
    return [_downsampled(segment) for segment in segments if segment]


def _downsampled(segment: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(segment) / _MAX_POINTS)
    groups = [segment[i : i + size] for i in range(0, len(segment), size)]
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
    """Draw lines over a common x axis (`linear`, `log` or `sqrt`), each with its name at its end.

    `gutter` is the minimum space left and right of the lines; charts with the same gutter are aligned.
    """
    drawn = [(s._replace(name=short(s.name, _MAX_NAME)), _segments(s.points, x_scale)) for s in series]
    drawn = [(s, segments) for s, segments in drawn if segments]
    if not drawn:
        return ""
    every = [point for _, segments in drawn for segment in segments for point in segment]
    low, high = min(x for x, _ in every), max(x for x, _ in every)
    marks = [m for m in marks if finite(m.x) and low <= m.x <= high]
    top, bottom = 8 + 15 * sum(bool(m.label) for m in marks), height - (35 if x_label else 22)
    apart = 26 if height > 120 else 18
    y = axis_around([v for _, v in every], bottom, top, apart)
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
    body += [_drawn(s, segments, x, y, marks) for s, segments in drawn]
    body += _names(drawn, right, y)
    ends = [f"{s.name} from {number(p[0][0][1])} to {number(p[-1][-1][1])}".strip() for s, p in drawn]
    return svg(width, height, f"{title}: {', '.join(ends)}", body)


def _x_axis(x: Axis, bottom: float, name: str, percent: bool = False) -> list[str]:
    found = [line(x.start, bottom, x.end, bottom, "axis")]
    for at, text in x.labels(44, percent=percent):
        found += [line(at, bottom, at, bottom + 4, "axis"), label(at, bottom + 16, text, anchor="middle")]
    return [*found, label((x.start + x.end) / 2, bottom + 31, name, anchor="middle")] if name else found


def _marks(marks: Sequence[Mark], x: Axis, top: float, bottom: float, width: float) -> list[str]:
    """Draw marks, with labels in rows above the lines: of the leftmost to its left, of others to their right, if there is room."""
    placed = []
    for i, mark in enumerate(sorted(marks)):
        at, long = x(mark.x), 6 + _LETTER * len(mark.label)
        leftward = at + long > width or (i == 0 and len(marks) > 1 and at > long)
        placed.append((mark, at, leftward))
    if placed and placed[-1][2]:
        placed.reverse()  # a label to the left must be above the lines it crosses
    found, up = [], 7.0
    for mark, at, leftward in placed:
        found.append(f'<g class="t{mark.color}">{line(at, up - 4 if mark.label else top, at, bottom, "mark")}')
        found.append(label(at - 5 if leftward else at + 5, up + 4, mark.label, "tone", "end" if leftward else ""))
        found.append("</g>")
        up += 15 * bool(mark.label)
    return found


def _drawn(series: Series, segments: list[list[tuple[float, float]]], x: Axis, y: Axis, marks: Sequence[Mark]) -> str:
    path = "".join("M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in segment) for segment in segments)
    found = [f'<g class="t{series.color}"><path d="{path}" class="{"soft" if series.muted else "line"}"/>']
    points = [point for segment in segments for point in segment]
    alone = [segment[0] for segment in segments if len(segment) == 1]
    marker = _MARKERS.get(series.color, _MARKERS[1])
    shown = points if not series.muted and len(points) <= 40 else alone
    found += [marker.format(x=x(a), y=y(b)) for a, b in shown]
    ringed = [(a, b) for a, b in points if any(a == m.x for m in marks)]
    found += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="5" class="ring"/>' for a, b in ringed]
    return "".join([*found, "</g>"])


def _names(drawn: Sequence[tuple[Series, list[list[tuple[float, float]]]]], right: float, y: Axis) -> list[str]:
    """Draw names beside the last points, moved apart so that they do not overlap."""
    wanted = sorted((y(segments[-1][-1][1]), s.color, s.name) for s, segments in drawn)
    heights: list[float] = []
    for at, _, _ in wanted:
        heights.append(max(at, heights[-1] + 13) if heights else at)
    lift = max(0.0, heights[-1] - y.start)
    return [
        f'<g class="t{color}">{label(right + 8, at - lift + 4, name, "tone")}</g>'
        for at, (_, color, name) in zip(heights, wanted, strict=True)
    ]


# --- intervals and bars


class Dot(NamedTuple):
    """A value and its confidence interval, if there is one."""

    name: str
    value: Any
    low: Any = None
    high: Any = None


def interval_chart(
    dots: Sequence[Dot], *, title: str, x_label: str, digits: int | None = None, percent: bool = False, width: int = 360
) -> str:
    """Draw one row per dot: its name, the interval as a bar, and the value at the right."""
    dots = [d._replace(name=short(d.name, _MAX_NAME)) for d in dots if finite(d.value)]
    if not dots:
        return ""
    left = 12 + _LETTER * max(len(d.name) for d in dots)
    shown = [number(d.value, digits, percent=percent) for d in dots]
    right = width - 14 - _LETTER * max(len(text) for text in shown)
    bottom = 6 + 25 * len(dots)
    x = axis_around([v for d in dots for v in (d.value, d.low, d.high) if finite(v)], left, right, 44)
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
    description = ", ".join(f"{d.name} {text}" for d, text in zip(dots, shown, strict=True))
    return svg(width, bottom + 38, f"{title}: {description}", body)


def bar_chart(rows: Sequence[tuple[str, Any, str]], *, title: str, width: int = 360) -> str:
    """Draw one bar per row, from zero. Rows are (name, value, value as text)."""
    rows = [(short(name, _MAX_NAME), value, text) for name, value, text in rows if finite(value) and value >= 0]
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
    description = ", ".join(f"{name} {text}" for name, _, text in rows)
    return svg(width, 4 + 25 * len(rows), f"{title}: {description}", body)
