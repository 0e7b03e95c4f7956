"""`tinyllm explain`: healthy runs, which run is meant, what is printed, and a real run end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import small
from tests.support.synthetic_runs import write_run
from tinyllm.cli import run as command
from tinyllm.config import dump, yaml12
from tinyllm.diagnostics import explain
from tinyllm.diagnostics.symptoms import CHECKS
from tinyllm.errors import USAGE, UserError
from tinyllm.stages import align_offline
from tinyllm.stages.config import AlignOfflineConfig
from tinyllm.stages.parents import OFFLINE, RUNS
from tinyllm.train.config import OptimConfig
from tinyllm.train.run import Invocation

OVERFITTING = {"loss": [5.4, 2.5, 3.1]}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("stage", "metric", "first", "best"),
    [
        ("pretrain", "bits_per_byte", 3.27, 1.53),
        ("sft", "loss", 5.46, 2.45),
        ("rm", "accuracy", 0.47, 0.77),
        ("dpo", "rewards/margins", 0, 0.93),
        ("orpo", "rewards/accuracies", 0.71, 0.77),
        ("ppo", "reward", -0.163, 0.0135),
        ("grpo", "reward", -0.163, 0.0135),
    ],
)
def test_healthy_run_is_reported_with_its_main_metric(
    stage: str, metric: str, first: float, best: float, tmp_path: Path
) -> None:
    found = explain.run(write_run(tmp_path / "run", stage))
    assert found["healthy"]
    # with DPO chosen answers become less likely, which is expected
    assert [f["check"] for f in found["findings"]] == (["chosen_falls"] if stage == "dpo" else [])
    moved = found["moved"]
    assert (moved["what"], moved["from"], moved["to"], moved["step"]) == (metric, first, best, found["steps"])
    assert found["of"] == stage


@pytest.mark.parametrize(
    ("margin", "metric"), [(0.008, "rewards/margins"), (-0.012, "rewards/accuracies"), (None, "rewards/accuracies")]
)
def test_margins_are_shown_only_where_they_start_at_0(margin: float | None, metric: str) -> None:
    assert explain.main_metric("offline", margin) == metric


def test_lora_run_is_called_sft_lora(tmp_path: Path) -> None:
    found = explain.run(write_run(tmp_path / "run", "sft", config={"lora": {"r": 8}}))
    assert (found["of"], found["healthy"]) == ("sft-lora", True)


def test_main_metric_is_that_of_test_for_the_best_checkpoint_or_that_of_val_for_the_last(tmp_path: Path) -> None:
    """Val has chosen the best checkpoint, so its figure there can hardly fall."""
    held_out = {"loss": [6.6, 3.0, 3.5], "bits_per_byte": [3.2, 1.4, 1.7]}
    run = write_run(tmp_path / "run", "pretrain", held_out=held_out)
    moved = explain.run(run)["moved"]
    assert moved == {"what": "bits_per_byte", "from": 3.2, "to": 1.7, "step": 120, "split": "val"}
    test = {0: 3.3, 60: 3.4, 120: 3.5}
    lines = [json.dumps({"step": step, "split": "test", "bits_per_byte": value}) for step, value in test.items()]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n".join(lines) + "\n")
    assert explain.run(run)["moved"]["split"] == "val"  # the run has not ended: no checkpoint was examined
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"test": {"records": 9}}))
    found = explain.run(run)
    assert found["moved"] == {"what": "bits_per_byte", "from": 3.3, "to": 3.4, "step": 60, "split": "test"}
    assert found["damaged_lines"] == 0


def test_findings_are_ordered_by_severity(tmp_path: Path) -> None:
    train = {"loss": [5.0, None], "grad_norm": [2.0] * 10 + [90.0] + [2.0] * 10}
    found = explain.run(write_run(tmp_path / "run", "sft", train=train, held_out={"loss": [5.4, 2.0, 3.0]}))
    severities = [f["severity"] for f in found["findings"]]
    assert severities == ["broken", "warning", "note"]
    assert not found["healthy"]


# --- which run -------------------------------------------------------------------------------------------------------------------


def test_default_is_the_newest_run(capsys: pytest.CaptureFixture) -> None:
    write_run(RUNS / "sft/full/old", "sft")
    new = write_run(RUNS / "rlhf/online/grpo-new", "grpo")
    aside = write_run(RUNS / "rlhf/online/grpo-new~1", "grpo")
    for folder, age in ((RUNS / "sft/full/old", 100), (new, 50), (aside, 0)):
        for name in ("run.json", "metrics.jsonl"):
            os.utime(folder / name, (1e9 - age, 1e9 - age))
    assert explain.run(None)["run"] == new.as_posix()
    assert str(new) in capsys.readouterr().err
    (RUNS / "sft/full/old/metrics.jsonl").touch()  # a run that is being written is the newest
    assert explain.run(None)["of"] == "sft"


def test_path_that_is_not_a_run_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    run = write_run(RUNS / "sft/full/mine", "sft")
    (run / "checkpoints").mkdir()
    assert explain.run(run / "checkpoints")["run"] == str(run)
    for given in (Path("nowhere"), Path("runs/sft"), run / "metrics.jsonl"):
        with pytest.raises(UserError) as caught:
            explain.run(given)
        assert caught.value.code == USAGE
        assert str(given) in caught.value.what
        assert caught.value.fix == "use sft/full/mine"


@pytest.mark.parametrize("given", [None, Path("nowhere")])
def test_without_runs_the_fix_is_to_train_one(given: Path | None) -> None:
    with pytest.raises(UserError, match=r"there are no runs yet|there is no run 'nowhere'") as caught:
        explain.run(given)
    assert (caught.value.code, "tinyllm pretrain" in caught.value.fix) == (USAGE, True)


@pytest.mark.parametrize(
    ("name", "text"), [("run.json", "{broken: ["), ("config.yaml", "{broken: ["), ("config.yaml", "of: something else")]
)
def test_run_with_damaged_files_is_refused(tmp_path: Path, name: str, text: str) -> None:
    run = write_run(tmp_path / "run", "sft")
    (run / name).write_text(text)
    with pytest.raises(UserError) as caught:
        explain.run(run)
    assert name in caught.value.where


# --- the command -----------------------------------------------------------------------------------------------------------------


def test_findings_are_printed_with_exit_code_0(capsys: pytest.CaptureFixture) -> None:
    run = write_run(RUNS / "sft/full/mine", "sft", held_out=OVERFITTING)
    assert command(["explain", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run}: sft, completed, step 100 of 100"
    assert "loss 5.4 -> 3.1 (val, step 100)" in lines[1]
    assert "warning: the held-out loss rises after step 50" in "\n".join(lines)
    evidence = next(line for line in lines if line.startswith("  evidence"))
    assert "eval loss 2.5 at step 50, 3.1 at step 100" in evidence
    assert evidence.endswith("(metrics.jsonl)")
    assert any(line.startswith("  try") and "--set 'data.train=[world:4000]'" in line for line in lines)
    assert "another --name" in lines[-1]


def test_advice_for_a_fast_dev_run_does_not_mention_names(capsys: pytest.CaptureFixture) -> None:
    """--fast-dev-run has no names, and always starts from the beginning."""
    run = write_run(RUNS / "sft/full/fast-dev-run", "sft", held_out=OVERFITTING)
    assert command(["explain", str(run)]) == 0
    assert "another --name" not in capsys.readouterr().out


def test_healthy_run_prints_three_lines(capsys: pytest.CaptureFixture) -> None:
    run = write_run(RUNS / "pretrain/mine", "pretrain")
    assert command(["explain", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "bits_per_byte 3.27 -> 1.53" in lines[1]
    assert "healthy" in lines[2]


LOSS_ALONE = {  # the checks that have their figures in a log of losses: those of the process but `slowed`, and those of losses
    "pretrain": ("not_finite", "never_improved", "eval_turned", "never_moved"),
    "sft": ("not_finite", "never_improved", "eval_turned", "never_moved"),
    "rm": ("not_finite", "never_improved", "eval_turned", "never_moved"),
    "dpo": ("not_finite", "never_improved", "eval_turned"),
    "grpo": ("not_finite",),
    "ppo": ("not_finite",),
}
PROCESS = ("failed", "nothing_logged", "unfinished", "rows_missing", "damaged_lines")


@pytest.mark.parametrize("stage", LOSS_ALONE)
def test_a_log_of_losses_alone_names_the_figures_that_are_missing(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = write_run(tmp_path / "run", stage)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: row[key] for key in ("step", "split", "loss") if key in row} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    found = explain.run(run)
    names = {
        check.name for check in CHECKS["online" if stage in ("ppo", "grpo") else found["of"].replace("dpo", "offline")]
    }
    missing = {entry["check"] for entry in found["not_examined"]}
    excluded = {entry["check"] for entry in found["not_applicable"]}
    assert names - missing - excluded == {*PROCESS, *LOSS_ALONE[stage]}
    assert (found["examined"], found["checks"]) == (5 + len(LOSS_ALONE[stage]), len(names) - len(excluded))
    assert found["examined"] + len(missing) == found["checks"]
    assert all(entry["why"] == f"not logged by {stage}" and entry["figure"] for entry in found["not_examined"])
    assert command(["explain", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"no problem found by {found['examined']} of {found['checks']} checks" in out
    assert "healthy" not in out
    assert f"train grad_norm: not logged by {stage} (gradient_spikes)" in out


def test_too_few_evaluations_are_told_with_the_minimum(capsys: pytest.CaptureFixture) -> None:
    run = write_run(RUNS / "sft/full/mine", "sft", config={"train.eval_every": 100})
    entry = next(e for e in explain.run(run)["not_examined"] if e["check"] == "eval_turned")
    assert entry == {
        "check": "eval_turned",
        "why": "2 of at least 3 evaluations",
        "figure": "eval loss",
        "points": 2,
        "needed": 3,
    }
    assert command(["explain", str(run)]) == 0
    assert "eval loss: 2 of at least 3 evaluations (eval_turned)" in capsys.readouterr().out


def test_of_a_run_without_figures_nothing_is_said_but_that(capsys: pytest.CaptureFixture) -> None:
    run = write_run(RUNS / "sft/full/mine", "sft", lines=0, facts={"status": "running"})
    found = explain.run(run)
    assert (found["healthy"], found["measured"], found["examined"]) == (False, False, 4)
    assert command(["explain", str(run)]) == 0
    out = capsys.readouterr().out
    assert "nothing was measured: 4 of 15 checks had something to read, none of them figures of training" in out
    assert "no eval lines (" in out
    assert "no problem" not in out
    assert "healthy" not in out


def test_json_is_one_object_on_stdout(capsys: pytest.CaptureFixture) -> None:
    write_run(RUNS / "rlhf/offline/dpo-mine", "dpo", train={"loss": [0.69] * 8 + [float("inf")]})
    assert command(["explain", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out, parse_constant=pytest.fail)  # Infinity is not JSON
    assert err == ""
    assert (found["schema_version"], found["of"], found["healthy"]) == (1, "dpo", False)
    first = found["findings"][0]
    assert first["check"] == "not_finite"
    assert set(first) == {"severity", "symptom", "evidence", "causes", "try_this", "check"}
    assert first["evidence"][0] == {"figure": "train loss", "value": "infinite", "step": 40, "file": "metrics.jsonl"}


def test_command_imports_neither_torch_nor_settings(tmp_path: Path) -> None:
    write_run(tmp_path / RUNS / "pretrain/mine", "pretrain")
    code = (
        "import sys; from tinyllm.cli import run; code = run(['explain', '--quiet']);"
        "print(code, sorted({'torch', 'numpy', 'tinyllm.config'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr


def test_missing_run_is_an_error_with_exit_code_2(capsys: pytest.CaptureFixture) -> None:
    assert command(["explain", "nowhere"]) == USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "fix"]


# --- a real run ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("learning_rate", "broken"), [(1e-9, ["stuck"]), (1e-2, [])])
def test_real_dpo_run_is_stuck_only_at_a_tiny_learning_rate(
    tmp_path: Path, learning_rate: float, broken: list[str]
) -> None:
    small.saved(small.rough(), tmp_path / "parent")
    data = small.pairs(tmp_path / "pairs.jsonl")
    sections = {**small.common(data, steps=8), "optim": OptimConfig(learning_rate=learning_rate, warmup_steps=1)}
    config = AlignOfflineConfig(**sections, name="mine", parent=Path("parent"))
    align_offline.run(config, Invocation(yaml12.write(dump(config))))
    found = explain.run(RUNS / OFFLINE / "dpo-mine")
    assert [f["check"] for f in found["findings"] if f["severity"] == "broken"] == broken
    assert (found["of"], found["status"], found["step"], found["damaged_lines"]) == ("dpo", "completed", 8, 0)
    if broken:
        assert "0.6931" in found["findings"][0]["symptom"]
        assert "learning rate" in found["findings"][0]["causes"][0]
