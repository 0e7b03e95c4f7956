"""Mutation by machine: change the source at random places, one change at a time; every change should make a test fail.

    python -m tests.mutate --rooms algorithms,rollout --sample 100 --seed 7 --json found.jsonl
    python -m tests.mutate --files algorithms/dpo.py,model/lora.py            every change to these files
    python -m tests.mutate --json found.jsonl --again                         those that survived, once more
    python -m tests.mutate --json found.jsonl --show                          the survivors and the table, nothing is run

`mutants/operators.py` says what is changed. A change is tested by the tests that enter its function, cheapest file first, until one
fails; which tests enter what is measured once for each test file (`build/reach.json`) and anew where the file has changed. Each line of a
file is changed once before any is changed twice. Outcomes: killed, timeout, invalid (the tests could not be collected), survived, and
equivalent: a survivor that `mutants/equivalent.py` explains. Exit code 1 where a change survives without being explained there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.operators import Change, apply, changes
from tests.support import records as lines
from tests.support.forks import ROOT, Copy, Found
from tests.support.warm import Warm

PACKAGE = ROOT / "tinyllm"
GATES = tuple(f"lifecycle/{name}.py" for name in ("gates", "evaluation", "baselines", "overoptimization"))
ROOMS = ("algorithms", "rollout", "model", "train", "evals", "gates")
MEASURED = (
    "algorithms",
    "rollout",
    "model",
    "train",
    "evals",
    "lifecycle",
    "stages",
    "parity",
    "diagnostics",
    "config",
    "distributed",
)
MEASURED += tuple(f"test_hostile_{name}.py" for name in ("checkpoints", "runs_and_configs", "tokenizers_and_adapters"))
REACH = ROOT / "build" / "reach.json"
BUDGET = 60.0  # seconds of tests, as measured, for one change
OUTCOMES = ("killed", "timeout", "invalid", "survived", "equivalent")


def files_of(room: str) -> list[str]:
    if room == "gates":
        return list(GATES)
    return sorted(path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / room).rglob("*.py"))


def room_of(file: str) -> str:
    return "gates" if file in GATES else file.partition("/")[0]


def changes_of(files: Iterable[str]) -> list[Change]:
    return [change for file in files for change in changes(file, (PACKAGE / file).read_text(encoding="utf-8"))]


def shuffled(found: Sequence[Change], seed: int) -> list[Change]:
    """Order changes at random, the first of every line before the second of any; functions first, which are tested faster."""
    dice, turns = random.Random(seed), Counter()
    order = []
    for change in dice.sample(found, len(found)):
        place = (change.file, change.line)
        order.append((turns[place], not change.function, dice.random(), change))
        turns[place] += 1
    return [change for *_, change in sorted(order, key=lambda entry: entry[:3])]


# --- which tests enter which function --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Test:
    name: str
    file: str
    seconds: float


def _test_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("test_*.py"))


class Reach:
    """The tests that enter each function, by test file; the files that have changed are measured anew."""

    def __init__(self, copy: Copy, folders: Sequence[str], file: Path = REACH):
        self._found: dict[str, dict] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        paths = {p.relative_to(ROOT).as_posix(): p for name in folders for p in _test_files(ROOT / "tests" / name)}
        for name, path in paths.items():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            if self._found.get(name, {}).get("digest") != digest:
                found = copy.tests.run([name], limit=600, trace=True)
                self._found[name] = {"digest": digest, "failures": list(found.failures), **_indexed(found)}
                print(f"measured {name}: {len(found.tests)} tests in {found.seconds:.0f} s {found.broken}", flush=True)
                file.parent.mkdir(exist_ok=True)
                file.write_text(json.dumps(self._found), encoding="utf-8")
        self._found = {name: self._found[name] for name in paths}
        self.files = [name for name, found in self._found.items() if found["tests"]]
        for name in [test for found in self._found.values() for test in found["failures"]]:
            print(f"fails on the untouched copy, not used: {name}", flush=True)
        self._functions: dict[str, list[Test]] = defaultdict(list)
        self._files: dict[str, set[str]] = defaultdict(set)
        self._tests: dict[str, Test] = {}
        for file_name, found in self._found.items():
            for test, (seconds, numbers) in found["tests"].items():
                self._tests[test] = Test(test, file_name, seconds)
                for number in numbers:
                    function = found["functions"][number]
                    self._functions[function].append(self._tests[test])
                    self._files[function.partition(":")[0]].add(test)

    def tests_of(self, change: Change) -> list[Test]:
        """Return the tests that enter the change's function, else its file, else those of its room's mirror; cheapest files first."""
        tests = self._functions.get(f"{change.file}:{change.function}", [])
        if not tests:  # a default is seen by whoever reads the class
            mirror = f"tests/{change.file.partition('/')[0]}/"
            found = self._files[change.file]
            tests = [t for name, t in self._tests.items() if name in found or name.startswith(mirror)]
        cost: Counter[str] = Counter()
        for test in tests:
            cost[test.file] += test.seconds + 0.02
        return sorted(tests, key=lambda test: (cost[test.file], test.file))


def _indexed(found: Found) -> dict:
    functions = sorted({name for _, names in found.tests.values() for name in names if not name.endswith("<module>")})
    number = {name: i for i, name in enumerate(functions)}
    tests = {test: [round(s, 3), [number[n] for n in names if n in number]] for test, (s, names) in found.tests.items()}
    return {"functions": functions, "tests": tests}


# --- one change ------------------------------------------------------------------------------------------------------------------------


class Judge:
    """A copy of the package, and two ways to test it: with everything imported (`warm`), and anew."""

    def __init__(self, folder: Path):
        self.copy, self.warm = Copy(folder), None

    def judge(self, change: Change, reach: Reach) -> dict:
        """Plant a change, run its tests until one fails, and return what became of it."""
        if self.warm is None:
            self.warm = Warm(self.copy.folder, reach.files)
        tests = reach.tests_of(change)
        used = _within_budget(tests)
        record = {"room": room_of(change.file), "key": change.key, "file": change.file, "line": change.line}
        record |= {"operator": change.operator, "before": change.before, "after": change.after}
        record |= {"tests": len(used), "left_out": len(tests) - len(used)}
        found = self._found(change, used) if used else Found(code=0)
        error = found.error or found.broken[-200:]
        return record | {
            "outcome": outcome(found),
            "test": found.failed,
            "error": error,
            "seconds": round(found.seconds, 1),
        }

    def _found(self, change: Change, used: Sequence[Test]) -> Found:
        before = (self.copy.folder / "tinyllm" / change.file).read_text(encoding="utf-8")
        after = apply(change, before)
        names = [test.name for test in used]
        limit = 5 + 3 * sum(test.seconds for test in used)
        with self.copy.planted(change.file, after):
            assert self.warm is not None
            found = self.warm.run(change.file, before, after, names, limit)
            if found is None:  # it needs a fresh import
                files = list(dict.fromkeys(test.file for test in used))
                found = self.copy.tests.run(files, "-x", only=names, limit=limit)
        return found

    def close(self) -> None:
        self.copy.tests.close()
        if self.warm is not None:
            self.warm.close()


def _within_budget(tests: Sequence[Test]) -> list[Test]:
    used, seconds = [], 0.0
    for test in tests:
        seconds += test.seconds
        if used and seconds > BUDGET:
            break
        used.append(test)
    return used


def outcome(found: Found) -> str:
    if found.failed:
        return "killed"
    if found.code == 0:
        return "survived"
    return "timeout" if found.late else "invalid"


# --- results ---------------------------------------------------------------------------------------------------------------------------


def read(path: Path | None) -> dict[str, dict]:
    """Return the last outcome of each change that a file of results holds."""
    return {record["key"]: record for record in lines.read(path)}


def explained(records: Iterable[Mapping]) -> Iterator[dict]:
    """Yield the records; survivors that are known to be equivalent are called so."""
    known = {(e.file, e.before, e.after) for e in EQUIVALENT}
    for record in records:
        same = record["outcome"] == "survived" and (record["file"], record["before"], record["after"]) in known
        yield {**record, "outcome": "equivalent" if same else record["outcome"]}


def show(records: Iterable[Mapping]) -> int:
    """Print the survivors and the counts by room, and return the number of survivors."""
    records = list(records)
    for record in records:
        if record["outcome"] == "survived":
            left = f", {record['left_out']} left out" if record["left_out"] else ""
            print(f"\n{record['file']}:{record['line']}  {record['operator']}  ({record['tests']} tests{left})")
            print(f"  - {record['before']}\n  + {record['after']}")
    print(f"\n{'room':<12}{'mutants':>9}" + "".join(f"{outcome:>12}" for outcome in OUTCOMES))
    counts = Counter((record["room"], record["outcome"]) for record in records)
    rooms = sorted({record["room"] for record in records})
    for room in [*rooms, "all"]:
        row = [sum(n for (r, o), n in counts.items() if room in (r, "all") and o == outcome) for outcome in OUTCOMES]
        print(f"{room:<12}{sum(row):>9}" + "".join(f"{n:>12}" for n in row))
    return sum(record["outcome"] == "survived" for record in records)


def run(chosen: Sequence[Change], folders: Sequence[str], jobs: int, path: Path | None, until: float) -> list[dict]:
    """Judge changes in turn, and append each outcome to the file of results."""
    records = []
    with tempfile.TemporaryDirectory(prefix="mutate-", ignore_cleanup_errors=True) as folder:
        judges: SimpleQueue[Judge] = SimpleQueue()
        for number in range(jobs):
            judges.put(Judge(Path(folder).resolve() / str(number)))
        first = judges.get()
        reach = Reach(first.copy, folders)
        judges.put(first)

        def one(change: Change) -> dict | None:
            if time.time() > until:
                return None
            judge = judges.get()
            try:
                return judge.judge(change, reach)
            finally:
                judges.put(judge)

        with ThreadPoolExecutor(jobs) as pool:
            for record in filter(None, pool.map(one, chosen)):
                records.append(record)
                text = f"{record['file']}:{record['line']} {record['operator']}: {record['after']}"
                print(f"{record['outcome']:<10}{record['seconds']:>5.1f} s  {text[:150]}  {record['test']}", flush=True)
                if path:
                    lines.append(path, record)
        for _ in range(jobs):
            judges.get().close()
    return records


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", default=",".join(ROOMS), help="folders of tinyllm/, or gates")
    parser.add_argument("--files", default="", help="files in tinyllm/ instead of rooms")
    parser.add_argument("--tests", default=",".join(MEASURED), help="folders and files of tests/ that are used")
    parser.add_argument("--sample", type=int, help="so many changes, evenly by room; all without it")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10_000), help="of the sample; printed"
    )
    parser.add_argument("--jobs", type=int, default=1, help="copies at work at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="lines of results: those in it are not run again")
    parser.add_argument("--again", action="store_true", help="run those again that survived")
    parser.add_argument("--show", action="store_true", help="show what FILE holds, and run nothing")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further change after these")
    given = parser.parse_args()
    recorded = read(given.json)
    files = sorted({record["file"] for record in recorded.values() if (PACKAGE / record["file"]).is_file()})
    made = {change.key for change in changes_of(files)}
    before = {key: record for key, record in recorded.items() if key in made}  # the source may have changed since
    records = list(before.values())
    if not given.show:
        rooms = [given.files.split(",")] if given.files else [files_of(room) for room in given.rooms.split(",")]
        turns = zip_longest(*(shuffled(changes_of(files), given.seed) for files in rooms))
        all_of_them = [change for turn in turns for change in turn if change]
        again = {key for key, record in before.items() if record["outcome"] == "survived"}
        fresh = [change for change in all_of_them if change.key not in before][: given.sample]
        chosen = [change for change in all_of_them if change.key in again] if given.again else fresh
        print(f"seed {given.seed}: {len(chosen)} of {len(all_of_them)} changes", flush=True)
        done = run(chosen, given.tests.split(","), given.jobs, given.json, time.time() + 60 * given.minutes)
        records = list((before | {record["key"]: record for record in done}).values())
    return int(show(explained(records)) > 0)


if __name__ == "__main__":
    sys.exit(main())
