"""The tables of planted mistakes fit the source: each quote, file, test and name. The mistakes themselves are planted by hand."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests import mutate, mutations
from tests.mutants import kind
from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.operators import apply, changes
from tests.support import records, warm
from tests.support.forks import Found

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = mutations.MUTANTS
TARGET = "html/test_report.py::test_an_overlap_of_nothing_is_not_shown_as_zero"


@cache
def source(file: str) -> str:
    return (ROOT / "tinyllm" / file).read_text(encoding="utf-8")


@cache
def functions_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_quote_stands_in_its_file_as_often_as_the_table_says():
    found = {m.name: source(m.file).count(m.old) for m in MUTANTS}
    assert len(MUTANTS) > 200
    assert found == {m.name: m.count for m in MUTANTS}


def test_every_mistake_changes_the_program():
    for m in MUTANTS:
        planted = compile(source(m.file).replace(m.old, m.new), m.file, "exec")
        assert planted != compile(source(m.file), m.file, "exec"), m.name


def test_every_target_is_a_test():
    for m in MUTANTS:
        for target in m.targets.split():
            file, _, name = target.partition("::")
            assert (ROOT / "tests" / file).is_file(), (m.name, target)
            assert not name or name.partition("[")[0] in functions_in(file), (m.name, target)
        assert m.targets, m.name


def test_names_are_unique_and_every_known_mistake_has_a_mutant():
    assert [name for name, count in Counter(m.name for m in MUTANTS).items() if count > 1] == []
    assert {m.mistake for m in MUTANTS} == {*kind.MISTAKES, "extra"}


@pytest.mark.parametrize("command", [["tests/mutations.py"], ["-m", "tests.mutations"]])
def test_both_spellings_of_the_command_work(command):
    done = subprocess.run(
        [sys.executable, *command, "--list", "--only", "no-shift"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3), done.stderr


def test_a_sample_is_the_same_with_the_same_seed():
    command = [sys.executable, "tests/mutations.py", "--list", "--sample", "5", "--seed"]
    once, again, other = (
        subprocess.run([*command, seed], cwd=ROOT, capture_output=True, text=True).stdout for seed in ("1", "1", "2")
    )
    assert len(once.splitlines()) == 6
    assert once == again != other


# --- changes by machine ----------------------------------------------------------------------------------------------------------------

TEXT = '''
def f(a, b, *, mask=None, scale: float = 0.5):
    """Return nothing that 1 + 1 could change."""
    if a < 2 and not b:
        raise ValueError("1 + 1")
    print(a - 1)
    b = b.detach()
    return g(a, b, mask=mask).sum(-1) + scale
'''


def test_changes_are_these():
    found = {(c.operator, c.after) for c in changes("x.py", TEXT)}
    assert found == {
        ("constant", "def f(a, b, *, mask=None, scale: float = 1.0):"),
        ("constant", "def f(a, b, *, mask=None, scale: float = 0.0):"),
        ("condition fixed", "if True:"),
        ("condition fixed", "if False:"),
        ("and/or", "if ((a < 2) or (not b)):"),
        ("condition dropped", "if ((not b)):"),
        ("condition dropped", "if ((a < 2)):"),
        ("comparison", "if a <= 2 and not b:"),
        ("comparison", "if a >= 2 and not b:"),
        ("constant", "if a < 3 and not b:"),
        ("constant", "if a < 1 and not b:"),
        ("negation removed", "if a < 2 and b:"),
        ("statement removed", "pass"),
        ("call dropped", "b = b"),
        ("arithmetic", "return g(a, b, mask=mask).sum(-1) - scale"),
        ("operand dropped", "return g(a, b, mask=mask).sum(-1)"),
        ("renamed", "return g(a, b, mask=mask).mean(-1) + scale"),
        ("argument dropped", "return g(a, b).sum(-1) + scale"),
        ("arguments swapped", "return g(b, a, mask=mask).sum(-1) + scale"),
        ("negation removed", "return g(a, b, mask=mask).sum(1) + scale"),
        ("constant", "return g(a, b, mask=mask).sum(-2) + scale"),
        ("constant", "return g(a, b, mask=mask).sum(-0) + scale"),
    }


def test_each_change_is_one_other_program():
    file = "algorithms/ppo.py"
    programs = [ast.dump(ast.parse(apply(c, source(file)))) for c in changes(file, source(file))]
    assert len(programs) > 100
    assert ast.dump(ast.parse(source(file))) not in programs


WARM = """
def f(x, scale=2):
    inner = [scale * y for y in x]
    return sum(inner)

class A:
    size = 3

    def g(self):
        return self.size + 1
"""


@pytest.mark.parametrize(
    ("old", "new", "want"),
    [("scale * y", "scale - y", (0, 4)), ("sum(inner)", "max(inner)", (6, 4)), ("+ 1", "- 1", (12, 2)),
     ("scale=2", "scale=1", None), ("size = 3", "size = 4", None), ("A:", "B:", None)],
)  # fmt: skip
def test_code_is_exchanged_within_functions_only(old, new, want):
    module: dict = {}
    exec(compile(WARM, "warm.py", "exec"), module)
    f, g = module["f"], module["A"].g
    functions = {("warm.py", x.__code__.co_qualname, x.__code__.co_firstlineno): [x] for x in (f, g)}
    assert warm.swap(functions, "warm.py", WARM, WARM.replace(old, new)) == (want is not None)
    assert (f([1, 2, 3]), module["A"]().g()) == (want or (12, 4))


def test_only_a_failing_test_kills():
    outcomes = {
        mutate.outcome(found): found
        for found in (
            Found(code=1, failed="a::b"), Found(code=0), Found(code=-1, late=True), Found(code=2, broken="SyntaxError")
        )
    }  # fmt: skip
    assert list(outcomes) == ["killed", "survived", "timeout", "invalid"]
    assert mutate.outcome(Found(code=-1, broken="the process that tested has died")) == "invalid"


def test_a_sample_changes_every_line_once_before_any_twice():
    made = changes("x.py", TEXT)
    order = mutate.shuffled(made, 3)
    lines = {change.line for change in made}
    assert sorted(order, key=lambda c: c.key) == sorted(made, key=lambda c: c.key)
    assert {change.line for change in order[: len(lines)]} == lines
    assert order == mutate.shuffled(made, 3) != mutate.shuffled(made, 4)


def test_every_equivalent_change_is_still_one_that_the_machine_makes():
    made = {(c.file, c.before, c.after) for file in {e.file for e in EQUIVALENT} for c in changes(file, source(file))}
    assert [e for e in EQUIVALENT if (e.file, e.before, e.after) not in made] == []
    assert all(e.reason for e in EQUIVALENT)


def test_only_outcomes_of_the_same_mutant_that_say_something_are_known(tmp_path: Path) -> None:
    file, (first, second, third) = tmp_path / "x.json", MUTANTS[:3]
    for mutant, digest, caught, problem in (
        (first, first.digest, "", ""),
        (second, "of another change with this name", "x.py", ""),
        (third, third.digest, "", "no end after 240 s"),
    ):
        records.append(file, {"name": mutant.name, "digest": digest, "caught_by": caught, "problem": problem})
    assert mutations._read(file, MUTANTS) == {first.name: False}
    records.append(file, {"name": third.name, "digest": third.digest, "caught_by": "x.py", "problem": ""})
    assert mutations._read(file, MUTANTS) == {first.name: False, third.name: True}
    assert mutations._read(None, MUTANTS) == {}


def test_nothing_begun_is_no_success(capsys: pytest.CaptureFixture) -> None:
    assert mutations.run([], 1, limit=0) == 1
    assert "0 of 0 caught" in capsys.readouterr().out


@pytest.mark.slow
def test_a_bug_that_is_not_caught_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A real run of two bugs: one that a test sees, and a change of a comment, which no test can see."""
    line = "_SIDES = ("
    seen = kind.Mutant("seen", "extra", "", "html/splits.py", 'NOTHING = "nothing', 'NOTHING = "no', TARGET)
    unseen = kind.Mutant("unseen", "extra", "", "html/splits.py", line, f"# changed\n{line}", TARGET)
    results = tmp_path / "x.jsonl"
    assert mutations.run([seen], 1) == 0
    assert mutations.run([seen, unseen], 1, results) == 1
    found = {one["name"]: (bool(one["caught_by"]), one["problem"]) for one in records.read(results)}
    assert found == {"seen": (True, ""), "unseen": (False, "")}
    monkeypatch.setattr(mutations, "MUTANTS", [seen, unseen])
    monkeypatch.setattr(sys, "argv", ["mutations", "--json", str(results)])
    assert mutations.main() == 1
    assert "1 of them not caught" in capsys.readouterr().out
    monkeypatch.setattr(mutations, "MUTANTS", [seen])
    assert mutations.main() == 0
    results.write_text("".join(one for one in results.read_text().splitlines(True) if '"unseen"' in one))
    monkeypatch.setattr(mutations, "MUTANTS", [seen, unseen])
    assert mutations.main() == 1  # what is run now is caught, and what was known is not
