"""Symptoms of the run as a process: failed, stopped, killed, still running, slowed down, or with gaps in its log."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.symptom_cases import Case, absent, found, unseen
from tests.support.synthetic_runs import findings, write_run
from tinyllm.diagnostics.symptoms.finding import Finding

DIVERGED = "step 7: loss 4.1, gradient norm nan at learning rate 0.001; the weights were not updated"
FAST, SLOW, HALF = 60000.0, 20000.0, 30000.0
ROLLOUTS = [200000.0] * 12 + [20000.0, 120000.0] * 6  # the slow steps sample a rollout

FAILED = {"status": "failed", "error": "something else"}

CASES = [
    found("failed", "sft", "broken", "tinyllm by-hand", facts=FAILED),
    absent("failed", "sft"),
    found("nothing_logged", "sft", "broken", "tinyllm by-hand", lines=0),
    absent("nothing_logged", "sft", lines=1),
    found("unfinished", "sft", "note", "tinyllm by-hand", facts={"status": "stopped"}),
    absent("unfinished", "sft"),
    found("rows_missing", "sft", "warning", "another --name", lines=18),
    absent("rows_missing", "sft"),
    unseen("rows_missing", "sft", "no train lines", lines=1),
    unseen("not_finite", "sft", "no eval lines", lines=0),
    found("damaged_lines", "sft", "note", "grep", damaged=1),
    absent("damaged_lines", "sft"),
    found("slowed", "pretrain", "note", "top", train={"tokens_per_second": [100.0] + [FAST] * 15 + [SLOW] * 9}),
    absent("slowed", "grpo", train={"tokens_per_second": ROLLOUTS}, why="sampling is slow"),
    absent("slowed", "pretrain", train={"tokens_per_second": [FAST] * 16 + [HALF] * 9}, why="half the speed is usual"),
]

# just on either side of each bound
EDGES = [
    found("slowed", "pretrain", "note", "top", train={"tokens_per_second": [FAST] * 16 + [0.38 * FAST] * 9}),
    absent("slowed", "pretrain", train={"tokens_per_second": [FAST] * 16 + [0.42 * FAST] * 9}),
    found(
        "slowed",
        "pretrain",
        "note",
        "top",
        train={"tokens_per_second": [100.0] + [FAST] * 6 + [SLOW] * 6},
        config={"train.steps": 60},
        why="twelve lines after the first step",
    ),
    unseen(
        "slowed",
        "pretrain",
        "11 of at least 12",
        train={"tokens_per_second": [100.0] + [FAST] * 5 + [SLOW] * 6},
        config={"train.steps": 55},
    ),
    unseen("slowed", "sft", "not logged by sft", train={"tokens_per_second": []}),
]


@pytest.mark.parametrize("case", CASES + EDGES, ids=str)
def test_finding(case: Case, tmp_path: Path) -> None:
    case.check_in(tmp_path)


def test_slowdown_is_measured_by_the_median_speed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "pretrain", train={"tokens_per_second": [100.0] + [FAST] * 15 + [SLOW] * 9})
    assert [f.value for f in findings(run)["slowed"].evidence] == [FAST, SLOW]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (DIVERGED, "learning_rate=0.0001"),
        ("step 1 has nothing to learn from: every token is masked", "max_length=256"),
        ("sampler and training disagree by 0.2 nats a token, more than rollout.tolerance 0.1", "precision=fp32"),
        ("the checkpoint could not be written: No space left on device", "free disk space"),
        ("something else", "tinyllm by-hand"),
    ],
)
def test_failed_run_gets_advice_for_its_error_message(tmp_path: Path, error: str, advice: str) -> None:
    run = write_run(tmp_path / "run", "grpo", facts={"status": "failed", "error": error})
    finding = findings(run)["failed"]
    assert finding.severity == "broken"
    assert finding.evidence[0].value == error
    assert finding.evidence[0].file == "run.json"
    assert advice in finding.try_this


def test_the_error_of_a_failed_run_is_one_line_of_evidence(tmp_path: Path) -> None:
    error = "error: the reward kind raised KeyError (mine.py:3)\nfix: add the column"
    run = write_run(tmp_path / "run", "grpo", facts={"status": "failed", "error": error})
    assert (
        findings(run)["failed"].evidence[0].value == "the reward kind raised KeyError (mine.py:3); fix: add the column"
    )


# --- stopped, killed, still running ----------------------------------------------------------------------------------------------


def silent_for(run: Path, seconds: float) -> Finding:
    """Return the finding for a run whose files were last written so many seconds ago."""
    then = time.time() - seconds
    for name in ("run.json", "metrics.jsonl"):
        os.utime(run / name, (then, then))
    return findings(run)["unfinished"]


def test_stopped_run_gets_the_command_that_resumes_it(tmp_path: Path) -> None:
    command = ["tinyllm", "sft", "--name", "mine", "--set", "data.train=[world:500]"]
    run = write_run(tmp_path / "mine", "sft", facts={"status": "stopped", "command": command, "world_size": 2})
    for step in (50, 75):
        (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    finding = findings(run)["unfinished"]
    assert finding.severity == "note"
    assert "after step 75" in finding.try_this
    assert finding.try_this.endswith("tinyllm sft --name mine --set 'data.train=[world:500]' --nproc 2")


def test_stopped_fast_dev_run_is_not_resumed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "fast-dev-run", "sft", facts={"status": "stopped"})
    assert "starts from the beginning" in findings(run)["unfinished"].try_this


def test_run_is_taken_for_dead_after_two_minutes_of_silence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "sft", facts={"status": "running"})
    assert findings(run)["unfinished"].severity == "note"
    assert silent_for(run, 110).severity == "note"
    killed = silent_for(run, 130)
    assert killed.severity == "warning"
    assert "from the beginning" in killed.try_this


@pytest.mark.parametrize(("silence", "severity"), [(2700, "note"), (3300, "warning")])
def test_slow_run_is_taken_for_dead_after_ten_times_its_usual_interval(
    tmp_path: Path, silence: float, severity: str
) -> None:
    """24 lines in two hours are five minutes per line."""
    run = write_run(tmp_path / "run", "sft", facts={"status": "running"})
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - silence - 7200))
    (run / "run.json").write_text(json.dumps({"status": "running", "started": started}))
    assert silent_for(run, silence).severity == severity


# --- the log ---------------------------------------------------------------------------------------------------------------------


def findings_after(run: Path, edit: Callable[[list[str]], list[str]]) -> dict[str, Finding]:
    """Return the findings after an edit of the lines of metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(edit(lines)) + "\n")
    return findings(run)


def without_steps(*steps: int) -> Callable[[list[str]], list[str]]:
    return lambda lines: [x for x in lines if not any(f'"step": {step},' in x for step in steps)]


def test_missing_steps_are_counted(tmp_path: Path) -> None:
    found = findings_after(write_run(tmp_path / "run", "sft"), without_steps(45, 60))
    evidence = {e.figure: e.value for e in found["rows_missing"].evidence}
    assert evidence == {"train lines missing": 2, "first step missing": 45}


def test_duplicate_steps_are_attributed_to_a_second_process(tmp_path: Path) -> None:
    found = findings_after(write_run(tmp_path / "run", "sft"), lambda lines: [*lines, *lines[-3:-1]])
    assert "two processes" in found["rows_missing"].causes[0]


@pytest.mark.parametrize(("status", "is_missing"), [("completed", True), ("stopped", False)])
def test_last_step_is_expected_of_a_completed_run_only(tmp_path: Path, status: str, is_missing: bool) -> None:
    run = write_run(tmp_path / "run", "sft", facts={"status": status})
    assert ("rows_missing" in findings_after(run, without_steps(100))) == is_missing


def test_incomplete_last_line_is_skipped_and_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "sft", facts={"status": "stopped"})
    found = findings_after(run, lambda lines: [*lines[:-2], lines[-2][:40]])
    assert found["damaged_lines"].severity == "note"
    assert found["damaged_lines"].evidence[0].value == 1
    assert "rows_missing" not in found
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 105, "spl\xe2\x82')  # not valid UTF-8
    assert findings(run)["damaged_lines"].evidence[0].value == 2


@pytest.mark.parametrize("line", ["[1, 2]", '{"split": "train"}', '{"step": 3, "split": "other"}', "null"])
def test_line_without_step_or_split_is_damaged(tmp_path: Path, line: str) -> None:
    found = findings_after(write_run(tmp_path / "run", "sft"), lambda lines: [*lines, line])
    assert found["damaged_lines"].evidence[0].value == 1


@pytest.mark.parametrize(
    ("status", "done", "is_found"),
    [("stopped", 0, True), ("running", 0, False), ("failed", 0, False), ("failed", 7, True)],
)
def test_empty_log_is_a_symptom_of_an_ended_run_with_steps(
    tmp_path: Path, status: str, done: int, is_found: bool
) -> None:
    run = write_run(tmp_path / "run", "sft", facts={"status": status, "sessions": [{"from_step": 0, "to_step": done}]})
    (run / "metrics.jsonl").unlink()
    assert ("nothing_logged" in findings(run)) == is_found
