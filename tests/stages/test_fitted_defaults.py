"""Settings that fit the parent: rates by size, and which source of a setting wins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import small
from tests.support.small import written
from tinyllm import cli
from tinyllm.model.config import ModelConfig
from tinyllm.stages.checkpoint_files import CheckpointFiles
from tinyllm.stages.foreign import defaults
from tinyllm.stages.foreign.defaults import Model, Task, fit
from tinyllm.train import checkpoint

FITTED = "fitted to the parent"
TINY = ModelConfig()
SMOL = ModelConfig(  # SmolLM2-135M
    model_type="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
)
LARGE = SMOL.model_copy(
    update={
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    }
)


def fitted(shape: ModelConfig, stage: str, **more: Any) -> dict[str, Any]:
    chosen = more.pop("chosen", {})
    found = fit(Model("m", shape, ours=False), Task(stage, **more), chosen)
    return {key: value for key, (value, _) in found.items()}


@pytest.mark.parametrize(
    ("stage", "algorithm", "lora", "at_135m", "at_1_7b"),
    [
        ("sft", "", False, 1e-4, 2e-5),
        ("sft", "", True, 5e-4, 2e-4),
        ("rm", "", False, 5e-5, 1e-5),
        ("align-offline", "dpo", False, 5e-6, 1e-6),
        ("align-offline", "dpo", True, 5e-5, 1e-5),
        ("align-offline", "orpo", False, 3e-5, 5e-6),
        ("align-online", "grpo", False, 3e-6, 1e-6),
        ("align-online", "grpo", True, 3e-5, 1e-5),
    ],
)
def test_rates_by_size(stage: str, algorithm: str, lora: bool, at_135m: float, at_1_7b: float) -> None:
    assert (round(SMOL.parameters(), -6), round(LARGE.parameters(), -8)) == (135e6, 1.7e9)
    rates = [fitted(s, stage, algorithm=algorithm, lora=lora)["optim.learning_rate"] for s in (SMOL, LARGE)]
    assert rates == [at_135m, at_1_7b]


def test_rates_fall_with_the_size_and_stay_within_bounds() -> None:
    shapes = [TINY, SMOL, LARGE, LARGE.model_copy(update={"num_hidden_layers": 400})]
    rates = [fitted(shape, "sft")["optim.learning_rate"] for shape in shapes]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1]) == (5e-4, 1e-5)


def test_steps_follow_the_records_and_the_batch() -> None:
    def steps(records: int | None, **chosen: int) -> int:
        chosen_keys = {f"train.{key}": value for key, value in chosen.items()}
        return fitted(SMOL, "sft", records=records, chosen=chosen_keys).get("train.steps", 0)

    assert [steps(n) for n in (16, 100, 1000, 2000, 4000, 10_001)] == [12, 38, 188, 375, 500, 626]
    assert (steps(100_000), steps(None)) == (1000, 1000)
    assert steps(1000, batch_size=50) == 60
    assert fitted(SMOL, "rm", records=1000)["train.steps"] == 63  # one epoch
    own = fitted(SMOL, "sft", records=1000, chosen={"train.steps": 20})
    assert "train.steps" not in own
    assert (own["optim.warmup_steps"], own["train.eval_every"], own["train.save_every"]) == (2, 4, 10)


def test_micro_batches_divide_the_batch_and_fit_the_memory() -> None:
    def micro(memory: float, batch: int = 16, stage: str = "sft") -> int:
        chosen = {"train.batch_size": batch}
        return fitted(SMOL, stage, memory=int(memory), chosen=chosen)["train.micro_batch_size"]

    assert [micro(gigabytes * 1e9) for gigabytes in (4, 16, 64, 1000)] == [1, 4, 8, 8]
    assert micro(25e9, stage="rm") == 4  # two rows of a pair
    assert [micro(1e12, batch) for batch in (1, 6, 7, 40)] == [1, 6, 7, 8]
    short = TINY.model_copy(update={"max_position_embeddings": 96})
    assert fitted(short, "sft")["data.max_length"] == 96
    assert fitted(SMOL, "align-online", chosen={"rollout.group_size": 6})["train.batch_size"] % 6 == 0


def test_our_own_small_models_are_left_alone() -> None:
    grown = TINY.model_copy(update={"hidden_size": 1024, "intermediate_size": 2048})
    assert grown.parameters() > defaults.SMALL
    cases = {(TINY, True): False, (grown, True): True, (TINY, False): True, (SMOL, False): True}
    assert {case: defaults.applies(Model("m", *case)) for case in cases} == cases


# --- commands --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """Return a function that plans a command in an empty folder: `{key: {value, origin}}`, with what was said as `said`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> dict[str, Any]:
        code = cli.run([*arguments, "--dry-run", "--json"])
        output = capsys.readouterr()
        assert code == 0, output.err
        found = json.loads(output.out)
        return found["values"] | {"said": output.err, "cost": found["cost"]}

    return run


def test_what_the_user_gave_wins(plan: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.saved(small.rough(), tmp_path / "their.model")
    rows = str(
        written(tmp_path / "rows.jsonl", [{"prompt": f"What is {i}?", "completion": "A number."} for i in range(60)])
    )
    sft = ("sft", "--checkpoint", "their.model", "--set", f"data.train=[{rows}]")
    found = plan(*sft)
    said = [line for line in found["said"].splitlines() if line.startswith("fitted to their.model")]
    assert len(said) == 1
    assert "pretrained elsewhere): learning rate 5e-4 for all weights of" in said[0]
    assert "(3 epochs of 57 records)" in said[0]
    assert (found["name"]["value"], found["data.max_length"]["value"]) == ("their.model", 96)
    for key, value in {"optim.learning_rate": 5e-4, "train.batch_size": 4, "train.steps": 43}.items():
        assert (found[key]["value"], found[key]["origin"].startswith(FITTED)) == (value, True)

    Path("mine.yaml").write_text("optim: {learning_rate: 7e-5}\n", encoding="utf-8")
    monkeypatch.setenv("TINYLLM_TRAIN__STEPS", "9")
    found = plan(*sft, "--config", "mine.yaml", "--set", "train.batch_size=40", "--name", "n")
    values = {key: found[key]["value"] for key in ("optim.learning_rate", "train.steps", "train.batch_size", "name")}
    assert values == {"optim.learning_rate": 7e-5, "train.steps": 9, "train.batch_size": 40, "name": "n"}
    assert (found["train.micro_batch_size"]["value"], found["optim.warmup_steps"]["value"]) == (8, 1)
    assert found["optim.learning_rate"]["origin"] == "mine.yaml:1"
    assert plan(*sft, "--set", "train.batch_size=40")["train.micro_batch_size"]["value"] == 8  # not of the shipped 32


@pytest.mark.parametrize(
    ("arguments", "rows"), [(("sft",), 1), (("rm",), 2), (("align-offline", "--algorithm", "dpo"), 2)]
)
def test_a_plan_counts_all_tokens_of_a_record(
    arguments: tuple[str, ...], rows: int, plan: Callable[..., dict], tmp_path: Path
) -> None:
    """A pair is two rows."""
    small.saved(small.rough(), tmp_path / "theirs")
    cost = plan(*arguments, "--checkpoint", "theirs", "--set", "train.steps=10", "--set", "train.batch_size=8")["cost"]
    assert cost["tokens at most"] == 10 * 8 * rows * 96


def test_a_shipped_file_that_is_named_is_the_users(plan: Callable[..., dict], tmp_path: Path) -> None:
    small.saved(small.rough(), tmp_path / "theirs")
    found = plan(
        "sft",
        "--checkpoint",
        "theirs",
        "--config",
        "configs/sft/full/1.4M_sft_full.yaml",
        "--set",
        "data.max_length=64",
    )
    assert (found["optim.learning_rate"]["value"], found["train.steps"]["value"]) == (1e-3, 600)


def test_nothing_changes_for_our_own_small_models(plan: Callable[..., dict]) -> None:
    path = checkpoint.save(
        Path("runs/pretrain/a/checkpoints"),
        5,
        CheckpointFiles(small.rough(), small.tokenizer(), stage="pretrain").write,
    )
    checkpoint.link(path.parent, checkpoint.BEST, path)
    Path("runs/pretrain/a/run.json").write_text('{"status": "completed", "ended": "x"}', encoding="utf-8")
    for command in ("sft", "sft --lora", "rm", "align-offline", "align-online"):
        for given in ((), ("--checkpoint", "a"), ("--checkpoint", "a", "--fast-dev-run")):
            found = plan(*command.split(), *given)
            assert FITTED not in found.pop("said")
            del found["cost"]
            assert [key for key, entry in found.items() if entry["origin"].startswith(FITTED)] == []


def test_a_rehearsal_keeps_its_few_steps(plan: Callable[..., dict], tmp_path: Path) -> None:
    small.saved(small.rough(), tmp_path / "theirs")
    found = plan("sft", "--checkpoint", "theirs", "--fast-dev-run", "--set", "data.max_length=64")
    assert (found["train.steps"]["value"], found["optim.learning_rate"]["value"], found["name"]["value"]) == (
        100,
        5e-4,
        "fast-dev-run",
    )


def test_descendants_of_a_model_of_others_are_fitted_too(plan: Callable[..., dict], tmp_path: Path) -> None:
    def run(name: str, parent: dict[str, Any] | None) -> Path:
        """A run with one checkpoint, and what it says of its parent."""
        write = CheckpointFiles(small.rough(), small.tokenizer(), stage="sft").write
        path = checkpoint.save(Path("runs/sft/full") / name / "checkpoints", 5, write)
        checkpoint.link(path.parent, checkpoint.BEST, path)
        facts = json.dumps({"status": "completed", "ended": name, "parent": parent})
        (path.parent.parent / "run.json").write_text(facts, encoding="utf-8")
        return path

    first = run("first", {"checkpoint": "theirs", "manifest_sha256": None})
    run("second", {"checkpoint": first.as_posix(), "manifest_sha256": "a" * 64})
    found = plan("rm", "--checkpoint", "second")
    assert (found["optim.learning_rate"]["value"], found["name"]["value"]) == (2e-4, "second")
    run("third", {"checkpoint": "gone", "manifest_sha256": "a" * 64})
    assert plan("rm", "--checkpoint", "third", "--set", "data.max_length=64")["optim.learning_rate"]["value"] == 5e-4
