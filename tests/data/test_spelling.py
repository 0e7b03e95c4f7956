"""Records with a character that the vocabulary cannot spell are refused with their place, or dropped and counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import foreign_tokenizers, small
from tinyllm import cli
from tinyllm.cli.resolve import STAGES, resolve
from tinyllm.data.loading import preference_dataset, sft_dataset, token_prompts
from tinyllm.data.records.reader import read_records
from tinyllm.data.records.types import Conversation, Pair, Prompt
from tinyllm.data.spelling import CANNOT, SpelledDocuments, spelled
from tinyllm.data.tokenization import LengthLimit
from tinyllm.data.tokens.documents import held_out_documents
from tinyllm.diagnostics import inspect
from tinyllm.diagnostics.inspect.tokenizer import Vocabulary
from tinyllm.errors import USAGE, UserError
from tinyllm.evals import run as evaluation
from tinyllm.evals.config import EvalConfig
from tinyllm.model import hub
from tinyllm.model.transformer import CausalLM
from tinyllm.text.template import CHAT_TEMPLATE
from tinyllm.text.tokenizer import Tokenizer

SKIP = LengthLimit(64, on_bad_line="skip")
QUESTION, ANSWER, BAD = ({"role": "user", "content": "a word"}, {"role": "assistant", "content": "word"}, "wo\x06rd")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A vocabulary without a token for U+0006."""
    found = Tokenizer.load(foreign_tokenizers.write("smollm2", tmp_path_factory.mktemp("x") / "smollm2"))
    return found.with_chat_template(CHAT_TEMPLATE, end_of_turn=found.im_end)


def test_a_record_that_cannot_be_spelled_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    records = [Conversation((QUESTION, ANSWER)), Conversation((QUESTION, {**ANSWER, "content": BAD}))]
    with pytest.raises(UserError, match=r"no token for '\\x06' \(U\+0006\) at character 2") as caught:
        sft_dataset(records, tokenizer, 64, "train")
    assert (caught.value.code, caught.value.where) == (USAGE, "train record 2")
    assert "data.on_bad_line=skip" in caught.value.fix
    prompts = [Prompt(({**QUESTION, "content": BAD},), place="x.jsonl:7")]
    with pytest.raises(UserError) as caught:
        token_prompts(prompts, tokenizer, 64, "val")
    assert caught.value.where == "x.jsonl:7"


def test_such_records_are_dropped_and_counted(tokenizer: Tokenizer, capsys: pytest.CaptureFixture) -> None:
    bad, good = ({**ANSWER, "content": text} for text in (BAD, "a"))
    records = [Conversation((QUESTION, bad)), Conversation((QUESTION, good)), Conversation((QUESTION, ANSWER))]
    assert len(sft_dataset(records, tokenizer, SKIP, "train")) == 2
    assert "train: dropped 1 of 3 records with characters" in capsys.readouterr().err
    pairs = [Pair((QUESTION,), (ANSWER,), (bad,)), Pair((QUESTION,), (ANSWER,), (good,))]
    assert len(preference_dataset(pairs, tokenizer, SKIP, "val")) == 1
    with pytest.raises(UserError, match="all 1 train records") as caught:
        sft_dataset(records[:1], tokenizer, SKIP, "train")
    assert caught.value.code == USAGE


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("conversations", {"prompt": "a word", "completion": BAD}),
        ("pairs", {"prompt": "a word", "chosen": "word", "rejected": BAD}),
        ("unpaired", {"prompt": "a word", "completion": BAD, "label": True}),
        ("prompts", {"prompt": BAD, "answer": "word"}),
    ],
)
def test_the_place_is_that_in_the_file(kind: str, row: dict[str, object], tokenizer: Tokenizer, tmp_path: Path) -> None:
    good = {key: "word" if value == BAD else value for key, value in row.items()}
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (good, good, row)))
    with pytest.raises(UserError) as caught:
        spelled(list(read_records([tmp_path / "x.jsonl"], kind)), tokenizer, "train", "error")
    assert caught.value.where == f"{tmp_path / 'x.jsonl'}:3"


def inspected(folder: Path, *more: str) -> dict[str, Any]:
    config = resolve(STAGES["sft"], None, ["data.train=[x.jsonl]", "data.max_length=64", *more], {}, {}, fast=False)
    vocabulary = Vocabulary(Tokenizer.load(folder), str(folder), 512)
    report = inspect.run(config.config, "conversations", "sft", vocabulary)
    assert sum(n or 0 for n in report["records"].values()) == report["sample"]["of"] == report["sample"]["records"]
    return report


@pytest.mark.parametrize("choice", ["error", "skip"])
def test_an_inspection_counts_them_and_goes_on(
    choice: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer.save("tok", model_max_length=512)
    rows = [{"prompt": f"a word {n}", "completion": BAD if n in (3, 5) else "word"} for n in range(40)]
    Path("x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = inspected(Path("tok"), f"data.on_bad_line={choice}")
    assert report["dropped"] == {CANNOT: {"count": 2, "places": ["x.jsonl:4", "x.jsonl:6"]}}
    assert report["sample"]["of"] == 38
    refused = [finding for finding in report["findings"] if finding["level"] == "refused"]
    assert report["refused"] == bool(refused) == (choice == "error")
    if refused:
        assert (refused[0]["where"], "\\x06" in refused[0]["what"]) == ("x.jsonl:4", True)
        assert "data.on_bad_line=skip" in refused[0]["fix"]


@pytest.mark.parametrize("choice", ["error", "skip"])
def test_test_records_that_cannot_be_spelled_stop_the_stage_as_well(
    choice: str,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """All of them: with `skip` no test record would be left."""
    monkeypatch.chdir(tmp_path)
    tokenizer.save("parent", model_max_length=64)
    model = CausalLM(small.SHAPE.model_copy(update={"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 64}))
    hub.save(model, Path("parent"), bos=tokenizer.bos, stop=tokenizer.stop_ids, pad=tokenizer.pad)
    for name, answer in (("x", "word"), ("test", BAD)):
        small.written(Path(f"{name}.jsonl"), [{"prompt": f"a word {n}", "completion": answer} for n in range(20)])
    sets = [
        f"data.on_bad_line={choice}",
        "data.train=[x.jsonl]",
        "data.test=[test.jsonl]",
        "data.max_length=64",
        "train.steps=2",
    ]
    assert cli.run(["sft", "--checkpoint", "parent", *(word for s in sets for word in ("--set", s))]) == USAGE
    assert "(test.jsonl:1)" in capfd.readouterr().err


def test_nothing_is_checked_where_every_byte_has_a_token() -> None:
    records = [Conversation((QUESTION, {**ANSWER, "content": BAD}))]
    assert small.tokenizer().spells_all
    assert spelled(records, small.tokenizer(), "train", "error") is records


def test_documents_are_refused_or_dropped_as_they_are_read(tokenizer: Tokenizer, capsys: pytest.CaptureFixture) -> None:
    by_source = {"a.txt": ["word", BAD, "a"], "b.txt": [BAD]}
    documents = SpelledDocuments(tokenizer, "skip")
    assert {name: list(texts) for name, texts in documents.of(by_source).items()} == {
        "a.txt": ["word", "a"],
        "b.txt": [],
    }
    documents.tell()
    said = capsys.readouterr().err
    assert "dropped 2 of 4 documents" in said
    assert "first a.txt, document 2: the vocabulary has no token for '\\x06'" in said
    with pytest.raises(UserError, match=r"no token for '\\x06'") as caught:
        list(SpelledDocuments(tokenizer, "error").of(by_source)["a.txt"])
    assert (caught.value.code, caught.value.where) == (USAGE, "a.txt, document 2")
    assert "data.on_bad_line=skip" in caught.value.fix


def test_documents_of_which_none_can_be_spelled_are_an_error(tokenizer: Tokenizer) -> None:
    documents = SpelledDocuments(tokenizer, "skip")
    texts = documents.of({"": [BAD, BAD]})[""]
    assert list(texts) == []
    with pytest.raises(UserError, match="2 of 2 documents"):
        documents.tell()


def test_an_error_in_the_middle_of_a_source_is_not_taken_for_one_of_all_documents(
    tokenizer: Tokenizer, capsys: pytest.CaptureFixture
) -> None:
    def broken() -> Iterator[str]:
        yield BAD
        raise OSError

    documents = SpelledDocuments(tokenizer, "skip")
    with pytest.raises(OSError):  # noqa: PT011
        list(documents.of({"a.txt": broken()})["a.txt"])
    documents.tell()
    assert "dropped 1 of 1 documents" in capsys.readouterr().err


def test_documents_that_every_vocabulary_spells_are_not_looked_at() -> None:
    by_source = {"": iter(["word", BAD])}
    assert SpelledDocuments(small.tokenizer(), "error").of(by_source) is by_source


@pytest.mark.parametrize("key", ["val", "train"])
def test_evaluation_of_documents_can_leave_them_out(
    key: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"a word and number {n}" for n in range(20)] + [BAD]
    Path("x.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    data = {"val": [], "train": [], "test_fraction": 0.0, "val_fraction": 0.9, key: ["x.jsonl"]}
    _, texts = evaluation.load_texts(EvalConfig(data={**data, "on_bad_line": "skip"}), tokenizer)
    assert set(texts) <= set(rows[:-1])
    assert len(texts) >= 15
    assert f"dropped 1 of {21 if key == 'val' else 17} documents" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no token for '\\x06'") as caught:
        evaluation.load_texts(EvalConfig(data=data), tokenizer)
    assert "data.on_bad_line=skip" in caught.value.fix


def test_evaluation_does_not_look_at_documents_of_train(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = [f"{BAD} word and number {n}" for n in range(20)]
    of_train = [text for text in bad if text not in held_out_documents(bad, 0.3)]
    rows = [f"a word and number {n}" for n in range(20)]
    Path("x.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows + of_train))
    data = {"train": ["x.jsonl"], "val": [], "test_fraction": 0.0, "val_fraction": 0.3}
    assert of_train
    assert set(evaluation.load_texts(EvalConfig(data=data), tokenizer)[1]) <= set(rows)


def test_pretraining_data_can_leave_them_out(tmp_path: Path) -> None:
    folder = foreign_tokenizers.write("smollm2", tmp_path / "smollm2")
    rows = [f"a word and number {n}" for n in range(20)] + [BAD]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    command = [
        sys.executable,
        "-m",
        "tinyllm",
        "data",
        "prepare",
        "--set",
        f"tokenizer={folder}",
        "--set",
        "data.train=[x.jsonl]",
    ]
    env = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    refused = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert refused.returncode == USAGE, refused.stderr
    assert "x.jsonl" in refused.stderr
    assert "document 21" in refused.stderr
    command += ["--set", "data.on_bad_line=skip", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(done.stdout)["documents"].values()) == 20
    assert "dropped 1 of 21 documents" in done.stderr
