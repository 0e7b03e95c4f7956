"""What the loop decides while it runs: the warning of a gradient far longer than usual, and whether the model is compiled."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.trained import train_small
from tinyllm.errors import UserError
from tinyllm.mean import Mean
from tinyllm.train import checkpoint, compiling
from tinyllm.train.engine import Engine

USUAL = 2.0  # above clip_norm, which is 1


def falling(engine: Engine) -> dict[str, float]:
    return {"planned": 9.0 - engine.updates}


def with_norms(norms: dict[int, float]) -> Callable[..., tuple[Mean, dict]]:
    """Return a loss whose gradient has the same length at all weights: `USUAL`, and another one in some steps."""
    calls = [0]

    def loss(model: torch.nn.Module, batch: Any) -> tuple[Mean, dict]:
        calls[0] += 1
        step = (calls[0] - 1) // 2 + 1  # of two micro-batches; one more call rehearses the memory
        weights = list(model.parameters())
        length = norms.get(step, USUAL) / sum(p.numel() for p in weights) ** 0.5
        return Mean(length * sum(p.sum() for p in weights) * len(batch.ids), len(batch.ids)), {}

    return loss


def test_a_gradient_of_ten_times_the_median_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once fifty norms are known."""
    monkeypatch.setattr(Engine, "probe_memory", lambda engine, batch: None)
    norms = {30: 90.0, 52: 9.9 * USUAL, 53: 10.1 * USUAL}
    train_small(tmp_path / "run", steps=54, every=99, loss=with_norms(norms), evaluate=falling)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1, warnings
    assert warnings[0].startswith("warning: step 53: gradient norm 20.2, usually 2 (records ")


def test_a_run_stopped_in_the_step_that_decides_is_compiled_from_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later, its weights would differ from those of an undisturbed run: a compiled step rounds and drops otherwise."""
    step, found = Engine.step, dict[str, int | None]()
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    for name, stop in (("undisturbed", 0), ("stopped", 10)):
        with monkeypatch.context() as patched:

            def watched(engine: Engine, *arguments: Any, stop: int = stop) -> dict[str, float]:
                if engine.updates + 1 == stop:
                    signal.raise_signal(signal.SIGTERM)
                return step(engine, *arguments)

            patched.setattr(Engine, "step", watched)
            common = {"steps": 12, "every": 99, "evaluate": falling, "compiled": "on"}
            if stop:
                with pytest.raises(UserError, match="stopped after step 10"):
                    train_small(tmp_path / name, **common)
            train_small(tmp_path / name, **common)
        found[name] = json.loads((tmp_path / name / "run.json").read_text()).get("compiled_from_step")
    assert found == {"undisturbed": 11, "stopped": 11}


@pytest.mark.parametrize(("first", "then"), [("on", "off"), ("off", "on")])
def test_whether_a_run_is_compiled_is_decided_once(
    first: str, then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that is left would decide otherwise when it is resumed; the setting stands for it here."""
    compiled, engines = list[int](), list[Engine]()
    step = Engine.step

    def watched(engine: Engine, *arguments: Any) -> dict[str, float]:
        engines[:] = [engine]
        if engine.updates + 1 == 12:
            signal.raise_signal(signal.SIGTERM)
        return step(engine, *arguments)

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda *_, **__: compiled.append(engines[0].updates if engines else -1)
    )
    folder, common = tmp_path / "run", {"steps": 14, "every": 99, "evaluate": falling}
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "step", watched)
        with pytest.raises(UserError, match="stopped after step 12"):
            train_small(folder, compiled=first, **common)
    assert set(compiled) == ({10} if first == "on" else set())
    saved = [checkpoint.step_of(path) for path in checkpoint.steps(folder / "checkpoints")]
    assert saved == ([0, 10, 12] if first == "on" else [0, 12]), "before compiling, a checkpoint is saved"
    assert json.loads((folder / "run.json").read_text()).get("compiled_from_step") == (11 if first == "on" else None)
    compiled.clear()
    engines.clear()
    train_small(folder, compiled=then, **common)
    assert set(compiled) == ({-1} if first == "on" else set()), "before the first step, or never"
    assert json.loads((folder / "run.json").read_text()).get("compiled_from_step") == (13 if first == "on" else None)


@pytest.mark.parametrize("has_kernels", [False, True])
def test_compiling_is_worth_it_where_enough_time_is_left(has_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside kernels of our own it gains nothing."""
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name)
    worth = partial(compiling.is_worth_compiling, has_kernels=has_kernels)
    assert [worth("auto", seconds) for seconds in (0, 180, 181, 1e6)] == [False, False, *[not has_kernels] * 2]
    assert [worth(mode, seconds) for mode in ("on", "off") for seconds in (0, 1e6)] == [True, True, False, False]
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert not worth("auto", 1e6)
    assert worth("on", 0), "torch says what is missing"
