"""`tinyllm data tokenizer`: whole commands, what they write and say; and that a tokenizer which is not the right one is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import small
from tests.support.vocabularies import bin_of, model, pair, pieces_of
from tinyllm import cli
from tinyllm.data import world
from tinyllm.data.config import TextConfig
from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.stages import data, pretrain, rm, sft
from tinyllm.stages.config import PretrainConfig, RmConfig, SftConfig
from tinyllm.stages.documents import Documents
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.run import Invocation

TEXT = "The quick brown fox jumps over the lazy dog. Le café naïve, 你好。\n\n" * 40


@pytest.fixture
def tinyllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`tinyllm data tokenizer …` in an empty folder with text.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(["data", "tokenizer", *arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def report(outcome: tuple[int, str, str]) -> dict[str, Any]:
    assert outcome[0] == 0, outcome[2]
    return json.loads(outcome[1])


def test_training_writes_and_measures_a_tokenizer(tinyllm: Callable, tmp_path: Path) -> None:
    found = report(tinyllm("text.txt", "--vocab-size", "300", "--name", "a", "--json"))
    tokenizer = Tokenizer.load("runs/data/a/tokenizer")
    ids = [tokenizer.encode(text) for text in _documents()]
    assert (found["made"], found["folder"], found["sha256"]) == ("trained", "runs/data/a/tokenizer", tokenizer.sha256)
    assert (found["vocab_size"], found["documents"], found["tokens"]) == (300, len(ids), sum(map(len, ids)))
    assert found["bytes_per_token"] > 1.2
    assert (found["inexact_documents"], found["held_out"]) == (0, False)
    source = json.loads(Path("runs/data/a/tokenizer/source.json").read_text())
    assert (source["made"], source["sha256"], source["vocab_size"]) == ("trained", tokenizer.sha256, 300)
    again = report(tinyllm("text.txt", "--set", "model.vocab_size=300", "--out", "elsewhere", "--json"))
    assert again["sha256"] == tokenizer.sha256  # the same text gives the same vocabulary
    assert sorted(os.listdir("elsewhere")) == sorted(os.listdir("runs/data/a/tokenizer"))


def test_import_report_and_comparison(tinyllm: Callable, tmp_path: Path) -> None:
    Tokenizer.train([TEXT], 270).save(tmp_path / "other", model_max_length=8)
    small.tokenizer().save(tmp_path / "mine", model_max_length=8)
    code, out, err = tinyllm("text.txt", "--import", "mine", "--against", "other", "--against", "mine", "--name", "b")
    assert code == 0, err
    texts = small.tokenizer()
    assert f"{texts.vocab_size} tokens, {len(texts.special_ids)} of them control tokens" in err
    for word in ("other", "mine", "bytes/token", "longest tokens", "control tokens", "runs/data/b/tokenizer", "100%"):
        assert word in out, out
    found = report(tinyllm("text.txt", "--report", "mine", "--against", "other", "--json"))
    assert (found["made"], found["folder"], list(found["against"])) == ("read", None, ["other"])
    assert found["tokens"] != found["against"]["other"]["tokens"]
    assert found["bytes"] == found["against"]["other"]["bytes"] > 0
    assert sorted(path.name for path in Path("runs/data").iterdir()) == ["b"]


def test_added_and_unused_tokens_are_reported(tinyllm: Callable) -> None:
    Path("own.bin").write_bytes(bin_of(pieces_of([record["text"] for record in world.documents(100)])))
    code, out, err = tinyllm("text.txt", "--import", "own.bin", "--json")
    found = report((code, out, err))
    assert "512 tokens, 3 of them control tokens" in err
    assert "added for chat: <|im_start|> 512, <|im_end|> 513, <|pad|> 514; the model needs 515 embeddings" in err
    assert "documents are separated by </s>; <s> is not used" in err
    assert found["kind"] == "llama2.c vocabulary"
    assert found["control_tokens"] == ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    written = Tokenizer.load(found["folder"])
    assert (written.bos, written.endoftext, written.im_end, written.sha256) == (None, 2, 513, found["sha256"])
    assert json.loads(Path(found["folder"], "source.json").read_text())["file_sha256"] == found["file_sha256"]


@pytest.mark.parametrize("source", ["own", "shared"])
def test_gpt2_and_mistral_on_the_same_text(tinyllm: Callable, source: str, request: pytest.FixtureRequest) -> None:
    folder = Path("own") if source == "own" else request.getfixturevalue("shared") / "tokenizers"
    paths = [str(folder / name) for name in ("gpt2", "mistral_v1")]
    if source == "own":
        for path in map(Path, paths):
            path.mkdir(parents=True)
        pair(Tokenizer.train(_documents(), 400), Path(paths[0]))
        (Path(paths[1]) / "tokenizer.model").write_bytes(model(pieces_of([r["text"] for r in world.documents(100)])))
    found = report(tinyllm("text.txt", "--report", paths[0], "--against", paths[1], "--json"))
    assert found["tokens"] == sum(len(Tokenizer.load(paths[0]).encode(t)) for t in _documents())
    assert found["against"]["mistral_v1"]["tokens"] == sum(
        len(Tokenizer.load(paths[1]).encode(t)) for t in _documents()
    )
    assert found["inexact_documents"] == found["against"]["mistral_v1"]["inexact_documents"] == 0


def _documents() -> list[str]:
    return list(Documents(PretrainConfig(data=TextConfig(train=("text.txt",))), "train"))


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinyllm", "data", "tokenizer", "-", "--vocab-size", "280", "--json"]
    done = subprocess.run(command, cwd=tmp_path, input=TEXT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] == pytest.approx(len(TEXT.encode()), rel=0.05)
    assert found["vocab_size"] == 280


def test_held_out_text_is_measured(tinyllm: Callable, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("zzzz zzzz zzzz")
    found = report(tinyllm("text.txt", "--vocab-size", "300", "--set", "data.val=[val.txt]", "--json"))
    assert (found["held_out"], found["bytes"], found["text"]) == (True, 14, ["val.txt"])


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--import", "x", "--report", "x"), 2, "cannot be combined"),
        (("--import", "x", "--vocab-size", "300"), 2, "cannot be combined"),
        (("--report", "x", "--out", "y"), 2, "writes no files"),
        (("text.txt", "--vocab-size", "3"), 2, "control tokens need 260"),
        (("nowhere.txt",), 2, "no such file"),
        (("text.txt", "--import", "nowhere"), 2, "no tokenizer found"),
        (("text.txt", "--against", "nowhere"), 2, "no tokenizer found"),
        (("text.txt", "--out", "text.txt"), 2, "but a file"),
        (("text.txt", "--out", "."), 2, "holds other files"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], code: int, word: str, tinyllm: Callable, tmp_path: Path) -> None:
    found = tinyllm(*arguments)
    assert (found[0], found[1]) == (code, ""), found
    assert word in found[2]
    assert [line.split(":")[0] for line in found[2].splitlines()][-2:] == ["error", "fix"]
    assert not (tmp_path / "runs").exists()


def test_no_torch(tmp_path: Path) -> None:
    code = "import sys; from tinyllm.cli import run; run(['data', 'tokenizer', 'world:20', '--vocab-size', '270', '--quiet']); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stdout + done.stderr


# --- a tokenizer that is not the right one is refused, by its hash ---------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A vocabulary of the same size as the tests' own, and another."""
    small.tokenizer(("Another text, another vocabulary: blue, blue, green.",) * 9).save(
        tmp_path / "other", model_max_length=96
    )
    return tmp_path / "other"


def texts(tmp_path: Path) -> PretrainConfig:
    rows = [{"text": f"red is a colour. What is {i}? It is a number."} for i in range(30)]
    data_file = small.written(tmp_path / "text.jsonl", rows)
    return PretrainConfig(model=small.SHAPE.model_copy(update={"vocab_size": 300}), **small.common(data_file, steps=2))


def test_shards_of_another_tokenizer_are_refused_or_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Path
) -> None:
    """pretrain refuses; data tokenizer refuses to lay one beside them; data prepare makes them again."""
    monkeypatch.chdir(tmp_path)
    config, folder = texts(tmp_path), tmp_path / "runs/data/default"
    right, _ = data.ensure_prepared(config)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(other, folder / "tokenizer")
    wrong = Tokenizer.load(other)
    with pytest.raises(UserError) as caught:
        pretrain.run(config, Invocation("written: down\n"))
    assert (caught.value.code, right.sha256 in caught.value.what, wrong.sha256 in caught.value.what) == (
        INTEGRITY,
        True,
        True,
    )
    assert "tinyllm data prepare" in caught.value.fix
    data.prepare(config, Invocation("written: down\n"))
    assert Tokenizer.load(folder / "tokenizer").sha256 == right.sha256
    assert data.ensure_prepared(config)[1].manifest.tokenizer_sha256 == right.sha256
    assert cli.run(["data", "tokenizer", "text.jsonl", "--vocab-size", "280", "--name", "default"]) == USAGE
    assert Tokenizer.load(folder / "tokenizer").sha256 == right.sha256
    # the same vocabulary again is accepted
    assert cli.run(["data", "tokenizer", "text.jsonl", "--vocab-size", "300", "--name", "default"]) == 0


def test_another_configured_tokenizer_makes_new_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = texts(tmp_path)
    first = data.ensure_prepared(config)[1].manifest
    tokenizer, shards = data.ensure_prepared(config.model_copy(update={"tokenizer": other}))
    assert shards.manifest.tokenizer_sha256 == tokenizer.sha256 == Tokenizer.load(other).sha256
    assert shards.manifest.fingerprint != first.fingerprint


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_a_parent_with_a_replaced_tokenizer_is_refused(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Path
) -> None:
    """The checkpoint's manifest knows the file it was trained with; one without a manifest at least must have rows for every id."""
    monkeypatch.chdir(tmp_path)
    run, config = (sft.run, SftConfig) if stage == "sft" else (rm.run, RmConfig)
    settings = small.common(small.pairs(tmp_path / "pairs.jsonl") if stage == "rm" else _talks(tmp_path))
    call = Invocation("written: down\n")
    parent = Path(pretrain.run(texts(tmp_path), call)["checkpoint"]).resolve()
    assert run(config(name="good", parent=parent, **settings), call)["checkpoint"]
    shutil.copyfile(other / "tokenizer.json", parent / "tokenizer.json")
    with pytest.raises(UserError) as caught:
        run(config(name="exchanged", parent=parent, **settings), call)
    assert (caught.value.code, "tokenizer.json" in str(caught.value)) == (INTEGRITY, True)
    foreign = small.saved(small.rough(), tmp_path / "foreign", Tokenizer.train([TEXT * 9, *small.TEXTS], 320))
    with pytest.raises(UserError, match="320 tokens, the model 300"):
        run(config(name="foreign", parent=foreign, **settings), call)


def _talks(tmp_path: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "red"}]} for i in range(30)
    ]
    return small.written(tmp_path / "talks.jsonl", rows)


def test_a_reward_model_with_another_vocabulary_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Path
) -> None:
    from tinyllm.model.transformer import SequenceScorer
    from tinyllm.stages import align_online
    from tinyllm.stages.config import AlignOnlineConfig

    monkeypatch.chdir(tmp_path)
    policy = small.saved(small.rough(), tmp_path / "policy")
    judge = small.saved(small.rough(SequenceScorer), tmp_path / "judge", Tokenizer.load(other))
    prompts = small.written(
        tmp_path / "prompts.jsonl", [{"prompt": f"What is {i}?", "answer": "red"} for i in range(20)]
    )
    config = AlignOnlineConfig(
        parent=policy, reward_model=judge, rewards={"reward_model": 1.0}, **small.common(prompts)
    )
    with pytest.raises(UserError, match="another tokenizer than the policy") as caught:
        align_online.run(config, Invocation("written: down\n"))
    assert judge.name in caught.value.where


def test_a_run_does_not_resume_with_another_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Path
) -> None:
    """The tokenizer's folder is the same, its content is not. If allowed to continue, the run keeps its own vocabulary."""
    monkeypatch.chdir(tmp_path)
    config = texts(tmp_path).model_copy(update={"tokenizer": tmp_path / "mine"})
    small.tokenizer().save(tmp_path / "mine", model_max_length=96)
    call = Invocation("written: down\n")
    pretrain.run(config, call)
    longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": 4})})
    shutil.copyfile(other / "tokenizer.json", tmp_path / "mine" / "tokenizer.json")
    with pytest.raises(UserError, match="change"):
        pretrain.run(longer, call)
    found = pretrain.run(longer, Invocation("written: down\n", allow_data_change=True))
    assert found["steps"] == 4
    assert Tokenizer.load(Path(found["checkpoint"])).sha256 == small.tokenizer().sha256
