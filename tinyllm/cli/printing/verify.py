"""Output of `tinyllm verify`: one line per check as it finishes, a table on a terminal, one JSON object with --json."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tinyllm.cli.printing.text import json_object, line
from tinyllm.errors import FAILED, UserError, escape_unprintable

if TYPE_CHECKING:
    from tinyllm.diagnostics.checks.result import CheckResult

_COLOURS = {"ok": "green", "failed": "bold red", "skipped": "yellow"}


def watcher(*, as_json: bool, quiet: bool) -> Callable[[CheckResult], None]:
    """Return a function that prints each finished check: as the result in a pipe, else as progress on stderr."""
    if not as_json and not sys.stdout.isatty():
        return lambda result: print(*map(escape_unprintable, _lines(result.to_json())), sep="\n", flush=True)
    if quiet:
        return lambda result: None
    return lambda result: print(
        f"{result.status:<8}{result.name:<14}{result.seconds:5.1f} s", file=sys.stderr, flush=True
    )


def show(found: dict[str, Any], *, as_json: bool) -> None:
    """Print the result.

    Raises: UserError (FAILED) with the failed checks and their differences.
    """
    if as_json:
        json_object(found)
    else:
        if sys.stdout.isatty():
            _table(found)
        line(_verdict(found))
        line(f"  {found['of']}")
    failed = [check for check in found["checks"] if check["status"] == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(found['checks'])} checks failed: {'; '.join(map(_why, failed))}",
            fix="check your changes to the code; without any, report the output of `tinyllm verify --json`",
            code=FAILED,
        )


def _lines(check: dict[str, Any]) -> list[str]:
    """Format one line per comparison: `ok  lora  2.1e-05 <= 0.0001 nats  adapter vs merged weights [of 9,216; adapter 3.1 >= 0.001]`."""
    start = f"{check['status']:<8}{check['name']:<14}"
    if not check["compared"]:
        return [start + check["reason"]]
    return [f"{start}{_against(row):<26}{_what(row)}" for row in check["compared"]]


def _against(row: dict[str, Any]) -> str:
    return f"{_number(row['difference'])} {'<=' if _is_small(row) else '> '} {_number(row['allowed'])} {row['unit']}"


def _is_small(row: dict[str, Any]) -> bool:
    return row["difference"] is not None and row["difference"] <= row["allowed"]


def _what(row: dict[str, Any]) -> str:
    """Format what was compared, how many values, and how large the effects are without which there is nothing to compare."""
    seen = "; ".join([f"of {row['n']:,}", *map(_effect, row["effects"])])
    return f"{row['what']} [{seen}]"


def _effect(row: dict[str, Any]) -> str:
    return f"{row['what']} {_number(row['value'])} {'>=' if row['passed'] else '< '} {_number(row['least'])}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.2g}"


def _why(check: dict[str, Any]) -> str:
    worst = [row for row in check["compared"] if not row["passed"]]
    if not worst:
        return f"{check['name']} ({check['reason']})"
    row = worst[0]
    if _is_small(row):
        missing = [f"effect of {effect}" for effect in (_effect(e) for e in row["effects"] if not e["passed"])]
        return f"{check['name']} (nothing under test: {'; '.join(missing) or 'no values compared'}: {row['what']})"
    return f"{check['name']} ({_number(row['difference'])} {row['unit']}, allowed {_number(row['allowed'])}: {row['what']})"


def _verdict(found: dict[str, Any]) -> str:
    """`verify: 12 checks ok, 1 skipped in 14.2 s (cpu, 2 threads, torch 2.13.0, …)`."""
    counts = {status: sum(check["status"] == status for check in found["checks"]) for status in _COLOURS}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "ok")
    here = found["machine"]
    threads = f"{here['threads']} thread{'s' if here['threads'] != 1 else ''}"
    place = f"{here['device']}, {threads}, torch {here['torch']}, {here['platform']}"
    return f"verify: {said} in {found['seconds']:.1f} s ({place})"


def _table(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("check", "compared"):
        table.add_column(column, overflow="fold")
    for column in ("largest\ndifference", "allowed", "s"):
        table.add_column(column, justify="right")
    table.add_column("")
    for check in found["checks"]:
        status = Text(check["status"], style=_COLOURS[check["status"]])
        seconds = f"{check['seconds']:.1f}"
        if not check["compared"]:
            table.add_row(check["name"], Text(check["reason"]), "", "", seconds, status)
        for number, row in enumerate(check["compared"]):
            first = (check["name"], seconds, status) if number == 0 else ("", "", "")
            allowed = f"{_number(row['allowed'])} {row['unit']}".strip()
            table.add_row(first[0], Text(_what(row)), _number(row["difference"]), allowed, *first[1:])
    Console().print(table)
