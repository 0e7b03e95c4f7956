"""The evidence: what a part counts, when its result is current, and that README and docs/evidence.md show the same figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evidence import __main__ as evidence
from tests.evidence import parts, rendering, running
from tests.evidence.parts import BY_NAME, PARTS, Part
from tests.mutants.equivalent import EQUIVALENT
from tests.support import records

SHOWN = {"smoke", "lifecycle", "faults", "verify", "parity", "crash"}  # blocks that a README cannot be without
VERSION = Part(
    "smoke",
    "The version",
    "tinyllm --version",
    lambda stdout, file: ({"words": len(stdout.split())}, {}),
    "words",
    0,
    ("tests/evidence",),
)


def different(readme: str, page: str) -> list[str]:
    """Return the blocks of a README that the page does not have in the same words, and those that it lacks."""
    found, wanted = rendering.blocks_of(readme), rendering.blocks_of(page)
    return sorted({name for name in found if found[name] != wanted.get(name)} | (SHOWN - set(found)))


@pytest.mark.parametrize("readme", rendering.READMES, ids=lambda path: path.name)
def test_a_readme_shows_the_figures_of_the_page(readme: Path) -> None:
    page, text = rendering.PAGE.read_text("utf-8"), readme.read_text("utf-8")
    assert set(rendering.blocks_of(page)) == set(rendering.SECTIONS)
    assert different(text, page) == []
    edited = text.replace("<!-- evidence: parity -->\n`", "<!-- evidence: parity -->\nabout `")
    assert edited != text
    assert different(edited, page) == ["parity"]
    assert different(text.replace("<!-- evidence: faults -->", "<!-- -->"), page) == ["faults"]


def test_a_part_records_what_it_ran_and_counted(tmp_path: Path) -> None:
    assert not running.is_current(tmp_path, VERSION)
    record = running.run(VERSION, tmp_path, {})
    assert json.loads((tmp_path / "smoke.json").read_text()) == record
    assert record["command"] == "tinyllm --version"
    assert record["passed"]
    assert record["counts"]["words"] >= 2
    assert record["output"].startswith("tinyllm ")
    assert record["versions"]["tinyllm"] == record["output"].split()[1]
    assert str(running.ROOT) not in json.dumps(record)
    assert running.is_current(tmp_path, VERSION)
    assert not running.is_current(tmp_path, replace(VERSION, depends=("tests/support",)))  # other files


@pytest.mark.parametrize(
    "change",
    [
        {"command": "tinyllm --no-such-option"},
        {"read": lambda stdout, file: ({"words": 0}, {})},
        {"read": lambda stdout, file: ({}, {})},
        {"read": lambda stdout, file: ({"words": 3, "lost": 1}, {}), "bad": ("lost",)},
    ],
    ids=["exit code", "nothing seen", "nothing counted", "something lost"],
)
def test_a_part_that_saw_nothing_or_lost_something_has_not_passed(tmp_path: Path, change: dict) -> None:
    assert not running.run(replace(VERSION, **change), tmp_path, {})["passed"]


def test_the_page_names_parts_that_were_not_run_and_results_of_other_code(tmp_path: Path) -> None:
    empty = rendering.render(tmp_path)
    assert empty.count(f"| {rendering.NOT_RUN} |") == len(PARTS)
    running.run(VERSION, tmp_path, {})
    page = rendering.render(tmp_path)
    assert page.count(f"| {rendering.NOT_RUN} |") == len(PARTS) - 1
    assert "| smoke | `tinyllm --version` | words" in page
    assert "passed, by an earlier version" in page  # the record is of other files than those of the part
    assert "tinyllm 0." in rendering.blocks_of(page)["smoke"]


def test_a_block_is_filled_and_nothing_else_is_changed() -> None:
    old = "old\n"
    text = f"before\n{rendering.block('smoke', old)}\nbetween\n{rendering.block('crash', old)}\nafter\n"
    filled = rendering.fill(text, {"smoke": "new\n", "crash": "other\n"})
    assert rendering.blocks_of(filled) == {"smoke": "new\n", "crash": "other\n"}
    assert rendering.BLOCK.sub("", filled) == "before\n\nbetween\n\nafter\n"
    with pytest.raises(KeyError):
        rendering.fill(text, {"smoke": "new\n"})


def test_every_reader_counts(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    table = "dpo / x  TRL  19  8.489  0.693147  0.693147  1.2e-07  3.7e-06  5.0e-02 normalizer, of 4  \n\n"
    table += "worst 3.7e-06, allowed 1e-05; 2 comparisons that saw nothing or miss a planted mistake\n"
    expected = {"cases": 1, "largest difference": 3.7e-06, "nearest planted mistake": 0.05, "weak": 2}
    assert parts.parity(table, file)[0] == expected
    sweep = 'noise\n{"events": 5, "killed at events": 5,\n "lost": ["event 3: leftovers"]}\n'
    assert parts.swept(sweep, file)[0] == {"events": 5, "killed at events": 5, "lost": 1}
    checks = "ok      repeat  0 <= 0\nok      repeat  0 <= 1\nfailed  lora 3 <= 1\nskipped ranks  one core\nverify: 4\n"
    assert parts.verify(checks, file)[0] == {"checks": 3, "comparisons": 4, "ok": 2, "failed": 1, "skipped": 1}
    rows = "  seed stage  trained on\n     0 sft        8,564 questions, 2 pairs  common: 0 pairs\n"
    rows += " own 7 sft-lora   3 documents  x\n own 7 rm  4 pairs\n"
    total = "in common: 2 in 47,620 comparisons\n"
    last = "of own data: 643 comparisons found the last message alone, which is not refused\n"
    expected = {"stages": 3, "of own data": 2, "comparisons": 47620, "in common": 2, "last message alone": 643}
    assert parts.overlap(rows + total + last, file)[0] == expected
    assert parts.overlap(rows + total, file)[0] == {**expected, "last message alone": 0}
    assert parts.overlap(rows, file)[0] == {}
    (tmp_path / "slow.xml").write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped message="no folder"/></testcase>'
        '<testcase classname="t" name="c"><failure/></testcase></testsuite></testsuites>'
    )
    counts, details = parts.slow("", file)
    assert counts == {"tests": 3, "passed": 1, "failed": 1, "skipped": 1}
    assert details == {"skipped": {"no folder": 1}, "failed": ["t::c"]}


def test_mutants_are_counted_by_room_and_by_what_they_break(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for name, path, caught, problem, keeps in (
        ("a", "model/lora.py", "model/test_lora.py", "", "gate: emits EOS"),
        ("b", "model/heads.py", "", "", "gate: wins against parent"),
        ("c", "mean.py", "", "no end after 240 s", ""),
        ("c", "mean.py", "test_mean.py", "", ""),  # run again, since the first time said nothing
        ("d", "model/heads.py", "x.py", "", "gate: wins against parent"),
    ):
        records.append(file, {"name": name, "file": path, "keeps": keeps, "caught_by": caught, "problem": problem})
    counts, details = parts.mutants("", file)
    assert counts == {"planted": 4, "killed": 3, "survived": 1}
    assert details["rooms"]["model"] == {"planted": 3, "killed": 2, "survived": 1}
    assert details["survived"] == ["b"]
    assert details["kept"] == {"gate": {"with a planted bug": 2, "seen red": 1, "missed": ["wins against parent"]}}


def test_changes_by_machine_that_change_nothing_are_not_survivors(tmp_path: Path) -> None:
    same, file = EQUIVALENT[0], tmp_path / "x.json"
    own = {"room": "gates", "line": 9}
    records.append(file, own | {"key": "1", "file": "f.py", "before": "a", "after": "b", "outcome": "survived"})
    records.append(file, own | {"key": "1", "file": "f.py", "before": "a", "after": "b", "outcome": "killed"})
    records.append(
        file,
        own | {"key": "2", "file": same.file, "before": same.before, "after": same.after, "outcome": "survived"},
    )
    records.append(file, own | {"key": "3", "file": "f.py", "before": "a", "after": "c", "outcome": "timeout"})
    counts, details = parts.machine("", file)
    assert counts == {"planted": 3, "killed": 1, "survived": 0, "equivalent": 1, "timeout": 1}
    assert set(details["rooms"]) == {"gates"}


def test_results_outlive_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    assert records.read(file) == records.read(None) == []
    records.append(file, {"name": "a"})
    with file.open("a") as torn:
        torn.write('{"name": "b"')
    assert records.read(file) == [{"name": "a"}]
    records.append(file, {"name": "c"})
    assert records.read(file) == [{"name": "a"}, {"name": "c"}]


def test_a_result_that_failed_is_not_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    failing = replace(VERSION, read=lambda stdout, file: ({"words": 0}, {}))
    assert evidence.run([failing], tmp_path, {}, again=False) == 1
    assert evidence.run([failing], tmp_path, {}, again=False) == 1
    assert "FAILED, there is a result of this version" in capsys.readouterr().out
    assert evidence.run([VERSION], tmp_path, {}, again=True) == 0
    assert evidence.run([VERSION], tmp_path, {}, again=False) == 0
    cannot = replace(VERSION, name="smoke", needs="no_such_module")
    assert evidence.run([cannot, VERSION], tmp_path, {}, again=True) == 2
    assert evidence.run([failing, cannot], tmp_path, {}, again=True) == 1


def test_a_page_is_not_replaced_by_one_with_fewer_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One part run in a clone, whose folder has no other results, or a wrong folder."""
    page, own, other = tmp_path / "page.md", tmp_path / "own", tmp_path / "other"
    monkeypatch.setattr(rendering, "PAGE", page)
    monkeypatch.setattr(rendering, "READMES", ())
    monkeypatch.setattr(evidence.running, "ROOT", tmp_path)
    other.mkdir()
    own.mkdir()
    for name in ("smoke", "crash"):
        running.run(replace(VERSION, name=name, depends=()), own, {})
    page.write_text(rendering.render(own))
    before = page.read_text()
    assert rendering.would_lose(own) == []
    assert rendering.would_lose(other) == ["smoke", "crash"]

    def ended(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["evidence", *words])
        return evidence.main()

    assert ended("--render", "--out", str(other)) == 2
    assert "there is no result in" in capsys.readouterr().err
    (other / "crash.json").write_text((own / "crash.json").read_text())
    monkeypatch.setattr(evidence, "run", lambda *_, **__: 0)
    assert ended("--only", "crash", "--out", str(other)) == 0
    assert "has no result of smoke; --render writes it" in capsys.readouterr().out
    assert page.read_text() == before
    assert ended("--render", "--out", str(other)) == 0
    assert "| smoke | `tinyllm lifecycle --smoke` | | | not run" in page.read_text()


def test_the_page_names_what_failed(tmp_path: Path) -> None:
    record = running.run(VERSION, tmp_path, {})
    for name, details in (("slow", {"failed": ["t::c"]}), ("signals", {"wrong": {"a phase": "exit code -2"}})):
        (tmp_path / f"{name}.json").write_text(json.dumps({**record, "details": details}))
    page = rendering.render(tmp_path)
    assert "- failed: `t::c`\n" in page
    assert "- wrong: `a phase` (exit code -2)\n" in page


def test_a_single_file_is_part_of_a_version() -> None:
    versions = {running.code(names) for names in ((), ("tests/mutate.py",), ("tests/signal_sweep.py",))}
    assert len(versions) == 3


def test_only_a_part_that_was_interrupted_goes_on_with_its_results(tmp_path: Path) -> None:
    goes_on = replace(
        VERSION, resumes=True, read=lambda stdout, file: ({"words": 1, "lines": len(records.read(file))}, {})
    )
    own = tmp_path / f"smoke-{running.code(VERSION.depends)}.json"
    records.append(own, {"name": "a"})
    assert running.run(goes_on, tmp_path, {})["counts"]["lines"] == 1  # no result yet: it was interrupted
    assert running.run(goes_on, tmp_path, {})["counts"]["lines"] == 0  # it had ended
    (tmp_path / "smoke.json").unlink()
    records.append(own, {"name": "a"})
    assert running.run(replace(goes_on, resumes=False), tmp_path, {})["counts"]["lines"] == 0


BAD = {  # what may not be counted by a part that passes; of the others the exit code decides
    "verify": ("failed",), "parity": ("weak",), "overlap": ("in common",), "crash": ("lost",), "crash-lifecycle": ("lost",),
    "kills": ("different", "wrong"), "signals": ("wrong",), "slow": ("failed",), "mutations": ("survived", "unclear"),
    "machine": ("survived",),
}  # fmt: skip
SAW = {
    "smoke": "stages", "verify": "ok", "parity": "cases", "lifecycle": "gates", "faults": "faults", "control": "passed",
    "overlap": "of own data", "crash": "kills in the middle of a write", "crash-lifecycle": "kills in the middle of a write",
    "kills": "kills", "signals": "phases", "slow": "passed", "mutations": "killed", "machine": "killed",
    "throughput": "contestants", "preparation": "contestants",
}  # fmt: skip


def test_every_part_names_what_it_must_have_seen() -> None:
    assert len(BY_NAME) == len(PARTS)
    assert {part.name: part.bad for part in PARTS if part.bad} == BAD
    assert {part.name: part.saw for part in PARTS} == SAW
    for part in PARTS:
        assert all((running.ROOT / name).exists() for name in part.depends), part.name
        counts, _ = part.read("", Path("no such file"))
        assert not counts.get(part.saw), f"{part.name} counts something in nothing"
        assert not part.after or part.after in BY_NAME
