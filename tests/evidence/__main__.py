"""All the evidence with one command: `make evidence`, or `python -m tests.evidence`.

    python -m tests.evidence                  every part that has no result of this version, then the page
    python -m tests.evidence --only faults    one part, whatever there is; repeatable
    python -m tests.evidence --list           the parts, their minutes, and what there is
    python -m tests.evidence --render         only the page and the figures of the READMEs, from the results that exist

Results are kept in build/evidence, one JSON a part. Running the same command again goes on where it was stopped. Exit code 1 where a
part did not pass, 2 where one cannot run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.evidence import rendering, running
from tests.evidence.parts import BY_NAME, PARTS, Part


def seed_of(out: Path, given: int | None) -> int:
    """Return the seed of everything random: the given one, that of the results in the folder, or the date."""
    file = out / "seed.json"
    if given is None and file.is_file():
        return int(json.loads(file.read_text()))
    seed = int(time.strftime("%Y%m%d", time.gmtime())) if given is None else given
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(seed))
    return seed


def listed(out: Path) -> None:
    for part in PARTS:
        record = running.load(out, part.name)
        state = "not run" if record is None else "passed" if record["passed"] else "failed"
        if record is not None and not running.is_current(out, part):
            state += ", earlier version"
        print(f"{part.name:<17}{part.minutes:>5.0f} min  {state:<26}{part.title}")


def run(parts: list[Part], out: Path, given: dict[str, int], again: bool) -> int:
    """Run the parts one after another and return the exit code."""
    bad = 0
    for part in parts:
        known = running.load(out, part.name)
        if known and not again and running.is_current(out, part):
            print(f"{part.name}: {_word(known)}, there is a result of this version", flush=True)
            bad = bad if known["passed"] else 1
            continue
        if reason := running.missing(out, part):
            print(f"{part.name}: cannot run: {reason}", flush=True)
            bad = bad or 2
            continue
        print(f"{part.name}: {part.command.format(out='FOLDER', json='FILE', **given)}", flush=True)
        record = running.run(part, out, given)
        print(f"{part.name}: {_word(record)} in {record['seconds']} s, {record['counts']}", flush=True)
        bad = bad if record["passed"] else 1
    return bad


def _word(record: dict[str, Any]) -> str:
    return "passed" if record["passed"] else "FAILED"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.evidence", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=running.ROOT / "build" / "evidence", help="folder of the results")
    parser.add_argument("--only", action="append", default=[], choices=sorted(BY_NAME), metavar="PART")
    parser.add_argument("--list", action="store_true", help="name the parts and stop")
    parser.add_argument("--render", action="store_true", help="write the page from the results that exist")
    parser.add_argument("--seed", type=int, help="of the lifecycle and of everything sampled; by default the date")
    parser.add_argument("--sample", type=int, default=300, help="mutants of the sample by machine")
    options = parser.parse_args()
    out = options.out.resolve()
    if options.list:
        listed(out)
        return 0
    bad = 0
    if not options.render:
        seed = seed_of(out, options.seed)
        print(f"seed {seed}; results in {out}", flush=True)
        chosen = [part for part in PARTS if part.name in options.only] or list(PARTS)
        bad = run(chosen, out, {"seed": seed, "sample": options.sample}, again=bool(options.only))
    lost = rendering.would_lose(out)
    if options.render and not any(running.load(out, part.name) for part in PARTS):
        print(f"error: there is no result in {out}\nfix: name the folder of the results with --out", file=sys.stderr)
        return 2
    if lost and not options.render:
        print(
            f"docs/evidence.md stays as it is: {out} has no result of {', '.join(lost)}; --render writes it without them"
        )
        return bad
    for path in rendering.write(out):
        print(f"wrote {path.relative_to(running.ROOT)}")
    return bad


if __name__ == "__main__":
    sys.exit(main())
