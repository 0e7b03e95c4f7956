"""Write docs/evidence.md from the records that exist, and fill the figures of the READMEs from it.

A block is what stands between `<!-- evidence: NAME -->` and `<!-- end of evidence -->`. The page has every block; a README has some of
them, with the same text. `fill` replaces them, `blocks_of` reads them, and a test compares.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.evidence.parts import PARTS, Part
from tests.evidence.running import ROOT, code, load

PAGE = ROOT / "docs" / "evidence.md"
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
BLOCK = re.compile(r"<!-- evidence: ([a-z-]+) -->\n(.*?)<!-- end of evidence -->", re.DOTALL)
NOT_RUN = "not run with this version"
SECTIONS = (
    *("smoke", "lifecycle", "faults", "control", "overlap", "verify", "parity", "throughput", "preparation"),
    *("crash", "crash-lifecycle", "kills", "signals", "slow", "mutations", "machine"),
)
# shown by their counts
COUNTED = ("signals", "crash", "crash-lifecycle", "kills", "parity", "slow", "mutations", "machine")
_HEAD = """# Evidence

What was run to find out whether this version works, and what it showed. Written by `make evidence` (`python -m tests.evidence`), never by
hand; the figures in [README](../README.md) are copies of the blocks below, and `tests/test_evidence.py` compares them. A part that counted
nothing, or that ended with another exit code than 0, has not passed. "By an earlier version" says that a file which the part depends on has
changed since (`depends` in `tests/evidence/parts.py`); documents are not among them. A part that has no result was not run on this machine.

Terms of the table: a *weak* case of parity saw nothing, or would not notice the mistake planted in it; the *largest difference* is that of
a loss or a gradient from the peer's, relative to its size, and the *nearest planted mistake* the smallest difference that a wrong loss
makes. A bug *survived* if no test that should notice it failed. *nan* is a figure of nothing, such as the win rate of a model against
itself.
"""


def blocks_of(text: str) -> dict[str, str]:
    """Return name -> content of every block."""
    return dict(BLOCK.findall(text))


def fill(text: str, blocks: dict[str, str]) -> str:
    """Return the text with the content of every block replaced. Raises: KeyError for a block that nothing fills."""
    return BLOCK.sub(lambda found: block(found[1], blocks[found[1]]), text)


def block(name: str, content: str) -> str:
    return f"<!-- evidence: {name} -->\n{content}<!-- end of evidence -->"


def render(out: Path) -> str:
    """Return the page. Parts without a record are named as such."""
    records = {part.name: load(out, part.name) for part in PARTS}
    text = [_HEAD, _measured([r for r in records.values() if r]), _table(records)]
    for part in PARTS:
        if part.name in SECTIONS:
            text.append(f"## {part.title}\n\n{block(part.name, _content(part, records[part.name]))}\n")
            text += [_failures(records[part.name]), _rooms(records[part.name])]
    return "\n".join(line for line in text if line)


def would_lose(out: Path) -> list[str]:
    """Return the parts that have a result on the page and none in the folder."""
    page = PAGE.read_text("utf-8") if PAGE.is_file() else ""
    shown = {
        name
        for name, result in re.findall(r"^\| ([a-z-]+) \| `.* \| ([^|]+) \|$", page, re.MULTILINE)
        if result != NOT_RUN
    }
    return [part.name for part in PARTS if part.name in shown and load(out, part.name) is None]


def write(out: Path) -> list[Path]:
    """Write the page and the blocks of the READMEs. Return the files that changed."""
    page = render(out)
    wanted = {PAGE: page} | {path: fill(path.read_text("utf-8"), blocks_of(page)) for path in READMES}
    changed = [path for path, text in wanted.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in changed:
        path.write_text(wanted[path], "utf-8")
    return changed


def _measured(records: list[dict[str, Any]]) -> str:
    """Return a line of date, commit, versions and machine for each combination of them."""
    if not records:
        return f"Nothing was run yet: every part is {NOT_RUN}.\n"
    groups: dict[str, list[str]] = {}
    for record in sorted(records, key=lambda r: r["started"]):
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        machine = "{cores} cores, threads: {threads}, {platform}".format(**record["machine"])
        tree = f"commit {record['commit'] or 'unknown'}" + (" with uncommitted changes" if record["dirty"] else "")
        groups.setdefault(f"{record['started'][:10]}, {tree}; {versions}; {machine}", []).append(record["part"])
    lines = [f"- {key}" + (f" ({', '.join(parts)})" if len(groups) > 1 else "") for key, parts in groups.items()]
    return "\n".join(lines) + "\n"


def _table(records: dict[str, dict[str, Any] | None]) -> str:
    rows = ["| part | command | counted | duration | result |", "|---|---|---|---:|---|"]
    for part in PARTS:
        record = records[part.name]
        if record is None:
            rows.append(f"| {part.name} | `{_form(part)}` | | | {NOT_RUN} |")
            continue
        counts = ", ".join(f"{name} {_number(value)}" for name, value in record["counts"].items()) or "nothing"
        rows.append(
            f"| {part.name} | `{record['command']}` | {counts} | {_duration(record['seconds'])} | {_result(part, record)} |"
        )
    seconds = sum(record["seconds"] for record in records.values() if record)
    left = sum(record is None for record in records.values())
    more = f", without {left} parts that were not run" if left else ""
    return "\n".join([*rows, f"\nSum of the durations{more}: {_duration(seconds)}. Some parts ran beside others.\n"])


def _result(part: Part, record: dict[str, Any]) -> str:
    words = "passed" if record["passed"] else "**failed**"
    if record["exit_code"] is None:
        words = "**no end**"
    elif not record["passed"] and record["exit_code"] != 0:
        words += f" (exit code {record['exit_code']})"
    return words if record["code"] == code(part.depends) else f"{words}, by an earlier version"


def _content(part: Part, record: dict[str, Any] | None) -> str:
    """Return the text of a block: the output of the command, or the counts of one that prints an object."""
    if record is None:
        return f"`{_form(part)}`: {NOT_RUN}.\n"
    lines = [f"{name:<34}{_number(value):>10}" for name, value in record["counts"].items()]
    output = record["output"].rstrip() if part.name not in COUNTED else "\n".join(lines)
    facts = f"{record['started'][:10]}, commit {record['commit'] or 'unknown'}, {_result(part, record)}"
    return f"`{record['command']}` ({facts}):\n\n```\n{output or 'nothing'}\n```\n"


def _form(part: Part) -> str:
    """Return the command of a part that was not run."""
    return part.command.format(out="FOLDER", json="FILE", seed="…", sample="…")


def _failures(record: dict[str, Any] | None) -> str:
    """Return the names of what failed, was lost or differed, from the details of a part."""
    details = record["details"] if record else {}
    lines = []
    for kind in ("failed", "lost", "different", "wrong"):
        found = details.get(kind) or {}
        reasons = found if isinstance(found, dict) else dict.fromkeys(map(str, found), "")
        lines += [f"- {kind}: `{name}`" + f" ({reason})" * bool(reason) for name, reason in reasons.items()]
    return "\n".join([*lines, ""]) if lines else ""


def _rooms(record: dict[str, Any] | None) -> str:
    """Return the mutants by room, and those that survived."""
    if record is None or not record["details"].get("rooms"):
        return ""
    kinds = _kinds(record["details"]["rooms"])
    rows = [f"| room | {' | '.join(kinds)} |", "|---|" + "---:|" * len(kinds)]
    rows += [
        f"| {name} | {' | '.join(str(room.get(kind, 0)) for kind in kinds)} |"
        for name, room in sorted(record["details"]["rooms"].items())
    ]
    survived = record["details"]["survived"]
    rows += [f"\nSurvived: {', '.join(f'`{name}`' for name in survived)}."] if survived else []
    if kept := record["details"].get("kept"):
        rows += ["\nWhat they break (the part before the colon of `keeps` in `tests/mutants`):\n"]
        rows += ["| | with a planted bug | seen red |", "|---|---:|---:|"]
        rows += [f"| {kind} | {n['with a planted bug']} | {n['seen red']} |" for kind, n in kept.items()]
        missed = [f"{kind}: {thing}" for kind, n in kept.items() for thing in n.get("missed", ())]
        rows += [f"\nNot seen red: {'; '.join(missed)}."] if missed else []
    return "\n".join([*rows, ""])


def _kinds(rooms: dict[str, dict[str, int]]) -> list[str]:
    found = {kind for room in rooms.values() for kind in room}
    first = ["planted", "killed", "survived"]
    return [*first, *sorted(found - set(first))]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
