"""Are the tests any good? Plant mistakes, one at a time, into a copy of the package: each must make a test fail.

    python tests/mutations.py                    all of them, some seconds each
    python tests/mutations.py --only no-shift    those whose name contains it
    python tests/mutations.py --list

The mistakes are in `mutants/`. Before any is planted, the untouched copy must pass all the tests that are used. Exit code 1 where a
mistake survives, where the copy fails as it is, or where the table no longer fits the source.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from mutants import losses, machinery, mistakes, survival
from mutants.kind import MISTAKES, Mutant

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("tinyllm", "tests", "configs", "pyproject.toml")
MUTANTS = [*mistakes.MUTANTS, *losses.MUTANTS, *machinery.MUTANTS, *survival.MUTANTS]
SECONDS = 240  # more than any of the tests needs
_RUN = """
import pathlib, sys, pytest, tinyllm
copy = pathlib.Path(sys.argv[1])
assert pathlib.Path(tinyllm.__file__).is_relative_to(copy), f"{tinyllm.__file__} is not of the copy {copy}"
sys.exit(pytest.main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Outcome:
    caught_by: str  # the first test that failed, "" where none did
    problem: str = ""  # why it says nothing about the tests
    seconds: float = 0.0


class Copy:
    """The package and its tests in a folder of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.tmp"))
            else:
                shutil.copy2(source, folder / name)
        self.planted = 0

    def pytest(self, targets: Sequence[str], *options: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1"} if self.planted else {}
        command = [sys.executable, "-c", _RUN, str(self.folder), "-q", "-rfE", "-p", "no:cacheprovider", *options]
        return subprocess.run(
            [*command, *targets], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=SECONDS
        )

    def judge(self, mutant: Mutant) -> Outcome:
        """Plant it, run its tests until one fails, and put the file back."""
        began = time.monotonic()
        path = self.folder / "tinyllm" / mutant.file
        source, changed = path.read_text(encoding="utf-8"), path.stat().st_mtime
        if source.count(mutant.old) != mutant.count:
            return Outcome("", f"the table is out of date: found {source.count(mutant.old)} times, not {mutant.count}")
        self.planted += 1
        path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        os.utime(path, (changed + self.planted, changed + self.planted))  # no cached bytecode fits it
        try:
            done = self.pytest([f"tests/{target}" for target in mutant.targets.split()], "-x")
        except subprocess.TimeoutExpired:
            return Outcome("", f"no end after {SECONDS} s")
        finally:
            path.write_text(source, encoding="utf-8")
            os.utime(path, (changed, changed))
        return _outcome(done, time.monotonic() - began)


def _outcome(done: subprocess.CompletedProcess, seconds: float) -> Outcome:
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if done.returncode == 1 and failed:
        return Outcome(failed[0].removeprefix("tests/"), seconds=seconds)
    if done.returncode == 0:
        return Outcome("", seconds=seconds)
    return Outcome("", f"pytest ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-300:]}", seconds)


def untouched_passes(copy: Copy, mutants: Sequence[Mutant]) -> bool:
    """Whether every test that is used passes as long as nothing is planted. Otherwise a mistake would seem to be caught."""
    targets = sorted({f"tests/{target}" for mutant in mutants for target in mutant.targets.split()})
    files = {target for target in targets if "::" not in target}
    targets = [target for target in targets if target in files or target.partition("::")[0] not in files]
    done = copy.pytest(targets)
    print(
        f"untouched: {done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]}", flush=True
    )
    if done.returncode:
        print("\n".join(line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))))
    return done.returncode == 0


def run(mutants: Sequence[Mutant], jobs: int) -> int:
    began, found = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            copies.put(Copy(Path(folder).resolve() / str(number)))
        first = copies.get()
        if not untouched_passes(first, mutants):
            return 1
        copies.put(first)

        def judge(mutant: Mutant) -> Outcome:
            copy = copies.get()
            try:
                return copy.judge(mutant)
            finally:
                copies.put(copy)

        print(f"\n{'mistake':<8}{'planted':<92}{'s':>3}  caught by", flush=True)
        with ThreadPoolExecutor(jobs) as pool:
            for mutant, outcome in zip(mutants, pool.map(judge, mutants), strict=True):
                found.append(outcome)
                caught = outcome.caught_by or f"*** {outcome.problem or 'SURVIVED'}"
                planted = f"{mutant.name}: {mutant.plants}"
                print(f"{mutant.mistake:<8}{planted:<92}{outcome.seconds:>3.0f}  {caught}", flush=True)
    caught = sum(bool(outcome.caught_by) for outcome in found)
    print(f"\n{caught} of {len(found)} caught, in {time.monotonic() - began:.0f} s")
    return int(caught < len(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="NAME", help="mutants whose name contains this")
    parser.add_argument("--list", action="store_true", help="name them and stop")
    parser.add_argument("--jobs", type=int, default=1, help="copies at work at once")
    given = parser.parse_args()
    twice = [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1]
    assert not twice, f"two mutants are called {twice[0]}"
    assert {m.mistake for m in MUTANTS} == {*MISTAKES, "extra"}, "a mistake without a mutant"
    mutants = [mutant for mutant in MUTANTS if given.only in mutant.name]
    if given.list:
        for mutant in mutants:
            print(f"{mutant.mistake:<8}{mutant.name:<30}{mutant.file:<28}{mutant.plants}")
        return 0
    if not mutants:
        parser.error(f"no mutant's name contains {given.only!r}; --list names them")
    return run(mutants, given.jobs)


if __name__ == "__main__":
    sys.exit(main())
