"""What stands around scored texts: every setting of `start` and `score_end`, on a vocabulary trained here and one as chat models have it.

The truth is a computation by transformers on rows written out in the test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import small
from tinyllm.cli.resolve import STAGES, resolve
from tinyllm.errors import UserError
from tinyllm.evals import run
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.run import Invocation

SENTENCES = [("red is a colour", "colour a is red"), ("7 is a number", "number is 7 a"), ("blue", "red blue")]
DOCUMENTS = ["What is red? It is a colour.", "red, blue, red", "7"]
TURN_END, TEXT_END, OTHER = "<|im_end|>", "<|endoftext|>", "<|pad|>"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as `pretrain` and `sft` write it."""
    return small.saved(small.rough(scale=0.3), tmp_path_factory.mktemp("own") / "model")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as SmolLM2's chat version: BOS opens turns, the end token ends them, and tokenizer.json puts nothing in front."""
    folder = small.saved(small.rough(scale=0.3), tmp_path_factory.mktemp("foreign") / "model")
    path = folder / "tokenizer_config.json"
    names = {"bos_token": "<|im_start|>", "eos_token": TURN_END, "pad_token": TURN_END}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    return folder


def evaluated(folder: Path, place: Path, rows: Sequence[dict[str, str]], *settings: str) -> dict[str, Any]:
    data = small.written(place / "rows.jsonl", rows)
    given = [f"parent={folder}", f"data.val=['{data}']", *settings]
    return run.run(resolve(STAGES["eval"], None, given, {}, {}, fast=False).config, Invocation(""))


def score(folder: Path, first: str | None, text: str, last: str | None) -> tuple[float, int]:
    """Return the log-likelihood of a text by transformers, and how many tokens were scored."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    around = [[] if token is None else [tokenizer.convert_tokens_to_ids(token)] for token in (first, last)]
    ids = around[0] + tokenizer.encode(text, add_special_tokens=False) + around[1]
    with torch.no_grad():
        logits = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor([ids])).logits
    table = logits[0].double().log_softmax(-1)
    return sum(float(table[t - 1, ids[t]]) for t in range(1, len(ids))), len(ids) - 1


OWN = {  # settings -> start token, whether the end of a document and of a choice is scored
    ("auto", "auto"): (TEXT_END, True, False),
    ("eos", "true"): (TEXT_END, True, True),
    ("none", "false"): (None, False, False),
    ("red", "auto"): ("red", True, False),
}
FOREIGN = {
    ("auto", "auto"): (TEXT_END, False, False),
    ("bos", "true"): ("<|im_start|>", True, True),
    ("eos", "auto"): (TURN_END, False, False),
    (TEXT_END, "auto"): (TEXT_END, False, False),
    (TEXT_END, "true"): (TEXT_END, True, True),
    ("none", "true"): (None, True, True),
    (OTHER, "false"): (OTHER, False, False),
}
CASES = [("own", *case) for case in OWN.items()] + [("foreign", *case) for case in FOREIGN.items()]


@pytest.mark.parity
@pytest.mark.parametrize(("name", "setting", "expected"), CASES)
def test_texts_and_sentences_are_scored_as_set(
    name: str, setting: tuple[str, str], expected: tuple[str | None, bool, bool], request: Any, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(name)
    first, document_end, choice_end = expected
    given = (f"start={json.dumps(setting[0])}", f"score_end={setting[1]}")

    found = evaluated(folder, tmp_path, [{"text": text} for text in DOCUMENTS], *given)
    scores = [score(folder, first, text, TEXT_END if document_end else None) for text in DOCUMENTS]
    nats, tokens = -sum(value for value, _ in scores), sum(count for _, count in scores)
    assert found["tokens"] == tokens
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / sum(map(len, DOCUMENTS)), abs=1e-5)
    assert (found["start"], found["score_end"]) == (first, document_end)

    pairs = [{"sentence_good": good, "sentence_bad": bad} for good, bad in SENTENCES]
    found = evaluated(folder, tmp_path, pairs, "task=[choice]", *given)
    want = [[score(folder, first, text, TEXT_END if choice_end else None)[0] for text in two] for two in SENTENCES]
    right = sum(good >= bad for good, bad in want)
    assert found["results"]["choice"]["acc,none"] == pytest.approx(right / len(SENTENCES))
    sizes = [len(good) for good, _ in SENTENCES]
    bits = sum(-good / math.log(2) / size for (good, _), size in zip(want, sizes, strict=True)) / len(sizes)
    assert found["results"]["choice"]["bpb,none"] == pytest.approx(bits, abs=1e-5)
    assert found["config"]["start"] == first
    assert found["config"]["score_end"] is document_end


@pytest.mark.parametrize(
    ("setting", "context"), [("auto", None), (TEXT_END, TEXT_END), ("none", None), ("bos", "<|im_start|>")]
)
def test_contexts_start_as_the_tokenizer_says_or_as_set(
    foreign: Path, tmp_path: Path, setting: str, context: str | None
) -> None:
    rows = [{"question": "What is red?", "choices": ["a colour", "a number"], "answer": 0}]
    found = evaluated(foreign, tmp_path, rows, "task=[choice]", f"start={json.dumps(setting)}")
    assert found["config"]["context_start"] == context


@pytest.mark.parametrize(
    ("setting", "words"), [("bos", "the vocabulary has no BOS token"), ("<|no|>", "has no token '<|no|>'")]
)
def test_a_start_token_that_does_not_exist_is_refused(own: Path, tmp_path: Path, setting: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        evaluated(own, tmp_path, [{"text": "red"}], f"start={json.dumps(setting)}")
    assert words in caught.value.what
    assert caught.value.where == "start"
    assert caught.value.fix == "use auto, bos, eos, none or the text of a token"


def test_a_sentence_of_one_token_without_a_start_is_refused(own: Path, tmp_path: Path) -> None:
    rows = [{"sentence_good": "red", "sentence_bad": "red blue"}]
    assert len(Tokenizer.load(own).encode("red")) == 1
    with pytest.raises(UserError, match="a text of one token has nothing to score") as caught:
        evaluated(own, tmp_path, rows, "task=[choice]", "start=none")
    assert "rows.jsonl" in (caught.value.where or "")
