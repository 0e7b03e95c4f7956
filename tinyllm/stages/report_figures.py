"""The report's figures and texts: learning curves, reward hacking, samples, costs, configurations. No data, no section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

from tinyllm.stages import charts
from tinyllm.stages.charts import Mark, Series
from tinyllm.stages.report_tables import cell, figure, lead, right, table
from tinyllm.stages.report_words import Scorecard, clean, duration, escape, finite, number, stage_names

_LONGEST_ANSWER = 2000
_CURVES_SHOWN = 2  # of a stage


def curves(card: Scorecard) -> str:
    """The first figures of every stage; the others folded away."""
    first, others = [], []
    for stage in card.get("stages", ()):
        made = [_curve(stage, what, parts) for what, parts in stage.get("curves", {}).items()]
        made = [curve for curve in made if curve]
        first += made[:_CURVES_SHOWN]
        others += made[_CURVES_SHOWN:]
    if not first:
        return ""
    found = lead("train: the batches it learns from. eval: held out.") + f'<div class="grid">{"".join(first)}</div>'
    if others:
        found += f'<details class="more"><summary>{len(others)} more</summary><div class="grid">{"".join(others)}</div></details>'
    return found


def _curve(stage: Mapping[str, Any], what: str, parts: Mapping[str, Any]) -> str:
    tones = {"train": 1, "eval": 2}
    series = [
        Series(part, points, tones.get(part, 3 + i % 2), soft=part == "train")
        for i, (part, points) in enumerate(parts.items())
    ]
    title = f"{stage.get('title') or stage['stage']}, {what}"
    return figure(
        f"<b>{escape(stage['stage'])}</b> {escape(what)}", charts.line_chart(series, title=title, x_label="step")
    )


def hacking(card: Scorecard) -> str:
    found = [_hacked(run) for run in card.get("hacking", ())]
    if not any(found):
        return ""
    return lead(
        "To the right, the policy has moved further from where it began; the proxy is the reward it is trained on, gold the "
        "true worth of its answers. Where both rise it learns the task; where the proxy goes on rising and gold turns down, "
        "it has learned to please its judge instead."
    ) + "".join(found)


def _kl(point: Mapping[str, Any]) -> float | None:
    """Of a point: an estimate of something that is never negative, though the estimate may be."""
    return max(0.0, point["kl"]) if finite(point.get("kl")) else None


def _marked(run: Mapping[str, Any], place: Callable[[Mapping[str, Any]], Any], labels: bool = True) -> list[Mark]:
    """The best checkpoint and the onset, where `place` puts their points."""
    at = {point["step"]: place(point) for point in run["points"]}
    wanted = (("best", run.get("best"), 3), ("onset", run.get("onset"), 4))
    return [Mark(at[step], f"{name}: step {step}" if labels else "", tone) for name, step, tone in wanted if step in at]


def _hacked(run: Mapping[str, Any]) -> str:
    """Both rewards against KL, and beside them what else changed, step by step."""
    stage, points = run["stage"], run.get("points", ())
    lines = [Series(key, [(_kl(p), p.get(key)) for p in points], tone) for key, tone in (("proxy", 2), ("gold", 1))]
    worths = [y for line in lines for _, y in line.points if finite(y)]
    # gold lives in [-1, 1]; a proxy of quite another size gets a chart of its own
    groups = [lines] if worths and max(worths) - min(worths) < 4 else [[line] for line in lines]
    main = "".join(
        charts.line_chart(
            group,
            title=f"{stage}, {' and '.join(line.name for line in group)} against KL",
            x_label="KL from the start, square-root scale" if group is groups[-1] else "",
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
        return "Gold is not known here, so it cannot be seen whether the proxy was hacked."
    told = f"Over-optimised from step {onset} on." if onset is not None else "No over-optimisation seen."
    return told + (f" Best checkpoint: step {best}." if best is not None else "")


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
        lead("The same held-out prompts, put to every stage. Exact: word for word the expected answer.")
        + "".join(found)
        if found
        else ""
    )


def _answer(stage: str, answer: Mapping[str, Any], expected: Any) -> str:
    text = clean(answer.get("text", "")).strip()
    exact = bool(expected) and text == clean(expected).strip()
    body = escape(text if len(text) <= _LONGEST_ANSWER else f"{text[:_LONGEST_ANSWER]} […]")
    notes = ['<span class="ok">✓ exact</span>'] if exact else []
    notes += [f"gold {escape(number(answer['gold'], 2))}"] if finite(answer.get("gold")) else []
    if "finished" in answer:
        notes.append("stopped" if answer["finished"] else '<span class="bad">✗ did not stop</span>')
    return (
        f'<div class="answer{" exact" if exact else ""}"><p class="who"><b>{escape(stage)}</b> <small>{" · ".join(notes)}</small></p>'
        f'<p class="text" dir="auto">{body or "<i>(nothing)</i>"}</p></div>'
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
    head = ("stage", *map(right, ("parameters", "of them trained", "tokens", "tokens a second")))
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
        told = "".join(
            f"<div><dt>{k.replace('_', ' ')}</dt><dd><code>{escape(v)}</code></dd></div>" for k, v in facts if v
        )
        found.append(
            f"<details><summary>{escape(stage['stage'])}</summary>"
            f'<dl class="facts">{told}</dl><pre tabindex="0"><code>{escape(stage["config"])}</code></pre></details>'
        )
    return f'<div class="configs">{"".join(found)}</div>' if found else ""


def again(card: Scorecard) -> str:
    machine = card.get("machine", {})
    facts = [("tinyllm", card.get("version")), ("python", machine.get("python")), ("torch", machine.get("torch"))]
    facts += [("platform", machine.get("platform")), ("device", machine.get("device")), ("seed", card.get("seed"))]
    facts += [("made", card.get("created")), ("format", card.get("schema_version"))]
    told = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts if v is not None)
    command = f'<pre tabindex="0"><code>{escape(card["command"])}</code></pre>' if card.get("command") else ""
    return command + (f'<dl class="facts">{told}</dl>' if told else "")
