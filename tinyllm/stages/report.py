"""The scorecard of a lifecycle, as one HTML file that needs nothing else, and as tables for the terminal.

`page` reads the dictionary that is also written as scorecard.json. Whatever is missing in it is missing on the page,
without a gap. The page has no script, loads nothing and may load nothing (Content-Security-Policy), and every text is
escaped: answers may contain anything. Left out: sorting, filtering, zooming.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllm.stages import report_figures as figures
from tinyllm.stages import report_tables as tables
from tinyllm.stages.report_words import (
    Scorecard,
    all_gates,
    best_of,
    bound,
    clean,
    number,
    passed,
    shown,
    stage_names,
    verdict,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["page", "passed", "terminal", "verdict"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


_SECTIONS: tuple[tuple[str, str, Callable[[Scorecard], str]], ...] = (
    ("lineage", "Lineage", tables.lineage),
    ("gates", "Gates", tables.gate_table),
    ("seeds", "Seeds", tables.seeds),
    ("scorecard", "Scorecard", tables.scores),
    ("tasks", "Tasks", tables.tasks_table),
    ("curves", "Learning curves", figures.curves),
    ("hacking", "Reward hacking", figures.hacking),
    ("samples", "Samples", figures.samples),
    ("costs", "Time and memory", figures.costs),
    ("configs", "Configurations", figures.configs),
    ("again", "Make it again", figures.again),
)


def page(card: Scorecard) -> str:
    """The scorecard as one HTML document."""
    made = [(anchor, title, make(card)) for anchor, title, make in _SECTIONS]
    made = [(anchor, title, body) for anchor, title, body in made if body]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in made)
    body = "".join(f'<section id="{anchor}"><h2>{title}</h2>{body}</section>' for anchor, title, body in made)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>tinyllm lifecycle: {'passed' if passed(card) else 'failed'}</title>\n<style>\n{style}</style>\n</head>\n"
        f'<body>\n{tables.header(card)}\n<nav aria-label="Sections">{links}</nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def terminal(card: Scorecard) -> list[Table]:
    """The same for a terminal: stages by figures, and the gates; only those there are data for."""
    return [table for table in (_score_table(card), _gate_table(card)) if table.row_count]


_ASCII = str.maketrans({"−": "-", "–": "-", "≤": "<=", "≥": ">=", "∞": "inf", "\u00a0": " "})


def _plain(text: str) -> str:
    """For terminals that know no typography."""
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
    for name in stages:
        cells = []
        for column in columns:
            score = scores[name].get(column["key"])
            winner = score is not None and top[column["key"]] is not None and score["value"] == top[column["key"]]
            cells.append(
                Text(_plain(shown(column, score["value"])) if score else "", style="bold green" if winner else "")
            )
        table.add_row(Text(clean(name)), *cells)
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
    table.add_column("verdict", no_wrap=True)
    for stage, gate in all_gates(card):
        told = Text(clean(gate["name"]))
        if not gate["passed"] and gate.get("look_at"):
            told.append(f"\nlook at: {clean(gate['look_at'])}", style="dim")
        word = Text("passed", style="green") if gate["passed"] else Text("FAILED", style="bold red")
        table.add_row(
            Text(clean(stage)), told, Text(_plain(number(gate.get("value")))), Text(_plain(bound(gate))), word
        )
    return table
