"""Count what the exam of a lifecycle has in common with what trains and selects its stages. Nothing is trained.

    python benchmarks/overlap.py --seed 0 --seed 1 --seed 2
    python benchmarks/overlap.py --data stories.txt --data talks.jsonl --data pairs.jsonl

Prints a line for each stage: distinct records that train, select and examine it, and the numbers in common, ancestors included. Exit code 1
if one is not 0. Of the questions of your own data, a last message in another context ("Tell me more.") is counted and no failure.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyllm.cli.lifecycle import pipeline_configs
from tinyllm.cli.options import Common
from tinyllm.io import strict_json
from tinyllm.lifecycle import sources
from tinyllm.lifecycle.examination import QUESTIONS, Exam


def overlaps(
    preset: str, seed: int, sets: Sequence[str] = (), files: Sequence[str] = (), *, documents: bool = True
) -> dict[str, dict[str, Any]]:
    """Return stage -> counts, hashes and overlaps, of the data that `tinyllm lifecycle` would use.

    Args:
        documents: prepare the data of pretraining too.
    """
    name = f"overlap-{seed}"
    resolved = pipeline_configs(preset, Common(set=list(sets), name=name, seed=seed), files, 1, os.environ)[name]
    parts = sources.parts(resolved)
    asked = sources.questions(resolved, parts, QUESTIONS)
    splits = sources.uses(resolved, parts, asked)
    if documents:
        splits.uses["pretrain"] = sources.document_uses(resolved["pretrain"].config, Exam(resolved, asked))
    return {stage: splits.rows(stage) for stage in resolved if stage in splits.uses}


def failures(rows: dict[str, dict[str, Any]], *, own: bool) -> int:
    """Return the number of overlaps that a lifecycle refuses."""
    tolerated = sources.TOLERATED if own else ()
    pairs = [pair for row in rows.values() for side in row["overlap"].values() for pair in side.items()]
    return sum(count for unit, count in pairs if unit not in tolerated)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--seed", type=int, action="append", default=[], help="repeatable; default: 0")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--data", action="append", default=[], metavar="FILE", help="as for tinyllm lifecycle")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to a file")
    given = parser.parse_args()
    found = {}
    print(f"{'seed':>4} {'stage':9} {'trained on':>44} {'selected by':>44} {'examined on':>44}  in common")
    for seed in given.seed or [0]:
        found[seed] = overlaps(given.preset, seed, given.set, given.data)
        for stage, row in found[seed].items():
            sets = [_counts(row[part]["n"]) for part in ("train", "selection", "exam")]
            common = "; ".join(f"{side}: {_counts(counts)}" for side, counts in row["overlap"].items())
            print(f"{seed:>4} {stage:9} {sets[0]:>44} {sets[1]:>44} {sets[2]:>44}  {common}", flush=True)
    if given.json:
        given.json.write_text(strict_json.dumps(found, indent=1) + "\n", encoding="utf-8")
    failed = sum(failures(rows, own=bool(given.data)) for rows in found.values())
    print(f"{failed} records of the exam are in training or selection data")
    return int(failed > 0)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {unit}" for unit, count in counts.items())


if __name__ == "__main__":
    sys.exit(main())
