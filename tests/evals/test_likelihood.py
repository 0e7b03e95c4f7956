"""Log-likelihoods against the chain rule: one forward pass per token, without shifts or batches."""

from __future__ import annotations

import pytest
import torch

from tinyllm.errors import UserError
from tinyllm.evals.likelihood import batches, log_likelihoods
from tinyllm.evals.rows import Row, continuation_rows, text_rows, truncated
from tinyllm.model.config import ModelConfig
from tinyllm.model.transformer import CausalLM
from tinyllm.text.tokenizer import Tokenizer

TEXT = "the cat sat on the mat. the dog sat on the log, and the cat looked at the dog. " * 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 300)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> CausalLM:
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        head_dim=16,
        max_position_embeddings=40,  # not a multiple of the width that batches are padded to
    )
    model = CausalLM(shape)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.4 if p.ndim > 1 else 1))
    return model.eval()


@torch.no_grad()
def one_by_one(model: CausalLM, row: Row) -> float:
    """Return log p by the chain rule, with one forward pass per token."""
    total = 0.0
    for t in range(row.start, len(row.ids)):
        logits = model.logits(model(torch.tensor([row.ids[:t]]))[0, -1]).double()
        total += float(logits.log_softmax(-1)[row.ids[t]])
    return total


def test_log_likelihoods_equal_the_chain_rule_for_any_batch_size(model: CausalLM, tokenizer: Tokenizer) -> None:
    rows = text_rows(tokenizer, ["the cat", "the dog sat on the log", "a", TEXT[:60]])
    rows += continuation_rows(tokenizer, (), [("the cat sat", " on the mat"), ("the dog", " looked"), ("x", "y")])
    want = [one_by_one(model, row) for row in rows]
    assert min(abs(a - b) for i, a in enumerate(want) for b in want[:i]) > 0.01  # a wrong order would show
    for tokens in (1, 50, 10_000):
        assert log_likelihoods(model, rows, tokens=tokens) == pytest.approx(want, abs=1e-4)


def test_a_shift_by_one_token_changes_the_score(model: CausalLM, tokenizer: Tokenizer) -> None:
    """Scoring one token too many, one too few, or each token from itself gives other figures than the chain rule."""
    (row,) = continuation_rows(tokenizer, (), [("the cat sat", " on the mat")])
    (found,) = log_likelihoods(model, [row], tokens=100)
    with torch.no_grad():
        table = model.logits(model(torch.tensor([row.ids]))[0]).double().log_softmax(-1)  # (T, V)
    positions = range(row.start, len(row.ids))
    assert found == pytest.approx(sum(float(table[t - 1, row.ids[t]]) for t in positions), abs=1e-4)
    for wrong in (Row(row.ids, row.start - 1), Row(row.ids, row.start + 1)):
        assert abs(one_by_one(model, wrong) - found) > 0.01
    assert abs(sum(float(table[t, row.ids[t]]) for t in positions) - found) > 0.01


def test_whole_texts_follow_a_token_that_is_not_scored(tokenizer: Tokenizer) -> None:
    (row,) = text_rows(tokenizer, ["the cat"])
    assert row == Row((tokenizer.endoftext, *tokenizer.encode("the cat")), 1)  # this vocabulary has no BOS


def test_context_and_continuation_are_encoded_as_one_text_and_trailing_spaces_move(tokenizer: Tokenizer) -> None:
    plain, spaced = continuation_rows(tokenizer, (), [("the cat sat", " on the mat"), ("the cat sat ", "on the mat")])
    whole = tuple(tokenizer.encode("the cat sat on the mat"))
    assert plain == spaced == Row(whole, len(tokenizer.encode("the cat sat")))
    assert tokenizer.decode(plain.ids[plain.start :]) == " on the mat"
    (with_front,) = continuation_rows(tokenizer, (7,), [("the cat sat", " on the mat")])
    assert with_front == Row((7, *whole), plain.start + 1)


def test_a_token_across_the_boundary_leaves_one_token_to_score(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("the")) == 1
    (row,) = continuation_rows(tokenizer, (), [("th", "e")])
    assert row == Row((tokenizer.endoftext, *tokenizer.encode("the")), 1)


def test_long_rows_lose_their_beginning_and_no_scored_token(model: CausalLM) -> None:
    row = Row(tuple(range(5, 65)), 50)
    cut = truncated(row, 40, "x")
    assert cut == Row(tuple(range(25, 65)), 30)
    assert log_likelihoods(model, [cut], tokens=1) == pytest.approx([one_by_one(model, cut)], abs=1e-4)
    with pytest.raises(UserError, match="41 tokens to score"):
        truncated(Row(tuple(range(50)), 9), 40, "x")


def test_batches_contain_every_row_once_within_the_token_limit() -> None:
    lengths = [3, 90, 10, 11, 4, 40, 12, 300, 1]
    found = batches(lengths, 100)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 100 or len(batch) == 1 for batch in found)
    assert len(found) < len(lengths)
