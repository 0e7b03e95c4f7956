"""Records to token rows: the exact mask, truncation, and equal ids before an answer in training, rollouts and chat."""

from __future__ import annotations

import pytest
import torch

from tests.support import small
from tinyllm.data.loading import preference_dataset, sft_dataset, token_prompts, unpaired_dataset
from tinyllm.data.records.types import Conversation, Pair, Prompt, UnpairedPreference
from tinyllm.data.tokenization import LengthLimit
from tinyllm.errors import USAGE, UserError
from tinyllm.stages.chat import ChatSession
from tinyllm.stages.config import ChatConfig

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": " What is red? "}
FOLLOW_UP = {"role": "user", "content": "And blue?"}
HEADER = "<|im_start|>assistant\n"


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(chosen: str, rejected: str, *turns: dict) -> Pair:
    return Pair(turns or (QUESTION,), (assistant(chosen),), (assistant(rejected),))


def decoded(ids: torch.Tensor | list[int]) -> str:
    """Decode ids, control tokens by name."""
    return small.tokenizer().decode([int(i) for i in ids], skip_special=False)


def scored(ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
    """Decode the scored part of each row."""
    return [decoded(row[keep]) for row, keep in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("length", [96, 40])
def test_mask_of_a_pair_covers_the_answer_and_its_end_token(length: int) -> None:
    found = preference_dataset(
        [pair("red", "blue, blue"), pair("", "x", SYSTEM, FOLLOW_UP)], small.tokenizer(), length, "t"
    )
    batch = found.collate([0, 1], 0, [0, 1])
    assert scored(batch.ids, batch.mask) == ["red<|im_end|>", "<|im_end|>", "blue, blue<|im_end|>", "x<|im_end|>"]
    for row in range(4):
        first = int(batch.mask[row].nonzero()[0])
        prompt = decoded(batch.ids[row, :first])
        assert prompt.endswith(HEADER)
        if length == 96:
            assert prompt == decoded(batch.ids[(row + 2) % 4, :first])
            assert prompt.startswith("<|im_start|>" + ("user\n What is red?" if row % 2 == 0 else "system\nBe brief."))
        assert not batch.mask[row, batch.real[row].sum() :].any()
        assert int(batch.real[row].sum()) == int(batch.mask[row].nonzero()[-1]) + 1  # the end token is the last


@pytest.mark.parametrize(("prompt", "answer"), [(1, 50), (50, 1), (50, 50), (90, 2)])
def test_truncation_never_leaves_an_empty_answer(prompt: int, answer: int) -> None:
    asked = {"role": "user", "content": "zq" * prompt}
    found = preference_dataset([pair("red" * answer, "blue" * answer, asked)], small.tokenizer(), 40, "t")
    batch = found.collate([0], 0, [0])
    assert batch.mask.sum(1).min() >= 1
    assert batch.real.sum(1).max() <= 40
    if answer < 10:
        assert all(text.endswith("<|im_end|>") for text in scored(batch.ids, batch.mask))


def test_a_long_prompt_loses_its_beginning_and_keeps_its_end() -> None:
    tokenizer = small.tokenizer()
    asked = {"role": "user", "content": "zq" * 60 + " What is red?"}
    whole = preference_dataset([pair("red", "blue", asked)], tokenizer, 900, "t").pairs[0].prompt
    short = preference_dataset([pair("red", "blue", asked)], tokenizer, 40, "t").pairs[0].prompt
    assert 20 <= len(short) < len(whole)
    assert list(short) == list(whole)[-len(short) :]


def test_pairs_with_equal_answers_are_dropped_and_refused_if_all_are_equal() -> None:
    mixed = [pair("red", "red "), pair("red", "blue"), pair("a", "a")]
    assert len(preference_dataset(mixed, small.tokenizer(), 96, "train")) == 1
    with pytest.raises(UserError, match="none of 2 train records can be trained on") as caught:
        preference_dataset(mixed[::2], small.tokenizer(), 96, "train")
    assert caught.value.code == USAGE


def test_mask_of_an_unpaired_answer_is_that_of_a_pair() -> None:
    items = [
        UnpairedPreference((QUESTION,), (assistant("red"),), True),
        UnpairedPreference((FOLLOW_UP,), (assistant("blue"),), False),
    ]
    batch = unpaired_dataset(items, small.tokenizer(), 96, "t").collate([0, 1], 0, [0, 1])
    assert scored(batch.ids, batch.mask) == [f"{word}<|im_end|>" for word in ("red", "blue", "blue", "red")]
    assert batch.good.tolist() == [True, False]
    assert [decoded(row).partition("<|im_end|>")[0][-4:] for row in batch.ids] == ["red?", "lue?", "red?", "lue?"]


@pytest.mark.parametrize("packing", [False, True])
def test_every_answer_is_trained_from_its_first_token_to_its_end_token(packing: bool) -> None:
    conversations = [
        Conversation((SYSTEM, QUESTION, assistant("red, red"), FOLLOW_UP, assistant("blue"))),
        Conversation((QUESTION, assistant("a colour"))),
    ]
    rows = sft_dataset(conversations, small.tokenizer(), 96, "t", packing=packing)
    batch = rows.collate(range(len(rows)), 0, [])
    assert sorted("".join(scored(batch.ids, batch.mask)).split("<|im_end|>")) == ["", "a colour", "blue", "red, red"]
    starts = (batch.mask & ~batch.mask.roll(1, 1)).nonzero().tolist()
    assert len(starts) == 3
    assert all(decoded(batch.ids[row, :column]).endswith(HEADER) for row, column in starts)
    ends = batch.ids[batch.mask & ~batch.mask.roll(-1, 1)].tolist()
    assert set(ends) <= set(small.tokenizer().stop_ids)  # the end tokens of training end an answer in sampling as well
    assert small.tokenizer().pad not in small.tokenizer().stop_ids


@pytest.mark.parametrize(
    "before", [(QUESTION,), (SYSTEM, QUESTION), (SYSTEM, QUESTION, assistant("red"), FOLLOW_UP)], ids=len
)
def test_training_rollouts_and_chat_have_the_same_ids_before_an_answer(before: tuple) -> None:
    texts = small.tokenizer()
    rollout = token_prompts([Prompt(before, {})], texts, 96, "t")[0].ids
    row = sft_dataset([Conversation((*before, assistant("blue")))], texts, 96, "t").collate([0], 0, [])
    last = int((row.mask & ~row.mask.roll(1, 1)).nonzero()[-1, 1])  # the start of the last answer
    preference = preference_dataset([pair("red", "blue", *before)], texts, 96, "t").pairs[0]
    unpaired = unpaired_dataset(
        [
            UnpairedPreference(before, (assistant("a"),), True),
            UnpairedPreference((FOLLOW_UP,), (assistant("b"),), False),
        ],
        texts,
        96,
        "t",
    )
    session = ChatSession(small.rough(), texts, ChatConfig(max_new_tokens=8), base_model=False)
    session.messages = list(before)
    assert row.ids[0, :last].tolist() == rollout
    assert list(preference.prompt) == rollout
    assert list(unpaired.items[0].prompt) == rollout
    assert session.prompt() == rollout


def test_prompts_over_the_limit_are_dropped_and_not_truncated() -> None:
    long = Prompt(({"role": "user", "content": "zq" * 60},), {})
    assert len(token_prompts([Prompt((QUESTION,), {}), long], small.tokenizer(), 60, "t")) == 1
    with pytest.raises(UserError, match="none of 1 t records"):
        token_prompts([long], small.tokenizer(), 60, "t")


@pytest.mark.parametrize("packing", [False, True])
def test_conversation_of_ten_contexts_is_truncated_dropped_or_refused(packing: bool) -> None:
    """With every setting all rows fit, and the other conversation is unchanged."""
    monster = Conversation((QUESTION, assistant("zq" * 480), FOLLOW_UP, assistant("blue")))
    conversations = [monster, Conversation((QUESTION, assistant("red")))]
    cut = sft_dataset(conversations, small.tokenizer(), LengthLimit(48), "t", packing=packing)
    batch = cut.collate(range(len(cut)), 0, [])
    rows = sorted(text.partition("<|im_end|>")[0] for text in scored(batch.ids, batch.mask))
    assert rows[0] == "red"
    assert rows[1].startswith("zqzq")
    assert batch.ids.shape == (2, 48)
    left = sft_dataset(conversations, small.tokenizer(), LengthLimit(48, "drop"), "t", packing=packing)
    assert scored(*(getattr(left.collate([0], 0, []), name) for name in ("ids", "mask"))) == ["red<|im_end|>"]
    assert len(left) == 1
    with pytest.raises(UserError, match="1 of 2 t records are longer than 48 tokens") as caught:
        sft_dataset(conversations, small.tokenizer(), LengthLimit(48, "error"), "t", packing=packing)
    assert caught.value.code == USAGE
    assert "data.max_length" in caught.value.fix


@pytest.mark.parametrize(("context", "new", "limit"), [(None, 0, 64), (96, 0, 64), (96, 40, 56), (48, 0, 48)])
def test_limit_is_the_minimum_of_data_and_model(context: int | None, new: int, limit: int) -> None:
    length = LengthLimit(64, "truncate", context, new)
    assert length.tokens == limit
    prompt = Prompt(({"role": "user", "content": "x" * 200},), {})
    fits = Prompt((QUESTION,), {})
    found = token_prompts([prompt, fits], small.tokenizer(), length, "t")
    assert [len(p.ids) <= limit for p in found] == [True]
