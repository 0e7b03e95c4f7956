"""The run as a process: failed, stopped, killed, still going, slowed down, a log with holes."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import histories

DIVERGED = "step 7: loss 4.1, gradient norm nan at learning rate 0.001; nothing was updated"
SPEED = [100.0] + [60000.0] * 15 + [20000.0] * 9


def aged(run: Path, seconds: float) -> Path:
    """The run as if nothing had been written to it for so long."""
    then = time.time() - seconds
    for name in ("run.json", "metrics.jsonl"):
        os.utime(run / name, (then, then))
    return run


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
def test_a_failure_is_explained_by_its_message(tmp_path: Path, error: str, advice: str) -> None:
    run = histories.write(tmp_path / "run", "grpo", facts={"status": "failed", "error": error})
    found = histories.findings(run)["failed"]
    assert found.severity == "broken"
    assert found.evidence[0].value == error
    assert found.evidence[0].file == "run.json"
    assert advice in found.try_this


def test_a_stopped_run_says_how_it_goes_on(tmp_path: Path) -> None:
    command = ["tinyllm", "sft", "--name", "mine", "--set", "data.train=[world:500]"]
    run = histories.write(
        tmp_path / "mine", "sft", facts={"status": "stopped", "command": command, "world_size": 2}, config={}
    )
    for step in (50, 75):
        (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    found = histories.findings(run)["unfinished"]
    assert found.severity == "note"
    assert "after step 75" in found.try_this
    assert found.try_this.endswith("tinyllm sft --name mine --set 'data.train=[world:500]' --nproc 2")


def test_a_silent_run_was_killed_and_a_fresh_one_is_still_going(tmp_path: Path) -> None:
    run = histories.write(tmp_path / "run", "sft", facts={"status": "running"})
    assert histories.findings(run)["unfinished"].severity == "note"
    assert histories.findings(aged(run, 100))["unfinished"].severity == "note"
    killed = histories.findings(aged(run, 200))["unfinished"]
    assert killed.severity == "warning"
    assert "from the start" in killed.try_this


def test_a_slow_run_is_not_taken_for_a_dead_one(tmp_path: Path) -> None:
    """24 lines in two hours: five minutes a line, so ten minutes of silence mean nothing and two hours do."""
    run = histories.write(tmp_path / "run", "sft", facts={"status": "running"})
    for silence, severity in ((600, "note"), (7200, "warning")):
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - silence - 7200))
        (run / "run.json").write_text(json.dumps({"status": "running", "started": started}))
        assert histories.findings(aged(run, silence))["unfinished"].severity == severity


def test_a_rehearsal_is_not_told_to_resume(tmp_path: Path) -> None:
    run = histories.write(tmp_path / "fast-dev-run", "sft", facts={"status": "stopped"})
    assert "starts over" in histories.findings(run)["unfinished"].try_this


def changed(run: Path, edit: Any) -> dict:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(edit(lines)) + "\n")
    return histories.findings(run)


def test_holes_and_doubles_in_the_log_are_counted(tmp_path: Path) -> None:
    run = histories.write(tmp_path / "holes", "sft")
    found = changed(run, lambda lines: [x for x in lines if '"step": 45,' not in x and '"step": 60,' not in x])
    shown = {f.figure: f.value for f in found["rows_missing"].evidence}
    assert shown == {"train lines missing": 2, "first step without one": 45}
    run = histories.write(tmp_path / "doubles", "sft")
    found = changed(run, lambda lines: [*lines, *lines[-3:-1]])
    assert "two processes" in found["rows_missing"].causes[0]


def test_the_end_of_a_completed_run_is_missed_and_that_of_a_stopped_one_is_not(tmp_path: Path) -> None:
    for status, missed in (("completed", True), ("stopped", False)):
        run = histories.write(tmp_path / status, "sft", facts={"status": status})
        found = changed(run, lambda lines: [x for x in lines if '"step": 100,' not in x])
        assert ("rows_missing" in found) == missed


def test_a_half_written_last_line_is_passed_over_and_counted(tmp_path: Path) -> None:
    run = histories.write(tmp_path / "run", "sft", facts={"status": "stopped"})
    found = changed(run, lambda lines: [*lines[:-2], lines[-2][:40]])
    assert found["damaged_lines"].severity == "note"
    assert found["damaged_lines"].evidence[0].value == 1
    assert "rows_missing" not in found
    run = histories.write(tmp_path / "bytes", "sft", facts={"status": "stopped"})
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 105, "spl\xe2\x82')  # not even UTF-8
    assert histories.findings(run)["damaged_lines"].evidence[0].value == 1


@pytest.mark.parametrize("line", ["[1, 2]", '{"split": "train"}', '{"step": 3, "split": "other"}', "null"])
def test_a_line_that_is_no_row_is_damaged(tmp_path: Path, line: str) -> None:
    run = histories.write(tmp_path / "run", "sft")
    assert changed(run, lambda lines: [*lines, line])["damaged_lines"].evidence[0].value == 1


@pytest.mark.parametrize(("status", "seen"), [("stopped", True), ("running", False)])
def test_an_empty_log_is_a_symptom_once_the_run_is_over(tmp_path: Path, status: str, seen: bool) -> None:
    run = histories.write(tmp_path / "run", "sft", facts={"status": status})
    (run / "metrics.jsonl").unlink()
    assert ("nothing_logged" in histories.findings(run)) == seen


def test_a_collapse_of_speed_is_seen_and_the_slowness_of_rollouts_is_not(tmp_path: Path) -> None:
    run = histories.write(tmp_path / "slow", "pretrain", train={"tokens_per_second": SPEED})
    found = histories.findings(run)["slowed"]
    assert found.severity == "note"
    assert [f.value for f in found.evidence] == [60000.0, 20000.0]
    rollouts = [v for _ in range(6) for v in (130000.0, 130000.0)] + [v for _ in range(6) for v in (20000.0, 120000.0)]
    run = histories.write(tmp_path / "rollouts", "grpo", train={"tokens_per_second": rollouts})
    assert "slowed" not in histories.findings(run)
    run = histories.write(tmp_path / "half", "pretrain", train={"tokens_per_second": [60000.0] * 16 + [30000.0] * 9})
    assert "slowed" not in histories.findings(run)
