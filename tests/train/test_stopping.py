"""A signal during an evaluation or a compilation abandons it and loses nothing: the resumed run equals the undisturbed one."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import trained
from tinyllm import signals
from tinyllm.algorithms import next_token
from tinyllm.errors import INTERRUPTED, UserError
from tinyllm.train import checkpoint
from tinyllm.train.engine import Engine

STEPS, KEPT = 5, 9


def train(folder: Path) -> trained.TrainResult:
    return trained.train_small(folder, steps=STEPS, keep=KEPT, evaluate=lambda engine: trained.planned(engine))


def contents(folder: Path) -> dict[str, Any]:
    """Return the hash of every file of every checkpoint, the best one, and the lines of metrics.jsonl without the speed."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "checkpoints": {
            path.name: json.loads((path / checkpoint.MANIFEST).read_text())["files"]
            for path in checkpoint.steps(folder / "checkpoints")
        },
        "best": trained.place(folder, checkpoint.BEST),
        "metrics": [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows],
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return contents(folder)


def interrupted_evaluation(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = trained.planned

    def evaluate(engine: Engine) -> dict[str, float]:
        if engine.updates == step:
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the evaluation goes on")
        return original(engine)

    monkeypatch.setattr(trained, "planned", evaluate)


def interrupted_compilation(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    from torch._dynamo.callback import CallbackTrigger, callback_handler

    original, engines = next_token.loss, []

    def loss(*arguments: Any) -> Any:
        if engines and engines[0].updates == step:
            with callback_handler.install_callbacks(CallbackTrigger.DYNAMO, "0/0"):
                signal.raise_signal(signal.SIGINT)
                raise AssertionError("the compilation goes on")
        return original(*arguments)

    step_of_engine = Engine.step

    def watched(engine: Engine, *arguments: Any) -> dict[str, float]:
        engines[:] = [engine]
        return step_of_engine(engine, *arguments)

    monkeypatch.setattr(Engine, "step", watched)
    monkeypatch.setattr(trained.next_token, "loss", loss)


@pytest.mark.parametrize(
    ("interrupted", "step"),
    [
        *((interrupted_evaluation, step) for step in (1, 3, STEPS)),
        *((interrupted_compilation, step) for step in (1, 4)),
    ],
)
def test_what_is_abandoned_is_done_again(
    interrupted: Callable[[pytest.MonkeyPatch, int], None],
    step: int,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        interrupted(patched, step)
        with pytest.raises(UserError, match=f"stopped after step {step} of {STEPS}; a checkpoint was saved") as caught:
            train(tmp_path / "run")
    assert caught.value.code == INTERRUPTED
    assert not str(caught.value).startswith("error:")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"
    train(tmp_path / "run")
    assert contents(tmp_path / "run") == undisturbed


def test_before_the_first_step_there_is_nothing_to_save(
    undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupted_evaluation(patched, 0)
        with pytest.raises(signals.Stop):
            train(tmp_path / "run")
    train(tmp_path / "run")
    assert contents(tmp_path / "run") == undisturbed


def test_a_signal_in_the_last_step_ends_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step_of_engine = Engine.step

    def watched(engine: Engine, *arguments: Any) -> dict[str, float]:
        if engine.updates + 1 == STEPS:
            signal.raise_signal(signal.SIGTERM)
        return step_of_engine(engine, *arguments)

    monkeypatch.setattr(Engine, "step", watched)
    with pytest.raises((signals.Stop, UserError)):
        train(tmp_path / "run")
    monkeypatch.undo()
    found = train(tmp_path / "run")
    assert found.steps == STEPS
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "completed"
