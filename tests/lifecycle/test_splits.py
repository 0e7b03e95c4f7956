"""The exam of whole lifecycles, built and not trained: nothing in common with training and selection, and refused where there is."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.evidence import parts
from tinyllm.cli.lifecycle import pipeline_configs
from tinyllm.cli.options import Common
from tinyllm.errors import UserError
from tinyllm.lifecycle import examination, overlap, sources
from tinyllm.lifecycle.pipeline import Pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import overlap as benchmark
import planted_faults

COUNTS = {"documents": 300, "conversations": 600, "pairs": 600, "prompts": 400}
SETS = [  # the model is not trained
    "pretrain:model={vocab_size: 400, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, head_dim: 16}",
    "data.max_length=96",
]
WORLD = [*SETS, "data.train=['world:2000']"]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.chdir(tmp_path)
    return planted_faults.own_files(tmp_path / "own", COUNTS, 0)


def zeros(rows: dict[str, dict[str, Any]], units: set[str], tolerated: tuple[str, ...] = ()) -> None:
    """Assert that both overlaps of every stage were counted, over the units that it has, and are 0."""
    for stage, row in rows.items():
        for side, counts in row["overlap"].items():
            assert counts, (stage, side)
            assert not any(count for unit, count in counts.items() if unit not in tolerated), (stage, side, counts)
        assert len({row[part]["sha256"] for part in ("train", "selection", "exam")}) == 3
    assert {unit for row in rows.values() for unit in row["overlap"]["train/exam"]} == units


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_exam_of_the_world_is_in_no_training_or_selection_data(seed: int) -> None:
    rows = benchmark.overlaps("laptop", seed, WORLD, documents=False)
    assert set(rows) == {"sft", "sft-lora", "rm", "dpo", "orpo", "ppo", "gspo", "grpo"}
    zeros(rows, {overlap.QUESTIONS, overlap.LAST, overlap.PAIRS})
    assert all(row["exam"]["n"][overlap.QUESTIONS] > 400 for row in rows.values())
    assert rows["rm"]["exam"]["n"][overlap.PAIRS] > 900
    asked = {row["exam"]["sha256"] for row in rows.values()}
    assert len(asked) == 4  # conversations, 1,000 pairs, 256 pairs, prompts


def test_the_exam_of_own_data_is_in_no_training_or_selection_data(own: tuple[str, ...]) -> None:
    rows = benchmark.overlaps("laptop", 0, [*SETS, "data.val_fraction=0.2"], own)
    assert set(rows) >= {"pretrain", "sft", "rm", "dpo", "grpo"}
    zeros(rows, {overlap.DOCUMENTS, overlap.QUESTIONS, overlap.LAST, overlap.PAIRS}, sources.TOLERATED)
    assert rows["pretrain"]["exam"]["n"][overlap.DOCUMENTS] > 10
    assert rows["grpo"]["exam"]["n"][overlap.QUESTIONS] > 10
    assert benchmark.failures(rows, own=True) == 0
    seen = [row["exam"]["n"][unit] for row in rows.values() for counts in row["overlap"].values() for unit in counts]
    assert benchmark.compared(rows) == (sum(seen), [])


def test_the_count_of_overlaps_says_how_much_it_saw() -> None:
    """What a user's files tolerate, what is refused, and sides without anything to compare."""
    exam = {"n": {overlap.QUESTIONS: 10, overlap.LAST: 8, overlap.PAIRS: 5}}
    sides = {"train/exam": {overlap.QUESTIONS: 2, overlap.LAST: 3}, "selection/exam": {}}
    rows = {"sft": {"exam": exam, "overlap": sides}}
    assert benchmark.compared(rows) == (18, ["sft selection/exam"])
    assert (benchmark.failures(rows, own=False), benchmark.failures(rows, own=True), benchmark.tolerated(rows)) == (
        5,
        2,
        3,
    )


def counted(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, dict[str, int | float], str]:
    """Run the benchmark. Return its exit code, what the evidence counts in its output, and the output."""
    sets = [word for one in (*SETS, "data.val_fraction=0.2") for word in ("--set", one)]
    capsys.readouterr()
    code = benchmark.main([*sets, *words])
    printed = capsys.readouterr().out
    return code, parts.overlap(printed, Path())[0], printed


def test_the_benchmark_of_overlaps_counts_own_files_and_fails_on_an_overlap(
    own: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    files = [word for file in own for word in ("--data", file)]
    monkeypatch.setattr(benchmark, "rows_of", partial(benchmark.rows_of, documents=False))
    rows = benchmark.rows_of(benchmark.configs("laptop", 0, [*SETS, "data.val_fraction=0.2"], own))
    expected = {"stages": 8, "of own data": 0, "comparisons": benchmark.compared(rows)[0], "in common": 0}
    code, counts, _ = counted(capsys, *files)
    assert (code, counts) == (0, expected | {"last message alone": benchmark.tolerated(rows)})
    assert counts["last message alone"] > 0

    monkeypatch.setattr(benchmark, "RECORDS", COUNTS)
    code, counts, printed = counted(capsys, "--own", "--set", "data.train=['world:2000']")
    assert (code, counts["stages"], counts["of own data"], counts["in common"]) == (0, 16, 8, 0)
    lines = {line.split()[0]: line for line in printed.splitlines() if " sft " in line}
    assert lines["0"].split("sft")[1] != lines["own"].split("sft")[1]
    assert Path("runs/overlap/own-data-0/talks.jsonl").is_file()

    monkeypatch.setattr(sources, "read_split", leaking("val"))
    code, counts, _ = counted(capsys, *files)
    assert code == 1
    leaked = benchmark.rows_of(benchmark.configs("laptop", 0, [*SETS, "data.val_fraction=0.2"], own))
    assert counts["in common"] == benchmark.failures(leaked, own=True) > 0


def test_the_benchmark_of_overlaps_judges_own_files_as_the_lifecycle_does(
    own: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Files that `--set` names are own data too, and nothing to compare is no success."""
    row = {"train": {"n": {}}, "selection": {"n": {}}, "exam": {"n": {overlap.LAST: 8}}}
    sides = {"train/exam": {overlap.LAST: 3}, "selection/exam": {overlap.LAST: 0}}
    monkeypatch.setattr(benchmark, "rows_of", lambda *_: {"sft": {**row, "overlap": sides}})
    assert counted(capsys, "--set", f"sft:data.train=[{own[1]}]")[0] == 0
    assert counted(capsys)[0] == 1
    sides["train/exam"] = {}
    code, _, printed = counted(capsys, "--set", f"sft:data.train=[{own[1]}]")
    assert (code, "nothing to compare: 0 sft train/exam" in printed) == (1, True)


@pytest.mark.parametrize(
    ("words", "expected"), [(["--data", "missing.jsonl"], "no such file"), (["--preset", "nosuch"], "nosuch")]
)
def test_the_benchmark_of_overlaps_refuses_input_without_a_traceback(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert benchmark.main(words) == 2
    assert expected in capsys.readouterr().err


def test_without_prompts_the_last_questions_of_test_conversations_are_asked(own: tuple[str, ...]) -> None:
    rows = benchmark.overlaps("laptop", 0, [*SETS, "data.val_fraction=0.2"], own[:3], documents=False)
    assert set(rows) == {"sft", "sft-lora", "rm", "dpo", "orpo"}
    zeros(rows, {overlap.QUESTIONS, overlap.LAST, overlap.PAIRS}, sources.TOLERATED)


def pipeline(name: str, seed: int = 0, files: tuple[str, ...] = ()) -> Pipeline:
    sets = [*SETS, "data.val_fraction=0.2"] if files else WORLD
    resolved = pipeline_configs("laptop", Common(set=sets, name=name, seed=seed), list(files), 1, {})[name]
    stages = ("pretrain", "sft", "rm", "grpo")
    return Pipeline(name, {stage: resolved[stage] for stage in stages if stage in resolved}, questions=64)


def leaking(part: str) -> Any:
    """Return `read_split` with the test split replaced by another one: an exam that reads what selected, or trained."""
    real = sources.read_split

    def read_split(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        return found._replace(test=list(getattr(found, part)))

    return read_split


@pytest.mark.parametrize(("part", "words"), [("val", "selected the checkpoint of"), ("train", "trained")])
@pytest.mark.parametrize("where", ["world", "own"])
def test_an_exam_that_reads_another_split_is_refused_before_training(
    part: str, words: str, where: str, own: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = pipeline("good", files=own if where == "own" else ())
    good.prepare()
    good.close()
    monkeypatch.setattr(sources, "read_split", leaking(part))
    bad = pipeline("bad", files=own if where == "own" else ())
    with pytest.raises(UserError, match=f"of the exam also {words} (sft|grpo)") as caught:
        bad.run()
    assert "data.test" in caught.value.fix
    assert not Path("runs/pretrain").exists()
    bad.close()


def test_a_document_that_selects_and_examines_is_refused_before_it_is_judged(
    own: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = examination.held_out_documents
    monkeypatch.setattr(examination, "held_out_documents", lambda *args: real(*args[:3], "val", args[4]))
    with pytest.raises(AssertionError, match="selection/exam"):
        zeros(benchmark.overlaps("laptop", 0, [*SETS, "data.val_fraction=0.2"], own[:3]), set())
    found = pipeline("documents", files=own[:3])
    found.prepare()
    with pytest.raises(UserError, match="documents of the exam also selected the checkpoint of pretrain"):
        found.check_splits("pretrain")
    found.close()


def test_questions_that_other_files_ask_are_left_out(own: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    found = pipeline("others", files=own)
    found.prepare()
    before = found.exam.records
    found.close()
    talks = Path(own[1])
    asked = before[0].messages[-1]["content"]
    extra = '{"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}, '
    extra += f'{{"role": "user", "content": "{asked}"}}, {{"role": "assistant", "content": "x"}}]}}\n'
    talks.write_text(talks.read_text() + extra * 2)
    again = pipeline("again", files=own)
    again.prepare()
    assert [p.messages for p in again.exam.records] == [p.messages for p in before[1:]]
    assert "test questions are also asked in training data: not used" in capsys.readouterr().err
    again.close()


def test_data_that_changed_after_the_exam_was_drawn_are_refused(
    own: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run records hashes of what it read; the exam was compared with the same."""
    found = pipeline("changed", files=own)
    found.prepare()
    facts = {"splits": {part: dict(one) for part, one in found.parts_facts["sft"].items()}}
    monkeypatch.setattr("tinyllm.lifecycle.pipeline.read_facts", lambda folder: facts)
    found.check_splits("sft")
    facts["splits"]["train"]["sha256"] = "0" * 64
    with pytest.raises(UserError, match="sft was trained on other records than the exam was compared with"):
        found.check_splits("sft")
    facts.update(splits=found.parts_facts["sft"], test={"records": 9, "before": None, "best": None, "last": None})
    with pytest.raises(UserError, match="sft began without a test split"):
        found.check_splits("sft")
    found.close()
