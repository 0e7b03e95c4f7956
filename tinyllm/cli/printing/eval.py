"""Output of `tinyllm eval --task`: plain columns, every figure with its 95 % interval.

Not a rich table, which outside a terminal would wrap lines at 80 characters and break names.
"""

from __future__ import annotations

from typing import Any

from tinyllm.cli.printing.text import columns, line, number, pad

_LEFT_OUT = ("acc_bytes",)  # as acc_norm but beyond ASCII; --json has it


def table(found: dict[str, Any]) -> None:
    """Print a block per task: one row per file, and last the mean over the files."""
    for task, files in found["group_subtasks"].items():
        names = [name for name in found["higher_is_better"][task] if name not in _LEFT_OUT]
        line(f"{task} (chance level: {names[0]} {_number(found['baseline'][task])})")
        keys = [*files, task]
        labels = {key: key.removeprefix(f"{task}/") for key in files}
        labels[task] = f"mean of {len(files)} files" if files else found["configs"][task]["data"]
        rows = [("data", "n", *names)]
        for key in keys:
            samples = f"{found['n-samples'][key]['effective']:,}"
            rows.append((labels[key], samples, *(_figure(found, key, name) for name in names)))
        _columns(rows)
    moved = found["moved"]
    line(f"eval: {moved['what']} {_number(moved['to'])} in {found['seconds']:.1f} s")
    line(f"  {found['checkpoint']}")


def _figure(found: dict[str, Any], key: str, name: str) -> str:
    """`0.527 (0.470 to 0.583)`, or `0.000 (all 20 equal)` for a mean without an interval."""
    value = found["results"][key].get(f"{name},none")
    interval = found["intervals"][key].get(name)
    if value is None:
        return ""
    reason = found["no_interval"][key].get(name)
    span = f"{_number(interval[0])} to {_number(interval[1])}" if interval else reason
    return _number(value) + (f" ({span})" if span else "")


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else number(value)


def _columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        name, samples, *figures = row
        cells = [pad(name, widths[0]), pad(samples, widths[1], "right")]
        cells += [pad(figure, width) for figure, width in zip(figures, widths[2:], strict=True)]
        line("  " + "  ".join(cells).rstrip())
