"""Lineage of a lifecycle as an SVG tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tinyllm.html.charts import label, svg
from tinyllm.html.text import short


class Node(NamedTuple):
    """A box of the tree. It is a root if its parent is not an earlier node."""

    name: str
    parent: str | None
    note: str = ""
    sign: str = ""
    color: str = ""


_WIDTH, _HEIGHT, _GAP, _ROW_HEIGHT = 98, 38, 16, 44


def _places(nodes: Sequence[Node]) -> tuple[dict[str, tuple[int, float]], dict[str, str]]:
    """Return name -> (depth, row) and name -> parent. Leaves take successive rows, and a parent is centered on its children."""
    depth: dict[str, int] = {}
    parent: dict[str, str] = {}
    for node in nodes:
        if node.name in depth:
            continue
        depth[node.name] = depth[node.parent] + 1 if node.parent in depth else 0
        if node.parent in depth and node.parent != node.name:
            parent[node.name] = node.parent
    row: dict[str, float] = {}
    leaves = 0

    def place(name: str) -> float:
        nonlocal leaves
        rows = [place(child) for child, parent_name in parent.items() if parent_name == name]
        if not rows:
            rows, leaves = [float(leaves)], leaves + 1
        row[name] = (rows[0] + rows[-1]) / 2
        return row[name]

    for name in depth:
        if name not in parent:
            place(name)
    return {name: (depth[name], row[name]) for name in depth}, parent


def tree(nodes: Sequence[Node], *, title: str) -> str:
    """Return an SVG of boxes from left to right, children right of their parent; empty without nodes."""
    if not nodes:
        return ""
    places, parent = _places(nodes)
    corner = {name: (1 + d * (_WIDTH + _GAP), 1 + r * _ROW_HEIGHT) for name, (d, r) in places.items()}
    body = []
    for name, parent_name in parent.items():
        x1, y1, x2, y2 = corner[parent_name][0] + _WIDTH, corner[parent_name][1] + _HEIGHT / 2, *corner[name]
        y2 += _HEIGHT / 2
        half = (x1 + x2) / 2
        body.append(
            f'<path d="M{x1:.1f} {y1:.1f}C{half:.1f} {y1:.1f} {half:.1f} {y2:.1f} {x2:.1f} {y2:.1f}" class="edge"/>'
        )
    for node in {n.name: n for n in reversed(nodes)}.values():
        x, y = corner[node.name]
        body.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" class="box"/>')
        body.append(label(x + 9, y + 16, short(node.name, 9), "strong"))
        body.append(label(x + 9, y + 30, node.note, "mono"))
        body.append(label(x + _WIDTH - 8, y + 16, node.sign, node.color, "end"))
    description = ", ".join(f"{n} from {parent[n]}" if n in parent else n for n in places)
    width = 2 + max(x for x, _ in corner.values()) + _WIDTH
    return svg(width, 2 + max(y for _, y in corner.values()) + _HEIGHT, f"{title}: {description}", body, "chart tree")
