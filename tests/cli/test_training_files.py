"""The configuration of a training stage given to eval and chat."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import small
from tinyllm import cli
from tinyllm.cli.resolve import STAGES, configs_folder, resolve
from tinyllm.data import world
from tinyllm.data.tokens.shards import open_shards, prepare
from tinyllm.errors import OK, USAGE, UserError
from tinyllm.evals.run import load_texts
from tinyllm.stages import config as settings
from tinyllm.stages.documents import Documents

TRAINING = sorted(
    path for kind in ("pretrain", "sft", "rlhf", "lifecycle") for path in (configs_folder() / kind).rglob("*.yaml")
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("stage", ["eval", "chat"])
@pytest.mark.parametrize("fast", [False, True])
def test_every_shipped_training_configuration_is_read(stage: str, fast: bool, capsys: pytest.CaptureFixture) -> None:
    for path in TRAINING:
        found = resolve(STAGES[stage], path, [], {}, {}, fast=fast)
        assert "is a configuration of" in capsys.readouterr().err
        assert found.config.parent is None
        if stage == "eval":
            assert found.config.data.train == ()
            assert found.config.data.val == (("world:100",) if fast else ("world:500",))


def test_own_files_and_chats_own_are_read_as_before(capsys: pytest.CaptureFixture) -> None:
    for stage in ("eval", "chat"):
        resolve(STAGES[stage], configs_folder() / STAGES[stage].default, [], {}, {}, fast=False)
    assert capsys.readouterr().err == ""


def test_what_eval_takes_over_and_what_it_does_not(capsys: pytest.CaptureFixture) -> None:
    Path("a.yaml").write_text(
        "name: x\nseed: 4\nparent: runs/pretrain/base\nlora: {r: 4}\ntrain: {steps: 3}\n"
        "data: {train: [a.jsonl], val: [b.txt], encoding: cp1252, max_length: 64}\n"
    )
    found = resolve(STAGES["eval"], Path("a.yaml"), ["rows=7"], {}, {"TINYLLM_SEED": "5"}, fast=False)
    assert (found.config.seed, found.config.rows, found.config.parent) == (5, 7, None)
    assert (found.config.data.val, found.config.data.train) == (("b.txt",), ())
    assert (found.config.data.encoding, found.config.data.max_length) == ("cp1252", 64)
    assert found.origins["data.max_length"] == "a.yaml:6"
    said = capsys.readouterr().err
    assert said.startswith("a.yaml is a configuration of sft: using seed, ")
    assert said.strip().endswith("not using name, parent, lora, data.train, train")


def test_chat_takes_over_sampling() -> None:
    path = configs_folder() / "rlhf/online/grpo/1.4M_grpo.yaml"
    trained = resolve(STAGES["grpo"], path, [], {}, {}, fast=False).config.rollout
    for stage in ("chat", "eval"):
        found = resolve(STAGES[stage], path, [], {}, {}, fast=False).config
        assert (found.max_new_tokens, found.temperature) == (trained.max_new_tokens, trained.temperature)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {hidden_size: 64}\ntrian: {steps: 3}\n", "unknown key trian; did you mean train?"),
        ("model: {hidden_size: many}\n", "model.hidden_size: expected an integer"),
        ("foo: 3\n", "unknown key foo"),
        ("lora: {r: 2}\ndata: {train: [talks.jsonl]}\n", "the held-out conversations of sft are a part of data.train"),
    ],
)
def test_what_no_stage_knows_stays_an_error(text: str, said: str) -> None:
    Path("a.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        resolve(STAGES["eval"], Path("a.yaml"), [], {}, {}, fast=False)
    assert caught.value.code == USAGE
    assert said in caught.value.what


def test_held_out_data_named_by_the_user_need_no_split() -> None:
    Path("a.yaml").write_text("lora: {r: 2}\ndata: {train: [talks.jsonl], max_length: 77}\n")
    found = resolve(STAGES["eval"], Path("a.yaml"), ["data.val=[b.txt]"], {}, {}, fast=False).config
    assert (found.data.val, found.data.train, found.data.max_length) == (("b.txt",), (), 77)


@pytest.mark.parametrize("train", ["[a.txt]", "[a.txt, 'world:60']"])
def test_documents_are_those_that_pretraining_keeps_for_test(train: str) -> None:
    rows = [row["text"].replace("\n\n", "\n") for row in world.documents(120, seed=3)]
    Path("a.txt").write_text("\n<|endoftext|>\n".join([*rows, rows[0], rows[1]]))
    Path("a.yaml").write_text(f"seed: 1\nmodel: {{vocab_size: 512}}\ndata: {{train: {train}, val_fraction: 0.2}}\n")
    config = resolve(STAGES["pretrain"], Path("a.yaml"), [], {}, {}, fast=False).config
    assert isinstance(config, settings.PretrainConfig)
    tokenizer = small.tokenizer()
    prepare(Documents(config, "train").by_source(), tokenizer, "shards", val_fraction=0.2)
    kept = {part: open_shards("shards").documents(part, 10**6, for_test=0.5) for part in ("val", "test")}
    prepared = {part: sorted(tokenizer.decode(list(ids)) for ids in some) for part, some in kept.items()}
    split, texts = load_texts(resolve(STAGES["eval"], Path("a.yaml"), [], {}, {}, fast=False).config, tokenizer)
    assert split == "test"
    assert len(texts) > 5
    assert sorted(texts) == prepared["test"]
    assert not set(texts) & set(prepared["val"])


def test_the_two_lines_of_the_guide(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small.saved(small.rough(), tmp_path / "model")
    model = ["--checkpoint_path", "model"]
    line = ["eval", "--config_path", "configs/pretrain/1.4M_pretrain_fast.yaml", *model, "--set", "data.val=[a.txt]"]
    Path("a.txt").write_text("A cat sat on a mat.\n")
    assert cli.run(cli.modern([*line, "--set", "data.max_length=64"])) == OK
    assert "bits per byte" in capsys.readouterr().out
    line = ["chat", "--config_path", "configs/sft/full/1.4M_sft_full.yaml", *model, "-p", "hi"]
    assert cli.run(cli.modern(line)) == OK
    assert cli.run([word.replace("_path", "") for word in line]) == OK


def test_training_data_that_eval_does_not_read_are_told(capsys: pytest.CaptureFixture) -> None:
    small.saved(small.rough(), Path("model"))
    assert cli.run(["eval", "--checkpoint", "model", "--dry-run", "--set", "data.train=[a.txt]"]) == OK
    assert "warning: data.train is not read: data.val is [world:500]" in capsys.readouterr().err
