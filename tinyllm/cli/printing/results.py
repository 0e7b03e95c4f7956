"""Print the result of a stage on stdout: a few lines, a table, or one JSON object."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm.cli.printing import eval
from tinyllm.cli.printing.text import change, json_object, line, number
from tinyllm.errors import USAGE, UserError, escape_unprintable
from tinyllm.io.shell import quote

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

_NEXT = {  # commands as they can be typed
    "data": ("tinyllm pretrain",),
    "pretrain": ("tinyllm eval", "tinyllm sft"),
    "sft": ("tinyllm chat", "tinyllm rm", "tinyllm align-offline"),
    "sft-lora": ("tinyllm chat",),
    "rm": ("tinyllm align-online --algorithm ppo",),
}


def start_here() -> None:
    print(_START)


def result(found: dict[str, Any], *, as_json: bool) -> None:
    """Print what a stage returned."""
    if as_json:
        json_object(found)
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
    of = f" ({moved['split']}, step {moved['step']:,})" if "split" in moved else ""
    line(f"{found['stage']}: {moved['what']} {change(moved['from'], moved['to'])}{of} in {found['seconds']:.1f} s")
    figures = _examined(found) or {k: v for k, v in found.items() if isinstance(v, float) and k != "seconds"}
    if figures:
        line("  " + "  ".join(f"{name} {number(value)}" for name, value in figures.items()))
    line(f"  {found.get('checkpoint') or found.get('run')}")
    for command in _NEXT.get(found["stage"], ()):
        line(f"  next: {command}{_same_options(found)}")


def _examined(found: dict[str, Any]) -> dict[str, Any]:
    """Return the test figures of the best checkpoint, or without any those of the last one on the records that selected the best."""
    return ((found.get("test") or {}).get("best") or {}).get("figures") or found.get("last") or {}


def _same_options(found: dict[str, Any]) -> str:
    """Return the options that the next command needs as well: those of the data, and --fast-dev-run after such a run."""
    if found["stage"] == "data" and sys.argv[1:3] == ["data", "prepare"]:
        return "".join(f" {quote(word)}" for word in sys.argv[3:])
    from tinyllm.train.fast_dev_runs import is_fast_dev_run
    from tinyllm.train.run import read_facts

    folder = Path(found.get("run") or "")
    return " --fast-dev-run" if is_fast_dev_run(folder, read_facts(folder)) else ""


def _table(found: dict[str, Any]) -> None:
    """Print one row per stage: seconds, and its main figure before and after."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=None)
    for column in ("stage", "seconds", "metric", "before", "after"):
        table.add_column(column, justify="left" if column in ("stage", "metric") else "right")
    for row in found["stages"]:
        moved = row["moved"]
        before = "" if moved["from"] is None else number(moved["from"])
        table.add_row(row["stage"], f"{row['seconds']:.1f}", moved["what"], before, number(moved["to"]))
    Console().print(table)
    line(
        f"{len(found['stages'])} stages in {found['seconds']:.1f} s, peak memory {found['peak_memory_mb']:,} MB; runs/*/fast-dev-run"
    )


def scorecard(card: dict[str, Any], *, as_json: bool) -> None:
    """Print the scorecard of a lifecycle: tables, paths of its files, and the verdict last."""
    if as_json:
        json_object(card)
        return
    from rich.console import Console

    from tinyllm.html import report

    console = Console()
    for table in report.terminal(card):
        console.print(table)
    if overlap := report.overlap_line(card):
        line(f"  {overlap}")
    for path in card["files"].values():
        line(f"  {path}")
    line(report.verdict(card))


_COLOURS = {"broken": "bold red", "warning": "yellow", "note": "cyan"}


def _explained(found: dict[str, Any]) -> None:
    """Print the main figure, then one paragraph per finding: symptom, evidence, causes, one thing to try."""
    from rich.console import Console
    from rich.text import Text

    def shown(text: str, style: str = "") -> None:  # text from a run's files is not trusted
        console.print(Text(escape_unprintable(text, keep="\n"), style=style))

    console = Console(soft_wrap=True, highlight=False)
    moved, ran = found["moved"], f"{found['of']}, {found['status']}, step {found['step']:,} of {found['steps']:,}"
    shown(f"{found['run']}: {ran}")
    if moved:
        figures = change(moved["from"], moved["to"])
        which = "test; ckpt_best" if moved["split"] == "test" else "val"
        shown(f"  {moved['what']} {figures} ({which}, step {moved['step']:,})")
    shown(f"  {_verdict(found)}", style="green" if found["healthy"] else "")
    for label, entries in (("no figures", _missing_figures(found)), ("not applicable", _excluded(found))):
        for position, text in enumerate(entries):
            shown(f"  {label if position == 0 else '':<16}{text}")
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
                shown(f"  {label if position == 0 else '':<10}{text}")
    if found["other_name"]:
        shown("\nChanged settings need another --name; --change KEY=VALUE continues this run with some of them.")


def _verdict(found: dict[str, Any]) -> str:
    """Return how many checks had figures, and whether those found a problem. `healthy` is said only if none was left out."""
    share = f"{found['examined']} of {found['checks']} checks"
    if not found["measured"]:
        return f"nothing was measured: {share} had something to read, none of them figures of training"
    if not found["healthy"]:
        return f"{share} had figures"
    return ("healthy: " if found["examined"] == found["checks"] else "") + f"no problem found by {share}"


def _missing_figures(found: dict[str, Any]) -> list[str]:
    """Return one line for each missing figure: why, and the checks that could not examine anything without it."""
    checks: dict[str, list[str]] = {}
    for entry in found["not_examined"]:
        figure = "" if entry["why"].startswith("no ") else f"{entry['figure']}: "  # no lines at all
        checks.setdefault(figure + entry["why"], []).append(entry["check"])
    return [f"{figure} ({', '.join(names)})" for figure, names in checks.items()]


def _excluded(found: dict[str, Any]) -> list[str]:
    checks: dict[str, list[str]] = {}
    for entry in found["not_applicable"]:
        checks.setdefault(entry["why"], []).append(entry["check"])
    return [f"{', '.join(names)}: {why}" for why, names in checks.items()]


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
    rewards = _rewards(config)
    if as_json:
        found = {"schema_version": 1, "stage": place, "values": values, "cost": cost}
        json_object(found | ({"rewards": rewards} if rewards else {}), default=str)
        return
    for name, entry in values.items():
        line(f"{name} = {entry['value']}  ({entry['origin']})")
    print()
    for name, what in rewards.items():
        line(f"{name}: {what}")
    for name, value in cost.items():
        line(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")


def _rewards(config: Any) -> dict[str, str]:
    """Return the figures of an online stage's rewards and what they are."""
    from tinyllm.stages.config import AlignOnlineConfig

    if not isinstance(config, AlignOnlineConfig):
        return {}
    from tinyllm.rollout import checks

    return checks.described(config.rewards)


def _cost(place: str, config: Any, fast: bool) -> dict[str, Any]:
    """Return parameters, tokens and memory, computed without torch, and the parent checkpoint."""
    from tinyllm.model.adapter_config import ADAPTER
    from tinyllm.model.hf_config import CONFIG
    from tinyllm.stages.config import data_kind
    from tinyllm.stages.parents import PARENT_PLACES, find_checkpoint
    from tinyllm.stages.planning.memory import shape_of

    found: dict[str, Any] = {}
    folder: Path | None = None
    shape = config.model if place in ("pretrain", "data") else None
    continued = place in ("pretrain", "data") and config.parent is not None
    if place in PARENT_PLACES or continued:
        try:
            parent = find_checkpoint(place, config.parent, fast=fast, base=config.base, weights=False)
        except UserError as error:
            if error.code != USAGE or config.parent is not None:  # a name that was given must be right
                raise
            return {"parent": f"missing: {error.fix}"}
        found["parent"] = parent.folder.as_posix()
        if not continued and any((parent.folder / name).is_file() for name in (CONFIG, ADAPTER)):
            folder = parent.folder
            shape = shape_of(folder, config.base)
    if shape is None:
        return found
    parameters = shape.parameters()
    found["parameters"] = parameters
    if place in ("data", "eval", "chat"):
        return found
    train = config.train
    rows = 2 if data_kind(config) == "pairs" else 1  # two answers for each record
    found["tokens at most"] = train.steps * train.batch_size * rows * config.data.max_length
    return found | _memory(config, folder, config.base if folder else None)


def _memory(config: Any, parent: Path | None, base: Path | None) -> dict[str, Any]:
    """Return what the training needs of the memory, and what there is."""
    from tinyllm.stages.planning import memory as memory_plan
    from tinyllm.train import estimate
    from tinyllm.train.memory import available_memory

    run = memory_plan.plan(config, parent, base)
    assert run is not None
    amounts = {
        "memory for weights, gradients and optimiser (MB)": estimate.fixed(run),
        "memory for activations, about (MB)": estimate.micro_batch(run),
        "memory at its peak, about (MB)": estimate.peak(run),
        "memory that there is (MB)": available_memory(),
    }
    switched = {
        "activation checkpointing": "on" if run.checkpointing else "off",
        "precision": "bf16" if run.bf16 else "fp32",
    }
    return {name: round(amount / 1e6) for name, amount in amounts.items() if amount} | switched
