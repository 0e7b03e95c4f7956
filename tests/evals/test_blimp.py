"""Scores of a trained model on public benchmarks, compared with transformers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from tests.support import small
from tinyllm.cli.resolve import STAGES, resolve
from tinyllm.evals import run
from tinyllm.evals.conventions import conventions
from tinyllm.evals.likelihood import log_likelihoods
from tinyllm.evals.rows import continuation_rows, text_rows
from tinyllm.evals.settings import EvalSettings
from tinyllm.model import hub
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.run import Invocation

PARADIGMS = ("anaphor_gender_agreement", "npi_present_1", "principle_A_case_2", "wh_vs_that_with_gap", "passive_1")


def assert_scores_equal_those_of_transformers(
    folder: Path,
    place: Path,
    files: dict[str, list[dict[str, str]]],
    question: str,
    choices: list[str],
    first: list[int],
) -> None:
    """Compare every log-likelihood, to 1e-4, and the accuracy. `first` goes in front of a sentence: [] where the vocabulary adds BOS."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    encode = transformers.AutoTokenizer.from_pretrained(folder).encode

    @torch.no_grad()
    def score(ids: list[int], start: int) -> float:
        table = theirs(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(float(table[t - 1, ids[t]]) for t in range(start, len(ids)))

    model, tokenizer = hub.load_causal_lm(folder), Tokenizer.load(folder)
    right, texts, want = 0, [], []
    for name, rows in files.items():
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for row in rows:
            texts += [row["sentence_good"], row["sentence_bad"]]
            want += [score(first + encode(text), 1) for text in texts[-2:]]
            right += want[-2] >= want[-1]
    got = log_likelihoods(model, text_rows(tokenizer, texts), tokens=1000)
    assert max(abs(a - b) for a, b in zip(got, want, strict=True)) < 1e-4
    assert 0 < right < len(want) / 2  # neither all nor none
    settings = ["task=[choice]", f"parent={folder}", f"data.val=['{place}/*.jsonl']"]
    found = run.run(resolve(STAGES["eval"], None, settings, {}, {}, fast=False).config, Invocation(""))
    assert found["results"]["choice"]["acc,none"] == pytest.approx(right / len(want) * 2)

    context = f"Question: {question.strip()}\nAnswer:"
    pairs = [(context, f" {choice}") for choice in choices]
    prefix = conventions(tokenizer, EvalSettings()).prefix
    got = log_likelihoods(model, continuation_rows(tokenizer, prefix, pairs), tokens=1000)
    want = [score(encode(context + more), len(encode(context))) for _, more in pairs]
    assert max(abs(a - b) for a, b in zip(got, want, strict=True)) < 1e-4


@pytest.mark.parity
def test_choices_of_an_own_model_are_scored_as_by_transformers(tmp_path: Path) -> None:
    folder = small.saved(small.rough(scale=0.3), tmp_path / "model")
    both = [(f"red is {i}", f"{i} is red") for i in range(20)]
    rows = [
        dict(zip(("sentence_good", "sentence_bad"), two[:: 1 - i % 3 % 2 * 2], strict=True))
        for i, two in enumerate(both)
    ]
    (tmp_path / "rows").mkdir()
    first = [Tokenizer.load(folder).endoftext]
    choices = ["red", "blue", "a number"]
    assert_scores_equal_those_of_transformers(folder, tmp_path / "rows", {"order": rows}, "What is 7?", choices, first)


@pytest.mark.parity
def test_blimp_and_mmlu_scores_equal_those_of_transformers(shared: Path, tmp_path: Path) -> None:
    """A trained model, whose vocabulary puts BOS in front by itself."""
    files = {}
    for name in PARADIGMS:
        with gzip.open(shared / "data" / "eval" / "blimp" / f"{name}.jsonl.gz", "rt") as file:
            files[name] = [json.loads(line) for line in file][100:130]  # the 106th of principle_A_case_2 is a tie
    with gzip.open(shared / "data" / "eval" / "mmlu_val.jsonl.gz", "rt") as file:
        row = json.loads(next(file))
    folder = shared / "models" / "stories260k" / "hf"
    assert_scores_equal_those_of_transformers(folder, tmp_path, files, row["question"], row["choices"], [])
