"""Charts and texts of the report: learning curves, overoptimization, samples, costs, configurations. Sections without data are empty."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

from tinyllm.html import charts
from tinyllm.html.charts import Mark, Series
from tinyllm.html.tables import cell, figure, intro, right, table
from tinyllm.html.text import Scorecard, clean, duration, escape, finite, number, stage_names

_MAX_ANSWER = 2000  # characters
_CURVES_SHOWN = 2  # per stage


def curves(card: Scorecard) -> str:
    """Return the first curves of every stage, and the others folded."""
    first, others = [], []
    for stage in card.get("stages", ()):
        made = [_curve(stage, what, parts) for what, parts in stage.get("curves", {}).items()]
        made = [curve for curve in made if curve]
        first += made[:_CURVES_SHOWN]
        others += made[_CURVES_SHOWN:]
    if not first:
        return ""
    found = (
        intro("train: batches of the training data. eval: held-out data.") + f'<div class="grid">{"".join(first)}</div>'
    )
    if others:
        found += f'<details class="more"><summary>{len(others)} more</summary><div class="grid">{"".join(others)}</div></details>'
    return found


def _curve(stage: Mapping[str, Any], what: str, parts: Mapping[str, Any]) -> str:
    colors = {"train": 1, "eval": 2}
    series = [
        Series(part, points, colors.get(part, 3 + i % 2), muted=part == "train")
        for i, (part, points) in enumerate(parts.items())
    ]
    title = f"{stage.get('title') or stage['stage']}, {what}"
    return figure(
        f"<b>{escape(stage['stage'])}</b> {escape(what)}", charts.line_chart(series, title=title, x_label="step")
    )


def overoptimization(card: Scorecard) -> str:
    """Return proxy and gold reward against KL for every online stage."""
    found = [_overoptimized(run) for run in card.get("hacking", ())]
    if not any(found):
        return ""
    return intro(
        "The x axis is the KL from the parent. The proxy is the reward that the policy is trained on, gold the true reward. "
        "While both rise, the policy learns the task. If the proxy keeps rising and gold falls, the policy exploits errors of "
        "the proxy."
    ) + "".join(found)


def _kl(point: Mapping[str, Any]) -> float | None:
    """Return the KL of a point, at least 0: the estimate can be negative, the KL cannot."""
    return max(0.0, point["kl"]) if finite(point.get("kl")) else None


def _marked(run: Mapping[str, Any], place: Callable[[Mapping[str, Any]], Any], labels: bool = True) -> list[Mark]:
    """Return marks for the best checkpoint and the onset, at the positions that `place` gives their points."""
    at = {point["step"]: place(point) for point in run["points"]}
    wanted = (("best", run.get("best"), 3), ("onset", run.get("onset"), 4))
    return [
        Mark(at[step], f"{name}: step {step}" if labels else "", color) for name, step, color in wanted if step in at
    ]


def _overoptimized(run: Mapping[str, Any]) -> str:
    """Return the chart of both rewards against KL, and charts of entropy, length and repetition by step."""
    stage, points = run["stage"], run.get("points", ())
    lines = [Series(key, [(_kl(p), p.get(key)) for p in points], color) for key, color in (("proxy", 2), ("gold", 1))]
    rewards = [y for line in lines for _, y in line.points if finite(y)]
    # gold is in [-1, 1]; a proxy on another scale gets its own chart
    groups = [lines] if rewards and max(rewards) - min(rewards) < 4 else [[line] for line in lines]
    main = "".join(
        charts.line_chart(
            group,
            title=f"{stage}, {' and '.join(line.name for line in group)} against KL",
            x_label="KL from the parent, square-root scale" if group is groups[-1] else "",
            x_scale="sqrt",
            marks=_marked(run, _kl, labels=group is groups[0]),
            width=360,
            height=300 // len(groups),
            gutter=44,
        )
        for group in groups
    )
    if not main:
        return ""
    return (
        f'<div class="run"><h3>{escape(stage)}</h3><p>{escape(_outcome(run))}</p>'
        f'<div class="hack">{figure("<b>proxy and gold</b>", main)}{_strips(run)}</div></div>'
    )


def _outcome(run: Mapping[str, Any]) -> str:
    onset, best = run.get("onset"), run.get("best")
    if not any(finite(point.get("gold")) for point in run["points"]):
        return "Gold reward is unknown, so overoptimization cannot be detected."
    text = f"Overoptimized from step {onset}." if onset is not None else "No overoptimization detected."
    return text + (f" Best checkpoint: step {best}." if best is not None else "")


def _strips(run: Mapping[str, Any]) -> str:
    strips, keys = [], ("entropy", "length", "repetition")
    for key in keys:
        chart = charts.line_chart(
            [Series("", [(p.get("step"), p.get(key)) for p in run["points"]])],
            title=f"{run['stage']}, {key} by step",
            x_label="step" if key == keys[-1] else "",
            marks=_marked(run, itemgetter("step"), labels=False),
            width=360,
            height=102 if key == keys[-1] else 89,
            gutter=42,
        )
        strips.append(f"<figcaption><b>{key}</b></figcaption>{chart}" if chart else "")
    return f'<figure class="strips">{"".join(strips)}</figure>' if any(strips) else ""


def samples(card: Scorecard) -> str:
    found = []
    for prompt in card.get("prompts", ()):
        answers, expected = prompt.get("answers", {}), prompt.get("expected")
        cards = "".join(_answer(n, answers[n], expected) for n in stage_names(card, answers))
        notes = [f"expected: <b>{escape(expected)}</b>"] if expected else []
        notes += [f"task: {escape(prompt['task'])}"] if prompt.get("task") else []
        found.append(
            f'<article><h3 dir="auto">{escape(prompt["prompt"])}</h3><p class="want">{" · ".join(notes)}</p>'
            f'<div class="answers">{cards}</div></article>'
        )
    return (
        intro("Answers of every stage to the same held-out prompts. Exact: identical to the expected answer.")
        + "".join(found)
        if found
        else ""
    )


def _answer(stage: str, answer: Mapping[str, Any], expected: Any) -> str:
    text = clean(answer.get("text", "")).strip()
    exact = bool(expected) and text == clean(expected).strip()
    body = escape(text if len(text) <= _MAX_ANSWER else f"{text[:_MAX_ANSWER]} […]")
    notes = ['<span class="ok">✓ exact</span>'] if exact else []
    notes += [f"gold {escape(number(answer['gold'], 2))}"] if finite(answer.get("gold")) else []
    if "finished" in answer:
        notes.append("EOS" if answer["finished"] else '<span class="bad">✗ no EOS</span>')
    return (
        f'<div class="answer{" exact" if exact else ""}"><p class="who"><b>{escape(stage)}</b> <small>{" · ".join(notes)}</small></p>'
        f'<p class="text" dir="auto">{body or "<i>(empty)</i>"}</p></div>'
    )


def costs(card: Scorecard) -> str:
    stages = card.get("stages", ())
    seconds = [(s["stage"], s.get("seconds"), duration(s.get("seconds"))) for s in stages]
    memory = [(s["stage"], s.get("peak_memory_mb") or None, f"{number(s.get('peak_memory_mb'))} MB") for s in stages]
    bars = figure("<b>time</b>", charts.bar_chart(seconds, title="Time of each stage"))
    bars += figure("<b>peak memory</b>", charts.bar_chart(memory, title="Peak memory of each stage"))
    keys = ("parameters", "trainable_parameters", "tokens")
    rows = [
        (escape(s["stage"]), *(cell(number(s.get(key))) for key in keys), cell(number(_speed(s))))
        for s in stages
        if any(s.get(key) for key in keys)
    ]
    head = ("stage", *map(right, ("parameters", "trainable", "tokens", "tokens per second")))
    found = f'<div class="grid wide">{bars}</div>' if bars else ""
    return found + (table(head, rows, "Sizes", "sizes") if rows else "")


def _speed(stage: Mapping[str, Any]) -> int | None:
    tokens, seconds = stage.get("tokens"), stage.get("seconds")
    return round(tokens / seconds) if finite(tokens) and finite(seconds) and seconds > 0 else None


def configs(card: Scorecard) -> str:
    found = []
    for stage in card.get("stages", ()):
        if not stage.get("config"):
            continue
        facts = [(k, stage.get(k)) for k in ("run", "checkpoint", "parent", "manifest_sha256")]
        rows = "".join(
            f"<div><dt>{k.replace('_', ' ')}</dt><dd><code>{escape(v)}</code></dd></div>" for k, v in facts if v
        )
        found.append(
            f"<details><summary>{escape(stage['stage'])}</summary>"
            f'<dl class="facts">{rows}</dl><pre tabindex="0"><code>{escape(stage["config"])}</code></pre></details>'
        )
    return f'<div class="configs">{"".join(found)}</div>' if found else ""


def reproduce(card: Scorecard) -> str:
    """Return the command, versions and machine."""
    machine = card.get("machine", {})
    facts = [("tinyllm", card.get("version")), ("python", machine.get("python")), ("torch", machine.get("torch"))]
    facts += [("platform", machine.get("platform")), ("device", machine.get("device")), ("seed", card.get("seed"))]
    facts += [("created", card.get("created")), ("schema version", card.get("schema_version"))]
    rows = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts if v is not None)
    command = f'<pre tabindex="0"><code>{escape(card["command"])}</code></pre>' if card.get("command") else ""
    return command + (f'<dl class="facts">{rows}</dl>' if rows else "")
