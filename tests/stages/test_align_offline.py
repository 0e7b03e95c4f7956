"""Preference stages end to end: useless data are refused, losses start at the values of the papers and decrease."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.support import small
from tinyllm.algorithms import kto, orpo
from tinyllm.data.datasets.batches import Source
from tinyllm.data.loading import preference_dataset, unpaired_dataset
from tinyllm.data.records.reader import read_records
from tinyllm.data.records.types import UnpairedPreference
from tinyllm.errors import USAGE, UserError
from tinyllm.model.config import LoRAConfig
from tinyllm.model.transformer import set_dropout
from tinyllm.stages import align_offline, rm
from tinyllm.stages.align_offline import PreparedSource, reference_log_probs
from tinyllm.stages.config import AlignOfflineConfig, RmConfig
from tinyllm.stages.held_out import pooled_loss
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine
from tinyllm.train.run import Invocation

CALL = Invocation("written: down\n")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small.saved(small.rough(), tmp_path / "parent")


def settings(data: Path, kind: type = AlignOfflineConfig, **changes) -> AlignOfflineConfig | RmConfig:
    return kind(**small.common(data), parent=Path("parent"), **changes)


@pytest.mark.parametrize(
    ("verb", "chosen", "rejected", "word"),
    [
        ("align-offline", "red", "red ", "0 pairs in"),
        ("rm", "red " * 80 + "x", "red " * 80 + "y", "none of"),  # equal once they are cut
    ],
)
def test_data_of_equal_answers_only_are_refused(
    tmp_path: Path, verb: str, chosen: str, rejected: str, word: str
) -> None:
    rows = [{"prompt": f"What is {i}?", "chosen": chosen, "rejected": rejected} for i in range(30)]
    data = small.written(tmp_path / "equal.jsonl", rows)
    command = [sys.executable, "-m", "tinyllm", verb, "--checkpoint", "parent", "--set", f"data.train=[{data}]"]
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [*command, "--set", "data.max_length=64"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == USAGE, done.stderr
    assert done.stdout == ""
    assert f"error: {word}" in done.stderr
    assert "fix: " in done.stderr
    assert not list(tmp_path.glob("runs/**/*.safetensors"))


@pytest.mark.parametrize("lora", [None, LoRAConfig(r=2)], ids=["full", "lora"])
def test_dpo_starts_at_ln_2_and_learns(tmp_path: Path, lora: LoRAConfig | None) -> None:
    found = align_offline.run(settings(small.pairs(tmp_path / "pairs.jsonl"), lora=lora), CALL)
    run = Path(found["run"])
    first = small.metrics(run)[0]
    assert found["before"]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["grad_norm"] > 1e-2
    assert found["last"]["rewards/margins"] > 0.02
    assert found["last"]["loss"] < math.log(2) - 0.01


def test_with_dropout_dpo_starts_at_ln_2_on_held_out_pairs_only(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The reference is scored without dropout, and so is every held-out figure; the loss is not, and says so. A new adapter adds nothing
    yet, so that its own dropout shows from the second step on."""
    data = small.pairs(tmp_path / "pairs.jsonl")
    dropped, whole, adapter = ({"train": {"dropout": 0.5}}, {}, {"lora": LoRAConfig(r=2, dropout=0.5)})
    rows = []
    for number, changes in enumerate((dropped, adapter, {"lora": LoRAConfig(r=2)}, whole)):
        base = settings(data, name=str(number), **{k: v for k, v in changes.items() if k == "lora"})
        config = base.model_copy(update={"train": base.train.model_copy(update=changes.get("train", {}))})
        found = align_offline.run(config, CALL)
        assert ("acts in the loss only" in capsys.readouterr().err) == (number < 2)
        assert found["before"]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        rows.append(small.metrics(Path(found["run"])))
    assert abs(rows[0][0]["loss"] - math.log(2)) > 1e-3
    assert all(found[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) for found in rows[1:])
    assert rows[1][0]["grad_norm"] != pytest.approx(rows[2][0]["grad_norm"], rel=1e-3)
    assert rows[1][-1]["loss"] != pytest.approx(rows[2][-1]["loss"], abs=1e-5)


def test_reference_log_probs_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    model, texts = small.rough(), small.tokenizer()
    pairs = list(read_records([str(small.pairs(tmp_path / "pairs.jsonl", 7))], "pairs"))
    data = preference_dataset(pairs, texts, 64, "t")
    found = reference_log_probs(model, data, 3)
    for i, pair in enumerate(data.pairs):
        for column, answer in enumerate((pair.chosen, pair.rejected)):
            ids = torch.tensor([[*pair.prompt, *answer]])
            log_p = model.logits(model(ids)).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
            want = log_p[len(pair.prompt) - 1 :].sum().item()
            assert found[i, column].item() == pytest.approx(want, abs=1e-3)


def test_reference_log_probs_are_without_dropout(tmp_path: Path) -> None:
    """Also of a model that stands in training mode."""
    pairs = list(read_records([str(small.pairs(tmp_path / "pairs.jsonl", 7))], "pairs"))
    data = preference_dataset(pairs, small.tokenizer(), 64, "t")
    model = small.rough()
    want = reference_log_probs(model, data, 3)
    set_dropout(model, 0.5)
    torch.testing.assert_close(reference_log_probs(model.train(), data, 3), want, atol=1e-4, rtol=0)


def test_the_z_of_kto_is_without_dropout(tmp_path: Path) -> None:
    """Of training batches, of held-out batches and of the largest one; the model stands in training mode."""
    pairs = list(read_records([str(small.pairs(tmp_path / "pairs.jsonl", 7))], "pairs"))
    items = [UnpairedPreference(p.prompt, p.chosen, number % 2 == 0) for number, p in enumerate(pairs)]
    data = unpaired_dataset(items, small.tokenizer(), 64, "t")
    data.ref_log_probs = torch.full((7, 2), -90.0)
    found = []
    for dropout in (0.0, 0.5):
        model = small.rough()
        set_dropout(model, dropout)
        ready = partial(kto.prepare, kto.Settings(), model)
        source = PreparedSource(Source(data, 4, 2, seed=0), ready, model.train(), nullcontext)
        batches = [*source(0), source.largest(), *source.in_order(3)]
        found.append([float(batch.kl) for batch in batches])
    assert min(found[0]) > 1
    assert found[1] == pytest.approx(found[0], abs=1e-3)


def engine(loss) -> Engine:
    return Engine(small.rough(), loss, OptimConfig(), 1, precision="fp32", seed=0)


@torch.no_grad()
def held_out_loss(name: str, path: Path, rows: int) -> float:
    """Return the held-out loss with `rows` rows in a forward pass."""
    texts, module = small.tokenizer(), {"orpo": orpo, "kto": kto}[name]
    pairs = list(read_records([str(small.pairs(path / "pairs.jsonl", 7))], "pairs"))
    made = engine(lambda model, batch: module.loss(module.Settings(), model, batch))
    if name == "orpo":
        source = Source(preference_dataset(pairs, texts, 64, "t"), rows, rows, seed=0)
    else:
        items = [
            UnpairedPreference(p.prompt, getattr(p, side), side == "chosen")
            for p in pairs
            for side in ("chosen", "rejected")
        ]
        data = unpaired_dataset(items, texts, 64, "t")
        data.ref_log_probs = torch.linspace(-60, -20, 28).view(14, 2)
        made.model.eval()
        ready = lambda batches: kto.prepare(kto.Settings(), made.model, batches)  # noqa: E731
        source = PreparedSource(Source(data, rows, rows, seed=0), ready, made.model, made.autocast)
    return pooled_loss(made, source, 100)["loss"].value


@pytest.mark.parametrize("name", ["kto", "orpo"])
def test_the_held_out_loss_does_not_depend_on_the_rows_in_a_forward_pass(tmp_path: Path, name: str) -> None:
    whole = held_out_loss(name, tmp_path, 100)
    assert held_out_loss(name, tmp_path, 3) == pytest.approx(whole, abs=1e-5)
    assert held_out_loss(name, tmp_path, 1) == pytest.approx(whole, abs=1e-5)


def test_a_reward_model_learns_to_distinguish_red_from_blue(tmp_path: Path) -> None:
    config = settings(small.pairs(tmp_path / "pairs.jsonl"), RmConfig)
    found = rm.run(config.model_copy(update={"train": config.train.model_copy(update={"steps": 8})}), CALL)
    assert found["best"]["loss"] < found["before"]["loss"]
    assert found["best"]["margin"] > found["before"]["margin"] + 0.1
    assert found["best"]["accuracy"] > 0.9


def test_the_parent_is_not_modified_and_must_exist(tmp_path: Path) -> None:
    before = (tmp_path / "parent" / "model.safetensors").read_bytes()
    align_offline.run(settings(small.pairs(tmp_path / "pairs.jsonl")), CALL)
    assert (tmp_path / "parent" / "model.safetensors").read_bytes() == before
    config = settings(small.pairs(tmp_path / "pairs.jsonl")).model_copy(update={"parent": None, "name": "orphan"})
    with pytest.raises(UserError, match="needs a checkpoint to start from"):
        align_offline.run(config, CALL)
    assert not (tmp_path / "runs" / "rlhf" / "offline" / "dpo-orphan").exists()
