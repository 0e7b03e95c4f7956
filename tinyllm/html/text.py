"""Text of the report: escaping, number formats, and the summary of a scorecard in one sentence."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from html import escape as _entities
from typing import Any, TypeGuard

Scorecard = Mapping[str, Any]

MISSING = "–"
ARROWS = {"lower": "↓ lower is better", "higher": "↑ higher is better"}
_RULES = {"<=": "≤", ">=": "≥", "<": "<", ">": ">", "==": "="}
_JOINERS = "\u200c\u200d"  # format characters that spelling and emoji need; others can reverse text


def clean(text: Any) -> str:
    """Remove control, format, surrogate and private-use characters. Keep newlines and tabs."""
    kept = (c for c in str(text) if c in "\n\t" + _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
    return "".join(c for c in kept if c not in "\ufffe\uffff")


def escape(text: Any) -> str:
    """Return any value as text that is safe in an element or attribute of HTML or XML."""
    return _entities(clean(text))


def short(text: Any, most: int) -> str:
    """Return cleaned text on one line, shortened to `most` characters with an ellipsis."""
    line = " ".join(clean(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def finite(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number of ordinary size."""
    return isinstance(value, int | float) and abs(value) < 1e200  # False for NaN; can be subtracted and squared


def number(value: Any, digits: int | None = None, *, percent: bool = False) -> str:
    """Format a number with four significant digits or `digits` decimals, a typographic minus sign, and a dash for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return clean(value)
    if not finite(value):
        shown = "∞" if value > 0 else "-∞"
    elif abs(value) >= 1e15:
        shown = f"{value:.4g}"
    elif percent:
        shown = f"{100 * value:.{digits or 0}f} %"
    elif digits is not None:
        shown = f"{value:,.{digits}f}"
    elif abs(value) >= 1000:
        shown = f"{value:,.0f}"
    else:
        shown = f"{value:.4g}"
    unsigned = shown.removeprefix("-")
    return shown if unsigned == shown else unsigned if not unsigned.strip("0.% ") else f"−{unsigned}"


# --- scorecard


def duration(seconds: Any) -> str:
    """Format seconds: 612.3 -> 10 min 12 s."""
    if not finite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def all_gates(card: Scorecard) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (stage, gate) for every gate."""
    return [(stage["stage"], gate) for stage in card.get("stages", ()) for gate in stage.get("gates", ())]


def passed(card: Scorecard) -> bool:
    return bool(card.get("passed", all(gate["passed"] for _, gate in all_gates(card))))


def verdict(card: Scorecard) -> str:
    """Return one sentence: passed or failed, duration, machine."""
    machine = card.get("machine", {})
    threads, device = machine.get("threads"), machine.get("device")
    where = f" on {threads} CPU thread{'s' * (threads != 1)}" if device == "cpu" and threads else ""
    where = where or (f" on {device}" if device else "")
    took = (f" in {duration(card['seconds'])}" if finite(card.get("seconds")) else "") + where
    found = all_gates(card)
    failed = sum(not gate["passed"] for _, gate in found)
    if failed:
        text = f"{failed} of {len(found)} gates failed{took}"
    elif found:
        text = f"All {len(found)} gates passed{took}" if len(found) > 1 else f"The only gate passed{took}"
    else:
        text = f"{len(card.get('stages', ()))} stages ran{took}; no gates were checked"
    seeds = card.get("seeds", ())
    if seeds:
        text += f"; {sum(bool(s['passed']) for s in seeds)} of {len(seeds)} seeds passed"
    elif not failed and not passed(card):
        text += "; the run did not pass"
    return clean(text) + "."


def bound(gate: Mapping[str, Any]) -> str:
    rule = gate.get("rule", "")
    return f"{_RULES.get(rule, rule)}\u00a0{number(gate.get('bound'))}"


def counted(gate: Mapping[str, Any]) -> str:
    """Return what a gate was measured on: 512 answers."""
    return f"{number(gate['n'])} {gate.get('counted', '')}" if gate.get("n") is not None else ""


def complaints(gate: Mapping[str, Any]) -> list[str]:
    """Return the lines below a failed gate: why it could not be decided, and what to check."""
    why = [str(gate["why"])] if gate.get("why") else []
    return why + ([f"check: {gate['look_at']}"] if gate.get("look_at") else [])


def last_line(gate: Mapping[str, Any]) -> list[str]:
    """Return the line that says how the last checkpoint does, if its outcome is another than that of the best; or no line."""
    last = gate.get("last")
    if not last or last["passed"] == gate["passed"]:
        return []
    value = last.get("why") or number(last.get("value"))
    return [f"the last checkpoint {'passes' if last['passed'] else 'fails'}: {value}"]


def score_rows(card: Scorecard) -> list[tuple[str, Mapping[str, Any], bool]]:
    """Return (label, figures, whether of the last checkpoint) for each row of the scorecard: the best checkpoint, then the last."""
    scores, last = card.get("scores", {}), card.get("last", {})
    steps = {stage["stage"]: stage.get("best_step") for stage in card.get("stages", ())}
    rows: list[tuple[str, Mapping[str, Any], bool]] = []
    for name in stage_names(card, scores):
        label = f"{name} (step 0: nothing improved)" if steps.get(name) == 0 else name
        rows.append((label, scores[name], False))
        if name in last:
            rows.append((f"last {number(last[name]['step'])}", last[name]["figures"], True))
    return rows


def stage_names(card: Scorecard, found: Mapping[str, Any]) -> list[str]:
    """Return the stages that have an entry in `found`, in the order of the run."""
    order = [stage["stage"] for stage in card.get("stages", ())]
    return [n for n in order if found.get(n)] + [n for n in found if n not in order and found[n]]


def shown(column: Mapping[str, Any], value: Any) -> str:
    return number(value, column.get("digits"), percent=bool(column.get("percent")))


def best_of(column: Mapping[str, Any], scores: Mapping[str, Any]) -> float | None:
    """Return the best value of a column; None if the column has no better direction or fewer than two values."""
    values = [row[column["key"]]["value"] for row in scores.values() if column["key"] in row]
    values = [value for value in values if finite(value)]
    if len(values) < 2 or column.get("better") not in ARROWS:
        return None
    return min(values) if column["better"] == "lower" else max(values)
