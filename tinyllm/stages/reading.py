"""Records as data sets: token rows made, looked over, and ready to be put into batches. What is cut or dropped is said aloud."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyllm.data.datasets import Answers, Judgements, Preferences, TokenJudgement, TokenPair
from tinyllm.data.packing import Packed
from tinyllm.rollout.judge import TokenPrompt
from tinyllm.stages import preflight, rows
from tinyllm.stages.config import TunedConfig, is_world
from tinyllm.stages.rows import Facts, Room
from tinyllm.stages.sides import read_split
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.progress import say

__all__ = ["answers_from", "is_world", "judgements_from", "preferences_from", "prompts_from", "read_split", "room_of"]


def room_of(config: TunedConfig, context: int, max_new_tokens: int = 0) -> Room:
    """What a record of this stage may take, with a model of so many positions."""
    return Room(config.data.max_length, config.data.too_long, context, max_new_tokens)


def answers_from(
    conversations: Sequence[Any], tokenizer: Tokenizer, room: Room | int, what: str, *, packing: bool = False
) -> Answers | Packed:
    """Conversations as rows; those with nothing left to learn are dropped.

    Raises: UserError where nothing could be learned, or nobody would learn to stop (so do all of these).
    """
    kept, facts = rows.conversations(conversations, tokenizer, Room.of(room), what)
    _settle(facts)
    if not packing:
        return Answers(kept, _pad(tokenizer))
    packed = Packed(kept, _pad(tokenizer), facts.room.limit)
    tokens = sum(len(ids) for ids, _ in kept)
    padding, alone = (1 - tokens / count / facts.room.limit for count in (len(packed), len(kept)))
    told = f"{padding:.1%} of them is padding, with one record a row it would be {alone:.1%}"
    say(f"{what}: packed into {len(packed):,} rows: {told}")
    return packed


def preferences_from(pairs: Sequence[Any], tokenizer: Tokenizer, room: Room | int, what: str) -> Preferences:
    """Pairs as token ids; equal answers teach nothing and go."""
    kept, facts = rows.pairs(pairs, tokenizer, Room.of(room), what)
    _settle(facts)
    return Preferences([TokenPair(*pair) for pair in kept], _pad(tokenizer))


def judgements_from(judgements: Sequence[Any], tokenizer: Tokenizer, room: Room | int, what: str) -> Judgements:
    """Judged answers as token ids."""
    kept, facts = rows.judgements(judgements, tokenizer, Room.of(room), what)
    _settle(facts, preflight.labels([good for _, _, good in kept], what))
    return Judgements([TokenJudgement(*judgement) for judgement in kept], _pad(tokenizer))


def prompts_from(prompts: Sequence[Any], tokenizer: Tokenizer, room: Room | int, what: str) -> list[TokenPrompt]:
    """Prompts up to the assistant's header; those that leave no room for an answer are dropped."""
    kept, facts = rows.prompts(prompts, tokenizer, Room.of(room), what)
    _settle(facts)
    return [TokenPrompt(*prompt) for prompt in kept]


def _settle(facts: Facts, more: Sequence[preflight.Finding] = ()) -> None:
    """Say what became of the records, and end here where they are of no use."""
    findings = [*preflight.rows(facts), *more]
    if not any(finding.level == "refused" for finding in findings):
        say(facts.line())
    preflight.settle(findings)


def _pad(tokenizer: Tokenizer) -> int:
    return tokenizer.endoftext if tokenizer.pad is None else tokenizer.pad
