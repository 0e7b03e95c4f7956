"""Overlap of training, selection and exam: counted by document, pair and question, 0 in every lifecycle, and refused otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinyllm.data.records.types import Conversation, Document, Pair, Prompt
from tinyllm.errors import UserError
from tinyllm.lifecycle import overlap


def turns(*texts: str) -> Any:
    return tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts))


def test_records_are_counted_by_what_could_be_remembered() -> None:
    records = [
        Document("a"),
        Document("a"),
        Conversation(turns("q", "a", "more", "b")),
        Pair(turns("q"), turns("", "good")[1:], turns("", "bad")[1:]),
        Pair(turns("q"), turns("", "bad")[1:], turns("", "good")[1:]),
        Prompt(turns("p", "a", "more")),
    ]
    found = overlap.summary(overlap.keys_of(records))["n"]
    assert found == {"documents": 1, "pairs": 2, "questions": 3, "last questions": 2}  # q, q+more, p+more; q, more
    last = overlap.keys_of([records[2]], every_turn=False)
    assert overlap.summary(last)["n"] == {"questions": 1, "last questions": 1}


def test_overlap_is_by_unit_and_ignores_order_and_copies() -> None:
    some = overlap.keys_of([Prompt(turns("a")), Prompt(turns("b", "x", "c"))])
    others = overlap.keys_of([Prompt(turns("c")), Prompt(turns("a")), Prompt(turns("a")), Document("d")])
    assert overlap.in_common(some, others) == {"questions": 1, "last questions": 2}
    both = overlap.merged(some, others)
    assert overlap.in_common(some, both) == {"questions": 2, "last questions": 2}
    again = overlap.merged(others, some)
    assert overlap.summary(both) == overlap.summary(again)
    assert overlap.summary(both)["sha256"] != overlap.summary(some)["sha256"]


def test_tokenized_documents_are_equal_whatever_their_type() -> None:
    some = overlap.keys_of_tokens([np.array([1, 2], np.uint16), np.array([3], np.uint16)])
    others = overlap.keys_of_tokens([np.array([1, 2], np.int64), np.array([2, 1], np.int64)])
    assert overlap.in_common(some, others) == {"documents": 1}


LEAKS = {  # split -> stage where the exam's question leaks, and the words of the refusal of ppo
    ("ppo", "train"): "also trained ppo",
    ("ppo", "selection"): "also selected the checkpoint of ppo",
    ("sft", "train"): "also trained ppo or a model it started from",
    ("sft", "selection"): "also selected the checkpoint of ppo or a model it started from",
    ("rm", "train"): "also trained ppo or a model it started from",
    ("rm", "selection"): "also selected the checkpoint of ppo or a model it started from",
}


def three_stages(leak: tuple[str, str] | None = None, **options: Any) -> overlap.Splits:
    exam = overlap.keys_of([Prompt(turns("exam"))])
    splits = overlap.Splits({"ppo": ("sft", "rm"), "rm": ("sft",)}, **options)
    for stage in ("sft", "rm", "ppo", "dpo"):
        seen = {
            part: overlap.merged(
                overlap.keys_of([Prompt(turns(f"{stage} {part}"))]), exam if (stage, part) == leak else {}
            )
            for part in ("train", "selection")
        }
        splits.uses[stage] = overlap.Uses(**seen, exam=exam)
    return splits


def test_an_exam_of_its_own_is_accepted_with_its_numbers() -> None:
    row = three_stages().check("ppo")
    nothing = {"questions": 0, "last questions": 0}
    assert row["overlap"] == {"train/exam": nothing, "selection/exam": nothing}
    assert row["train"]["n"] == {"questions": 1, "last questions": 1}
    assert len({row[part]["sha256"] for part in ("train", "selection", "exam")}) == 3


@pytest.mark.parametrize("leak", LEAKS, ids="-".join)
def test_a_leak_into_the_exam_is_refused_in_the_stage_and_in_what_it_starts_from(leak: tuple[str, str]) -> None:
    splits = three_stages(leak)
    with pytest.raises(UserError, match="1 of the 1 questions of the exam") as caught:
        splits.check("ppo")
    assert LEAKS[leak] in caught.value.what
    splits.check("dpo")  # no ancestor of it has seen the exam


def test_a_leak_is_counted_where_it_is_tolerated() -> None:
    splits = three_stages(("ppo", "train"), tolerated=("last questions", "questions"))
    assert splits.check("ppo")["overlap"]["train/exam"] == {"questions": 1, "last questions": 1}
