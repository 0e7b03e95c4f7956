"""Answers excluded from training (`weight: 0`, `train: false`): read by the model, but in no mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.reading import refused
from tinyllm.data import tokenization
from tinyllm.data.datasets.packing import PackedSFTDataset
from tinyllm.data.records.reader import Reader, read_records
from tinyllm.data.records.types import Conversation
from tinyllm.data.tokenization import LengthLimit
from tinyllm.diagnostics.inspect.rendered import shown
from tinyllm.text.chat import render
from tinyllm.text.tokenizer import Tokenizer

BAD, GOOD = "wrong wrong", "right"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["user\nassistant\nq r wrong right"], 300)


def reader(tmp_path: Path, row: dict[str, Any], kind: str = "conversations") -> Reader:
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    return read_records([tmp_path / "x.jsonl"], kind)


def talk(**first: Any) -> list[dict[str, Any]]:
    """Return two exchanges; `first` are further keys of the first answer."""
    return [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": BAD, **first},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": GOOD},
    ]


def trained(tokenizer: Tokenizer, ids: Any, mask: Any) -> str:
    return tokenizer.decode([int(i) for i, said in zip(ids, mask, strict=True) if said], skip_special=False)


SWITCHES = [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"weight": 1, "train": False}]


@pytest.mark.parametrize("switch", SWITCHES)
def test_an_answer_of_weight_0_is_in_no_mask(tmp_path: Path, tokenizer: Tokenizer, switch: dict[str, Any]) -> None:
    (found,) = reader(tmp_path, {"messages": talk(**switch)})
    (plain,) = reader(tmp_path, {"messages": talk()})
    ours, all_trained = render(tokenizer, found.messages), render(tokenizer, plain.messages)
    assert ours.ids == all_trained.ids  # it is read
    assert trained(tokenizer, ours.ids, ours.mask) == f"{GOOD}<|im_end|>"
    assert trained(tokenizer, ours.ids, all_trained.mask) == f"{BAD}<|im_end|>{GOOD}<|im_end|>"
    named = [{"from": "human", "value": "q"}, {"from": "gpt", "value": BAD, **switch}]
    named += [{"from": "human", "value": "r"}, {"from": "gpt", "value": GOOD}]
    assert list(reader(tmp_path, {"conversations": named})) == [found]


@pytest.mark.parametrize("switch", [{"weight": 1}, {"weight": 1.0}, {"train": True}, {"loss": True}, {"weight": None}])
def test_weight_1_changes_nothing(tmp_path: Path, switch: dict[str, Any]) -> None:
    assert list(reader(tmp_path, {"messages": talk(**switch)})) == list(reader(tmp_path, {"messages": talk()}))


def test_packing_truncation_and_the_picture_follow_the_mask(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (found,) = reader(tmp_path, {"messages": talk(weight=0)})
    (plain,) = reader(tmp_path, {"messages": [*talk()[:1], *talk()[3:]]})
    rows, report = tokenization.conversations([found, plain], tokenizer, LengthLimit(200), "train")
    packed = PackedSFTDataset(rows, tokenizer.padding_id, 200).collate([0], 0, [0])
    assert trained(tokenizer, packed.ids[0], packed.mask[0]) == f"{GOOD}<|im_end|>" * 2
    assert report.trained.tolist() == [len(tokenizer.encode(GOOD)) + 1] * 2
    # cut inside the excluded answer: nothing is left to train on, and no trained answer lost its end
    short = LengthLimit(len(render(tokenizer, found.messages[:1], generation_prompt=True).ids) + 1)
    rows, report = tokenization.conversations([found], tokenizer, short, "train")
    assert (rows, report.kept.tolist(), report.truncated.tolist()) == ([], [False], [False])
    for vocabulary in (tokenizer, None):
        (row,) = shown(found, vocabulary, LengthLimit(200))
        picture = {
            role: "".join(p["text"] for p in row["pieces"] if p["role"] == role) for role in ("trained", "ignored")
        }
        assert GOOD in picture["trained"]
        assert BAD not in picture["trained"]
        assert BAD in picture["ignored"]


@pytest.mark.parametrize(
    ("switch", "what"),
    [
        ({"weight": 0.5}, "messages[1].weight: expected 0 or 1, found 0.5"),
        ({"weight": 2}, "messages[1].weight: expected 0 or 1, found 2"),
        ({"weight": "0"}, "messages[1].weight: expected 0 or 1, found '0'"),
        ({"weight": False}, "messages[1].weight: expected 0 or 1, found False"),
        ({"train": "no"}, "messages[1].train: expected true or false, found 'no'"),
        ({"loss": 0.5}, "messages[1].loss: expected true or false, found 0.5"),
        ({"train_detail": [{"begin_offset": 0}]}, "messages[1].train_detail: parts of an answer cannot be excluded"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, switch: dict[str, Any], what: str) -> None:
    path = reader(tmp_path, {"messages": talk(**switch)}).paths[0]
    error = refused(path, "conversations")
    assert error.what.startswith(what)
    assert error.where == f"{path}:1"


def test_a_weight_on_a_question_is_said_and_trains_nothing(tmp_path: Path) -> None:
    messages = talk()
    messages[0]["train"] = True
    found = reader(tmp_path, {"messages": messages})
    assert list(found) == list(reader(tmp_path, {"messages": talk()}))
    assert list(found.report.repaired) == ["train of turns other than answers left out: only answers are trained on"]


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("conversations", {"messages": talk(weight=0)[:2]}),
        ("unpaired", {"messages": talk(weight=0)[:2], "label": True}),
        ("pairs", {"prompt": "q", "chosen": [talk(weight=0)[1]], "rejected": "b"}),
    ],
)
def test_rows_without_a_trained_answer_are_dropped_and_counted(tmp_path: Path, kind: str, row: dict) -> None:
    error = refused(reader(tmp_path, row, kind).paths[0], kind)
    assert "excluded from training" in error.what


def test_joined_answers_of_two_weights_are_refused(tmp_path: Path) -> None:
    messages = [*talk(weight=0)[:2], *talk()[3:]]
    assert "cannot be joined" in refused(reader(tmp_path, {"messages": messages}).paths[0], "conversations").what


def test_an_excluded_answer_is_no_reference_for_rewards(tmp_path: Path) -> None:
    (found,) = reader(tmp_path, {"messages": talk(weight=0)}, "prompts")
    assert found.columns["answer"] == GOOD
    assert [set(message) for message in found.messages] == [{"role", "content"}] * 3


# --- indentation -----------------------------------------------------------------------------------------------------------------

CODE = "    return 1\n    # done"


def test_indentation_of_a_first_line_is_kept(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = {"prompt": f"  q\n{CODE}\n\n", "completion": f"\n \n{CODE}  \n"}
    (found,) = reader(tmp_path, row)
    assert isinstance(found, Conversation)
    ours = render(tokenizer, found.messages)
    expected = f"<|im_start|>user\n  q\n{CODE}<|im_end|>\n<|im_start|>assistant\n{CODE}<|im_end|>\n"
    assert tokenizer.decode(ours.ids, skip_special=False) == expected
    (pair,) = reader(tmp_path, {"prompt": "q", "chosen": CODE, "rejected": CODE.strip()}, "pairs")
    (tokens,), _ = tokenization.pairs([pair], tokenizer, LengthLimit(200), "train")
    assert [tokenizer.decode(ids) for ids in tokens[1:3]] == [CODE, CODE.strip()]
    assert np.isfinite(tokens[3])


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.json"])
def test_indentation_of_documents_is_kept(tmp_path: Path, name: str) -> None:
    text = CODE if name == "x.txt" else json.dumps({"text": CODE})
    (tmp_path / name).write_text(text)
    assert [record.text for record in read_records([tmp_path / name], "documents")] == [CODE]
