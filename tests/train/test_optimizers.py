from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tinyllm.config import Config, with_sections
from tinyllm.train import optimizers, schedules
from tinyllm.train.config import OptimConfig, TrainConfig
from tinyllm.train.engine import Engine
from tinyllm.train.muon import Muon, orthogonalize


def test_warm_up_then_cosine_to_the_minimum() -> None:
    config = OptimConfig(learning_rate=1.0, warmup_steps=4, min_lr_ratio=0.1)
    rates = [schedules.learning_rate(s, 24, config) for s in range(25)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == pytest.approx(0.55)  # half way: the middle between peak and minimum
    assert rates[24] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_wsd_is_flat_then_linear() -> None:
    config = OptimConfig(learning_rate=1.0, warmup_steps=0, min_lr_ratio=0.0, schedule="wsd", decay_fraction=0.25)
    rates = [schedules.learning_rate(s, 100, config) for s in range(101)]
    assert set(rates[:76]) == {1.0}
    assert rates[88] == pytest.approx(0.48)
    assert rates[100] == 0.0


def test_constant_stays() -> None:
    config = OptimConfig(learning_rate=0.3, warmup_steps=2, schedule="constant")
    assert [schedules.learning_rate(s, 9, config) for s in (0, 1, 5, 9)] == [0.15, 0.3, 0.3, 0.3]


def test_orthogonalize_gives_singular_values_near_one_and_keeps_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 16, 40), (3, 40, 16)):
        x = torch.randn(shape, generator=generator)
        u, _, vt = torch.linalg.svd(x, full_matrices=False)
        got = torch.linalg.svdvals(orthogonalize(x))
        assert got.min() > 0.5
        assert got.max() < 1.3
        inner = (orthogonalize(x) * (u @ vt)).sum((1, 2)) / min(shape[1:])
        assert (inner > 0.8).all()


def test_orthogonalize_in_autocast_multiplies_in_bf16() -> None:
    x = torch.randn(2, 24, 40, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = orthogonalize(x)
    assert narrow.dtype == torch.bfloat16
    wide = orthogonalize(x)
    assert wide.dtype == torch.float32
    assert 0 < (narrow.float() - wide).norm() / wide.norm() < 0.02


def _no_loss(*_: object) -> tuple:
    raise AssertionError("no loss is computed")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_update_multiplies_in_the_precision_of_the_run(precision: str) -> None:
    """Weights and momenta stay float32."""
    found = {}
    for kind in ("run", "wide"):
        torch.manual_seed(0)
        model = torch.nn.Module()
        model.layers = torch.nn.ModuleList([torch.nn.Linear(24, 40, bias=False)])  # Muon's are inside blocks
        holder = torch.nn.ModuleDict({"model": model})
        config = OptimConfig(optimizer="muon", warmup_steps=0)
        engine = Engine(holder, _no_loss, config, 9, precision=precision if kind == "run" else "fp32", seed=0)
        weight = engine.trainable["model.layers.0.weight"]
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        engine._update(0.01)
        assert {p.dtype for p in (weight, *engine.state().values())} == {torch.float32}
        found[kind] = weight.detach().clone()
    difference = (found["run"] - found["wide"]).abs().max()
    assert difference == 0 if precision == "fp32" else 0 < difference < 1e-3


def test_muon_steps_are_the_size_of_adamw_s() -> None:
    """RMS of an update is about 0.2 lr, whatever the shape and the size of the gradient."""
    for shape in ((64, 32), (32, 128)):
        p = torch.nn.Parameter(torch.zeros(shape))
        muon = Muon([p], lr=1.0, momentum=0.9, weight_decay=0.0)
        p.grad = 1e-3 * torch.randn(shape)
        muon.step()
        assert 0.1 < p.square().mean().sqrt() < 0.3


def test_every_parameter_has_one_optimizer_and_only_matrices_decay() -> None:
    model = torch.nn.ModuleDict(
        {
            "embed": torch.nn.Embedding(9, 4),
            "layers": torch.nn.ModuleList([torch.nn.Linear(4, 4)]),
            "norm": torch.nn.LayerNorm(4),
        }
    )
    holder = torch.nn.ModuleDict({"model": model})
    for kind in optimizers.names():
        groups = [g for o in optimizers.build(holder, OptimConfig(optimizer=kind)) for g in o.param_groups]
        held = [id(p) for g in groups for p in g["params"]]
        assert sorted(held) == sorted(id(p) for p in holder.parameters())
        assert all((g["weight_decay"] > 0) == (p.ndim >= 2) for g in groups for p in g["params"])


def test_batch_size_must_be_a_multiple_of_micro_batch_size() -> None:
    with pytest.raises(ValueError, match="multiple of micro_batch_size"):
        TrainConfig(batch_size=10, micro_batch_size=4)


def test_an_optimizer_file_and_a_schedule_row_bring_settings_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new file in train/optimizers and a new row of SCHEDULES would add, without writing into the package."""

    class Settings(Config):
        power: float = 2.0

    polynomial = schedules.Schedule(lambda progress, config, own: (1 - progress) ** own.power, Settings)
    monkeypatch.setitem(schedules.SCHEDULES, "polynomial", polynomial)
    assert schedules.settings() == {"polynomial": Settings}
    kind = with_sections(OptimConfig, schedules.settings())
    config = kind(learning_rate=1.0, warmup_steps=0, min_lr_ratio=0.0).model_copy(update={"schedule": "polynomial"})
    assert [schedules.learning_rate(step, 4, config) for step in range(4)] == [1.0, 0.5625, 0.25, 0.0625]


@pytest.mark.parametrize(("key", "wrong"), [("optimizer", "adam"), ("schedule", "wsb")])
def test_only_registered_names_are_accepted(key: str, wrong: str) -> None:
    with pytest.raises(ValidationError, match="'adamw' or 'muon'" if key == "optimizer" else "'wsd' or 'constant'"):
        OptimConfig(**{key: wrong})
