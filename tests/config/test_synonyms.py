"""Names of settings in other tools: told the setting of this stage, or what does it instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyllm.cli.resolve import STAGES, resolve
from tinyllm.config import Config, load
from tinyllm.config.base import dotted_keys
from tinyllm.config.problems import Problem, Source
from tinyllm.config.synonyms import find_meaning, terms
from tinyllm.config.validation_errors import unknown_key
from tinyllm.errors import UserError

TRAINING = ("pretrain", "sft", "rm", "dpo", "kto", "orpo", "simpo", "grpo", "ppo", "gspo")
EVERYWHERE = {  # term -> key in every stage that trains
    "lr": "optim.learning_rate",
    "learning_rate": "optim.learning_rate",
    "weight_decay": "optim.weight_decay",
    "wd": "optim.weight_decay",
    "warmup_ratio": "optim.warmup_steps",
    "warmup_iters": "optim.warmup_steps",
    "max_grad_norm": "optim.clip_norm",
    "lr_scheduler_type": "optim.schedule",
    "epochs": "train.steps",
    "num_train_epochs": "train.steps",
    "num_epochs": "train.steps",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "max_iters": "train.steps",
    "iters": "train.steps",
    "batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "per_device_train_batch_size": "train.micro_batch_size",
    "micro_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "grad_accum": "train.batch_size",
    "save_steps": "train.save_every",
    "eval_steps": "train.eval_every",
    "logging_steps": "train.log_every",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "dtype": "train.precision",
    "precision": "train.precision",
    "compile": "train.compile",
    "max_length": "data.max_length",
    "max_seq_length": "data.max_length",
    "seq_len": "data.max_length",
    "context_length": "data.max_length",
    "block_size": "data.max_length",
    "cutoff_len": "data.max_length",
    "dataset": "data.train",
    "train_file": "data.train",
    "output_dir": "name",
}
SOMEWHERE = [  # stage, term, key
    *(("pretrain", term, f"model.{key}") for term, key in {
        "vocab_size": "vocab_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_embd": "hidden_size",
        "hidden_size": "hidden_size",
        "d_ff": "intermediate_size",
        "n_kv_head": "num_key_value_heads",
    }.items()),
    *(("sft", term, key) for term, key in {
        "lora_r": "lora.r",
        "lora_rank": "lora.r",
        "lora_alpha": "lora.alpha",
        "target_modules": "lora.targets",
        "model_name_or_path": "parent",
        "base_model": "parent",
    }.items()),
    ("dpo", "beta", "dpo.beta"),
    ("kto", "beta", "kto.beta"),
    ("simpo", "beta", "simpo.beta"),
    ("orpo", "beta", "orpo.weight"),
    ("grpo", "beta", "grpo.kl_coef"),
    ("ppo", "beta", "ppo.kl_coef"),
    ("ppo", "cliprange", "ppo.clip"),
    ("grpo", "epsilon", "grpo.clip_low"),
    ("grpo", "num_generations", "rollout.group_size"),
    ("grpo", "max_completion_length", "rollout.max_new_tokens"),
    ("eval", "dataset", "data.val"),
    ("eval", "num_generations", "samples"),
    ("eval", "max_completion_length", "max_new_tokens"),
    ("eval", "model", "parent"),
    ("chat", "model", "parent"),
    ("chat", "max_tokens", "max_new_tokens"),
]  # fmt: skip
NOWHERE = [  # stage, term, what is said
    ("sft", "n_layer", "the shape of the model is that of its checkpoint"),
    ("eval", "lr", "does not train"),
    ("chat", "epochs", "does not train"),
    ("pretrain", "lora_r", "tinyllm sft --lora"),
    ("sft", "beta", "other algorithms"),
    ("sft", "num_generations", "only align-online"),
    ("sft", "tokenizer_name", "that of the checkpoint"),
    ("pretrain", "gradient_checkpointing", "train.micro_batch_size"),
    ("sft", "deepspeed", "--nproc"),
    ("sft", "resume_from_checkpoint", "resumes"),
    ("sft", "wandb_project", "metrics.jsonl"),
]


def error(stage: str, sets: list[str], config: Path | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        resolve(STAGES[stage], config, sets, {}, {}, fast=False)
    return caught.value


def reported(stage: str, term: str) -> Problem:
    algorithm = stage if STAGES[stage].place.startswith("align") else ""
    return unknown_key(STAGES[stage].config, (term,), Source("--set"), 0, algorithm)[0]


CASES = [(stage, term, key) for stage in TRAINING for term, key in EVERYWHERE.items()] + SOMEWHERE


@pytest.mark.parametrize("stage", sorted({stage for stage, _, _ in CASES}))
def test_a_term_of_another_tool_is_told_the_key_of_this_stage(stage: str) -> None:
    for term, key in ((term, key) for other, term, key in CASES if other == stage):
        assert key in dotted_keys(STAGES[stage].config)
        found = reported(stage, term)
        assert f"unknown key {term}; did you mean {key}?" in found.what
        assert key in found.fix


@pytest.mark.parametrize("stage", ["pretrain", "kto", "grpo"])
def test_the_whole_loader_says_it(stage: str) -> None:
    for term, key in [("lr", "optim.learning_rate"), *(row[1:] for row in SOMEWHERE if row[0] == stage)][:3]:
        assert f"unknown key {term}; did you mean {key}?" in error(stage, [f"{term}=1"]).what


@pytest.mark.parametrize(("stage", "term", "said"), NOWHERE)
def test_a_term_without_a_setting_here_is_told_what_does_it_instead(stage: str, term: str, said: str) -> None:
    found = reported(stage, term)
    assert said in found.what
    assert found.fix == f"remove {term}"


@pytest.mark.parametrize("stage", STAGES)
def test_every_term_is_answered_in_every_stage_and_never_by_a_key_that_does_not_exist(stage: str) -> None:
    known = dotted_keys(STAGES[stage].config)
    algorithm = {"align-offline": "dpo", "align-online": "grpo"}.get(STAGES[stage].place, "")
    for term in terms():
        meaning = find_meaning(term, known, algorithm)
        assert meaning is not None
        assert meaning.key in known if meaning.key else meaning.remark, term
        assert not meaning.convert or meaning.remark, f"{term}: the difference is not said"


def test_every_key_of_the_table_exists_in_some_stage() -> None:
    from tinyllm.config import synonyms

    known = {key for stage in STAGES.values() for key in dotted_keys(stage.config)}
    leaves = {f"*.{key.partition('.')[2]}" for key in known}
    assert {key for row in synonyms._ROWS for key in row.keys.split()} <= known | leaves
    words = [term for row in synonyms._ROWS for term in row.terms.split()]
    assert len(words) == len(set(words)), "a term has two meanings"


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("lr: 1e-4\n", "optim.learning_rate", 1),
        ("train:\n  lr: 1e-4\n", "optim.learning_rate", 2),
        ("train:\n  num_epochs: 3\n", "train.steps", 2),
        ("optim:\n  lr: 1e-4\n", "optim.learning_rate", 2),
        ("model:\n  n_layer: 3\n", "model.num_hidden_layers", 2),
        ("training:\n  max_steps: 3\n", "train", 1),
    ],
)
def test_a_term_in_a_file_in_any_section(
    text: str, key: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(text)
    found = error("pretrain", [], Path("a.yaml"))
    assert f"did you mean {key}?" in found.what
    assert found.where == f"a.yaml:{line}"


def test_the_algorithm_may_be_named_after_the_key_and_by_any_source(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("beta: 0.2\nalgorithm: simpo\n")
    cls: type[Config] = STAGES["dpo"].config
    with pytest.raises(UserError, match=r"did you mean simpo\.beta"):
        load(cls, files=[path])
    with pytest.raises(UserError, match=r"did you mean kto\.beta") as caught:
        load(cls, overrides=[("beta", "1", "--set"), ("algorithm", "kto", "--algorithm")])
    assert caught.value.fix == "write kto.beta instead of beta"


def test_a_value_in_another_unit_is_not_told_to_be_renamed_only() -> None:
    found = error("sft", ["epochs=3"])
    assert "one epoch is the number of records / train.batch_size" in found.what
    assert "write train.steps instead" not in found.fix


def test_a_typo_in_a_key_comes_before_a_term_of_another_tool() -> None:
    assert "did you mean optim.beta1?" in error("pretrain", ["optim.beta=0.9"]).what
    assert "did you mean lora.r?" in error("sft", ["lora.e=8"]).what


def test_the_section_of_a_users_own_algorithm_without_it_is_told_the_option() -> None:
    assert "needs --algorithm path/to/my_loss.py" in error("dpo", ["my_loss.margin=2"]).what
    assert "--algorithm" not in error("sft", ["my_loss.margin=2"]).what
