"""Header and tables of the report: lineage, gates, seeds, scorecard, tasks. A section without data is the empty string."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinyllm.html import charts
from tinyllm.html.charts import Dot
from tinyllm.html.text import (
    ARROWS,
    MISSING,
    Scorecard,
    all_gates,
    best_of,
    bound,
    complaints,
    counted,
    duration,
    escape,
    finite,
    last_line,
    number,
    passed,
    score_rows,
    shown,
    stage_names,
    verdict,
)
from tinyllm.html.tree import Node, tree


def outcome(ok: Any) -> str:
    return '<span class="ok">✓ passed</span>' if ok else '<span class="bad">✗ FAILED</span>'


def cell(text: str) -> str:
    """Return a table cell with a number."""
    return f'<td class="n">{escape(text)}</td>'


def right(text: str) -> str:
    """Return the head of a column of numbers, aligned right."""
    return f'<span class="n">{escape(text)}</span>'


def table(head: Iterable[str], rows: Iterable[Sequence[str]], label: str, kind: str = "") -> str:
    """Return a table. All arguments but `label` and `kind` are HTML.

    Args:
        head: column titles.
        rows: the row header, then the other cells with their `<td>`.
    """
    top = "".join(f'<th scope="col">{title}</th>' for title in head)
    body = "".join(f'<tr><th scope="row">{first}</th>{"".join(cells)}</tr>' for first, *cells in rows)
    return scroll(f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>', label)


def scroll(body: str, label: str) -> str:
    """Return a box that scrolls sideways, also with the keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{body}</div>'


def figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>" if chart else ""


def intro(text: str) -> str:
    """Return the paragraph that explains a section. `text` is HTML."""
    return f'<p class="lead">{text}</p>'


def header(card: Scorecard) -> str:
    ok = passed(card)
    details = [f"{card['preset']} preset" if card.get("preset") else "", str(card.get("created", ""))[:10]]
    failed = [(stage, gate) for stage, gate in all_gates(card) if not gate["passed"]]
    items = "".join(
        f"<li><b>{escape(s)}</b>: {escape(g['name'])} ({escape(number(g.get('value')))}, should be {escape(bound(g))})</li>"
        for s, g in failed
    )
    return (
        f'<header><p class="eyebrow"><span class="badge {"ok" if ok else "bad"}">{"✓ passed" if ok else "✗ FAILED"}</span> '
        f"{escape(' · '.join(['tinyllm lifecycle', *filter(None, details)]))}</p><h1>{_nonbreaking(verdict(card))}</h1>"
        + (f'<ul class="failed">{items}</ul>' if items else "")
        + _tiles(card)
        + "</header>"
    )


def _nonbreaking(text: str) -> str:
    """Escape text, and keep a number and its unit on one line."""
    return re.sub(r"(?<=\d) (?=(min|s|h|CPU)\b)|(?<=\d) (?=of \d)|(?<=\d of) (?=\d)", "\u00a0", escape(text))


def _tiles(card: Scorecard) -> str:
    """Return the best value of the first four metrics that have one, with its stage."""
    scores = card.get("scores", {})
    tiles = []
    for column in card.get("columns", ()):
        top = best_of(column, scores)
        if top is None or column["key"] == "perplexity":  # redundant with bits per byte
            continue
        stages = [n for n in stage_names(card, scores) if column["key"] in scores[n]]
        stage = next(n for n in stages if scores[n][column["key"]]["value"] == top)
        first = scores[stages[0]][column["key"]]["value"]
        since = f" ({stages[0]}: {shown(column, first)})" if stage != stages[0] else ""
        tiles.append(
            f"<div><dt>{escape(column['title'])}</dt><dd><b>{escape(shown(column, top))}</b>"
            f"<small>{escape(stage)}<i>{escape(since)}</i></small></dd></div>"
        )
    return f'<dl class="tiles">{"".join(tiles[:4])}</dl>' if tiles else ""


def lineage(card: Scorecard) -> str:
    nodes = []
    for stage in card.get("stages", ()):
        gates = stage.get("gates", ())
        ok = all(gate["passed"] for gate in gates)
        mark, color = (("✓", "ok") if ok else ("✗", "bad")) if gates else ("", "")
        nodes.append(
            Node(stage["stage"], stage.get("parent"), str(stage.get("manifest_sha256") or "")[:8], mark, color)
        )
    chart = tree(nodes, title="Parents of the stages")
    if not chart:
        return ""
    text = "Every stage starts from the checkpoint of the stage to its left. Below its name: the first digits of the checkpoint's hash."
    return intro(text) + f'<div class="split">{scroll(chart, "Lineage")}{_facts(card)}</div>'


def _facts(card: Scorecard) -> str:
    machine, stages = card.get("machine", {}), card.get("stages", ())
    tokens = sum(s["tokens"] for s in stages if finite(s.get("tokens")))
    memory = card.get("peak_memory_mb")
    results = [gate["passed"] for _, gate in all_gates(card)]
    versions = {"tinyllm": card.get("version"), "torch": machine.get("torch"), "python": machine.get("python")}
    facts = {
        "model": f"{number(stages[0]['parameters'])} parameters" if stages[0].get("parameters") else "",
        "trained on": f"{number(tokens)} tokens in {len(stages)} stages" if tokens else "",
        "gates": f"{sum(map(bool, results))} of {len(results)} passed" if results else "",
        "time": duration(card.get("seconds")) if finite(card.get("seconds")) else "",
        "memory": f"{number(memory)} MB peak" if memory else "",
        "machine": ", ".join(str(machine[k]) for k in ("platform", "device", "precision") if machine.get(k)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "seed": number(card.get("seed")) if "seed" in card else "",
    }
    rows = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
    return f'<dl class="facts">{rows}</dl>'


def gate_table(card: Scorecard) -> str:
    rows, before = [], None
    for stage, gate in all_gates(card):
        text = f"<b>{escape(gate['name'])}</b> <small>{escape(gate.get('what', ''))}</small>"
        if not gate["passed"]:
            text += "".join(f'<p class="bad">{escape(line)}</p>' for line in complaints(gate))
        text += "".join(f"<p><small>{escape(line)}</small></p>" for line in last_line(gate))
        name = f'<span class="{"again" if stage == before else ""}">{escape(stage)}</span>'
        figures = (cell(number(gate.get("value"))), cell(bound(gate)), cell(counted(gate)))
        rows.append(
            (name, f'<td class="gate">{text}</td>', *figures, f'<td class="verdict">{outcome(gate["passed"])}</td>')
        )
        before = stage
    if not rows:
        return ""
    head = ("stage", "gate", right("value"), right("bound"), right("measured on"), "result")
    text = "The metric on test data that the best checkpoint of each stage must reach, and what it was measured on."
    return intro(text) + table(head, rows, "Gates", "gates")


def seeds(card: Scorecard) -> str:
    runs = card.get("seeds", ())
    if not runs:
        return ""
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.get("gates", {})):
        found = [run.get("gates", {}).get(name) for run in runs]
        values = [gate["value"] for gate in found if gate and finite(gate.get("value"))]
        span = f"{_rounded(min(values))} to {_rounded(max(values))}" if values else MISSING
        stage, _, gate_name = name.rpartition("/")
        rows.append((f"<small>{escape(stage)}</small> {escape(gate_name)}", *map(_seed_cell, found), cell(span)))
    rows.append(("time", *(cell(duration(run.get("seconds"))) for run in runs), "<td></td>"))
    rows.append(("all gates", *(f'<td class="n">{outcome(run["passed"])}</td>' for run in runs), "<td></td>"))
    head = ("gate", *(right(f"seed {run['seed']}") for run in runs), right("range"))
    return intro("The gates of the same lifecycle with several seeds.") + table(head, rows, "Seeds", "seeds")


def _rounded(value: float) -> str:
    """Format a number with three significant digits."""
    return number(float(f"{value:.3g}"))


def _seed_cell(gate: Mapping[str, Any] | None) -> str:
    if gate is None:
        return cell(MISSING)
    kind, mark = ("ok", "✓") if gate["passed"] else ("bad", "✗ FAILED")
    value = _rounded(gate["value"]) if finite(gate.get("value")) else MISSING
    return f'<td class="n"><span class="{kind}">{mark}</span> {escape(value)}</td>'


def scores(card: Scorecard) -> str:
    found = card.get("scores", {})
    stages = stage_names(card, found)
    columns = [c for c in card.get("columns", ()) if any(c["key"] in found[n] for n in stages)]
    if not columns:
        return ""
    top = {c["key"]: best_of(c, found) for c in columns}
    rows = []
    for name, figures, is_last in score_rows(card):
        best = {} if is_last else top
        label = f"<small>{escape(name)}</small>" if is_last else escape(name)
        rows.append((label, *(_score(c, figures.get(c["key"]), best.get(c["key"])) for c in columns)))
    head = [right(f"{c['title']} {ARROWS.get(c.get('better', ''), '')[:1]}") for c in columns]
    return (
        intro(
            "↑ higher is better, ↓ lower is better, ★ best of its column. Small type: the 95 % confidence interval. "
            "If two intervals overlap, the difference may be chance. Rows in small type: the last checkpoint, where it is not the best."
        )
        + table(("stage", *head), rows, "Scorecard", "scores")
        + _intervals(card)
    )


def _score(column: Mapping[str, Any], score: Mapping[str, Any] | None, best: float | None) -> str:
    if score is None:
        return f'<td class="n none" title="not applicable">{MISSING}</td>'
    value, low, high = score["value"], score.get("low"), score.get("high")
    star = '<span class="star" title="best" aria-label="best">★</span> ' if best is not None and value == best else ""
    span = ""
    if finite(low) and finite(high):
        span = f"<small>{escape(shown(column, low).removesuffix(' %'))} to {escape(shown(column, high))}</small>"
    samples = f' title="n = {escape(number(score["n"]))}"' if score.get("n") else ""
    return f'<td class="n{" best" * bool(star)}"{samples}>{star}{escape(shown(column, value))}{span}</td>'


def _intervals(card: Scorecard) -> str:
    """Return gold reward and accuracy as charts with intervals."""
    scores, found = card.get("scores", {}), []
    for column in card.get("columns", ()):
        if column["key"] not in ("gold", "accuracy"):
            continue
        rows = {n: scores[n][column["key"]] for n in stage_names(card, scores) if column["key"] in scores[n]}
        dots = [Dot(n, s["value"], s.get("low"), s.get("high")) for n, s in rows.items()]
        side, percent = ARROWS.get(column.get("better", ""), "")[2:], bool(column.get("percent"))
        chart = charts.interval_chart(
            dots, title=column["title"], x_label=side, digits=column.get("digits"), percent=percent
        )
        found.append(figure(f"<b>{escape(column['title'])}</b>", chart))
    return f'<div class="grid wide">{"".join(found)}</div>' if any(found) else ""


def tasks_table(card: Scorecard) -> str:
    found = card.get("by_task", {})
    stages = stage_names(card, found)
    tasks = list(dict.fromkeys(task for name in stages for task in found[name]))
    rows = [(escape(task), *(_heat(found[name].get(task)) for name in stages)) for task in tasks]
    if not rows:
        return ""
    text = "Accuracy by task. Stronger color means higher."
    return intro(text) + table(("task", *map(right, stages)), rows, "Tasks", "heat")


def _heat(score: Mapping[str, Any] | None) -> str:
    if score is None or not finite(score["value"]):
        return f'<td class="n none">{MISSING}</td>'
    value, low, high = score["value"], score.get("low"), score.get("high")
    note = f"{number(low, percent=True)} to {number(high, percent=True)}" if finite(low) and finite(high) else ""
    note += f", {number(score['n'])} prompts" if score.get("n") else ""
    share = min(1.0, max(0.0, value))
    return f'<td class="n" style="--v:{share:.3f}" title="{escape(note)}">{escape(number(value, percent=True))}</td>'
