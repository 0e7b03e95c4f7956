"""Every training stage examines by the test split and selects by val: exchanged files exchange the figures before training."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support import foreign_tokenizers, small
from tinyllm import algorithms
from tinyllm.data import splits
from tinyllm.data.config import DataConfig
from tinyllm.data.tokens.documents import document_hash
from tinyllm.errors import UserError
from tinyllm.model.config import ModelConfig
from tinyllm.rollout.config import RolloutConfig
from tinyllm.stages import align_offline, align_online, data, pretrain, rm, sft
from tinyllm.stages import config as settings
from tinyllm.stages.common import moved_figure
from tinyllm.stages.documents import held_out_documents
from tinyllm.train.run import Invocation
from tinyllm.train.trainer import TrainResult

CALL = Invocation("written: down\n")
KINDS = {
    "pretrain": lambda i: {"text": f"{i}: {'red ' * (i % 7)}and {'blue ' * (i % 5)}are colours."},
    "sft": lambda i: {"prompt": f"What is {i}?", "completion": "red, " * (1 + i % 5)},
    "rm": lambda i: {"prompt": f"What is {i}?", "chosen": "red " * (1 + i % 5), "rejected": "blue " * (1 + i % 4)},
    "kto": lambda i: {"prompt": f"What is {i}?", "completion": "red " * (1 + i % 5), "label": i % 2 == 0},
    "grpo": lambda i: {"prompt": f"What is {i}?", "answer": str(i % 10)},
}
KINDS["dpo"] = KINDS["rm"]
FIGURE = {"grpo": "length"}


def written(name: str, kind: str, numbers: range) -> str:
    return str(small.written(Path(f"{name}.jsonl"), [KINDS[kind](i) for i in numbers]))


def trained(stage: str, name: str, **of_data: Any) -> dict[str, Any]:
    sections = small.common(Path("train.jsonl"), steps=1, eval_rows=100)
    sections["data"] = {"train": ("train.jsonl",), "max_length": 64, **of_data}
    sections |= {"name": name, "seed": 3}
    own: dict[str, Any] = {"parent": Path("parent")} if stage != "pretrain" else {}
    if stage == "pretrain":
        return pretrain.run(settings.PretrainConfig(**sections, model=small.SHAPE), CALL)
    if stage == "sft":
        return sft.run(settings.SftConfig(**sections, **own), CALL)
    if stage == "rm":
        return rm.run(settings.RmConfig(**sections, **own), CALL)
    if stage in algorithms.names("offline"):
        return align_offline.run(settings.AlignOfflineConfig(**sections, **own, algorithm=stage), CALL)
    rollout = RolloutConfig(group_size=4, max_new_tokens=8, temperature=0.01)
    online = {"algorithm": stage, "rollout": rollout, "rewards": {"exact_answer": 1.0}}
    return align_online.run(settings.AlignOnlineConfig(**sections, **own, **online), CALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small.saved(small.rough(scale=0.1), tmp_path / "parent")
    return tmp_path


@pytest.mark.parametrize("stage", KINDS)
def test_exchanged_files_exchange_the_figures_of_val_and_test(stage: str, place: Path) -> None:
    written("train", stage, range(40))
    one, other = written("one", stage, range(50, 62)), written("other", stage, range(70, 90))
    first, second = (
        trained(stage, name, val=(val,), test=(test,)) for name, val, test in (("a", one, other), ("b", other, one))
    )
    figure = FIGURE.get(stage, "loss")
    val, test = (([found["before"][figure], found["test"]["before"]["figures"][figure]]) for found in (first, second))
    assert val == pytest.approx(test[::-1], abs=1e-5)
    if stage in ("pretrain", "sft"):  # the others begin alike on all files: with ln 2, or with answers of equal length
        assert abs(val[0] - val[1]) > 1e-4
    assert (first["test"]["records"], second["test"]["records"]) == (20, 12)
    assert first["test"]["before"]["counts"][figure] >= 20
    facts = json.loads((Path(first["run"]) / "run.json").read_text())
    assert facts["test"] == first["test"]
    counts = {split: entry.get("records", entry.get("documents")) for split, entry in facts["splits"].items()}
    assert counts == {"train": 40, "val": 12, "test": 20}
    assert facts["splits"]["val"]["sha256"] != facts["splits"]["test"]["sha256"]
    assert first["moved"]["split"] == "test"
    assert first["moved"]["from"] == first["test"]["before"]["figures"][first["moved"]["what"]]
    assert first["moved"]["to"] == first["test"]["best"]["figures"][first["moved"]["what"]]


def test_without_test_records_the_last_checkpoint_is_reported_and_it_is_said(
    place: Path, capsys: pytest.CaptureFixture
) -> None:
    written("train", "sft", range(40))
    found = trained("sft", "a", val=(written("one", "sft", range(50, 62)),))
    assert "note: no test split: figures are those of the last checkpoint" in capsys.readouterr().err
    assert found["test"] is None
    assert (found["moved"]["split"], found["moved"]["to"]) == ("val", found["last"]["loss"])


def test_a_test_split_that_cannot_be_used_stops_no_run(place: Path, capsys: pytest.CaptureFixture) -> None:
    """One record alone is longer than data.max_length, and all such are dropped."""
    written("train", "sft", range(40))
    rows = [{"prompt": "What is 99?", "completion": "red, " * 90}]
    small.written(place / "long.jsonl", rows)
    found = trained("sft", "a", val=(written("one", "sft", range(50, 62)),), test=("long.jsonl",), too_long="drop")
    assert "note: no test split" in capsys.readouterr().err
    assert found["test"] is None


def figures(**values: float) -> dict[str, Any]:
    return {"step": 1, "figures": values, "counts": dict.fromkeys(values, 7.0)}


def test_what_moved_can_fall() -> None:
    """Val never falls at the best checkpoint, because it chose that; test does where the best of val is worse by chance."""
    known = {"before": {"reward": 0.2}, "best": {"reward": 0.9}, "last": {"reward": 0.1}}
    result = TrainResult(**known, steps=5, tokens=1, seconds=1.0, checkpoint=Path("x"))
    assert moved_figure(result, "reward")["to"] == 0.1
    result.test = {
        "records": 7,
        "before": figures(reward=0.5),
        "best": figures(reward=0.3),
        "last": figures(reward=0.4),
    }
    found = moved_figure(result, "reward")
    assert (found["from"], found["to"], found["split"], found["count"]) == (0.5, 0.3, "test", 7.0)


# --- the data of pretraining --------------------------------------------------------------------------------------------------------


def config(**of_data: Any) -> settings.PretrainConfig:
    sections = small.common(Path("unused"), steps=1)
    sections["data"] = {"max_length": 16, "val_fraction": 0.2, **of_data}
    return settings.PretrainConfig(**sections, model=ModelConfig(vocab_size=300, hidden_size=16, intermediate_size=32))


@pytest.mark.parametrize("case", ["files", "val and test_fraction", "test of its own", "world", "no test"])
def test_documents_of_val_and_test_are_disjoint(case: str, place: Path) -> None:
    written("train", "pretrain", range(400))
    written("held", "pretrain", range(500, 600))
    made = config(
        **{
            "files": {"train": "train.jsonl"},
            "val and test_fraction": {"train": "train.jsonl", "val": "held.jsonl", "test_fraction": 0.5},
            "test of its own": {"train": "train.jsonl", "test": "held.jsonl"},
            "world": {"train": "world:300"},
            "no test": {"train": "train.jsonl", "test_fraction": 0},
        }[case]
    )
    tokenizer, shards = data.ensure_prepared(made)
    found = {split: held_out_documents(made, shards, tokenizer, split, 1000) for split in ("val", "test")}
    hashes = {split: {document_hash(one) for one in some} for split, some in found.items()}
    hashes["train"] = {document_hash(one) for one in shards.documents("train")}
    splits.check_disjoint(hashes)
    assert hashes["val"]
    assert bool(hashes["test"]) == (case != "no test")
    whole = len(shards.documents("val"))
    assert len(found["val"]) + len(found["test"]) == {"world": 1000, "test of its own": whole + 100}.get(case, whole)
    assert [len(one) for one in held_out_documents(made, shards, tokenizer, "val", 5)] == [
        len(d) for d in found["val"][:5]
    ]
    assert all(one[-1] == tokenizer.endoftext for some in found.values() for one in some)


def test_documents_that_cannot_be_spelled_are_left_out_of_every_split(
    place: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = foreign_tokenizers.write("smollm2", place / "smollm2")  # no token for U+0006
    written("train", "pretrain", range(40))
    small.written(Path("held.jsonl"), [{"text": "wo\x06rd"}, {"text": "a word"}])
    small.written(Path("none.jsonl"), [{"text": "wo\x06rd"}])

    def made(on_bad_line: str, val: str, test: str) -> settings.PretrainConfig:
        found = config(train="train.jsonl", val=val, test=test, on_bad_line=on_bad_line)
        return found.model_copy(update={"tokenizer": folder})

    both = made("skip", "held.jsonl", "held.jsonl")
    tokenizer, shards = data.ensure_prepared(both)
    assert [len(held_out_documents(both, shards, tokenizer, split, 9)) for split in ("val", "test")] == [1, 1]
    assert capsys.readouterr().err.count("dropped 1 of 2 documents") == 2
    with pytest.raises(UserError, match="no token for") as caught:
        held_out_documents(made("error", "held.jsonl", "held.jsonl"), shards, tokenizer, "test", 9)
    assert caught.value.where == "held.jsonl, document 1"
    with pytest.raises(UserError, match=r"1 of 1 documents .* first none\.jsonl"):
        held_out_documents(made("skip", "held.jsonl", "none.jsonl"), shards, tokenizer, "test", 9)
    with pytest.raises(UserError, match=r"1 of 1 documents .* first none\.jsonl"):
        data.ensure_prepared(made("skip", "none.jsonl", "held.jsonl"))


def test_a_division_that_is_not_one_is_noticed_in_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault planted in the division: it looks at the records, not at their prompts."""
    small.written(place / "a.jsonl", [{"prompt": f"What is {i % 20}?", "completion": f"It is {i}."} for i in range(90)])
    asked = DataConfig(train="a.jsonl", val_fraction=0.3)
    splits.read_split(asked, "conversations", 0)
    flip = random.Random(0)

    def by_chance(hashes: Any, fraction: float, labels: Any = None) -> Any:
        return hashes == [key if flip.random() < 0.5 else 0 for key in hashes.tolist()]

    monkeypatch.setattr(splits, "for_test", by_chance)
    with pytest.raises(RuntimeError, match=r"keys of test are in val as well"):
        splits.read_split(asked, "conversations", 0)
