"""A run that goes on: with more steps, with other settings, in the right place of the data, and recorded. Small models, real runs."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support import small
from tinyllm.config import dump, yaml12
from tinyllm.data.datasets.batches import Source
from tinyllm.diagnostics.runs.files import metrics_faults
from tinyllm.diagnostics.runs.lineage import trace_lineage
from tinyllm.errors import UserError
from tinyllm.io.files import sha256
from tinyllm.stages import sft
from tinyllm.stages.config import SftConfig
from tinyllm.train import checkpoint
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine
from tinyllm.train.run import Invocation, read_facts
from tinyllm.train.schedules import learning_rate

FOLDER = Path("runs/sft/full")


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small.saved(small.rough(scale=0.1), Path("parent"))
    small.written(
        Path("answers.jsonl"), [{"prompt": f"What is {i}?", "completion": "red, " * (1 + i % 5)} for i in range(25)]
    )


def go(
    name: str, *, schedule: str = "wsd", optim: Any = None, call: dict[str, Any] | None = None, **train: Any
) -> Path:
    """Train, or go on. Returns the run directory."""
    sections = small.common(Path("answers.jsonl"), **{"keep": 99, "eval_every": 99, "dropout": 0.1, **train})
    rates = {"learning_rate": 1e-2, "warmup_steps": 1, "schedule": schedule, "decay_fraction": 0.5, **(optim or {})}
    config = SftConfig(**{**sections, "optim": OptimConfig(**rates)}, parent=Path("parent"), name=name)
    return Path(sft.run(config, Invocation(yaml12.write(dump(config)), **(call or {})))["run"])


def stopped(monkeypatch: pytest.MonkeyPatch, step: int, name: str, **settings: Any) -> None:
    """Train and stop by a SIGTERM in the middle of a step."""
    original = Engine.step

    def watched(engine: Engine, batches: Any, extra: Any = None) -> dict[str, float]:
        if engine.updates + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return original(engine, batches, extra)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "step", watched)
        with pytest.raises(UserError, match=f"stopped after step {step}"):
            go(name, **settings)


def last(run: Path) -> dict[str, str]:
    """The hashes of weights and optimizer in the last checkpoint."""
    folder = checkpoint.steps(run / "checkpoints")[-1]
    return {"step": folder.name} | {
        name: sha256(folder / name) for name in ("model.safetensors", "trainer/optimizer.safetensors")
    }


def rates(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["lr"]) for row in small.metrics(run)]


def expected(steps: range, total: int, schedule: str) -> list[tuple[int, float]]:
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=1, schedule=schedule, decay_fraction=0.5)
    return [(step, learning_rate(step - 1, total, optim)) for step in steps]


# --- more steps ------------------------------------------------------------------------------------------------------------------


def test_an_extended_wsd_run_is_the_straight_one_bit_for_bit(capsys: pytest.CaptureFixture) -> None:
    """4 steps decay after 3. From step 2 on the run of 8 is on its plateau, and decays after 5."""
    straight = go("straight", steps=8)
    run = go("x", steps=4)
    finished = last(run)
    assert go("x", steps=8) == run
    assert (
        "continues from its plateau: step 2 is the newest checkpoint before the decay began" in capsys.readouterr().err
    )
    assert last(run) == last(straight)
    assert rates(run) == rates(straight) == expected(range(1, 9), 8, "wsd")
    evaluated = [small.metrics(folder, "eval") for folder in (run, straight)]
    assert evaluated[0] == evaluated[1]
    assert list(metrics_faults(run / "metrics.jsonl", until=8)) == []
    kept = run / "checkpoints" / "decayed-step-00000004"
    assert sha256(kept / "model.safetensors") == finished["model.safetensors"]
    assert (run / "checkpoints" / "ckpt_best").exists()
    facts = read_facts(run)
    assert facts["changes"] == [{"at_step": 2, "key": "train.steps", "from": 4, "to": 8, "schedule": "continued"}]
    assert [(s["from_step"], s["to_step"], s["steps"], s["status"]) for s in facts["sessions"]] == [
        (0, 4, 4, "completed"),
        (2, 8, 8, "completed"),
    ]
    assert trace_lineage("x")["lineage"] == trace_lineage("straight")["lineage"]
    go("x", steps=8)
    assert len(read_facts(run)["sessions"]) == 2, "nothing was left to do"


def test_an_extended_constant_run_is_the_straight_one_bit_for_bit() -> None:
    straight = go("straight", schedule="constant", steps=8)
    go("x", schedule="constant", steps=4)
    run = go("x", schedule="constant", steps=8)
    assert last(run) == last(straight)
    assert rates(run) == rates(straight)


def test_a_decay_is_undone_where_no_earlier_checkpoint_is_left(capsys: pytest.CaptureFixture) -> None:
    run = go("x", steps=4, save_every=99)
    go("x", steps=6, save_every=99)
    assert "its decay is undone: the learning rate goes from" in capsys.readouterr().err
    assert rates(run) == expected(range(1, 5), 4, "wsd") + expected(range(5, 7), 6, "wsd")
    assert read_facts(run)["changes"][0]["schedule"] == "decay undone"


def test_a_decayed_cosine_is_refused_and_rewarmed_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """lr(t) = f(t - s, T - s); a stop in the middle changes nothing, and the optimizer state is kept."""
    run = go("x", schedule="cosine", steps=3)
    shutil.copytree(run, FOLDER / "y", symlinks=True)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in ("lock", "run.log")}
    with pytest.raises(UserError, match="the cosine schedule has already decayed") as caught:
        go("x", schedule="cosine", steps=6)
    assert "--rewarm" in caught.value.fix
    with pytest.raises(UserError, match=r"--rewarm applies where train\.steps grows"):
        go("x", schedule="cosine", steps=3, call={"rewarm": True})
    assert all(path.read_bytes() == content for path, content in before.items()), "a refusal changes nothing"
    stopped(monkeypatch, 5, "x", schedule="cosine", steps=6, call={"rewarm": True})
    go("x", schedule="cosine", steps=6)
    again = [(step + 3, lr) for step, lr in expected(range(1, 4), 3, "cosine")]
    assert rates(run) == expected(range(1, 4), 3, "cosine") + again
    other = go("y", schedule="cosine", steps=6, call={"rewarm": True})  # a renamed copy of the run goes on like the run
    assert last(other) == last(run)
    changed = trace_lineage("x")["lineage"]
    assert trace_lineage("y")["lineage"] == changed
    assert trace_lineage(go("w", schedule="cosine", steps=6).as_posix())["lineage"] != changed


def test_the_schedule_that_has_decayed_decides_not_the_one_that_replaces_it(capsys: pytest.CaptureFixture) -> None:
    """A cosine of 4 steps is at its end. A wsd of the same steps would have been on its plateau until step 2."""
    run = go("x", schedule="cosine", steps=4)
    call = {"change": frozenset({"optim.schedule"})}
    for schedule in ("wsd", "constant"):
        with pytest.raises(UserError, match="the cosine schedule has already decayed over 4") as caught:
            go("x", schedule=schedule, steps=8, call=call)
        assert "--rewarm" in caught.value.fix
    assert not checkpoint.decayed(run / "checkpoints")
    go("x", schedule="wsd", steps=8, call={**call, "rewarm": True})
    again = [(step + 4, lr) for step, lr in expected(range(1, 5), 4, "wsd")]
    assert rates(run) == expected(range(1, 5), 4, "cosine") + again
    capsys.readouterr()
    run = go("y", schedule="wsd", steps=4, save_every=99)
    changed = {"schedule": "wsd", "save_every": 99, "optim": {"learning_rate": 2e-2}}
    go("y", **changed, steps=8, call={"change": frozenset({"optim.learning_rate"})})
    assert "from 0.007 back to 0.02 at step 5" in capsys.readouterr().err
    assert rates(run)[4] == (5, 2e-2)


def test_a_damaged_checkpoint_is_not_set_aside_as_a_decayed_one(capsys: pytest.CaptureFixture) -> None:
    run = go("x", steps=4)
    (run / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(b"")
    go("x", steps=8)
    assert "skipping a damaged checkpoint" in capsys.readouterr().err
    assert (run / "checkpoints" / "damaged-step-00000004").is_dir()
    assert not checkpoint.decayed(run / "checkpoints")


def test_a_change_that_was_taken_back_and_made_again_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 -> 8 steps and back before a step was done, and 8 again: after a stop the rates are still those of 8."""
    run = go("x", schedule="cosine", steps=4)
    facts, more = read_facts(run), {"schedule": "cosine", "steps": 8, "call": {"rewarm": True}}
    change = {"at_step": 4, "key": "train.steps", "from": 4, "to": 8, "schedule": "rewarmed"}
    facts["changes"] = [change, {**change, "from": 8, "to": 4, "schedule": "continued"}]
    (run / "run.json").write_text(json.dumps(facts))
    stopped(monkeypatch, 6, "x", **more)
    assert rates(go("x", **more))[4:] == [(step + 4, lr) for step, lr in expected(range(1, 5), 4, "cosine")]
    assert [c["to"] for c in read_facts(run)["changes"]] == [8, 4, 8]


# --- other settings --------------------------------------------------------------------------------------------------------------


def test_a_changed_batch_continues_with_the_next_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of 8 records, then of 4: no record is skipped or repeated, also after a stop, and the change is on record."""
    seen: dict[int, list[int]] = {}
    records = Source.records

    def watched(source: Source, step: int) -> list[int]:
        seen[step] = records(source, step)
        return seen[step]

    monkeypatch.setattr(Source, "records", watched)
    go("long", schedule="constant", steps=4)
    order = [record for step in range(4) for record in seen[step]]
    run = go("x", schedule="constant", steps=2)
    changed = {"schedule": "constant", "steps": 5, "batch_size": 4, "optim": {"learning_rate": 5e-3}}
    with pytest.raises(UserError, match=r"train\.batch_size: 8 -> 4") as caught:
        go("x", **changed)
    assert "--change train.batch_size=4 --change optim.learning_rate=0.005" in caught.value.fix
    seen.clear()
    options = {"change": frozenset({"train.batch_size", "optim.learning_rate"})}
    stopped(monkeypatch, 4, "x", **changed, call=options)
    go("x", **changed)
    assert [record for step in range(2, 5) for record in seen[step]] == order[16:28]
    assert [lr for _, lr in rates(run)] == [1e-2, 1e-2, 5e-3, 5e-3, 5e-3]
    made = [(c["at_step"], c["key"], c["from"], c["to"]) for c in read_facts(run)["changes"]]
    assert made == [(2, "train.steps", 2, 5), (2, "train.batch_size", 8, 4), (2, "optim.learning_rate", 1e-2, 5e-3)]
    (row,) = small.metrics(run, "change")
    assert row == {"step": 2, "split": "change", "train.steps": 5, "train.batch_size": 4, "optim.learning_rate": 5e-3}
    with pytest.raises(UserError, match=r"train\.batch_size: 4 -> 8"):
        go("x", schedule="constant", steps=5, optim={"learning_rate": 5e-3})


def test_when_to_save_and_evaluate_changes_without_an_option_and_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    straight = go("straight", steps=4)
    stopped(monkeypatch, 1, "x", steps=4)
    run = go("x", steps=4, save_every=3, eval_every=1, keep=5, log_every=2)
    assert {k: last(run)[k] for k in ("step", "model.safetensors")} == {
        k: last(straight)[k] for k in ("step", "model.safetensors")
    }
    assert {c["key"] for c in read_facts(run)["changes"]} == {
        f"train.{key}" for key in ("save_every", "eval_every", "keep", "log_every")
    }


def test_a_change_that_no_step_would_use_is_refused_and_leaves_the_record() -> None:
    run = go("x", steps=2)
    kept = {path: path.read_bytes() for path in (run / "config.yaml", run / "run.json", run / "metrics.jsonl")}
    with pytest.raises(UserError, match=r"has done all 2 steps.*0\.01 -> 0\.005") as caught:
        go("x", steps=2, optim={"learning_rate": 5e-3}, call={"change": frozenset({"optim.learning_rate"})})
    assert caught.value.code == 2
    assert "add a larger train.steps" in caught.value.fix
    assert {path: path.read_bytes() for path in kept} == kept
    go("x", steps=2, keep=5)  # no weight depends on it
    assert [c["key"] for c in read_facts(run)["changes"]] == ["train.keep"]


def test_a_change_counts_from_the_step_that_a_later_session_goes_back_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The rate changes after step 5 of 6, in the decay. The run of 8 goes on after step 4: step 5 has the new rate now."""
    stopped(monkeypatch, 5, "x", steps=6)
    new = {"optim": {"learning_rate": 5e-3}}
    run = go("x", steps=6, **new, call={"change": frozenset({"optim.learning_rate"})})
    assert [(c["at_step"], c["key"]) for c in read_facts(run)["changes"]] == [(5, "optim.learning_rate")]
    capsys.readouterr()
    go("x", steps=8, **new)
    assert "optim.learning_rate: 0.01 -> 0.005 (from step 5 on)" in capsys.readouterr().err
    made = [(c["at_step"], c["key"], c["from"], c["to"]) for c in read_facts(run)["changes"]]
    assert sorted(made) == [(4, "optim.learning_rate", 1e-2, 5e-3), (4, "train.steps", 6, 8)]
    assert [lr for _, lr in rates(run)[:5]] == [1e-2] * 4 + [5e-3]
    assert [row["step"] for row in small.metrics(run, "change")] == [4]


def test_options_without_a_run_to_change_are_refused() -> None:
    for call in ({"change": frozenset({"train.batch_size"})}, {"rewarm": True}):
        with pytest.raises(UserError, match="applies to a run that is continued, and there is none"):
            go("new", call=call)
    assert not json.dumps(read_facts(FOLDER / "new")).strip("{}")
