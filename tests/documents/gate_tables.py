"""The tables of acceptance gates and of the scorecard's columns in the guide against the code."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.documents import pages as read
from tests.documents.checks import Seen
from tests.documents.pages import Pages
from tinyllm.lifecycle.evaluation import COLUMNS
from tinyllm.lifecycle.gates import GATES, Gate, GateInputs


def gates(pages: Pages) -> Seen:
    """The tables of gates in the guide: names, stages, bounds, and the mark of those that need the bundled world."""
    world = {gate for gate in GATES if gate.data != "user"}
    wrong, count = [], 0
    for name in ("docs/lifecycle.md", "docs/lifecycle.zh.md"):
        section = read.sections(pages[name])["1.4"].replace("、", ", ")
        rows = [[cell.strip() for cell in row.split("|")[1:4]] for row in section.splitlines() if row.startswith("| ")]
        stated = {
            (stages, title.removesuffix(" *").strip("`")): (title.endswith(" *"), text) for stages, title, text in rows
        }
        wanted = {(", ".join(gate.stages), gate.name): gate for gate in GATES}
        wrong += [
            f"{name}: no such gate: {key}" for key in stated.keys() - wanted.keys() if key[0] not in ("stage", "阶段")
        ]
        wrong += [f"{name}: the gate is missing: {key}" for key in wanted.keys() - stated.keys()]
        for key in stated.keys() & wanted.keys():
            gate, (marked, text) = wanted[key], stated[key]
            count += 1
            if gate in world and marked != (gate.data == "world"):
                wrong.append(f"{name}: {key[1]}: the mark * is wrong")
            if not {abs(n) for n in _bounds(gate)} & {
                float(n) / (100 if after else 1) for n, after in _PERCENT.findall(text)
            }:
                wrong.append(f"{name}: {key[1]}: its bound is not in {text!r}")
    return Seen(wrong, count)


_PERCENT = re.compile(r"(\d+(?:\.\d+)?)( ?%)?")


class _Every(dict):  # type: ignore[type-arg]
    """A mapping that has every key, with the same value."""

    def __init__(self, value: Callable[[], Any]):
        super().__init__({"": None})  # not empty, which would be false
        self.value = value

    def __missing__(self, key: str) -> Any:
        return self.value()

    def get(self, key: str, default: Any = None) -> Any:
        return self.value()


def _bounds(gate: Gate) -> set[float]:
    """Return the number of a gate: a constant, or what is added to, or multiplied by, figures that are all 1."""
    if isinstance(gate.bound, float):
        return {gate.bound}
    stage = gate.stages[0]
    ones: Any = _Every(lambda: 1.0)
    figures: Any = _Every(lambda: _Every(lambda: {"value": 1.0, "n": 1}))
    tests: Any = _Every(lambda: {"test": _Every(lambda: {"figures": ones, "counts": ones})})
    inputs = GateInputs(figures, tests, _Every(lambda: ones), parents=dict.fromkeys(gate.stages, "sft"))
    bound = gate.bound(inputs, stage)
    return {round(bound, 6), round(bound - 1, 6)} | ({5.0} if "5-gram" in gate.description else set())


def columns(pages: Pages) -> Seen:
    """The table of the scorecard's columns: every column in its order, and no other."""
    wrong, wanted = [], [column["title"] for column in COLUMNS]
    for name in ("docs/lifecycle.md", "docs/lifecycle.zh.md"):
        section = read.sections(pages[name])["1.5"].replace("、", ", ")
        rows = re.findall(r"^\| ([^|`]+) \|", section, re.MULTILINE)
        stated = [title for row in rows if row not in ("column", "列") for title in row.split(", ")]
        wrong += [] if stated == wanted else [f"{name}: the columns are {wanted}, not {stated}"]
    return Seen(wrong, 2 * len(wanted))
