"""Adapters through the stages: reward models, settings of every kind, bases that have moved or are named by an option."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import foreign_templates, small
from tinyllm.diagnostics.inspect.tokenizer import vocabulary
from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.evals.config import EvalConfig
from tinyllm.evals.run import run as evaluate
from tinyllm.model import hub, lora, tensors
from tinyllm.model.config import LoRAConfig
from tinyllm.model.resize import grow_vocabulary
from tinyllm.model.transformer import CausalLM, initialise
from tinyllm.stages import align_online, rm, sft
from tinyllm.stages.checkpoint_files import CheckpointFiles, adapter_base
from tinyllm.stages.common import load_language_model
from tinyllm.stages.config import AlignOnlineConfig, RmConfig, SftConfig
from tinyllm.stages.origin import read_origin
from tinyllm.stages.parents import find_checkpoint
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.run import Invocation

CALL = Invocation("written: down\n")
CPU = torch.device("cpu")
IDS = torch.tensor([[45, 49, 73, 54, 55, 43]])


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    small.saved(small.rough(), Path("models/parent"))


def rewarded(**changes: Any) -> Path:
    config = RmConfig(**small.common(small.pairs(Path("pairs.jsonl"))), parent=Path("models/parent"), **changes)
    return Path(rm.run(config, CALL)["checkpoint"])


def tuned(**changes: Any) -> Path:
    rows = [{"prompt": f"What is {i}?", "completion": "red, " * (1 + i % 5)} for i in range(40)]
    data = small.written(Path("answers.jsonl"), rows)
    return Path(
        sft.run(SftConfig(**small.common(data), **{"parent": Path("models/parent"), **changes}), CALL)["checkpoint"]
    )


def adapter_of(parent: Path, folder: Path, base: str = "", **settings: Any) -> Path:
    """An adapter as it would come from elsewhere, with weights that have moved."""
    config = LoRAConfig(**{"r": 2, **settings})
    model = lora.attach(hub.load_causal_lm(parent), config)
    with torch.no_grad():
        for tensor in lora.branches(model).values():
            tensor.add_(0.1)
    folder.mkdir(parents=True)
    lora.save(model, config, folder, base or parent.as_posix())
    small.tokenizer().save(folder, model_max_length=64)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().logits(model(IDS))


# --- reward models ---------------------------------------------------------------------------------------------------------------


def test_a_reward_model_is_adapted_and_its_score_trained_whole() -> None:
    folder = rewarded(lora=LoRAConfig(r=2))
    entries = json.loads((folder / "adapter_config.json").read_text())
    assert entries["task_type"] == "SEQ_CLS"
    assert entries["modules_to_save"] == ["score"]
    assert read_origin(folder).kind == "reward_model"
    (folder / "tinyllm.json").unlink()
    assert read_origin(folder).kind == "reward_model"
    found = hub.load_scorer(folder, merged=False)
    fresh = hub.scorer_from(hub.load_causal_lm(Path("models/parent")), 0)
    assert not torch.equal(found.score.weight, fresh.score.weight)
    for name, layer in lora.layers(found).items():
        assert torch.equal(layer.weight, fresh.get_submodule(name).weight)
        assert layer.lora_B.weight.any()
    with torch.no_grad():
        torch.testing.assert_close(hub.load_scorer(folder)(IDS), found(IDS), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="reward model"):
        hub.load_causal_lm(folder)
    with pytest.raises(UserError, match="not a reward model"):
        hub.load_scorer(adapter_of(Path("models/parent"), Path("a")))


def test_transformers_and_peft_give_the_scores_of_an_adapted_reward_model() -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    folder = rewarded(lora=LoRAConfig(r=2, targets="all-linear"))
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        "models/parent", num_labels=1, pad_token_id=small.tokenizer().pad
    )
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    ours = hub.load_scorer(folder, merged=False).eval()
    with torch.no_grad():
        want = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.squeeze(-1)
        got = ours.rewards(IDS, torch.ones_like(IDS, dtype=torch.bool))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    theirs.save_pretrained("theirs")
    again = hub.load_scorer(Path("theirs"), base=Path("models/parent")).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IDS)[:, -1], want, atol=1e-5, rtol=0)


def test_an_adapted_reward_model_rewards_answers() -> None:
    folder = rewarded(lora=LoRAConfig(r=2))
    small.written(Path("prompts.jsonl"), [{"prompt": f"What is {i}?"} for i in range(40)])
    config = AlignOnlineConfig(
        **small.common(Path("prompts.jsonl"), steps=1, eval_every=1),
        parent=Path("models/parent"),
        rewards={"reward_model": 1.0},
        reward_model=folder,
        lora=LoRAConfig(r=2),
        rollout={"group_size": 4, "max_new_tokens": 4},
    )
    assert align_online.run(config, CALL)["steps"] == 1


def test_an_adapter_without_a_trained_score_is_no_reward_model() -> None:
    folder = adapter_of(Path("models/parent"), Path("a"))
    entries = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(entries | {"task_type": "SEQ_CLS"}))
    with pytest.raises(UserError, match="no trained score"):
        hub.load_scorer(folder)


# --- settings --------------------------------------------------------------------------------------------------------------------


def test_a_trained_adapter_of_every_part_opens_in_peft_with_equal_logits() -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    config = LoRAConfig(
        r=4,
        targets=("q_proj", "down_proj"),
        rank_pattern={"down_proj": 2},
        alpha_pattern={"q_proj": 3},
        modules_to_save=("norm",),
        token_rows={"embed_tokens": (5, 3)},
        dora=True,
    )
    folder = tuned(lora=config)
    model = hub.load_causal_lm(folder, merged=False)
    assert all(
        bool(tensor.any()) for name, tensor in lora.branches(model).items() if "lora_B" in name or "token" in name
    )
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(model), theirs(IDS).logits, atol=2e-5, rtol=0)
    torch.testing.assert_close(logits(hub.load_causal_lm(folder)), logits(model), atol=1e-4, rtol=0)
    assert isinstance(transformers.AutoTokenizer.from_pretrained(folder), transformers.PreTrainedTokenizerBase)


def test_an_adapter_as_parent_is_merged_and_a_new_one_trained() -> None:
    parent = adapter_of(Path("models/parent"), Path("foreign"), targets=("q_proj", "lm_head"), init="olora")
    folder = tuned(parent=parent, lora=LoRAConfig(r=2))
    merged = hub.load_causal_lm(parent)
    model = hub.load_causal_lm(folder, merged=False)
    assert not model.config.tie_word_embeddings
    with lora.disabled(model):
        assert torch.equal(logits(model), logits(merged))
    assert not torch.allclose(logits(model), logits(merged), atol=1e-4)


def test_the_base_of_a_model_with_added_tokens_is_written_beside_the_adapter() -> None:
    parent = find_checkpoint("sft", Path("models/parent"), fast=False)
    model, tokens = load_language_model(parent, CPU)
    new = grow_vocabulary(model, model.config.vocab_size + 2)
    config = lora.with_token_rows(LoRAConfig(r=2), new)
    lora.attach(model, config)
    base = adapter_base(model, tokens, parent, Path("runs/sft/peft/lora/x"))
    assert Path(base).parent == Path("runs/sft/peft/lora/x/base")
    with torch.no_grad():
        model.model.embed_tokens.token_adapter.trainable_tokens_delta.add_(1)
    folder = Path("runs/sft/peft/lora/x/checkpoints/step-00000001")
    folder.mkdir(parents=True)
    CheckpointFiles(model, tokens, stage="sft", adapter=config, base=base).write(folder)
    again = hub.load_causal_lm(folder, merged=False)
    assert again.config.vocab_size == new.stop
    assert torch.equal(logits(again), logits(model))


# --- the base --------------------------------------------------------------------------------------------------------------------


def test_an_adapter_names_its_base_by_an_absolute_path_and_finds_it_after_a_move(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = small.saved(small.rough(seed=3), Path("runs/pretrain/p/checkpoints/step-00000009"))
    config = LoRAConfig(r=2)
    model = lora.attach(hub.load_causal_lm(base), config)
    folder = Path("runs/sft/peft/lora/x/checkpoints/step-00000004")
    folder.mkdir(parents=True)
    CheckpointFiles(model, small.tokenizer(), stage="sft", adapter=config, base=base.as_posix()).write(folder)
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == (Path.cwd() / base).as_posix()
    want = logits(hub.load_causal_lm(folder))
    monkeypatch.chdir("/")
    assert torch.equal(logits(hub.load_causal_lm(tmp_path / "here" / folder)), want)
    (tmp_path / "here" / "runs").rename(tmp_path / "moved")
    assert torch.equal(logits(hub.load_causal_lm(tmp_path / "moved" / folder.relative_to("runs"))), want)
    monkeypatch.chdir(tmp_path / "moved")
    assert torch.equal(logits(hub.load_causal_lm(folder.relative_to("runs"))), want)


@pytest.mark.parametrize("named", ["owner/model", "/gone/a/b/c/d", ""])
def test_an_option_says_where_the_base_lies(named: str) -> None:
    parent = Path("models/parent")
    folder = adapter_of(parent, Path("foreign"), named or "x")
    entries = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(entries | {"base_model_name_or_path": named or None}))
    with pytest.raises(UserError, match="does not exist") as caught:
        find_checkpoint("chat", folder, fast=False)
    assert caught.value.code == INTEGRITY
    assert "--base" in (caught.value.fix or "")
    found = find_checkpoint("chat", folder, fast=False, base=parent)
    model, _ = load_language_model(found, CPU)
    whole = hub.load_causal_lm(parent)
    lora.load(whole, folder)
    assert torch.equal(logits(model), logits(lora.merge(whole)))
    (parent / "config.json").touch()
    with pytest.raises(UserError, match="changed while"):
        found.check_unchanged()


def test_an_adapter_without_a_tokenizer_has_that_of_its_base() -> None:
    parent = Path("models/parent")
    adapter_of(parent, Path("foreign"))
    want = Tokenizer.load("foreign")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        Path("foreign", name).unlink(missing_ok=True)
    for base in (None, parent):
        _, found = load_language_model(find_checkpoint("chat", Path("foreign"), fast=False, base=base), CPU)
        assert found.sha256 == want.sha256
    assert vocabulary(SftConfig(), "sft", None, Path("foreign")).tokenizer is not None
    text = small.written(Path("held_out.jsonl"), [{"text": "red is red"}])
    scored = evaluate(EvalConfig(parent=Path("foreign"), data={"val": (str(text),)}, device="cpu"), CALL)
    assert scored["checkpoint"] == "foreign"
    tuned(parent=Path("foreign"))


def test_a_base_of_other_weights_or_shape_is_refused() -> None:
    small.saved(small.rough(seed=1), Path("models/other"))
    parent = Path("models/parent")
    folder = adapter_of(parent, Path("foreign"))
    model = lora.attach(hub.load_causal_lm(parent), LoRAConfig(r=2))
    lora.save(model, LoRAConfig(r=2), folder, parent.as_posix(), base_sha256=tensors.sha256(parent))
    with pytest.raises(UserError, match="other weights") as caught:
        hub.load_causal_lm(folder, base=Path("models/other"))
    assert caught.value.code == INTEGRITY
    with pytest.raises(UserError, match="whole model") as caught:
        find_checkpoint("chat", parent, fast=False, base=Path("models/other"))
    assert caught.value.code == USAGE
    with pytest.raises(UserError, match="holds no model") as caught:
        hub.load_causal_lm(folder, base=Path("models"))
    assert caught.value.code == USAGE


def test_a_relative_path_to_the_base_is_taken_from_the_adapter_or_a_folder_above_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parent = Path("models/parent")
    beside = adapter_of(parent, Path("models/a/foreign"), "../../parent").absolute()
    above = adapter_of(parent, Path("models/b/foreign"), "parent").absolute()
    want = logits(hub.load_causal_lm(beside))
    monkeypatch.chdir(tmp_path)
    for folder in (beside, above):
        assert torch.equal(logits(hub.load_causal_lm(folder)), want)


def test_an_adapter_with_a_tokenizer_only_ends_answers_where_its_base_does() -> None:
    base = foreign_templates.saved("llama3", Path("base"))
    words = Tokenizer.load(base)
    model = CausalLM(small.SHAPE.model_copy(update={"vocab_size": words.vocab_size}))
    initialise(model, 0)
    hub.save(model, base, bos=None, stop=(words.eos, 40, 41), pad=None)
    assert {40, 41} <= set(Tokenizer.load(base).stop_ids)
    adapter = adapter_of(base, Path("adapter"), str(base.absolute()))
    foreign_templates.saved("llama3", Path("tokenizer"))
    for file in Path("tokenizer").iterdir():  # what TRL and PEFT save: no generation_config.json
        shutil.copy(file, adapter)
    assert not (adapter / "generation_config.json").exists()
    _, found = load_language_model(find_checkpoint("chat", adapter, fast=False), CPU)
    assert {40, 41} <= set(found.stop_ids)
    (adapter / "generation_config.json").write_text(json.dumps({"eos_token_id": [words.eos, 42]}))
    _, found = load_language_model(find_checkpoint("chat", adapter, fast=False), CPU)
    assert ({40, 42} & set(found.stop_ids)) == {42}
