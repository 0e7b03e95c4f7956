"""The lineage of a lifecycle as a small SVG tree, drawn as the charts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tinyllm.stages.charts import label, svg
from tinyllm.stages.report_words import short


class Node(NamedTuple):
    """A box of the tree. A parent that was not named before it makes it a root."""

    name: str
    parent: str | None
    note: str = ""
    sign: str = ""
    tone: str = ""


_BOX, _HIGH, _GAP, _PITCH = 98, 38, 16, 44


def _places(nodes: Sequence[Node]) -> tuple[dict[str, tuple[int, float]], dict[str, str]]:
    """Name to (depth, row), and name to parent: leaves take the rows one by one, parents stand amid their children."""
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
        rows = [place(child) for child, above in parent.items() if above == name]
        if not rows:
            rows, leaves = [float(leaves)], leaves + 1
        row[name] = (rows[0] + rows[-1]) / 2
        return row[name]

    for name in depth:
        if name not in parent:
            place(name)
    return {name: (depth[name], row[name]) for name in depth}, parent


def tree(nodes: Sequence[Node], *, title: str) -> str:
    """Boxes from left to right, a child to the right of its parent."""
    if not nodes:
        return ""
    places, parent = _places(nodes)
    corner = {name: (1 + d * (_BOX + _GAP), 1 + r * _PITCH) for name, (d, r) in places.items()}
    body = []
    for name, above in parent.items():
        x1, y1, x2, y2 = corner[above][0] + _BOX, corner[above][1] + _HIGH / 2, *corner[name]
        y2 += _HIGH / 2
        half = (x1 + x2) / 2
        body.append(
            f'<path d="M{x1:.1f} {y1:.1f}C{half:.1f} {y1:.1f} {half:.1f} {y2:.1f} {x2:.1f} {y2:.1f}" class="edge"/>'
        )
    for node in {n.name: n for n in reversed(nodes)}.values():
        x, y = corner[node.name]
        body.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{_BOX}" height="{_HIGH}" rx="6" class="box"/>')
        body.append(label(x + 9, y + 16, short(node.name, 9), "strong"))
        body.append(label(x + 9, y + 30, node.note, "mono"))
        body.append(label(x + _BOX - 8, y + 16, node.sign, node.tone, "end"))
    told = ", ".join(f"{n} from {parent[n]}" if n in parent else n for n in places)
    width = 2 + max(x for x, _ in corner.values()) + _BOX
    return svg(width, 2 + max(y for _, y in corner.values()) + _HIGH, f"{title}: {told}", body, "chart tree")
