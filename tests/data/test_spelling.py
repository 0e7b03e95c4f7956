"""Records with a character that the vocabulary cannot spell are refused with their place, or dropped and counted."""

from __future__ import annotations

import pytest

from tests.support import foreign_tokenizers, small
from tinyllm.data.loading import preference_dataset, sft_dataset, token_prompts
from tinyllm.data.records.types import Conversation, Pair, Prompt
from tinyllm.data.spelling import spelled
from tinyllm.data.tokenization import LengthLimit
from tinyllm.errors import USAGE, UserError
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


def test_nothing_is_checked_where_every_byte_has_a_token() -> None:
    records = [Conversation((QUESTION, {**ANSWER, "content": BAD}))]
    assert small.tokenizer().spells_all
    assert spelled(records, small.tokenizer(), "train", "error") is records
