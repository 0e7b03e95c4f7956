"""Continued pretraining: model and tokenizer of a checkpoint, its held-out loss at step 0, its lineage; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support import small
from tinyllm.cli import run as command
from tinyllm.cli.resolve import STAGES, resolve
from tinyllm.config import dump, yaml12
from tinyllm.diagnostics.runs.lineage import trace_lineage
from tinyllm.errors import USAGE, UserError
from tinyllm.model import hub
from tinyllm.stages import data, pretrain
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.continued import with_checkpoint
from tinyllm.stages.origin import read_origin
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint
from tinyllm.train.run import Invocation, read_facts


@pytest.fixture(autouse=True)
def _texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small.written(Path("texts.jsonl"), [{"text": f"What is {i}? It is a number, red or blue."} for i in range(40)])


def trained(name: str, **changes: object) -> dict:
    sections = small.common(Path("texts.jsonl"), steps=2, eval_every=99, save_every=99)
    shape = small.SHAPE.model_copy(update={"vocab_size": 300})
    call = Invocation("name: x\n", **changes.pop("call", {}))
    return pretrain.run(PretrainConfig(**{**sections, "model": shape, "name": name, **changes}), call)


def test_step_zero_has_the_held_out_loss_of_the_parent(capsys: pytest.CaptureFixture) -> None:
    base = trained("base")
    found = trained("more", parent=Path("runs/pretrain/base"))
    assert found["before"] == base["best"]
    assert found["best"]["loss"] < found["before"]["loss"]
    facts = read_facts(Path(found["run"]))
    best = (Path("runs/pretrain/base/checkpoints/ckpt_best")).resolve().name
    assert facts["parent"]["checkpoint"] == f"runs/pretrain/base/checkpoints/{best}"
    assert facts["parent"]["manifest_sha256"] == checkpoint.fingerprint(Path(facts["parent"]["checkpoint"]))
    assert facts["tokenizer_sha256"] == read_facts(Path("runs/pretrain/base"))["tokenizer_sha256"]
    assert [child["kind"] for child in trace_lineage("more")["tree"]["children"]] == ["parent", "data"]
    with pytest.raises(UserError, match=r"began from .*, its parent is now"):
        trained("more", parent=Path("runs/pretrain/base/checkpoints/step-00000000"))


def test_a_foreign_chat_model_is_continued_with_its_own_tokenizer(capsys: pytest.CaptureFixture) -> None:
    """No token is added, control tokens stay as they are, and the result continues text."""
    parent, tokenizer = small.saved(small.rough(scale=0.1), Path("parent")), small.tokenizer()
    found = trained("more", parent=parent, data={"train": ("texts.jsonl",), "max_length": 64, "val_fraction": 0.2})
    assert (
        "the checkpoint is a chat model; after training on plain text it is saved as a base model"
        in capsys.readouterr().err
    )
    last = Path(found["checkpoint"])
    assert Tokenizer.load(last).sha256 == tokenizer.sha256
    assert read_origin(last).kind == "base"
    before, after = (hub.load_causal_lm(folder).model.embed_tokens.weight for folder in (parent, last))
    assert not torch.equal(before, after)
    control = [tokenizer.im_start, tokenizer.im_end]
    decay = after[control] / before[control]  # weight decay alone, which is the same for all
    torch.testing.assert_close(decay, decay[:1, :1].expand_as(decay))


def test_a_run_is_not_continued_from_its_own_checkpoint_and_the_data_are_not_blamed() -> None:
    """The name of the new run is by default that of its parent."""
    sections = small.common(Path("texts.jsonl"), steps=2, eval_every=99, save_every=99)
    config = PretrainConfig(**sections, model=small.SHAPE.model_copy(update={"vocab_size": 300}), name="base")
    pretrain.run(config, Invocation(yaml12.write(dump(config))))
    again = with_checkpoint(config.model_copy(update={"parent": Path("base")}))
    with pytest.raises(UserError, match=r"different configuration: .*parent: \(none\) -> base") as caught:
        pretrain.run(again, Invocation(yaml12.write(dump(again))))
    assert "--name" in caught.value.fix
    assert "--allow-data-change" not in caught.value.fix


def test_data_of_another_tokenizer_are_refused_and_not_overwritten() -> None:
    trained("base")
    parent = small.saved(small.rough(scale=0.1), Path("parent"))
    before = {p: p.read_bytes() for p in Path("runs/data/base").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="made with another tokenizer than that of the checkpoint parent") as caught:
        data.prepare(
            PretrainConfig(name="base", parent=parent, data={"train": ("texts.jsonl",), "max_length": 64}),
            Invocation(""),
        )
    assert "choose another --name" in caught.value.fix
    assert all(path.read_bytes() == content for path, content in before.items())
    with pytest.raises(UserError, match="is not the tokenizer of the checkpoint parent"):
        trained("more", parent=parent, tokenizer=Path("runs/data/base/tokenizer"))


def resolved(text: str, *sets: str, fast: bool = False) -> PretrainConfig:
    Path("mine.yaml").write_text(text)
    return resolve(STAGES["pretrain"], Path("mine.yaml"), sets, {"parent": "parent"}, {}, fast=fast).config


def test_the_model_is_that_of_the_checkpoint_and_another_one_is_refused() -> None:
    small.saved(small.rough(scale=0.1), Path("parent"))
    shape = small.SHAPE.model_copy(update={"vocab_size": small.tokenizer().vocab_size})
    found = resolved("data: {max_length: 90}\n")
    assert found.model == shape
    assert found.tokenizer == Path("parent")
    bound = {**dump(shape), "vocab_size": 400}  # a file may hold the upper bound with which the tokenizer was trained
    assert resolved(yaml12.write({"model": bound, "data": {"max_length": 90}})) == found
    with pytest.raises(UserError, match=r"model\.hidden_size is 32, that of the checkpoint parent is 16") as caught:
        resolved("data: {max_length: 90}\nmodel: {hidden_size: 32}\n")
    assert caught.value.where == "mine.yaml:2"
    with pytest.raises(UserError, match=r"model\.vocab_size is 64, that of"):
        resolved("data: {max_length: 90}", "model.vocab_size=64")
    for setting, fast in (("vocab_size=1024", False), ("vocab_size=1024", True), ("hidden_size=32", True)):
        with pytest.raises(
            UserError, match=rf"model\.{setting.replace('=', ' is ')}, that of the checkpoint"
        ) as caught:
            resolved("data: {max_length: 90}", f"model.{setting}", fast=fast)
        assert caught.value.where == "--set"
    with pytest.raises(UserError, match=r"data\.max_length 97 is more than the model's 96 positions"):
        resolved("data: {max_length: 97}")
    assert resolved("data: {max_length: 90}\nfast_dev_run: {model: {hidden_size: 8}}", fast=True).model == shape


def test_a_dry_run_names_the_checkpoint_and_a_reward_model_is_refused(capsys: pytest.CaptureFixture) -> None:
    from tinyllm.model.transformer import SequenceScorer

    small.saved(small.rough(scale=0.1), Path("parent"))
    assert command(["pretrain", "--checkpoint", "parent", "--set", "data.max_length=64", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "model.hidden_size = 16  (checkpoint parent)" in out
    assert "parent: parent" in out
    judge = small.saved(small.rough(SequenceScorer), Path("judge"))
    with pytest.raises(UserError, match="this is a reward model") as caught:
        trained("more", parent=judge)
    assert caught.value.code == USAGE
