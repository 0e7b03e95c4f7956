"""Print the detected kind and format of every file in a folder, and what is read from it.

    python benchmarks/formats.py FOLDER [--json]

For each file: kind and format, rows, records, what was dropped or repaired and why, and the columns that were not read. Files that only
`tinyllm eval` reads (BLiMP) are tried as its choices. Exit code 1 if a file is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from tinyllm.data.records.detect import guess_kind
from tinyllm.data.records.reader import read_records, read_rows
from tinyllm.data.sources.paths import expand
from tinyllm.errors import UserError, escape_unprintable
from tinyllm.evals import formats


def describe(path: Path) -> dict[str, Any]:
    """Return one row of the table."""
    try:
        kind = guess_kind(path)
    except UserError as error:
        return as_choices(path) or {"kind": "", "format": "refused", "why": error.what}
    started = time.perf_counter()
    reader = read_records([path], kind)
    try:
        count = sum(1 for _ in reader)
    except UserError as error:
        return {"kind": kind, "format": "refused", "why": str(error)}
    report = reader.report
    (file,) = report.files
    why = [f"{tally.count:,} dropped: {reason}" for reason, tally in report.dropped.items()]
    why += [f"{tally.count:,} repaired: {what}" for what, tally in report.repaired.items()]
    why += [*file.notes, *([f"without {', '.join(file.ignored)}"] if file.ignored else [])]
    return {
        "kind": kind,
        "format": file.format,
        "rows": file.rows,
        "records": count,
        "dropped": sum(tally.count for tally in report.dropped.values()),
        "seconds": round(time.perf_counter() - started, 2),
        "why": "; ".join(why),
    }


def as_choices(path: Path) -> dict[str, Any] | None:
    """Return the row of a file that `tinyllm eval --task choice` reads; None for any other file."""
    rows = list(read_rows(path))
    format = next((name for name, known in formats.FORMATS["choices"].items() if known.fits(rows[0])), None)
    if format is None:
        return None
    found = [item for row in rows for item in formats.FORMATS["choices"][format].convert(row, "text")]
    return {
        "kind": "choices",
        "format": format,
        "rows": len(rows),
        "records": len(found),
        "dropped": 0,
        "why": "eval only",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="one object")
    options = parser.parse_args()
    table = {str(path.relative_to(options.folder)): describe(path) for path in expand([options.folder])}
    if options.json:
        print(json.dumps(table, indent=2, ensure_ascii=False))
    else:
        print_table(table)
    return int(any(row["format"] == "refused" for row in table.values()))


def print_table(table: dict[str, dict[str, Any]]) -> None:
    columns = ("kind", "format", "rows", "records", "dropped", "why")
    rows = [("file", *columns)] + [(name, *(cell(row.get(c, "")) for c in columns)) for name, row in table.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        print(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)), escape_unprintable(row[-1])
        )
    total = sum(row.get("records", 0) for row in table.values())
    print(f"\n{len(table)} files, {total:,} records, {sum(row.get('dropped', 0) for row in table.values()):,} dropped")


def cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
