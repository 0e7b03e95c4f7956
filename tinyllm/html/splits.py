"""The section of the report that shows what trained, selected and examined each stage, and what these have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyllm.html.tables import cell, intro, right, table
from tinyllm.html.text import MISSING, Scorecard, escape, number, stage_names

_SIDES = ("train/exam", "selection/exam")
NOTHING = "nothing compared"


def splits(card: Scorecard) -> str:
    found = card.get("splits", {})
    rows = []
    for name in stage_names(card, found):
        row = found[name]
        sets = [_set(row.get(part, {})) for part in ("train", "selection", "exam")]
        rows.append((escape(name), *sets, *(_overlap(row, side) for side in _SIDES)))
    if not rows:
        return ""
    text = (
        "What trained each stage, what selected its best checkpoint, and what examined it, in distinct records, with the first digits of a "
        "hash over all of them. The overlaps count what the exam has in common with the other two, of the stage and of the models it "
        "started from, of the records that could be compared."
    )
    head = ("stage", "trained on", "selected by", "examined on", *(right(f"overlap {side}") for side in _SIDES))
    return intro(text) + table(head, rows, "Splits", "splits")


def _set(part: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{number(count)} {unit}" for unit, count in part.get("n", {}).items())
    return f"<td>{escape(counts or MISSING)}<small>{escape(str(part.get('sha256', ''))[:12])}</small></td>"


def _compared(row: Mapping[str, Any], side: str) -> dict[str, tuple[int, int]]:
    """Return unit -> (records of the exam in common, records of the exam compared)."""
    there = row.get("exam", {}).get("n", {})
    return {unit: (count, there.get(unit, 0)) for unit, count in row.get("overlap", {}).get(side, {}).items()}


def _overlap(row: Mapping[str, Any], side: str) -> str:
    counts = _compared(row, side).items()
    return cell(", ".join(f"{number(count)} of {number(n)} {unit}" for unit, (count, n) in counts) or NOTHING)


def overlap_line(card: Scorecard) -> str:
    """Return the overlaps of all stages in one line; empty if the scorecard has none.

    A record that examines several stages is compared for each of them.
    """
    rows = card.get("splits", {}).values()
    if not rows:
        return ""
    found = []
    for side in _SIDES:
        pairs = [pair for row in rows for pair in _compared(row, side).values()]
        common, n = (sum(column) for column in zip(*pairs, strict=True)) if pairs else (0, 0)
        found.append(
            f"{side.split('/')[0]} and exam {f'{number(common)} of {number(n)} comparisons' if n else NOTHING}"
        )
    return f"in common: {', '.join(found)}"
