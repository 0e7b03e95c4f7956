"""Print the result of a stage on stdout: a few lines, a table, or one JSON object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tinyllm.cli.printing import eval
from tinyllm.cli.printing.text import number
from tinyllm.errors import USAGE, UserError, escape_unprintable

if TYPE_CHECKING:
    from tinyllm.config import Resolved

_START = """tinyllm trains, aligns and evaluates a small language model on this machine.

  tinyllm lifecycle --smoke         every stage with a tiny model, in about a minute
  tinyllm lifecycle                 every stage, with acceptance gates and one scorecard
  tinyllm pretrain                  train a base model on raw text
  tinyllm sft                       supervised fine-tuning       (--lora: train an adapter)
  tinyllm rm                        train a reward model on preference pairs
  tinyllm align-offline             DPO, ORPO, SimPO, KTO       (--algorithm NAME)
  tinyllm align-online              GRPO, GSPO, PPO, DAPO, ...  (--algorithm NAME)
  tinyllm eval                      perplexity, bits per byte; benchmarks with --task
  tinyllm chat                      chat with a checkpoint
  tinyllm explain                   diagnose a run
  tinyllm runs                      list, show and verify runs
  tinyllm verify                    check the computations on this machine

Options of every stage: --fast-dev-run (a tiny run), --dry-run (settings and cost), --help."""

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
    """Print what a stage returned."""
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    if found["stage"] == "lifecycle":
        _table(found)
    elif "results" in found:
        eval.table(found)
    elif found["stage"] == "explain":
        _explained(found)
    elif found["stage"] != "chat":
        _lines(found)


def _lines(found: dict[str, Any]) -> None:
    moved = found["moved"]
    print(
        f"{found['stage']}: {moved['what']} {number(moved['from'])} -> {number(moved['to'])} in {found['seconds']:.1f} s"
    )
    figures = found.get("best") or {k: v for k, v in found.items() if isinstance(v, float) and k != "seconds"}
    if figures:
        print("  " + "  ".join(f"{name} {number(value)}" for name, value in figures.items()))
    print(f"  {found.get('checkpoint') or found.get('run')}")
    if found["stage"] in _NEXT:
        print(f"  next: {_NEXT[found['stage']]}")


def _table(found: dict[str, Any]) -> None:
    """Print one row per stage: seconds, and its main figure before and after."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=None)
    for column in ("stage", "seconds", "metric", "before", "after"):
        table.add_column(column, justify="left" if column in ("stage", "metric") else "right")
    for row in found["stages"]:
        moved = row["moved"]
        table.add_row(row["stage"], f"{row['seconds']:.1f}", moved["what"], number(moved["from"]), number(moved["to"]))
    Console().print(table)
    print(
        f"{len(found['stages'])} stages in {found['seconds']:.1f} s, peak memory {found['peak_memory_mb']:,} MB; runs/*/fast-dev-run"
    )


def scorecard(card: dict[str, Any], *, as_json: bool) -> None:
    """Print the scorecard of a lifecycle: tables, paths of its files, and the verdict last."""
    if as_json:
        print(json.dumps(card, ensure_ascii=False))
        return
    from rich.console import Console

    from tinyllm.html import report

    console = Console()
    for table in report.terminal(card):
        console.print(table)
    for path in card["files"].values():
        print(f"  {path}")
    print(report.verdict(card))


_COLOURS = {"broken": "bold red", "warning": "yellow", "note": "cyan"}


def _explained(found: dict[str, Any]) -> None:
    """Print the main figure, then one paragraph per finding: symptom, evidence, causes, one thing to try."""
    from rich.console import Console
    from rich.text import Text

    def line(text: str, style: str = "") -> None:  # text from a run's files is not trusted
        console.print(Text(escape_unprintable(text, keep="\n"), style=style))

    console = Console(soft_wrap=True, highlight=False)
    moved, ran = found["moved"], f"{found['of']}, {found['status']}, step {found['step']:,} of {found['steps']:,}"
    line(f"{found['run']}: {ran}")
    if moved:
        change = f"{number(moved['from'])} -> {number(moved['to'])}"
        line(f"  {moved['what']} {change} (held out; ckpt_best, step {moved['step']:,})")
    if found["healthy"]:
        line(f"  healthy: no problem found by {found['checks']} checks", style="green")
    for finding in found["findings"]:
        console.print()
        console.print(
            Text.assemble(
                (finding["severity"], _COLOURS[finding["severity"]]), f": {escape_unprintable(finding['symptom'])}"
            )
        )
        for label, lines in (
            ("evidence", [_evidence(finding["evidence"])]),
            ("causes", finding["causes"]),
            ("try", [finding["try_this"]]),
        ):
            for position, text in enumerate(lines):
                line(f"  {label if position == 0 else '':<10}{text}")
    if found["other_name"]:
        line("\nA run directory belongs to one configuration: use another --name for changed settings.")


def _evidence(facts: list[dict[str, Any]]) -> str:
    """Format facts as `eval loss 1.92 at step 400, 2.31 at step 1,000 (metrics.jsonl)`, naming each figure and file once."""
    parts: list[str] = []
    for before, fact in zip([None, *facts], facts, strict=False):
        value = fact["value"]
        text = number(round(value) if isinstance(value, float) and value.is_integer() else value)
        text += f" at step {fact['step']:,}" if fact["step"] is not None else ""
        same = before is not None and before["figure"] == fact["figure"]
        if before is not None and before["file"] != fact["file"]:
            parts[-1] += f" ({before['file']})"
        parts.append(text if same else f"{fact['figure']} {text}")
    return ", ".join(parts) + f" ({facts[-1]['file']})"


def plan(place: str, resolved: Resolved, *, fast: bool, as_json: bool) -> None:
    """Print the plan of --dry-run: every setting with its origin, the parent, and the cost of the run."""
    from tinyllm.config import flatten

    config = resolved.config
    values = {
        name: {"value": value, "origin": resolved.origins.get(name, "default")}
        for name, value in flatten(config).items()
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
    """Return parameters, tokens and memory, computed without torch, and the parent checkpoint."""
    from tinyllm.model.hf_config import CONFIG, read_config
    from tinyllm.stages.parents import PARENT_PLACES, find_checkpoint

    found: dict[str, Any] = {}
    shape = config.model if place in ("pretrain", "data") else None
    if place in PARENT_PLACES:
        try:
            parent = find_checkpoint(place, config.parent, fast=fast)
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
