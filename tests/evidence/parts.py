"""The parts of the evidence: a command each, and what is counted in its output.

A part that counts nothing has failed, whatever its exit code: `saw` names the count that must not be 0.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import records

Counts = dict[str, int | float]
Found = tuple[Counts, dict[str, Any]]  # (counts, details)


@dataclass(frozen=True)
class Part:
    name: str
    title: str
    command: str
    """as a reader would write it, from the root of the repository; {out}: the folder of the evidence, {seed}, {sample}"""
    read: Callable[[str, Path], Found]
    """(standard output, the file named by {json}) -> what was counted"""
    saw: str
    """the count that must not be 0"""
    minutes: float
    """on two quiet cores"""
    depends: tuple[str, ...] = ("tinyllm", "configs", "tests")
    """folders; a result is of another version if a file in them has changed"""
    where: str = ""
    """folder below {out} to run in, in place of the root"""
    needs: str = ""
    """a module without which the part cannot run"""
    after: str = ""
    """a part whose result this one reads"""
    bad: tuple[str, ...] = ()
    """counts that must be 0"""
    resumes: bool = False
    """what the command wrote before it was stopped is not done again: the file named by {json} stays"""


def smoke(stdout: str, file: Path) -> Found:
    stages = re.findall(r"^│ ([a-z-]+) +│ +[\d.]+ │", stdout, re.MULTILINE)
    return {"stages": len(stages)}, {}


def lifecycle(stdout: str, file: Path) -> Found:
    """Read the newest scorecard below the folder of the part."""
    path = file.parent / "life/runs/lifecycle/laptop/scorecard.json"
    if not path.is_file():
        return {}, {}
    card = json.loads(path.read_text("utf-8"))
    gates = [gate for stage in card["stages"] for gate in stage["gates"]]
    passed = sum(gate["passed"] for gate in gates)
    return {"stages": len(card["stages"]), "gates": len(gates), "gates passed": passed, "seed": card["seed"]}, {}


def faults(stdout: str, file: Path) -> Found:
    found = _read(file)
    if "faults" not in found:
        return {}, {}
    planted, green, gates = found["faults"], found["green"], found["gates"]
    counts = {"faults": planted["planted"], "caught": planted["caught"], "stages without a fault": green["stages"]}
    counts |= {"passed": green["passed"], "gates": len(gates["all"]), "gates seen red": len(gates["seen_red"])}
    return counts, {"never red": sorted(set(gates["all"]) - set(gates["seen_red"]))}


def swept(stdout: str, file: Path) -> Found:
    """Read the JSON object at the end: numbers are counts, and problems are counted."""
    objects = re.findall(r"^\{.*", stdout, re.MULTILINE | re.DOTALL)
    found = json.loads(objects[-1]) if objects else {}
    counts: Counts = {
        key: value for key, value in found.items() if isinstance(value, int) and not isinstance(value, bool)
    }
    problems = {key: found[key] for key in ("lost", "different", "wrong") if key in found}
    return counts | {key: len(value) for key, value in problems.items()}, problems


def verify(stdout: str, file: Path) -> Found:
    rows = re.findall(r"^(ok|failed|FAILED|skipped) +(\S+)", stdout, re.MULTILINE)
    kinds = Counter(kind.lower() for kind, _ in rows)
    checks = len({check for _, check in rows})
    counts = {"checks": checks, "comparisons": len(rows), "ok": kinds["ok"]}
    return counts | {"failed": kinds["failed"], "skipped": kinds["skipped"]}, {}


def parity(stdout: str, file: Path) -> Found:
    """Count the rows of the table by their differences of loss and gradient and the nearest planted mistake, and read its last line."""
    number = r"(\d\.\de[+-]\d\d)"
    rows = re.findall(rf" {number} +{number} +{number} .*, of \d+ *$", stdout, re.MULTILINE)
    worst = max((float(difference) for row in rows for difference in row[:2]), default=0.0)
    nearest = min((float(row[2]) for row in rows), default=0.0)
    weak = re.search(r"(\d+) comparisons that saw nothing or miss a planted mistake", stdout)
    counts: Counts = {"cases": len(rows), "largest difference": worst, "nearest planted mistake": nearest}
    return counts | ({"weak": int(weak[1])} if weak else {}), {}


def slow(stdout: str, file: Path) -> Found:
    """Read the report that pytest wrote in JUnit's format."""
    path = file.parent / "slow.xml"
    if not path.is_file():
        return {}, {}
    kinds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    failed = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        kind = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        kinds[kind] += 1
        if kind == "skipped":
            reasons[next(c.get("message", "") for c in case if c.tag == "skipped")] += 1
        elif kind != "passed":
            failed.append(f"{case.get('classname', '')}::{case.get('name')}")
    bad = kinds["failure"] + kinds["error"]
    counts = {"tests": sum(kinds.values()), "passed": kinds["passed"], "failed": bad, "skipped": kinds["skipped"]}
    return counts, {"skipped": dict(reasons), "failed": failed}


def mutants(stdout: str, file: Path) -> Found:
    """Count the planted bugs of the table by room, and what they break: checks, gates, symptoms and promises."""
    return _by_room(list({found["name"]: found for found in records.read(file)}.values()))


def machine(stdout: str, file: Path) -> Found:
    """Count the changes by room; survivors that change nothing, as `tests/mutants/equivalent.py` explains, are equivalent."""
    from tests import mutate

    return _by_room(list(mutate.explained(mutate.read(file).values())))


def _by_room(found: list[dict[str, Any]]) -> Found:
    rooms: dict[str, dict[str, int]] = {}
    for mutant in found:
        path = str(mutant["file"]).removeprefix("tinyllm/")
        name = mutant.get("room") or path.partition("/")[0].removesuffix(".py")
        room = rooms.setdefault(name, Counter())
        room["planted"] += 1
        room[_outcome(mutant)] += 1
    survived = [str(m.get("name") or f"{m['file']}:{m.get('line', '')}") for m in found if _outcome(m) == "survived"]
    kinds = dict.fromkeys(("planted", "killed", "survived", *(kind for room in rooms.values() for kind in room)))
    total = {kind: sum(room.get(kind, 0) for room in rooms.values()) for kind in kinds}
    return total, {"rooms": rooms, "survived": survived, "kept": _kept(found)}


def _kept(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return kind (gate, symptom, …) -> how many of its things have a planted bug, for how many all were caught, and which were not."""
    kept: dict[str, dict[str, set[str]]] = {}
    for mutant in found:
        kind, _, thing = str(mutant.get("keeps", "")).partition(": ")
        if thing:
            own = kept.setdefault(kind, {"all": set(), "red": set(), "missed": set()})
            own["all"].add(thing)
            own["red" if _outcome(mutant) == "killed" else "missed"].add(thing)
    return {
        kind: {
            "with a planted bug": len(own["all"]),
            "seen red": len(own["red"] - own["missed"]),
            "missed": sorted(own["missed"]),
        }
        for kind, own in sorted(kept.items())
    }


def _outcome(mutant: dict[str, Any]) -> str:
    """Return killed, survived, or unclear where the run says nothing about the tests."""
    if isinstance(word := mutant.get("outcome"), str):
        return word
    if mutant.get("caught_by"):
        return "killed"
    return "unclear" if mutant.get("problem") else "survived"


def overlap(stdout: str, file: Path) -> Found:
    """Count the stages of all seeds and of own data, and the records that their exams share with training and selection."""
    rows = re.findall(r"^ *(own )?\d+ +[a-z-]+ +\d[\d,]* [a-z]", stdout, re.MULTILINE)
    found = re.search(r"^in common: (\d+) in ([\d,]+) comparisons$", stdout, re.MULTILINE)
    if not found:
        return {}, {}
    last = re.search(r"^of own data: (\d+) comparisons found the last message alone", stdout, re.MULTILINE)
    counts = {"stages": len(rows), "of own data": sum(map(bool, rows)), "comparisons": int(found[2].replace(",", ""))}
    return counts | {"in common": int(found[1]), "last message alone": int(last[1]) if last else 0}, {}


def throughput(stdout: str, file: Path) -> Found:
    return {"contestants": len(re.findall(r"tokens/s", stdout))}, {}


def preparation(stdout: str, file: Path) -> Found:
    return {"contestants": len(re.findall(r"MB/s", stdout))}, {}


def _read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


EVERYTHING = ("tinyllm", "configs", "tests", "benchmarks")
PACKAGE = ("tinyllm", "configs")
FAULTS = (*PACKAGE, "benchmarks/faults.py", "benchmarks/planted_faults.py")
SWEEPS = (*PACKAGE, "tests/support")

# fmt: off
PARTS: tuple[Part, ...] = (
    Part("smoke", "Every stage once, tiny", "tinyllm lifecycle --smoke", smoke, "stages", 1, PACKAGE, "smoke"),
    Part("verify", "Two ways of computing the same", "tinyllm verify", verify, "ok", 0.5, PACKAGE, "smoke", bad=("failed",)),
    Part("parity", "Losses and gradients against TRL, transformers and PEFT", "python -m tests.parity.table", parity, "cases", 1,
         (*PACKAGE, "tests/parity"), needs="trl", bad=("weak",)),
    Part("lifecycle", "A lifecycle on a seed that no bound was chosen by", "tinyllm lifecycle --seed {seed}", lifecycle, "gates", 20,
         PACKAGE, "life"),
    Part("faults", "Faults planted in that lifecycle, and the gates that catch them",
         "python benchmarks/planted_faults.py --seed {seed} --json {json}", faults, "faults", 70, FAULTS, "life",
         after="lifecycle"),
    Part("control", "Two of those stages trained once more without a fault, in the way of the faults",
         "python benchmarks/planted_faults.py --seed {seed} --control --only 'rm/shuffled labels' --only 'grpo/frozen policy' "
         "--json {json}", faults, "passed", 10, FAULTS, "life", after="faults"),
    Part("overlap", "What the exam shares with training and selection, on three seeds and on files of a user",
         "python benchmarks/overlap.py --seed 0 --seed 1 --seed {seed} --own", overlap, "of own data", 1,
         (*FAULTS, "benchmarks/overlap.py"), "smoke", bad=("in common",)),
    Part("crash", "A run killed at every event, and in the middle of writes", "python -m tests.train.crash_sweep {out}/crash 1", swept,
         "kills in the middle of a write", 5, (*SWEEPS, "tests/train"), bad=("lost",)),
    Part("crash-lifecycle", "A lifecycle killed at every event in its folder",
         "python -m tests.lifecycle.crash_sweep {out}/crash-lifecycle 1", swept, "kills in the middle of a write", 5,
         (*SWEEPS, "tests/train", "tests/lifecycle"), bad=("lost",)),
    Part("kills", "A lifecycle killed at random while it trains", "python -m tests.lifecycle.kill_sweep {out}/kills 6 {seed}", swept,
         "kills", 5, (*SWEEPS, "tests/lifecycle"), bad=("different", "wrong")),
    Part("signals", "A signal in every phase of every command", "python -m tests.signal_sweep {out}/signals", swept, "phases", 10,
         (*SWEEPS, "tests/signal_sweep.py"), bad=("wrong",)),
    Part("slow", "Tests that take minutes", "pytest -q -m slow --junitxml {out}/slow.xml", slow, "passed", 30, EVERYTHING,
         bad=("failed",)),
    Part("mutations", "The table of planted bugs", "python tests/mutations.py --json {json}", mutants, "killed", 45,
         bad=("survived", "unclear"), resumes=True),
    Part("machine", "Bugs planted by machine, a sample",
         "python -m tests.mutate --sample {sample} --seed {seed} --json {json}", machine, "killed", 30, needs="tests.mutate",
         bad=("survived",), resumes=True),
    Part("throughput", "Training throughput", "python benchmarks/throughput.py --rounds 3 --steps 3", throughput, "contestants", 2,
         (*PACKAGE, "benchmarks/throughput.py"), "smoke", needs="transformers"),
    Part("preparation", "Preparation of text", "python benchmarks/preparation.py --megabytes 200 --rounds 1 --scale 20", preparation,
         "contestants", 3, (*PACKAGE, "benchmarks/preparation.py"), "smoke", needs="datasets"),
)
# fmt: on
BY_NAME = {part.name: part for part in PARTS}
