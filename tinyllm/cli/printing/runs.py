"""Output of `tinyllm runs`: tables on a terminal, aligned plain text in a pipe, or one JSON object.

Names, settings and paths come from files that are not trusted, so everything printed goes through `escape_unprintable`, and JSON is ASCII.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinyllm.cli.printing import text
from tinyllm.cli.printing.text import line, minute, number, size
from tinyllm.data.records.report import FIRST_FILES, MAX_FILES
from tinyllm.errors import UserError, escape_unprintable, one_line
from tinyllm.io import strict_json

_EMPTY = "no runs yet: `tinyllm pretrain --fast-dev-run` creates one in a few seconds"
_ERROR_WIDTH = 48  # columns of an error message in a table
_HASH = 12  # characters of a hash that are shown


def as_json(found: Mapping[str, Any]) -> None:
    print(strict_json.dumps(found))


def _table(columns: Mapping[str, str], rows: Sequence[Sequence[str]], spare: Sequence[str] = ()) -> None:
    """columns: title -> "left" or "right". On a terminal too narrow for all of them, those in `spare` are left out first."""
    cells = [list(columns), *([escape_unprintable(cell) for cell in row] for row in rows)]
    widths = [max(text.columns(row[i]) for row in cells) for i in range(len(columns))]
    if not sys.stdout.isatty():
        for row in cells:
            padded = [text.pad(c, w, side) for c, w, side in zip(row, widths, columns.values(), strict=True)]
            line("  ".join(padded).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, table, kept = Console(), Table(box=None, pad_edge=False), list(range(len(columns)))
    for title in spare:
        if sum(widths[i] + 2 for i in kept) - 2 > console.width:
            kept.remove(list(columns).index(title))
    for title, side in (list(columns.items())[i] for i in kept):
        table.add_column(title, justify="right" if side == "right" else "left", overflow="fold")
    for row in cells[1:]:
        table.add_row(*(Text(row[i]) for i in kept))
    console.print(table)


# --- list ------------------------------------------------------------------------------------------------------------------------


def listed(found: Mapping[str, Any]) -> None:
    hidden = found["hidden"]
    if found["runs"]:
        columns = {"run": "left", "stage": "left", "status": "left", "step": "right", "metric": "left"}
        columns |= {"seconds": "right", "ended": "left", "size": "right"}
        _table(columns, [_row(row) for row in found["runs"]], spare=("size", "seconds", "ended", "stage"))
    elif not hidden:
        line(_EMPTY)
    if hidden:
        what = "fast-dev-run or moved-aside run" if hidden == 1 else "fast-dev-runs or moved-aside runs"
        line(f"{hidden} {what} hidden: tinyllm runs list --all")


def _row(row: Mapping[str, Any]) -> list[str]:
    steps = f"{number(row['step'])}/{number(row['steps'])}"
    seconds = "" if row["seconds"] is None else f"{row['seconds']:,.0f}"
    ended = "" if row["status"] == "running" else minute(row["written"])
    return [
        row["name"],
        row["stage"] or "?",
        _status(row),
        steps,
        _moved(row["moved"]),
        seconds,
        ended,
        size(row["bytes"]),
    ]


def _status(row: Mapping[str, Any]) -> str:
    detail = one_line(row["error"] or "") or "; ".join(row["faults"])
    if row["pid"] is not None:
        return f"{row['status']} (pid {row['pid']})"
    detail = text.cut(detail, _ERROR_WIDTH)
    return f"{row['status']}: {detail}" if detail else row["status"]


def _moved(moved: Mapping[str, Any] | None) -> str:
    return f"{moved['what']} {number(moved['from'])} -> {number(moved['to'])}" if moved else ""


# --- show ------------------------------------------------------------------------------------------------------------------------


def changed(found: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return the settings that differ from the defaults of the command: key -> {value, usual}; None if these are unknown."""
    from tinyllm.cli.resolve import STAGES, resolve, stage_of
    from tinyllm.config import dump

    stage, settings = found["of"], found["settings"]
    if stage is None:
        return None
    options = {} if stage in STAGES else {"algorithm": stage}
    usual = stage_of(stage, "grpo" if "rollout" in settings else "dpo")
    try:
        fast = found["fast_dev_run"]
        before = dict(_flat(dump(resolve(usual, None, [], options, {}, fast=fast).config)))
    except UserError:
        return None
    now = dict(_flat(settings))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key) and key not in ("name", *options)]
    sides = {"value": now, "usual": before}
    return {key: {side: values[key] for side, values in sides.items() if key in values} for key in keys}


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(found: Mapping[str, Any]) -> None:
    step = f"step {number(found['step'])} of {number(found['steps'])}"
    line(f"{found['run']}: {found['of'] or '?'}, {_status(found)}, {step}, {size(found['bytes'])}")
    for label, value in _about(found):
        line(f"  {label:<13}{value}")
    if found["checkpoints"]:
        line("")
        columns = {"  step": "right", "size": "right", "files": "left", "": "left"}
        _table(columns, [_checkpoint(row) for row in found["checkpoints"]])
    if any(found["figures"].values()):
        line("")
        names = list(dict.fromkeys(name for figures in found["figures"].values() for name in figures))
        columns = {"  held out": "left", **dict.fromkeys(found["figures"], "right")}
        rows = [["  " + n, *("" if n not in f else number(f[n]) for f in found["figures"].values())] for n in names]
        _table(columns, rows)


def _about(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (label, value) lines; a repeated label is empty."""
    yield from ((("damaged" if i == 0 else ""), fault) for i, fault in enumerate(found["faults"]))
    times = f"started {minute(found['started'] or '?')}, last written {minute(found['written'])}"
    yield "when", times + ("" if found["seconds"] is None else f", {found['seconds']:,.1f} s")
    if found["owner"]:
        yield "running as", f"pid {found['owner'].get('pid')} on {found['owner'].get('host')}"
    if found["command"]:
        yield "command", found["command"]
    for i, change in enumerate(found["changes"]):
        yield "changed" if i == 0 else "", _change(change)
    for role in ("parent", "reward_model"):
        if found[role]:
            sha256 = str(found[role].get("manifest_sha256") or "no manifest")
            yield role.replace("_", " "), f"{found[role].get('checkpoint')}  {sha256[:_HASH]}"
    data = found["data"]
    shown = len(data) if len(data) <= MAX_FILES else FIRST_FILES
    for i, source in enumerate(data[:shown]):
        yield "data" if i == 0 else "", _source(source)
    if data[shown:]:
        yield "", f"{len(data) - shown:,} more files"
    yield "tokenizer", str(found["tokenizer_sha256"])[:_HASH]
    yield "seed", f"{found['seed']}, world size {found['world_size']}"
    trained = f"{number(found['trainable_parameters'])} trained" if found["trainable_parameters"] is not None else ""
    yield "parameters", f"{number(found['parameters'])} ({trained})" if trained else number(found["parameters"])
    yield "versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items()) or "?"
    yield "config", found["config"]
    for key, value in (found["changed_settings"] or {}).items():
        yield "", f"{key} = {value.get('value', '(none)')}  (default {value.get('usual', '(none)')})"


def _change(change: Mapping[str, Any]) -> str:
    how = f" ({change['schedule']})" if change.get("schedule") else ""
    return f"after step {change['at_step']:,}: {change['key']} {change.get('from')} -> {change.get('to')}{how}"


def _source(source: Mapping[str, Any]) -> str:
    path = source.get("shards", source.get("source"))
    sha256 = source.get("fingerprint", source.get("sha256"))
    return f"{path}  {str(sha256)[:_HASH]}" if sha256 else f"{path}  seed {source.get('seed')}"


def _checkpoint(row: Mapping[str, Any]) -> list[str]:
    names = [name for name in ("best", "latest") if row[name]]
    return [f"  {row['step']:,}", size(row["bytes"]), row["fault"] or "complete", ", ".join(names)]


# --- verify ----------------------------------------------------------------------------------------------------------------------


def verified(found: Mapping[str, Any]) -> str:
    """Format what was read: `6 runs, 18 checkpoints, 149 files, 1.9 MB: 0 problems`."""
    counts = [f"{found[name]:,} {name}" for name in ("runs", "checkpoints", "files")]
    problems = len(found["problems"])
    return f"{', '.join([*counts, size(found['bytes'])])}: {problems} problem{'s' * (problems != 1)}"


# --- lineage ---------------------------------------------------------------------------------------------------------------------


def tree(node: Mapping[str, Any], first: str = "", rest: str = "") -> Iterator[str]:
    """Yield the lines of a lineage node and, indented below it, of what it was made from. Of many unchanged files, only the first."""
    yield first + _node(node)
    children, more = _folded(node["children"])
    for child in children:
        last = child is children[-1] and not more
        yield from tree(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))
    if more:
        yield f"{rest}└─ {more:,} more files  ok"


def _folded(children: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], int]:
    """Return the nodes to print, and the number of unchanged files that are left out."""
    files = [
        child for child in children if child["kind"] == "data" and child["status"] == "ok" and not child["children"]
    ]
    out = {id(child) for child in files[FIRST_FILES:]} if len(files) > MAX_FILES else set()
    return [child for child in children if id(child) not in out], len(out)


def _node(node: Mapping[str, Any]) -> str:
    parts = [f"{node['kind']} {node['name']}"]
    if node.get("step") is not None:
        parts[0] += f" step {node['step']:,}"
    elif node["kind"] == "data" and node["seed"] is not None:
        parts[0] += f" seed {node['seed']}"
    parts += [str(node["recorded"])[:_HASH]] if node["recorded"] else []
    parts.append(node["status"] if node["kind"] != "run" else str(node["stage"] or "?"))
    if node["status"] == "changed":
        parts[-1] += f" (now {node['now'][:_HASH]})" if node["now"] else " (now unreadable)"
    if node["moved_to"]:
        parts[-1] = f"moved to {node['moved_to']}"
    if node.get("lineage"):
        parts.append(f"lineage {node['lineage'][:_HASH]}")
    if node.get("repeated") and node["lineage"]:
        parts.append("(as above)")
    return "  ".join(parts)
