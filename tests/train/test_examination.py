"""Test figures: of the weights before the first step, of ckpt_best and of the last checkpoint; nothing is chosen by them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import small
from tests.support.trained import cut, place, train_small
from tinyllm.io.files import sha256
from tinyllm.mean import Mean
from tinyllm.model import hub
from tinyllm.train import checkpoint
from tinyllm.train.engine import Engine

PROBE = torch.tensor([[5, 8, 11, 14, 17]])


def score(model: torch.nn.Module) -> float:
    """Return a number that depends on all weights."""
    return float(model.log_probs(PROBE, PROBE[0, 0] != PROBE).sum())


class Examiner:
    """Scores the weights it is shown, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, engine: Engine) -> dict[str, Mean]:
        self.calls += 1
        assert not engine.model.training, "dropout is off while a model is examined"
        assert not torch.is_grad_enabled()
        return {"score": Mean(score(engine.model) * 4, 4), "empty": Mean(0.0, 0)}


@torch.no_grad()
def of_checkpoint(run: Path, step: int) -> float:
    return score(hub.load_causal_lm(run / "checkpoints" / f"step-{step:08d}").eval())


def facts(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def rows(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["score"]) for row in small.metrics(run, "test")]


def test_before_best_and_last_are_those_of_their_weights(tmp_path: Path) -> None:
    """The best checkpoint is that of step 2, whatever the test figures say."""
    run, examiner = tmp_path / "run", Examiner()
    found = train_small(run, test=examiner)
    assert place(run, checkpoint.BEST) == "step-00000002"
    expected = [(step, pytest.approx(of_checkpoint(run, step), abs=1e-6)) for step in (0, 2, 6)]
    assert rows(run) == expected
    assert len({round(value, 3) for _, value in rows(run)}) == 3
    assert [
        (found.test[when]["step"], found.test[when]["figures"]["score"]) for when in ("before", "best", "last")
    ] == expected
    assert found.test["records"] == 11
    assert all(found.test[when]["counts"] == {"score": 4.0, "empty": 0.0} for when in ("before", "best", "last"))
    assert facts(run)["test"] == found.test
    assert examiner.calls == 3


def test_nothing_is_chosen_by_test_figures_and_weights_do_not_depend_on_them(tmp_path: Path) -> None:
    plain, examined = tmp_path / "plain", tmp_path / "examined"
    train_small(plain)
    train_small(examined, test=Examiner())
    for step in range(7):
        for name in ("model.safetensors", "trainer/optimizer.safetensors"):
            one, other = (run / "checkpoints" / f"step-{step:08d}" / name for run in (plain, examined))
            assert sha256(one) == sha256(other), (step, name)
    assert place(plain, checkpoint.BEST) == place(examined, checkpoint.BEST)
    assert (facts(plain)["test"], rows(examined) != []) == (None, True)
    for when in ("before", "best", "last"):
        assert facts(plain)[when] == facts(examined)[when]


@pytest.mark.parametrize(("direction", "steps", "best", "calls"), [("min", 2, 2, 2), ("max", 2, 0, 2)])
def test_the_same_weights_are_examined_once(tmp_path: Path, direction: str, steps: int, best: int, calls: int) -> None:
    examiner = Examiner()
    found = train_small(tmp_path / "run", steps=steps, best=("planned", direction), test=examiner)
    assert found.test["best"]["step"] == best
    assert found.test["best"] == found.test["last" if best == steps else "before"]
    assert examiner.calls == calls
    assert [step for step, _ in rows(tmp_path / "run")] == [0, steps]


def test_the_weights_are_those_of_the_last_checkpoint_afterwards(tmp_path: Path) -> None:
    kept: list[torch.nn.Module] = []

    def examine(engine: Engine) -> dict[str, Mean]:
        kept.append(engine.model)
        return {"score": Mean(1.0, 1)}

    train_small(tmp_path / "run", test=examine)
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors")
    now = dict(kept[-1].named_parameters())
    assert len(saved) > 3
    assert all(torch.equal(now[name], value) for name, value in saved.items())


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_resumed_run_keeps_its_figures_from_before_the_first_step(tmp_path: Path, after: int) -> None:
    whole = train_small(tmp_path / "whole", test=Examiner())
    folder, examiner = cut(tmp_path / "whole", tmp_path / "cut", after), Examiner()
    if not (folder / "checkpoints" / checkpoint.BEST).exists():
        (folder / "checkpoints" / checkpoint.BEST).unlink()
        (folder / "checkpoints" / checkpoint.BEST).symlink_to(f"step-{after:08d}")
    found = train_small(folder, test=examiner)
    assert found.test == whole.test
    assert rows(folder) == rows(tmp_path / "whole")
    assert examiner.calls == 0 if after == 6 else examiner.calls <= 2  # a run that has ended is not examined again


def test_a_run_that_began_without_a_test_split_is_not_examined(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its best checkpoint, of step 2, was selected by all held-out records."""
    train_small(tmp_path / "run")
    folder, examiner = cut(tmp_path / "run", tmp_path / "cut", 4), Examiner()
    found = train_small(folder, test=examiner)
    assert "note: no test figures: this run began without a test split" in capsys.readouterr().err
    assert found.test == {"records": 11, "before": None, "best": None, "last": None}
    assert (rows(folder), examiner.calls) == ([], 0)


def test_figures_of_other_test_records_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A difference from before the first step would be that of the records. With the first ones again, it is one of the model."""
    note = "note: no test figures from before the first step: the test records have changed"
    whole = train_small(tmp_path / "whole", test=Examiner(), records="a")
    folder = cut(tmp_path / "whole", tmp_path / "cut", 3)
    changed = train_small(folder, test=Examiner(), records="b")
    assert note in capsys.readouterr().err
    assert changed.test == {**whole.test, "before": None}  # the last checkpoint, and the best one, of step 2
    assert facts(folder)["test"]["before"] is None
    shutil.rmtree(checkpoint.steps(folder / "checkpoints")[-1])
    (folder / "checkpoints" / checkpoint.LATEST).unlink()
    assert train_small(folder, test=Examiner(), records="a").test == whole.test
    assert note not in capsys.readouterr().err


def test_where_nothing_improved_the_untrained_checkpoint_is_measured_on_the_changed_records(tmp_path: Path) -> None:
    """Its figures from before the first step are those of other records."""
    whole = train_small(tmp_path / "whole", steps=2, best=("planned", "max"), test=Examiner(), records="a")
    folder = cut(tmp_path / "whole", tmp_path / "cut", 1)
    found = train_small(folder, steps=2, best=("planned", "max"), test=Examiner(), records="b").test
    assert (found["before"], found["best"]) == (None, whole.test["before"])


def test_figures_that_an_earlier_session_recorded_of_other_records_are_measured_again(tmp_path: Path) -> None:
    train_small(tmp_path / "run", test=Examiner(), records="a")
    same, other = Examiner(), Examiner()
    train_small(tmp_path / "run", test=same, records="a")
    train_small(tmp_path / "run", test=other, records="b")
    assert (same.calls, other.calls) == (0, 2)


def test_an_adapter_is_examined_as_well(tmp_path: Path) -> None:
    found = train_small(tmp_path / "run", adapter=True, test=Examiner())
    values = [found.test[when]["figures"]["score"] for when in ("before", "best", "last")]
    assert len({round(value, 4) for value in values}) == 3
    assert [step for step, _ in rows(tmp_path / "run")] == [0, 2, 6]
