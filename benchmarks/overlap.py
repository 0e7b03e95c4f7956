"""Count what the exam of a lifecycle has in common with what trains and selects its stages. Nothing is trained.

    python benchmarks/overlap.py --seed 0 --seed 1 --seed 2
    python benchmarks/overlap.py --data stories.txt --data talks.jsonl --data pairs.jsonl
    python benchmarks/overlap.py --own

Prints a line for each stage: distinct records that train, select and examine it, and the numbers in common, ancestors included. A
comparison looks for one record of the exam in the training data of a stage, or in what selected it; it counts for every stage.
`--own` adds files as a user has them, of records of the bundled world. Prepared text and these files stay below `runs/`.

Exit code 1 if a record was found, or nothing could be compared. In own data the same last message may follow other ones ("Tell me more.");
where it is found it is counted and no failure, as in the lifecycle itself. Other codes are those of `tinyllm`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planted_faults import OWN_SETS, RECORDS, own_files

from tinyllm.cli.lifecycle import pipeline_configs
from tinyllm.cli.options import Common
from tinyllm.config import Resolved
from tinyllm.errors import UserError
from tinyllm.io import strict_json
from tinyllm.lifecycle import sources
from tinyllm.lifecycle.examination import QUESTIONS, Exam


def configs(preset: str, seed: int, sets: Sequence[str], files: Sequence[str]) -> dict[str, Resolved]:
    """Return stage -> configuration of the lifecycle that `tinyllm lifecycle` would run."""
    name = f"overlap-{'own-' * bool(files)}{seed}"
    return pipeline_configs(preset, Common(set=list(sets), name=name, seed=seed), files, 1, os.environ)[name]


def overlaps(
    preset: str, seed: int, sets: Sequence[str] = (), files: Sequence[str] = (), *, documents: bool = True
) -> dict[str, dict[str, Any]]:
    """Return stage -> counts, hashes and overlaps, of the data that `tinyllm lifecycle` would use.

    Args:
        documents: prepare the data of pretraining too.
    """
    return rows_of(configs(preset, seed, sets, files), documents=documents)


def rows_of(resolved: dict[str, Resolved], *, documents: bool = True) -> dict[str, dict[str, Any]]:
    """Return stage -> counts, hashes and overlaps of one lifecycle."""
    parts = sources.parts(resolved)
    asked = sources.questions(resolved, parts, QUESTIONS)
    splits = sources.uses(resolved, parts, asked)
    if documents:
        splits.uses["pretrain"] = sources.document_uses(resolved["pretrain"].config, Exam(resolved, asked))
    return {stage: splits.rows(stage) for stage in resolved if stage in splits.uses}


def compared(rows: dict[str, dict[str, Any]]) -> tuple[int, list[str]]:
    """Return the number of comparisons, and the sides of stages that had none, as "sft train/exam"."""
    sides = {
        f"{stage} {side}": sum(row["exam"]["n"][unit] for unit in counts)
        for stage, row in rows.items()
        for side, counts in row["overlap"].items()
    }
    return sum(sides.values()), [name for name, n in sides.items() if not n]


def failures(rows: dict[str, dict[str, Any]], *, own: bool) -> int:
    """Return the number of overlaps that a lifecycle refuses."""
    return _in_common(rows) - (tolerated(rows) if own else 0)


def tolerated(rows: dict[str, dict[str, Any]]) -> int:
    """Return the number of overlaps that a lifecycle of own data counts and does not refuse."""
    return _in_common(rows, sources.TOLERATED)


def _in_common(rows: dict[str, dict[str, Any]], units: Sequence[str] | None = None) -> int:
    pairs = [pair for row in rows.values() for side in row["overlap"].values() for pair in side.items()]
    return sum(count for unit, count in pairs if units is None or unit in units)


def count(given: argparse.Namespace) -> int:
    """Print what every lifecycle has in common with its exam, and return the exit code."""
    seeds = list(dict.fromkeys(given.seed or [0]))
    cases = {f"{seed}": (seed, given.set, given.data) for seed in seeds}
    if given.own:
        files = own_files(Path("runs") / "overlap" / f"own-data-{seeds[0]}", RECORDS, seeds[0])
        cases[f"own {seeds[0]}"] = seeds[0], [*OWN_SETS, *given.set], files
    found, failed, passed_over, looked, nothing = {}, 0, 0, 0, []
    for name, (seed, sets, files) in cases.items():
        resolved = configs(given.preset, seed, sets, files)
        own = sources.is_user_data(resolved)
        rows = rows_of(resolved)
        if not found:
            print(f"{'seed':>6} {'stage':9} {'trained on':>44} {'selected by':>44} {'examined on':>44}  in common")
        found[name] = rows
        for stage, row in rows.items():
            parts = [_counts(row[part]["n"]) for part in ("train", "selection", "exam")]
            common = "; ".join(f"{side}: {_counts(counts)}" for side, counts in row["overlap"].items())
            print(f"{name:>6} {stage:9} {parts[0]:>44} {parts[1]:>44} {parts[2]:>44}  {common}", flush=True)
        n, empty = compared(rows)
        failed, looked = failed + failures(rows, own=own), looked + n
        nothing += [f"{name} {side}" for side in empty]
        passed_over += tolerated(rows) if own else 0
    if given.json:
        given.json.write_text(strict_json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"in common: {failed} in {looked:,} comparisons")
    if passed_over:
        print(f"of own data: {passed_over} comparisons found the last message alone, which is not refused")
    if nothing:
        print(f"nothing to compare: {', '.join(nothing)}")
    return int(failed > 0 or bool(nothing) or not looked)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--seed", type=int, action="append", default=[], help="repeatable; default: 0")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--data", action="append", default=[], metavar="FILE", help="as for tinyllm lifecycle")
    parser.add_argument("--own", action="store_true", help="count those of files of a user too, of the first seed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to a file")
    given = parser.parse_args(words)
    if given.json and not given.json.parent.is_dir():
        parser.error(f"--json: there is no folder {given.json.parent}")
    try:
        return count(given)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {unit}" for unit, count in counts.items())


if __name__ == "__main__":
    sys.exit(main())
