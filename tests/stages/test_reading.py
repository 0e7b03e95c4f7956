"""Records as token rows: what is scored, to the token, and that training, rollouts and chat begin an answer with the same ids."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import small

from tinyllm.data.records import Conversation, Judgement, Pair, Prompt
from tinyllm.errors import USAGE, UserError
from tinyllm.stages.chat import Talk
from tinyllm.stages.config import ChatConfig
from tinyllm.stages.reading import answers_from, judgements_from, preferences_from, prompts_from
from tinyllm.stages.rows import Room

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": " What is red? "}
MORE = {"role": "user", "content": "And blue?"}
HEADER = "<|im_start|>assistant\n"


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(chosen: str, rejected: str, *turns: dict) -> Pair:
    return Pair(turns or (ASKED,), (said(chosen),), (said(rejected),))


def spelled(ids: torch.Tensor | list[int]) -> str:
    """Ids as text, control tokens by name."""
    return small.tokenizer().decode([int(i) for i in ids], skip_special=False)


def scored(ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
    """The scored part of each row, spelled out."""
    return [spelled(row[keep]) for row, keep in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("length", [96, 40])
def test_a_pair_is_prompt_and_answer_and_the_mask_is_the_answer_with_its_end_token(length: int) -> None:
    found = preferences_from([pair("red", "blue, blue"), pair("", "x", SYSTEM, MORE)], small.tokenizer(), length, "t")
    batch = found.collate([0, 1], 0, [0, 1])
    assert scored(batch.ids, batch.mask) == ["red<|im_end|>", "<|im_end|>", "blue, blue<|im_end|>", "x<|im_end|>"]
    for row in range(4):
        first = int(batch.mask[row].nonzero()[0])
        prompt = spelled(batch.ids[row, :first])
        assert prompt.endswith(HEADER)
        if length == 96:
            assert prompt == spelled(batch.ids[(row + 2) % 4, :first])
            assert prompt.startswith("<|im_start|>" + ("user\nWhat is red?" if row % 2 == 0 else "system\nBe brief."))
        assert not batch.mask[row, batch.real[row].sum() :].any()
        assert int(batch.real[row].sum()) == int(batch.mask[row].nonzero()[-1]) + 1  # the end token is the last


@pytest.mark.parametrize(("prompt", "answer"), [(1, 50), (50, 1), (50, 50), (90, 2)])
def test_what_is_too_long_is_cut_and_an_answer_is_never_empty(prompt: int, answer: int) -> None:
    asked = {"role": "user", "content": "zq" * prompt}
    found = preferences_from([pair("red" * answer, "blue" * answer, asked)], small.tokenizer(), 40, "t")
    batch = found.collate([0], 0, [0])
    assert batch.mask.sum(1).min() >= 1
    assert batch.real.sum(1).max() <= 40
    if answer < 10:
        assert all(text.endswith("<|im_end|>") for text in scored(batch.ids, batch.mask))


def test_equal_answers_are_dropped_and_nothing_but_equal_answers_is_refused() -> None:
    mixed = [pair("red", "red "), pair("red", "blue"), pair("a", "a")]
    assert len(preferences_from(mixed, small.tokenizer(), 96, "train")) == 1
    with pytest.raises(UserError, match="none of 2 train records can be learned from") as caught:
        preferences_from(mixed[::2], small.tokenizer(), 96, "train")
    assert caught.value.code == USAGE


def test_a_judged_answer_is_masked_as_a_pair_s() -> None:
    items = [Judgement((ASKED,), (said("red"),), True), Judgement((MORE,), (said("blue"),), False)]
    batch = judgements_from(items, small.tokenizer(), 96, "t").collate([0, 1], 0, [0, 1])
    assert scored(batch.ids, batch.mask) == [f"{word}<|im_end|>" for word in ("red", "blue", "blue", "red")]
    assert batch.good.tolist() == [True, False]
    assert [spelled(row).partition("<|im_end|>")[0][-4:] for row in batch.ids] == ["red?", "lue?", "red?", "lue?"]


@pytest.mark.parametrize("packing", [False, True])
def test_every_answer_is_learned_from_its_first_token_to_its_end_token(packing: bool) -> None:
    talks = [
        Conversation((SYSTEM, ASKED, said("red, red"), MORE, said("blue"))),
        Conversation((ASKED, said("a colour"))),
    ]
    rows = answers_from(talks, small.tokenizer(), 96, "t", packing=packing)
    batch = rows.collate(range(len(rows)), 0, [])
    assert sorted("".join(scored(batch.ids, batch.mask)).split("<|im_end|>")) == ["", "a colour", "blue", "red, red"]
    starts = (batch.mask & ~batch.mask.roll(1, 1)).nonzero().tolist()
    assert len(starts) == 3
    assert all(spelled(batch.ids[row, :column]).endswith(HEADER) for row, column in starts)
    ends = batch.ids[batch.mask & ~batch.mask.roll(-1, 1)].tolist()
    assert set(ends) <= set(small.tokenizer().stop_ids)  # what ends an answer in training ends it in sampling
    assert small.tokenizer().pad not in small.tokenizer().stop_ids


@pytest.mark.parametrize("before", [(ASKED,), (SYSTEM, ASKED), (SYSTEM, ASKED, said("red"), MORE)], ids=len)
def test_training_rollouts_and_chat_put_the_same_ids_before_an_answer(before: tuple) -> None:
    texts = small.tokenizer()
    rollout = prompts_from([Prompt(before, {})], texts, 96, "t")[0].ids
    row = answers_from([Conversation((*before, said("blue")))], texts, 96, "t").collate([0], 0, [])
    last = int((row.mask & ~row.mask.roll(1, 1)).nonzero()[-1, 1])  # where the last answer starts
    preference = preferences_from([pair("red", "blue", *before)], texts, 96, "t").pairs[0]
    judged = judgements_from(
        [Judgement(before, (said("a"),), True), Judgement((MORE,), (said("b"),), False)], texts, 96, "t"
    )
    talk = Talk(small.rough(), texts, ChatConfig(max_new_tokens=8), base_model=False)
    talk.messages = list(before)
    assert row.ids[0, :last].tolist() == rollout
    assert list(preference.prompt) == rollout
    assert list(judged.items[0].prompt) == rollout
    assert talk.prompt() == rollout


def test_a_prompt_that_leaves_no_room_is_dropped_and_not_cut() -> None:
    long = Prompt(({"role": "user", "content": "zq" * 60},), {})
    assert len(prompts_from([Prompt((ASKED,), {}), long], small.tokenizer(), 60, "t")) == 1
    with pytest.raises(UserError, match="none of 1 t records"):
        prompts_from([long], small.tokenizer(), 60, "t")


@pytest.mark.parametrize("packing", [False, True])
def test_a_conversation_of_ten_contexts_is_cut_left_out_or_refused(packing: bool) -> None:
    """Whatever the policy, every row fits, and the other conversation is as it would be alone."""
    monster = Conversation((ASKED, said("zq" * 480), MORE, said("blue")))
    talks = [monster, Conversation((ASKED, said("red")))]
    cut = answers_from(talks, small.tokenizer(), Room(48), "t", packing=packing)
    batch = cut.collate(range(len(cut)), 0, [])
    rows = sorted(text.partition("<|im_end|>")[0] for text in scored(batch.ids, batch.mask))
    assert rows[0] == "red"
    assert rows[1].startswith("zqzq")
    assert batch.ids.shape == (2, 48)
    left = answers_from(talks, small.tokenizer(), Room(48, "drop"), "t", packing=packing)
    assert scored(*(getattr(left.collate([0], 0, []), name) for name in ("ids", "mask"))) == ["red<|im_end|>"]
    assert len(left) == 1
    with pytest.raises(UserError, match="1 of 2 t records are longer than 48 tokens") as caught:
        answers_from(talks, small.tokenizer(), Room(48, "error"), "t", packing=packing)
    assert caught.value.code == USAGE
    assert "data.max_length" in caught.value.fix


@pytest.mark.parametrize(("context", "new", "limit"), [(None, 0, 64), (96, 0, 64), (96, 40, 56), (48, 0, 48)])
def test_the_room_is_what_the_data_and_the_model_allow(context: int | None, new: int, limit: int) -> None:
    room = Room(64, "truncate", context, new)
    assert room.limit == limit
    prompt = Prompt(({"role": "user", "content": "x" * 200},), {})
    fits = Prompt((ASKED,), {})
    found = prompts_from([prompt, fits], small.tokenizer(), room, "t")
    assert [len(p.ids) <= limit for p in found] == [True]
