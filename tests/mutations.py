"""Are the tests any good? Plant mistakes, one at a time, into a copy of the package: each must make a test fail.

    python tests/mutations.py                    all of them, a few seconds each
    python tests/mutations.py --only no-shift    those whose name contains it
    python tests/mutations.py --changed main     those whose file or tests differ from a git revision
    python tests/mutations.py --sample 20        so many at random; the seed is printed
    python tests/mutations.py --changed HEAD^ --sample 20 --seconds 60    some of those, or of all where there are none
    python tests/mutations.py --list

The mistakes are in `mutants/`. Before any is planted, the untouched copy must pass all the tests that are used. Exit code 1 where a
mistake survives, where the copy fails as it is, or where the table no longer fits the source.
"""

from __future__ import annotations

import argparse
import math
import pkgutil
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `mutants`
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mutants
from mutants.kind import Mutant

from tests.support import records
from tests.support.forks import ROOT, Copy, Found

MODULES = [import_module(f"mutants.{module.name}") for module in pkgutil.iter_modules(mutants.__path__)]
MUTANTS: list[Mutant] = [mutant for module in MODULES for mutant in getattr(module, "MUTANTS", ())]
SECONDS = 240  # of computing, more than any of the tests needs
QUICK = 10  # of computing, where the time is limited


@dataclass(frozen=True)
class Outcome:
    caught_by: str  # the first test that failed, "" where none did
    problem: str = ""  # why it says nothing about the tests
    seconds: float = 0.0


def judge(copy: Copy, mutant: Mutant) -> Outcome:
    """Plant it, run its tests until one fails, and put the file back."""
    source = (copy.folder / "tinyllm" / mutant.file).read_text(encoding="utf-8")
    if source.count(mutant.old) != mutant.count:
        return Outcome("", f"the table is out of date: found {source.count(mutant.old)} times, not {mutant.count}")
    with copy.planted(mutant.file, source.replace(mutant.old, mutant.new)):
        found = copy.tests.run([f"tests/{target}" for target in mutant.targets.split()], "-x", limit=SECONDS)
    return _outcome(found)


def _outcome(found: Found) -> Outcome:
    if found.code == 1 and found.failed:
        return Outcome(found.failed.removeprefix("tests/"), seconds=found.seconds)
    if found.code == 0:
        return Outcome("", seconds=found.seconds)
    if found.late:
        return Outcome("", f"no end after {SECONDS} s", found.seconds)
    return Outcome(
        "", f"pytest ended with {found.code}: {(found.broken or found.output).strip()[-300:]}", found.seconds
    )


def untouched(copy: Copy, mutants: Sequence[Mutant]) -> Sequence[Mutant]:
    """Return the mutants, if every test that is used passes with nothing planted: otherwise a mistake would seem to be caught.

    Ends the command with 1 where a test fails untouched.
    """
    targets = sorted({f"tests/{target}" for mutant in mutants for target in mutant.targets.split()})
    files = {target for target in targets if "::" not in target}
    targets = [target for target in targets if target in files or target.partition("::")[0] not in files]
    found = copy.tests.run(targets, limit=SECONDS * 10)
    print(f"untouched: {len(found.tests)} tests passed in {found.seconds:.0f} s", flush=True)
    if found.code:
        sys.exit("\n".join([*found.failures, found.broken]).strip() or found.output)
    return mutants


def changed_since(revision: str) -> set[str]:
    """Return the paths that differ from a git revision, those that git does not know yet included."""
    paths = set()
    for command in (["diff", "--name-only", revision], ["ls-files", "--others", "--exclude-standard"]):
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"error: {done.stderr.strip()}")
        paths |= set(done.stdout.splitlines())
    return paths


def touched(mutant: Mutant, paths: set[str]) -> bool:
    used = {f"tests/{target.partition('::')[0]}" for target in mutant.targets.split()} | {f"tinyllm/{mutant.file}"}
    return bool(used & paths)


def in_time(copy: Copy, mutants: Sequence[Mutant], limit: float) -> list[Mutant]:
    """Return the mutants whose tests take at most `QUICK` seconds untouched, as many as can be tried in half of the time.

    Tests that fail untouched would seem to catch a mistake: they end the command with 1.
    """
    began, kept = time.monotonic(), []
    for mutant in mutants:
        if time.monotonic() - began > (limit / 2 if kept else limit):
            break
        found = copy.tests.run([f"tests/{target}" for target in mutant.targets.split()], "-x", limit=QUICK)
        if found.code == 0:
            kept.append(mutant)
        elif not found.late:
            sys.exit(f"the tests of {mutant.name} fail in an untouched copy: {found.failed or found.broken}")
    print(f"untouched: the tests of {len(kept)} mutants passed in {time.monotonic() - began:.0f} s", flush=True)
    return kept


def run(mutants: Sequence[Mutant], jobs: int, results: Path | None = None, limit: float = math.inf) -> int:
    """Plant the mutants and return the exit code. None is begun after `limit` seconds; those that were not are counted."""
    began, found = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            copies.put(Copy(Path(folder).resolve() / str(number)))
        first = copies.get()
        mutants = in_time(first, mutants, limit) if limit < math.inf else untouched(first, mutants)
        copies.put(first)

        def one(mutant: Mutant) -> Outcome | None:
            if time.monotonic() - began > limit and found:
                return None
            copy = copies.get()
            try:
                return judge(copy, mutant)
            finally:
                copies.put(copy)

        print(f"\n{'mistake':<8}{'planted':<92}{'s':>3}  caught by", flush=True)
        with ThreadPoolExecutor(jobs) as pool:
            for mutant, outcome in zip(mutants, pool.map(one, mutants), strict=True):
                if outcome is None:
                    continue
                found.append(outcome)
                caught = outcome.caught_by or f"*** {outcome.problem or 'SURVIVED'}"
                planted = f"{mutant.name}: {mutant.plants}"
                print(f"{mutant.mistake:<8}{planted:<92}{outcome.seconds:>3.0f}  {caught}", flush=True)
                if results:
                    own = {"name": mutant.name, "digest": mutant.digest, "file": mutant.file, "keeps": mutant.keeps}
                    records.append(results, own | asdict(outcome))
        for _ in range(jobs):
            copies.get().tests.close()
    caught = sum(bool(outcome.caught_by) for outcome in found)
    if len(found) < len(mutants):
        print(f"\n{len(mutants) - len(found)} were not begun: {limit:.0f} s are over")
    print(f"\n{caught} of {len(found)} caught, in {time.monotonic() - began:.0f} s")
    return int(caught < len(found) or not found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="NAME", help="mutants whose name contains this")
    parser.add_argument(
        "--changed", nargs="?", const="HEAD", metavar="REVISION", help="those whose file or tests differ from it"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="so many of them at random")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10_000), help="of the sample; printed"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="append a line for each outcome; mutants that it names are not run again",
    )
    parser.add_argument("--seconds", type=float, default=math.inf, metavar="LIMIT", help="begin none after these")
    parser.add_argument("--list", action="store_true", help="name them and stop")
    parser.add_argument("--jobs", type=int, default=1, help="copies at work at once")
    given = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if given.only in mutant.name]
    if given.changed:
        paths = changed_since(given.changed)
        mutants = [mutant for mutant in mutants if touched(mutant, paths)]
        print(f"{len(mutants)} mutants whose file or tests differ from {given.changed}")
        if not mutants and given.sample:
            mutants = MUTANTS
    if given.sample is not None:
        mutants = random.Random(given.seed).sample(mutants, min(given.sample, len(mutants)))
        print(f"seed {given.seed}: {len(mutants)} mutants")
        if given.seconds < math.inf:  # where the tests of all of them take too long, others are tried
            names = {mutant.name for mutant in mutants}
            rest = [mutant for mutant in MUTANTS if mutant.name not in names]
            mutants += random.Random(given.seed).sample(rest, len(rest))
    done = _read(given.json, mutants)
    if known := {mutant.name for mutant in mutants} & set(done):
        mutants = [mutant for mutant in mutants if mutant.name not in known]
        print(f"{len(known)} mutants are in {given.json}, {sum(not done[name] for name in known)} of them not caught")
    if given.list:
        for mutant in mutants:
            print(f"{mutant.mistake:<8}{mutant.name:<30}{mutant.file:<28}{mutant.plants}")
        return 0
    if not mutants and (given.changed or known):
        return int(not all(done[name] for name in known))
    if not mutants:
        parser.error(f"no mutant's name contains {given.only!r}; --list names them")
    return run(mutants, given.jobs, given.json, given.seconds) or int(not all(done[name] for name in known))


def _read(results: Path | None, mutants: Sequence[Mutant]) -> dict[str, bool]:
    """Return name -> whether the mutant was caught, of the lines of a file; not of those that said nothing about the tests."""
    digests = {mutant.name: mutant.digest for mutant in mutants}
    known = [found for found in records.read(results) if not found["problem"]]
    return {found["name"]: bool(found["caught_by"]) for found in known if digests.get(found["name"]) == found["digest"]}


if __name__ == "__main__":
    sys.exit(main())
