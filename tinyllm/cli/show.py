"""Results for people and for programs: on stdout, as a few plain lines, a table, or one JSON object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tinyllm.cli import scores
from tinyllm.errors import USAGE, UserError, harmless

if TYPE_CHECKING:
    from tinyllm.config import Resolved

_START = """tinyllm takes a small language model through its whole life, on this machine.

  tinyllm lifecycle --smoke         every stage, end to end, in about a minute
  tinyllm lifecycle                 the whole life, with gates and one scorecard
  tinyllm pretrain                  a model from raw text
  tinyllm sft                       teach it to answer          (--lora: with an adapter)
  tinyllm rm                        a reward model from preferences
  tinyllm align-offline             DPO, ORPO, SimPO, KTO       (--algorithm NAME)
  tinyllm align-online              GRPO, GSPO, PPO, DAPO, ...  (--algorithm NAME)
  tinyllm eval                      perplexity and bits per byte; benchmarks with --task
  tinyllm chat                      talk to it
  tinyllm explain                   what went wrong in a run, and one thing to try
  tinyllm runs                      what ran, from what, and whether it is intact
  tinyllm verify                    whether the mathematics holds on this machine, in half a minute

Every command rehearses with --fast-dev-run, explains itself with --dry-run and lists its options with --help."""

_NEXT = {
    "data": "tinyllm pretrain, with the same options",
    "pretrain": "tinyllm eval, then tinyllm sft",
    "sft": "tinyllm chat, then tinyllm rm or tinyllm align-offline",
    "sft-lora": "tinyllm chat",
    "rm": "tinyllm align-online --algorithm ppo",
}


def start_here() -> None:
    print(_START)


def result(found: dict[str, Any], *, as_json: bool) -> None:
    """What a stage did."""
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    if found["stage"] == "lifecycle":
        _table(found)
    elif "results" in found:
        scores.table(found)
    elif found["stage"] == "explain":
        _explained(found)
    elif found["stage"] != "chat":
        _lines(found)


def _lines(found: dict[str, Any]) -> None:
    moved = found["moved"]
    print(
        f"{found['stage']}: {moved['what']} {_number(moved['from'])} -> {_number(moved['to'])} in {found['seconds']:.1f} s"
    )
    figures = found.get("best") or {k: v for k, v in found.items() if isinstance(v, float) and k != "seconds"}
    if figures:
        print("  " + "  ".join(f"{name} {_number(value)}" for name, value in figures.items()))
    print(f"  {found.get('checkpoint') or found.get('run')}")
    if found["stage"] in _NEXT:
        print(f"  next: {_NEXT[found['stage']]}")


def _table(found: dict[str, Any]) -> None:
    """A row a stage: seconds, what moved, from where to where."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=None)
    for column, side in (
        ("stage", "left"),
        ("seconds", "right"),
        ("what moved", "left"),
        ("from", "right"),
        ("to", "right"),
    ):
        table.add_column(column, justify=side)
    for row in found["stages"]:
        moved = row["moved"]
        table.add_row(
            row["stage"], f"{row['seconds']:.1f}", moved["what"], _number(moved["from"]), _number(moved["to"])
        )
    Console().print(table)
    print(
        f"{len(found['stages'])} stages in {found['seconds']:.1f} s, at most {found['peak_memory_mb']:,} MB of memory; runs/*/fast-dev-run"
    )


def scorecard(card: dict[str, Any], *, as_json: bool) -> None:
    """A lifecycle with gates: the tables, where the files are, and the verdict last."""
    if as_json:
        print(json.dumps(card, ensure_ascii=False))
        return
    from rich.console import Console

    from tinyllm.stages import report

    console = Console()
    for table in report.terminal(card):
        console.print(table)
    for path in card["files"].values():
        print(f"  {path}")
    print(report.verdict(card))


_COLOURS = {"broken": "bold red", "warning": "yellow", "note": "cyan"}


def _explained(found: dict[str, Any]) -> None:
    """What moved, then a paragraph a finding: symptom, evidence, causes, one thing to try."""
    from rich.console import Console
    from rich.text import Text

    def line(text: str, style: str = "") -> None:  # what a run's files say is not ours
        console.print(Text(harmless(text, keep="\n"), style=style))

    console = Console(soft_wrap=True, highlight=False)
    moved, ran = found["moved"], f"{found['of']}, {found['status']}, step {found['step']:,} of {found['steps']:,}"
    line(f"{found['run']}: {ran}")
    if moved:
        change = f"{_number(moved['from'])} -> {_number(moved['to'])}"
        line(f"  {moved['what']} {change} (held out; ckpt_best, step {moved['step']:,})")
    if found["healthy"]:
        line(f"  healthy: nothing wrong in {found['checks']} checks", style="green")
    for finding in found["findings"]:
        console.print()
        console.print(
            Text.assemble((finding["severity"], _COLOURS[finding["severity"]]), f": {harmless(finding['symptom'])}")
        )
        for label, lines in (
            ("seen", [_evidence(finding["evidence"])]),
            ("causes", finding["causes"]),
            ("try", [finding["try_this"]]),
        ):
            for number, text in enumerate(lines):
                line(f"  {label if number == 0 else '':<8}{text}")
    if found["other_name"]:
        line("\nA run directory belongs to one configuration: give changed settings another --name.")


def _evidence(facts: list[dict[str, Any]]) -> str:
    """`eval loss 1.92 at step 400, 2.31 at step 1,000 (metrics.jsonl)`: a figure is named once, a file once."""
    parts: list[str] = []
    for before, fact in zip([None, *facts], facts, strict=False):
        value = fact["value"]
        text = _number(round(value) if isinstance(value, float) and value.is_integer() else value)
        text += f" at step {fact['step']:,}" if fact["step"] is not None else ""
        same = before is not None and before["figure"] == fact["figure"]
        if before is not None and before["file"] != fact["file"]:
            parts[-1] += f" ({before['file']})"
        parts.append(text if same else f"{fact['figure']} {text}")
    return ", ".join(parts) + f" ({facts[-1]['file']})"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def plan(place: str, resolved: Resolved, *, fast: bool, as_json: bool) -> None:
    """--dry-run: every value with its origin, the parent, and what the run would take."""
    from tinyllm.config import flat

    config = resolved.config
    values = {
        name: {"value": value, "origin": resolved.origins.get(name, "default")} for name, value in flat(config).items()
    }
    cost = _cost(place, config, fast)
    if as_json:
        print(
            json.dumps(
                {"schema_version": 1, "stage": place, "values": values, "cost": cost}, default=str, ensure_ascii=False
            )
        )
        return
    for name, entry in values.items():
        print(f"{name} = {entry['value']}  ({entry['origin']})")
    print()
    for name, value in cost.items():
        print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")


def _cost(place: str, config: Any, fast: bool) -> dict[str, Any]:
    """Parameters, tokens and memory by arithmetic, without torch; the parent must exist."""
    from tinyllm.model.described import CONFIG, read_config
    from tinyllm.stages.parents import BEFORE, find

    found: dict[str, Any] = {}
    shape = config.model if place in ("pretrain", "data") else None
    if place in BEFORE:
        try:
            parent = find(place, config.parent, fast=fast)
        except UserError as error:
            if error.code != USAGE:
                raise
            return {"parent": f"missing: {error.fix}"}
        found["parent"] = parent.folder.as_posix()
        if (parent.folder / CONFIG).is_file():
            shape, _ = read_config(parent.folder)
    if shape is None:
        return found
    parameters = shape.parameters()
    found["parameters"] = parameters
    if place in ("data", "eval", "chat"):
        return found
    train, length = config.train, config.data.max_length
    rows = min(train.micro_batch_size, train.batch_size)
    found["tokens at most"] = train.steps * train.batch_size * length
    fixed, activations = shape.training_bytes(rows, length)
    found["memory for weights, gradients and optimiser (MB)"] = round(fixed / 1e6)
    found["memory for activations, about (MB)"] = round(activations / 1e6)
    return found
