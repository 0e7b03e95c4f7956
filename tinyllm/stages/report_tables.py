"""The report's header and tables: lineage, gates, seeds, scorecard, tasks. A section without data is the empty string."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinyllm.stages import charts
from tinyllm.stages.charts import Dot
from tinyllm.stages.report_tree import Node, tree
from tinyllm.stages.report_words import (
    ARROWS,
    MISSING,
    Scorecard,
    all_gates,
    best_of,
    bound,
    duration,
    escape,
    finite,
    number,
    passed,
    shown,
    stage_names,
    verdict,
)


def sign(ok: Any) -> str:
    return '<span class="ok">✓ passed</span>' if ok else '<span class="bad">✗ FAILED</span>'


def cell(text: str) -> str:
    """A figure in a table."""
    return f'<td class="n">{escape(text)}</td>'


def right(text: str) -> str:
    """The head of a column of figures."""
    return f'<span class="n">{escape(text)}</span>'


def table(head: Iterable[str], rows: Iterable[Sequence[str]], label: str, kind: str = "") -> str:
    """Everything is HTML already: the heads, the first of each row, which becomes its header, and its other cells, `<td>` included."""
    top = "".join(f'<th scope="col">{title}</th>' for title in head)
    body = "".join(f'<tr><th scope="row">{first}</th>{"".join(cells)}</tr>' for first, *cells in rows)
    return scroll(f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>', label)


def scroll(body: str, label: str) -> str:
    """A box of its own for what may be wider than the page; can be scrolled with the keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{body}</div>'


def figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>" if chart else ""


def lead(text: str) -> str:
    return f'<p class="lead">{text}</p>'


def header(card: Scorecard) -> str:
    ok = passed(card)
    told = [f"{card['preset']} preset" if card.get("preset") else "", str(card.get("created", ""))[:10]]
    failed = [(stage, gate) for stage, gate in all_gates(card) if not gate["passed"]]
    items = "".join(
        f"<li><b>{escape(s)}</b>: {escape(g['name'])} ({escape(number(g.get('value')))}, should be {escape(bound(g))})</li>"
        for s, g in failed
    )
    return (
        f'<header><p class="eyebrow"><span class="badge {"ok" if ok else "bad"}">{"✓ passed" if ok else "✗ FAILED"}</span> '
        f"{escape(' · '.join(['tinyllm lifecycle', *filter(None, told)]))}</p><h1>{_tied(verdict(card))}</h1>"
        + (f'<ul class="failed">{items}</ul>' if items else "")
        + _tiles(card)
        + "</header>"
    )


def _tied(text: str) -> str:
    """Escaped; a number and its unit stay on one line."""
    return re.sub(r"(?<=\d) (?=(min|s|h|CPU)\b)|(?<=\d) (?=of \d)|(?<=\d of) (?=\d)", "\u00a0", escape(text))


def _tiles(card: Scorecard) -> str:
    """The best value of each of the first four figures that have one, and whose it is."""
    scores = card.get("scores", {})
    tiles = []
    for column in card.get("columns", ()):
        top = best_of(column, scores)
        if top is None or column["key"] == "perplexity":  # says the same as bits per byte
            continue
        stages = [n for n in stage_names(card, scores) if column["key"] in scores[n]]
        whose = next(n for n in stages if scores[n][column["key"]]["value"] == top)
        first = scores[stages[0]][column["key"]]["value"]
        since = f" ({stages[0]}: {shown(column, first)})" if whose != stages[0] else ""
        tiles.append(
            f"<div><dt>{escape(column['title'])}</dt><dd><b>{escape(shown(column, top))}</b>"
            f"<small>{escape(whose)}<i>{escape(since)}</i></small></dd></div>"
        )
    return f'<dl class="tiles">{"".join(tiles[:4])}</dl>' if tiles else ""


def lineage(card: Scorecard) -> str:
    nodes = []
    for stage in card.get("stages", ()):
        gates = stage.get("gates", ())
        ok = all(gate["passed"] for gate in gates)
        mark, tone = (("✓", "ok") if ok else ("✗", "bad")) if gates else ("", "")
        nodes.append(Node(stage["stage"], stage.get("parent"), str(stage.get("manifest_sha256") or "")[:8], mark, tone))
    chart = tree(nodes, title="Which stage started from which")
    if not chart:
        return ""
    told = "Every stage starts from a checkpoint of the one to its left. Below its name: the first digits of its hash."
    return lead(told) + f'<div class="split">{scroll(chart, "Lineage")}{_facts(card)}</div>'


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
        "memory": f"{number(memory)} MB at most" if memory else "",
        "machine": ", ".join(str(machine[k]) for k in ("platform", "device", "precision") if machine.get(k)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "seed": number(card.get("seed")) if "seed" in card else "",
    }
    rows = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
    return f'<dl class="facts">{rows}</dl>'


def gate_table(card: Scorecard) -> str:
    rows, before = [], None
    for stage, gate in all_gates(card):
        told = f"<b>{escape(gate['name'])}</b> <small>{escape(gate.get('what', ''))}</small>"
        if not gate["passed"] and gate.get("look_at"):
            told += f'<p class="bad">look at: {escape(gate["look_at"])}</p>'
        name = f'<span class="{"again" if stage == before else ""}">{escape(stage)}</span>'
        figures = (cell(number(gate.get("value"))), cell(bound(gate)))
        rows.append(
            (name, f'<td class="gate">{told}</td>', *figures, f'<td class="verdict">{sign(gate["passed"])}</td>')
        )
        before = stage
    if not rows:
        return ""
    head = ("stage", "gate", right("value"), right("bound"), "verdict")
    return lead("What each stage had to reach to count as learned.") + table(head, rows, "Gates", "gates")


def seeds(card: Scorecard) -> str:
    runs = card.get("seeds", ())
    if not runs:
        return ""
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.get("gates", {})):
        found = [run.get("gates", {}).get(name) for run in runs]
        values = [gate["value"] for gate in found if gate and finite(gate.get("value"))]
        span = f"{_rough(min(values))} to {_rough(max(values))}" if values else MISSING
        stage, _, gate_name = name.rpartition("/")
        rows.append((f"<small>{escape(stage)}</small> {escape(gate_name)}", *map(_seed_cell, found), cell(span)))
    rows.append(("time", *(cell(duration(run.get("seconds"))) for run in runs), "<td></td>"))
    rows.append(("the whole run", *(f'<td class="n">{sign(run["passed"])}</td>' for run in runs), "<td></td>"))
    head = ("gate", *(right(f"seed {run['seed']}") for run in runs), right("range"))
    return lead("The same lifecycle from other seeds: was it luck?") + table(head, rows, "Seeds", "seeds")


def _rough(value: float) -> str:
    return number(float(f"{value:.3g}"))


def _seed_cell(gate: Mapping[str, Any] | None) -> str:
    if gate is None:
        return cell(MISSING)
    kind, mark = ("ok", "✓") if gate["passed"] else ("bad", "✗ FAILED")
    value = _rough(gate["value"]) if finite(gate.get("value")) else MISSING
    return f'<td class="n"><span class="{kind}">{mark}</span> {escape(value)}</td>'


def scores(card: Scorecard) -> str:
    found = card.get("scores", {})
    stages = stage_names(card, found)
    columns = [c for c in card.get("columns", ()) if any(c["key"] in found[n] for n in stages)]
    if not columns:
        return ""
    top = {c["key"]: best_of(c, found) for c in columns}
    rows = [(escape(n), *(_score(c, found[n].get(c["key"]), top[c["key"]]) for c in columns)) for n in stages]
    head = [right(f"{c['title']} {ARROWS.get(c.get('better', ''), '')[:1]}") for c in columns]
    return (
        lead(
            "↑ higher is better, ↓ lower is better, ★ the best of its column. In small type the 95 % confidence interval: "
            "where two overlap, the difference may be chance."
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
    asked = f' title="{escape(number(score["n"]))} rows"' if score.get("n") else ""
    return f'<td class="n{" best" * bool(star)}"{asked}>{star}{escape(shown(column, value))}{span}</td>'


def _intervals(card: Scorecard) -> str:
    """Gold and accuracy once more, as dots."""
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
    told = "Share of right answers, a row a kind of task. The stronger the colour, the more."
    return lead(told) + table(("task", *map(right, stages)), rows, "Tasks", "heat")


def _heat(score: Mapping[str, Any] | None) -> str:
    if score is None or not finite(score["value"]):
        return f'<td class="n none">{MISSING}</td>'
    value, low, high = score["value"], score.get("low"), score.get("high")
    told = f"{number(low, percent=True)} to {number(high, percent=True)}" if finite(low) and finite(high) else ""
    told += f", {number(score['n'])} prompts" if score.get("n") else ""
    share = min(1.0, max(0.0, value))
    return f'<td class="n" style="--v:{share:.3f}" title="{escape(told)}">{escape(number(value, percent=True))}</td>'
