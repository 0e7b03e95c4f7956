"""The scorecard of a lifecycle as one self-contained HTML file, and as tables for the terminal.

`page` reads the contents of scorecard.json. Sections without data are omitted. The page has no scripts, loads nothing
(Content-Security-Policy), and all text is escaped: answers may contain anything. Left out: sorting, filtering, zooming.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tinyllm.html import figures, tables
from tinyllm.html.page import document
from tinyllm.html.splits import overlap_line, splits
from tinyllm.html.text import (
    Scorecard,
    all_gates,
    best_of,
    bound,
    clean,
    complaints,
    last_line,
    number,
    passed,
    score_rows,
    shown,
    stage_names,
    verdict,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["overlap_line", "page", "passed", "terminal", "verdict"]


_SECTIONS: tuple[tuple[str, str, Callable[[Scorecard], str]], ...] = (
    ("lineage", "Lineage", tables.lineage),
    ("gates", "Gates", tables.gate_table),
    ("splits", "Splits", splits),
    ("seeds", "Seeds", tables.seeds),
    ("scorecard", "Scorecard", tables.scores),
    ("tasks", "Tasks", tables.tasks_table),
    ("curves", "Learning curves", figures.curves),
    ("hacking", "Overoptimization", figures.overoptimization),
    ("samples", "Samples", figures.samples),
    ("costs", "Time and memory", figures.costs),
    ("configs", "Configurations", figures.configs),
    ("reproduce", "Reproduce", figures.reproduce),
)


def page(card: Scorecard) -> str:
    """Return the scorecard as an HTML document."""
    sections = [(anchor, title, make(card)) for anchor, title, make in _SECTIONS]
    title = f"tinyllm lifecycle: {'passed' if passed(card) else 'failed'}"
    return document(title, tables.header(card), sections)


def terminal(card: Scorecard) -> list[Table]:
    """Return the tables for a terminal that have rows: metrics by stage, and gates."""
    return [table for table in (_score_table(card), _gate_table(card)) if table.row_count]


_ASCII = str.maketrans({"−": "-", "–": "-", "≤": "<=", "≥": ">=", "∞": "inf", "\u00a0": " "})


def _plain(text: str) -> str:
    """Return text in ASCII, for terminals without typographic characters."""
    return clean(text).translate(_ASCII)


def _score_table(card: Scorecard) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    scores = card.get("scores", {})
    stages = stage_names(card, scores)
    columns = [c for c in card.get("columns", ()) if any(c["key"] in scores[n] for n in stages)]
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("stage")
    for column in columns:
        table.add_column(Text(clean(column["title"]).replace(" ", "\n")), justify="right")
    top = {c["key"]: best_of(c, scores) for c in columns}
    for label, scored, is_last in score_rows(card):
        cells = []
        for column in columns:
            score = scored.get(column["key"])
            is_best = score is not None and not is_last and score["value"] == top[column["key"]] is not None
            style = "bold green" if is_best else "dim" if is_last else ""
            cells.append(Text(_plain(shown(column, score["value"])) if score else "", style=style))
        name = (
            f"  {label}" if is_last else label.replace(" (step 0: nothing improved)", "\n step 0:\n nothing\n improved")
        )
        table.add_row(Text(clean(name), style="dim" if is_last else ""), *cells)
    return table


def _gate_table(card: Scorecard) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("stage")
    table.add_column("gate")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("bound", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for stage, gate in all_gates(card):
        text = Text(clean(gate["name"]))
        for line in [*(() if gate["passed"] else complaints(gate)), *last_line(gate)]:
            text.append(f"\n{_plain(line)}", style="dim")
        word = Text("passed", style="green") if gate["passed"] else Text("FAILED", style="bold red")
        table.add_row(
            Text(clean(stage)),
            text,
            Text(_plain(number(gate.get("value")))),
            Text(_plain(bound(gate))),
            Text(_plain(number(gate.get("n")))),
            word,
        )
    return table
