"""What every file of a folder is taken for, and what is read of it.

    python benchmarks/formats.py [FOLDER] [--json]

For each file: the kind of record and the format that are detected by looking inside, rows, records, what was dropped or mended and why,
and what was left out. Files that only `tinyllm eval` reads (BLiMP) are tried as its choices. FOLDER is by default `shared/data` beside
this checkout. Exit code 1 where a file is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from tinyllm.data.files import expand
from tinyllm.data.records import kind_of, read, read_rows
from tinyllm.errors import UserError, harmless
from tinyllm.stages.evals import items


def described(path: Path) -> dict[str, Any]:
    """One line of the table."""
    try:
        kind = kind_of(path)
    except UserError as error:
        return as_choices(path) or {"kind": "", "format": "refused", "why": error.what}
    started = time.perf_counter()
    reader = read([path], kind)
    try:
        count = sum(1 for _ in reader)
    except UserError as error:
        return {"kind": kind, "format": "refused", "why": str(error)}
    report = reader.report
    (file,) = report.files
    why = [f"{tally.count:,} dropped: {reason}" for reason, tally in report.dropped.items()]
    why += [f"{tally.count:,} mended: {what}" for what, tally in report.mended.items()]
    why += [*file.notes, *([f"without {', '.join(file.left_out)}"] if file.left_out else [])]
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
    """The file as what `tinyllm eval --task choice` reads; None where it is none of that."""
    rows = list(read_rows(path))
    format = next((name for name, known in items.FORMATS["choices"].items() if known.fits(rows[0])), None)
    if format is None:
        return None
    found = [item for row in rows for item in items.FORMATS["choices"][format].convert(row, "text")]
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
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--json", action="store_true", help="one object")
    given = parser.parse_args()
    table = {str(path.relative_to(given.folder)): described(path) for path in expand([given.folder])}
    if given.json:
        print(json.dumps(table, indent=2, ensure_ascii=False))
    else:
        shown(table)
    return int(any(row["format"] == "refused" for row in table.values()))


def shown(table: dict[str, dict[str, Any]]) -> None:
    columns = ("kind", "format", "rows", "records", "dropped", "why")
    rows = [("file", *columns)] + [(name, *(cell(row.get(c, "")) for c in columns)) for name, row in table.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)), harmless(row[-1]))
    total = sum(row.get("records", 0) for row in table.values())
    print(f"\n{len(table)} files, {total:,} records, {sum(row.get('dropped', 0) for row in table.values()):,} dropped")


def cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
