"""The section of the report that shows what trained, selected and examined each stage, and what these have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyllm.html.tables import cell, intro, right, table
from tinyllm.html.text import MISSING, Scorecard, escape, number, stage_names

_SIDES = ("train/exam", "selection/exam")


def splits(card: Scorecard) -> str:
    found = card.get("splits", {})
    rows = []
    for name in stage_names(card, found):
        row = found[name]
        sets = [_set(row.get(part, {})) for part in ("train", "selection", "exam")]
        rows.append((escape(name), *sets, *(_overlap(row.get("overlap", {}).get(side, {})) for side in _SIDES)))
    if not rows:
        return ""
    text = (
        "What trained each stage, what selected its best checkpoint, and what examined it, in distinct records, with the first digits of a "
        "hash over all of them. The overlaps count what the exam has in common with the other two, of the stage and of the models it "
        "started from."
    )
    head = ("stage", "trained on", "selected by", "examined on", *(right(f"overlap {side}") for side in _SIDES))
    return intro(text) + table(head, rows, "Splits", "splits")


def _set(part: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{number(count)} {unit}" for unit, count in part.get("n", {}).items())
    return f"<td>{escape(counts or MISSING)}<small>{escape(str(part.get('sha256', ''))[:12])}</small></td>"


def _overlap(counts: Mapping[str, int]) -> str:
    return cell(", ".join(f"{number(count)} {unit}" for unit, count in counts.items()) or MISSING)


def overlap_line(card: Scorecard) -> str:
    """Return the overlaps of all stages in one line; empty if the scorecard has none."""
    rows = card.get("splits", {}).values()
    totals = {side: sum(sum(row.get("overlap", {}).get(side, {}).values()) for row in rows) for side in _SIDES}
    if not rows:
        return ""
    counted = ", ".join(f"{side.split('/')[0]} and exam {number(total)}" for side, total in totals.items())
    return f"records in common: {counted}"
