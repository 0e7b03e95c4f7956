"""Symptoms of losses and gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import synthetic_runs
from tests.support.symptom_cases import Case, absent, found, unseen

FLAT = {"train": {"loss": [5.46]}, "held_out": {"loss": [5.46, 5.459]}}
SPIKY = [1.0, 1.1, 0.9, 1.2, 1.0, 0.8, 30.0, 1.0, 1.1, 0.9, 1.0, 1.2, 0.9, 1.0, 25.0, 1.0, 1.1, 0.9, 1.0, 1.1, 1.0]

LONG = {"config": {"train.steps": 1000, "optim.warmup_steps": 0}}  # 201 lines

CASES = [
    found("not_finite", "sft", "broken", "learning_rate=0.0001", train={"loss": [5.6, 4.0, None]}),
    found("not_finite", "grpo", "broken", "learning_rate=0.0001", train={"loss": [float("inf")]}),
    absent("not_finite", "dpo", train={"logps/chosen": [None]}, why="a batch without chosen answers is harmless"),
    found("not_finite", "grpo", "broken", "functions under `rewards`", held_out={"reward": [0.1, None]}),
    found("not_finite", "dpo", "warning", "learning_rate=0.0001", train={"approx": [1.0, float("inf")]}),
    found("still_warming", "pretrain", "warning", "warmup_steps=12", config={"optim.warmup_steps": 120}),
    absent("still_warming", "pretrain", config={"optim.warmup_steps": 119}),
    found("never_moved", "sft", "broken", "learning_rate=0.01", **FLAT),
    found("never_moved", "rm", "broken", "learning_rate=0.01", train={"loss": [0.78]}, held_out={"loss": [0.85]}),
    found("never_moved", "sft", "broken", "learning_rate=0.0001", **FLAT | {"config": {"optim.learning_rate": 1e-9}}),
    found("never_moved", "sft", "broken", "max_length=256", **FLAT | {"train": {"loss": [5.46], "grad_norm": [0.0]}}),
    found("never_moved", "sft", "warning", "world:4000", held_out={"loss": [5.46]}, why="the training loss falls"),
    found("never_moved", "sft", "broken", "=0.01", held_out={"loss": [5.46, 5.445]}, train={"loss": [5.5, 5.2]}),
    found("never_moved", "sft", "warning", "world:4000", held_out={"loss": [5.46]}, train={"loss": [5.5, 4.4]}),
    absent("never_moved", "sft", held_out={"loss": [5.46, 5.40]}, why="the loss changed by 1 %"),
    absent("never_moved", "grpo", train={"loss": [0.0]}, why="the online loss is no measure of learning"),
    found("eval_turned", "sft", "warning", "world:4000", held_out={"loss": [5.4, 2.5, 2.6]}),
    found("eval_turned", "dpo", "warning", "world:4000", held_out={"loss": [0.693, 0.5, 0.6]}),
    found(
        "eval_turned",
        "pretrain",
        "warning",
        "learning_rate=0.00033",
        train={"loss": [6.7, 4.0, 7.0]},
        held_out={"loss": [6.6, 4.1, 6.9]},
    ),
    absent("eval_turned", "sft", held_out={"loss": [5.4, 2.50, 2.55]}, why="2 % is evaluation noise"),
    absent("eval_turned", "sft", held_out={"loss": [5.4, 5.5, 5.7]}, why="the loss was never below its start"),
    absent("eval_turned", "rm", held_out={"loss": [0.8, 0.010, 0.012]}, why="the losses are near 0"),
    found("gradient_spikes", "sft", "warning", "clip_norm=1", train={"grad_norm": SPIKY}),
    found("gradient_spikes", "sft", "note", "clip_norm=1", train={"grad_norm": [*SPIKY[:14], *[1.0] * 7]}),
    found("gradient_spikes", "rm", "note", "clip_norm=0.06", train={"grad_norm": [0.06] * 6 + [3.0] + [0.06] * 6}),
    found(
        "gradient_spikes", "sft", "warning", "clip_norm=1", **LONG | {"train": {"grad_norm": ([1.0] * 24 + [30.0]) * 8}}
    ),
    found(
        "gradient_spikes", "sft", "note", "clip_norm=1", **LONG | {"train": {"grad_norm": ([1.0] * 66 + [30.0]) * 3}}
    ),
    absent("gradient_spikes", "sft", train={"grad_norm": [1.0, 9.0, 1.0, 9.0]}),
    absent(
        "gradient_spikes", "sft", train={"grad_norm": [0.06] * 10 + [0.9] + [0.06] * 10}, why="spikes below clip_norm"
    ),
    absent("gradient_spikes", "sft", train={"grad_norm": [1.0] * 10 + [6.0] + [1.0] * 10}),
    absent(
        "gradient_spikes", "rm", train={"grad_norm": [0.04] * 6 + [3.0] + [0.04] * 6}, why="the gradient has vanished"
    ),
    absent("gradient_spikes", "pretrain", train={"grad_norm": [90, *[1] * 24]}, config={"optim.warmup_steps": 4}),
    found("never_improved", "grpo", "warning", "learning_rate=0.00033", held_out={"reward": [0.3, 0.28, 0.265]}),
    found("never_improved", "dpo", "warning", "world:4000", held_out={"loss": [0.693, 0.72, 0.75]}),
    found(
        "never_improved",
        "sft",
        "warning",
        "learning_rate=0.00033",
        held_out={"loss": [2.0, 2.4, 2.6]},
        train={"loss": [2.0, 2.4, 2.6]},
    ),
    found("never_improved", "grpo", "warning", "learning_rate=0.00033", held_out={"reward": [0.3, 0.2, 0.1]}),
    found(
        "never_improved",
        "grpo",
        "warning",
        "learning_rate=0.00033",
        config={"best_by": "rewards/gold"},
        held_out={"rewards/gold": [0.3, 0.1]},
    ),
    absent("never_improved", "grpo", held_out={"reward": [0.30, 0.29]}, why="within the noise"),
    absent("never_improved", "grpo", held_out={"rewards/gold": [0.3, 0.1]}, why="best_by is another metric"),
]

# just on either side of each bound
EDGES = [
    found("never_moved", "sft", "broken", "=0.01", **FLAT | {"held_out": {"loss": [5.46, 5.4354]}}),
    absent("never_moved", "sft", **FLAT | {"held_out": {"loss": [5.46, 5.4272]}}),
    found("never_moved", "sft", "broken", "max_length=256", **FLAT | {"train": {"loss": [5.46], "grad_norm": [9e-7]}}),
    found("never_moved", "sft", "broken", "=0.01", **FLAT | {"train": {"loss": [5.46], "grad_norm": [1.2e-6]}}),
    found("never_moved", "sft", "broken", "=0.0001", **FLAT | {"config": {"optim.learning_rate": 9e-6}}),
    found("never_moved", "sft", "broken", "=0.00011", **FLAT | {"config": {"optim.learning_rate": 1.1e-5}}),
    found("never_moved", "sft", "warning", "world:4000", **FLAT | {"train": {"loss": [5.0] * 10 + [4.4] * 11}}),
    found("never_moved", "sft", "broken", "=0.01", **FLAT | {"train": {"loss": [5.0] * 10 + [4.6] * 11}}),
    found("eval_turned", "sft", "warning", "world:4000", held_out={"loss": [5.4, 2.5, 2.58]}),
    absent("eval_turned", "sft", held_out={"loss": [5.4, 2.5, 2.568]}),
    found("eval_turned", "rm", "warning", "world:4000", held_out={"loss": [0.8, 0.010, 0.022]}),
    absent("eval_turned", "rm", held_out={"loss": [0.8, 0.010, 0.018]}),
    found("gradient_spikes", "sft", "note", "clip_norm=1", train={"grad_norm": [1.0] * 10 + [11.0] + [1.0] * 10}),
    absent("gradient_spikes", "sft", train={"grad_norm": [1.0] * 10 + [9.0] + [1.0] * 10}),
    found("gradient_spikes", "rm", "note", "clip_norm=0.06", train={"grad_norm": [0.06] * 6 + [3.0] + [0.06] * 6}),
    absent("gradient_spikes", "rm", train={"grad_norm": [0.045] * 6 + [3.0] + [0.045] * 6}),
    found(
        "gradient_spikes",
        "sft",
        "warning",
        "clip_norm=1",
        **LONG | {"train": {"grad_norm": [1.0] + ([1.0] * 39 + [30.0]) * 5}},
    ),
    found(
        "gradient_spikes",
        "sft",
        "note",
        "clip_norm=1",
        **LONG | {"train": {"grad_norm": [1.0] * 81 + ([1.0] * 39 + [30.0]) * 3}},
    ),
    found(
        "gradient_spikes",
        "sft",
        "note",
        "clip_norm=1",
        train={"grad_norm": [1.0] * 10 + [30.0]},
        config={"train.steps": 50},
    ),
    unseen(
        "gradient_spikes",
        "sft",
        "9 of at least 10",
        train={"grad_norm": [1.0] * 9 + [30.0]},
        config={"train.steps": 45},
    ),
    found("never_improved", "grpo", "warning", "=0.00033", held_out={"reward": [0.3, 0.28, 0.275]}),
    absent("never_improved", "grpo", held_out={"reward": [0.3, 0.29, 0.283]}),
    absent("never_improved", "grpo", held_out={"reward": [0.1, 0.5, 0.3]}, why="the best is not the first"),
    unseen("eval_turned", "sft", "2 of at least 3", held_out={"loss": [2.0, 2.5]}, config={"train.eval_every": 100}),
    unseen("never_moved", "sft", "1 of at least 2", held_out={"loss": [2.0, *[None] * 2]}),
]


@pytest.mark.parametrize("case", CASES + EDGES, ids=str)
def test_finding(case: Case, tmp_path: Path) -> None:
    case.check_in(tmp_path)


def test_overfitting_reports_the_step_of_the_best_checkpoint(tmp_path: Path) -> None:
    run = synthetic_runs.write_run(tmp_path / "run", "sft", held_out={"loss": [5.4, 2.5, 3.1]})
    finding = synthetic_runs.findings(run)["eval_turned"]
    assert "step 50" in finding.symptom
    assert [(f.value, f.step) for f in finding.evidence[:2]] == [(2.5, 50), (3.1, 100)]
    before, after = finding.evidence[2:]  # over as many training steps before the best as after it
    assert "steps 5 to 50" in before.figure
    assert "steps 55 to 100" in after.figure
    assert before.value > after.value


def test_a_figure_named_by_the_log_as_not_finite_is_reported_with_its_step(tmp_path: Path) -> None:
    run = synthetic_runs.write_run(tmp_path / "run", "dpo")
    log = run / "metrics.jsonl"
    last = json.loads(log.read_text().splitlines()[-1])
    note = {"logps/chosen": "-inf", "logps/rejected": "nan"}
    row = last | {"step": last["step"] + 1, "logps/chosen": None, "logps/rejected": None, "nonfinite": note}
    log.write_text(log.read_text() + json.dumps(row) + "\n")
    finding = synthetic_runs.findings(run)["not_finite"]
    assert (finding.severity, finding.symptom) == ("warning", "logps/chosen is not finite")
    assert [(e.value, e.step) for e in finding.evidence[:2]] == [
        ("infinite", row["step"]),
        ("not a number", row["step"]),
    ]


def test_at_most_four_figures_are_named(tmp_path: Path) -> None:
    infinite = {f"metric/{number}": [float("inf")] for number in range(6)}
    finding = synthetic_runs.findings(synthetic_runs.write_run(tmp_path / "run", "sft", train=infinite))["not_finite"]
    assert [e.value for e in finding.evidence[:-1]] == ["infinite"] * 4
    assert finding.evidence[-1].figure == "train grad_norm"


@pytest.mark.parametrize(
    ("loss", "norm", "named"),
    [("nan", "nan", ["train loss", "train grad_norm"]), ("4.1", "inf", ["train grad_norm"]), ("4.1", "2", [])],
)
def test_a_step_that_was_refused_is_read_from_the_error_of_the_run(
    tmp_path: Path, loss: str, norm: str, named: list[str]
) -> None:
    """The engine stops before such a step is logged, so metrics.jsonl does not have it."""
    error = f"step 7: loss {loss}, gradient norm {norm} at learning rate 0.001; the weights were not updated"
    run = synthetic_runs.write_run(tmp_path / "run", "sft", facts={"status": "failed", "error": error})
    found = synthetic_runs.findings(run)
    assert ("not_finite" in found) == bool(named)
    if named:
        finding = found["not_finite"]
        assert finding.severity == "broken"
        assert [(e.figure, e.step) for e in finding.evidence if e.file == "run.json"] == [(name, 7) for name in named]


def test_non_finite_loss_reports_its_step_and_the_last_gradient_norm(tmp_path: Path) -> None:
    loss = [5.0] * 10 + [None] * 11
    run = synthetic_runs.write_run(tmp_path / "run", "sft", train={"loss": loss, "grad_norm": [2.0] * 9 + [50.0] * 12})
    evidence = synthetic_runs.findings(run)["not_finite"].evidence
    assert (evidence[0].value, evidence[0].step) == ("not a number", 50)
    assert (evidence[1].value, evidence[1].step) == (50.0, 50)
