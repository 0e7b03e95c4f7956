"""The engine: one batch = k micro-batches = 2 ranks; non-finite losses are refused before the update."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import scenarios
from tinyllm.errors import UserError
from tinyllm.mean import Mean
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine, choose_device, choose_precision

pytestmark = pytest.mark.two_cores

ROOT = Path(__file__).resolve().parents[2]

_WHOLE: dict[str, tuple] = {}


def whole(name: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The scenario with all eight rows in one forward pass (computed once)."""
    if name not in _WHOLE:
        torch.set_num_threads(1)
        _WHOLE[name] = scenarios.trained(name, 8)
    return _WHOLE[name]


def close(got: tuple, want: tuple) -> None:
    assert got[1] == pytest.approx(want[1], abs=1e-6)
    for name, tensor in want[0].items():
        torch.testing.assert_close(got[0][name], tensor, atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", scenarios.NAMES)
@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_add_up_to_the_batch(name: str, micro: int) -> None:
    close(scenarios.trained(name, micro), whole(name))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    out = tmp_path_factory.mktemp("ranks")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(ROOT / "tests" / "support" / "scenarios.py"),
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out / "weights.safetensors"), json.loads((out / "losses.json").read_text())


@pytest.mark.parametrize("name", scenarios.NAMES)
def test_two_ranks_add_up_to_one(name: str, two_ranks: tuple[dict, dict]) -> None:
    weights, losses = two_ranks
    mine = {k.removeprefix(f"{name}/"): v for k, v in weights.items() if k.startswith(f"{name}/")}
    close((mine, losses[name]), whole(name))


@pytest.mark.parametrize("name", scenarios.NAMES)
def test_every_trainable_weight_moves(name: str) -> None:
    engine, _ = scenarios.build(name, 8)
    start = {k: p.detach().clone() for k, p in engine.trainable.items()}
    after, losses = whole(name)
    assert all(not torch.equal(after[k], v) for k, v in start.items())
    assert all(map(torch.isfinite, map(torch.tensor, losses)))


def tiny(loss) -> Engine:
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    return Engine(model, loss, OptimConfig(learning_rate=0.1, warmup_steps=0), 10, precision="fp32", seed=0)


def squared(model: torch.nn.Module, batch: torch.Tensor) -> tuple[Mean, dict]:
    return Mean(model(batch).square().sum(), len(batch)), {}


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_loss_changes_nothing(poison: float) -> None:
    engine = tiny(squared)
    engine.step([torch.ones(3, 2)])
    before = engine.model.weight.detach().clone(), {k: v.clone() for k, v in engine.state().items()}
    with pytest.raises(UserError, match=r"step 2: loss .* the weights were not updated") as caught:
        engine.step([torch.ones(3, 2), torch.full((1, 2), poison)])
    assert caught.value.code == 1
    assert torch.equal(engine.model.weight, before[0])
    assert all(torch.equal(v, before[1][k]) for k, v in engine.state().items())
    engine.step([torch.ones(3, 2)])  # and training can continue


def test_a_step_without_scored_tokens_is_refused() -> None:
    engine = tiny(lambda model, batch: (Mean(model(batch).sum() * 0, 0), {}))
    with pytest.raises(UserError, match="every token is masked"):
        engine.step([torch.ones(1, 2)])


def test_a_parameter_without_gradient_is_an_error() -> None:
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 1), "forgotten": torch.nn.Linear(2, 1)})
    engine = Engine(model, lambda m, b: (Mean(m["used"](b).sum(), 1), {}), OptimConfig(), 1, precision="fp32", seed=0)
    with pytest.raises(AssertionError, match=r"forgotten\.weight"):
        engine.step([torch.ones(1, 2)])


def test_clipping_scales_the_gradient_and_reports_its_norm() -> None:
    seen = []
    engine = tiny(lambda m, b: (Mean(m(b).sum() * 100, 1), {}))
    engine.model.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    before = engine.model.weight.detach().clone()
    engine.optimizers = [torch.optim.SGD(engine.model.parameters(), lr=0.1)]
    figures = engine.step([torch.tensor([[3.0, 4.0]])])
    assert figures["grad_norm"] == pytest.approx(500)
    torch.testing.assert_close(before - engine.model.weight, 0.1 * torch.tensor([[0.6, 0.8]]))


def test_metrics_are_pooled_not_averaged() -> None:
    engine = tiny(lambda m, b: (Mean(m(b).sum(), len(b)), {"rows": Mean(float(b[0, 0]) * len(b), len(b))}))
    figures = engine.step([torch.full((1, 2), 10.0), torch.full((9, 2), 0.0)], {"extra": Mean(6.0, 4)})
    assert figures["rows"] == pytest.approx(1.0)
    assert figures["extra"] == 1.5


def test_state_and_restore_continue_bitwise() -> None:
    for name in ("next_token", "muon", "ppo"):
        engine, source = scenarios.build(name, 8)
        for step in range(2):
            engine.step(source(step))
        weights, state = (
            {k: p.detach().clone() for k, p in engine.trainable.items()},
            {k: v.clone() for k, v in engine.state().items()},
        )
        engine.step(source(2))
        again, source = scenarios.build(name, 8)
        with torch.no_grad():
            for k, p in again.trainable.items():
                p.copy_(weights[k])
        again.restore(state, 2)
        again.step(source(2))
        assert all(torch.equal(p, engine.trainable[k]) for k, p in again.trainable.items()), name


def test_an_unavailable_device_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UserError) as caught:
        choose_device("cuda")
    assert caught.value.code == 4
    assert choose_device("auto").type in ("cpu", "mps")
    assert choose_precision("fp32", torch.device("cpu")) == "fp32"


def test_the_update_follows_the_gradient_of_the_mean() -> None:
    """Unequal micro-batches, nothing clipped: the sum of gradients over the count of all rows, in absolute size."""
    engine = tiny(squared)
    before = engine.model.weight.detach().clone()
    engine.optimizers = [torch.optim.SGD(engine.model.parameters(), lr=0.1)]
    figures = engine.step([torch.full((1, 2), 0.1), torch.full((2, 2), 0.1)])
    torch.testing.assert_close(before - engine.model.weight, torch.full((1, 2), 0.1 * 2 * 0.2 * 0.1))
    assert figures["grad_norm"] == pytest.approx(0.04 * 2**0.5)
