"""Records to data sets: tokenized, checked, and ready to be batched. What is truncated or dropped is reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyllm.console import say
from tinyllm.data import tokenization, validation
from tinyllm.data.config import RecordConfig
from tinyllm.data.datasets.datasets import (
    PreferenceDataset,
    SFTDataset,
    TokenPair,
    TokenPrompt,
    TokenUnpaired,
    UnpairedDataset,
)
from tinyllm.data.datasets.packing import PackedSFTDataset
from tinyllm.data.spelling import spelled
from tinyllm.data.tokenization import LengthLimit, TokenizationReport
from tinyllm.text.tokenizer import Tokenizer


def length_limit(data: RecordConfig, context: int, max_new_tokens: int = 0) -> LengthLimit:
    """Return the limit of a stage's records, for a model of `context` positions."""
    return LengthLimit(data.max_length, data.too_long, context, max_new_tokens, data.on_bad_line)


def sft_dataset(
    conversations: Sequence[Any], tokenizer: Tokenizer, limit: LengthLimit | int, name: str, *, packing: bool = False
) -> SFTDataset | PackedSFTDataset:
    """Return conversations as rows; those without a token to train on are dropped.

    Records that the vocabulary cannot spell are refused or dropped, see `spelling.spelled`; so in all functions below.

    Args:
        limit: of tokens per row.
        name: the split, for messages.

    Raises: UserError where nothing can be learned, or no end token is trained on. So do all functions below.
    """
    limit = LengthLimit.of(limit)
    rows, report = tokenization.conversations(
        spelled(conversations, tokenizer, name, limit.on_bad_line), tokenizer, limit, name
    )
    _check(report)
    if not packing:
        return SFTDataset(rows, tokenizer.padding_id)
    packed = PackedSFTDataset(rows, tokenizer.padding_id, report.limit.tokens)
    tokens = sum(len(ids) for ids, _ in rows)
    padding, unpacked = (1 - tokens / count / report.limit.tokens for count in (len(packed), len(rows)))
    say(f"{name}: packed into {len(packed):,} rows with {padding:.1%} padding ({unpacked:.1%} with one record per row)")
    return packed


def preference_dataset(
    pairs: Sequence[Any], tokenizer: Tokenizer, limit: LengthLimit | int, name: str
) -> PreferenceDataset:
    """Return pairs as token ids; pairs with equal answers are dropped."""
    limit = LengthLimit.of(limit)
    rows, report = tokenization.pairs(spelled(pairs, tokenizer, name, limit.on_bad_line), tokenizer, limit, name)
    _check(report)
    return PreferenceDataset([TokenPair(*row) for row in rows], tokenizer.padding_id)


def unpaired_dataset(
    records: Sequence[Any], tokenizer: Tokenizer, limit: LengthLimit | int, name: str
) -> UnpairedDataset:
    """Return labeled answers as token ids."""
    limit = LengthLimit.of(limit)
    rows, report = tokenization.unpaired(spelled(records, tokenizer, name, limit.on_bad_line), tokenizer, limit, name)
    _check(report, validation.check_labels([good for _, _, good in rows], name))
    return UnpairedDataset([TokenUnpaired(*row) for row in rows], tokenizer.padding_id)


def token_prompts(
    prompts: Sequence[Any], tokenizer: Tokenizer, limit: LengthLimit | int, name: str
) -> list[TokenPrompt]:
    """Return prompts up to the assistant's header; those that leave no room for an answer are dropped."""
    limit = LengthLimit.of(limit)
    rows, report = tokenization.prompts(spelled(prompts, tokenizer, name, limit.on_bad_line), tokenizer, limit, name)
    _check(report)
    return [TokenPrompt(*row) for row in rows]


def _check(report: TokenizationReport, more: Sequence[validation.Finding] = ()) -> None:
    """Print what happened to the records. Raises: UserError where they are of no use."""
    findings = [*validation.check_tokenization(report), *more]
    if not any(finding.level == "refused" for finding in findings):
        say(report.line())
    validation.report_findings(findings)
