"""Records to token rows of limited length, with a report of what was truncated, dropped and trained on. No torch.

`data.too_long` decides what happens to longer records. Truncation removes: the end of a conversation; the beginning of a prompt
before an answer, as long as the answer has less than half of the row; and then the end of the answer, of both answers of a pair
separately. Prompts for rollouts are never truncated, since that would change the question. `validation` checks the reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyllm.data.records.types import Conversation, Document, Pair, Prompt, Record, UnpairedPreference, messages_of
from tinyllm.text import chat
from tinyllm.text.chat import Message
from tinyllm.text.tokenizer import Tokenizer

_BATCH = 1024  # conversations rendered together: as Python objects their ids take five times the memory of the arrays
_TEMPLATES = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>", "<start_of_turn>", "[INST]", "[/INST]")

MaskedRow = tuple[Any, Any]  # arrays: ids (T,) int64, mask of the trained tokens (T,) bool


@dataclass(frozen=True)
class LengthLimit:
    """The number of tokens a record may have, and the treatment of longer ones.

    Args:
        max_length: `data.max_length`.
        too_long: `data.too_long`: truncate, drop or error.
        context: positions of the model, if known.
        max_new_tokens: reserved for the answer to a prompt.
        on_bad_line: `data.on_bad_line`: what happens to records that the vocabulary cannot spell (`data.spelling`).
    """

    max_length: int
    too_long: str = "truncate"
    context: int | None = None
    max_new_tokens: int = 0
    on_bad_line: str = "error"

    @classmethod
    def of(cls, limit: LengthLimit | int) -> LengthLimit:
        return limit if isinstance(limit, LengthLimit) else cls(limit)

    @property
    def tokens(self) -> int:
        """The maximum number of tokens of a record."""
        return self.max_length if self.context is None else min(self.max_length, self.context - self.max_new_tokens)

    @property
    def truncates(self) -> bool:
        return self.too_long == "truncate"

    @property
    def setting(self) -> str:
        """The setting that determines `tokens`."""
        return "data.max_length" if self.tokens == self.max_length else "rollout.max_new_tokens"


@dataclass
class TokenizationReport:
    """The tokenization of the records of one split, one array entry per record.

    Args:
        name: train or val, or a description of the records.
        has_answers: whether there are answers to train on; prompts for rollouts have none.
        end_token: the token that ends an answer, for messages.
    """

    name: str
    limit: LengthLimit
    total: int
    has_answers: bool = True
    end_token: str = "<|im_end|>"
    lengths: np.ndarray = field(init=False)  # (N,) tokens before truncation; of a pair with its longer answer
    trained: np.ndarray = field(init=False)  # (N,) number of tokens that are trained on
    kept: np.ndarray = field(init=False)  # (N,) the record is used
    trains_end: np.ndarray = field(init=False)  # (N,) an end token is trained on; of a pair, that of the chosen answer
    truncated: np.ndarray = field(init=False)  # (N,) an answer lost its end token
    equal: np.ndarray = field(init=False)  # (N,) chosen and rejected are equal after truncation
    with_control_tokens: int = 0  # records with control tokens written out in their text
    control_token: str = ""  # one of these tokens

    def __post_init__(self) -> None:
        self.lengths, self.trained = np.zeros(self.total, np.int64), np.zeros(self.total, np.int64)
        self.kept, self.trains_end, self.truncated, self.equal = (np.zeros(self.total, bool) for _ in range(4))

    @property
    def over_limit(self) -> np.ndarray:
        """(N,) bool: the record is longer than the limit."""
        return self.lengths > self.limit.tokens

    def line(self) -> str:
        """Return the number of records and of those that were changed or dropped, for a person."""
        over_limit, limit = self.over_limit, f"{self.limit.tokens:,} tokens"
        lost = ~self.kept & ~self.equal
        truncates = self.limit.truncates
        counts = {
            f"truncated to {limit}": self.kept & over_limit,
            f"dropped as longer than {limit}": lost & over_limit & (not truncates or not self.has_answers),
            "dropped with no token to train on": lost & (truncates | ~over_limit) & self.has_answers,
            "dropped with equal answers": self.equal,
        }
        parts = [f"{int(mask.sum()):,} {outcome}" for outcome, mask in counts.items() if mask.any()]
        return f"{self.name}: {int(self.kept.sum()):,} records" + (f" ({', '.join(parts)})" if parts else "")


# --- rows ------------------------------------------------------------------------------------------------------------------------


def conversations(
    records: Sequence[Conversation], tokenizer: Tokenizer, limit: LengthLimit, name: str
) -> tuple[list[MaskedRow], TokenizationReport]:
    """Return rows with the mask of the assistant's tokens; rows without a token to train on are dropped."""
    report = _report(records, tokenizer, limit, name)
    rows: list[MaskedRow] = []
    for start in range(0, len(records), _BATCH):
        part = slice(start, min(start + _BATCH, len(records)))
        messages = [record.messages for record in records[part]]
        found = chat.render_many(tokenizer, messages, name=f"{name} record", first=start + 1)
        whole = [_arrays(rendered) for rendered in found]
        report.lengths[part] = [len(ids) for ids, _ in whole]
        # the first token beyond the limit belongs to an answer
        report.truncated[part] = [len(mask) > limit.tokens and mask[limit.tokens] for _, mask in whole]
        short = [(ids[: limit.tokens], mask[: limit.tokens]) for ids, mask in whole]
        report.trained[part], report.trains_end[part] = _count_trained(short, tokenizer.stop_ids)
        fits = report.lengths[part] <= limit.tokens
        report.kept[part] = (report.trained[part] > 0) & (fits | limit.truncates)
        rows += [row for row, keep in zip(short, report.kept[part].tolist(), strict=True) if keep]
    return rows, report


def _arrays(rendered: chat.Rendered) -> MaskedRow:
    return np.array(rendered.ids, np.int64), np.array(rendered.mask, bool)


def _count_trained(rows: Sequence[MaskedRow], stop_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row the number of trained tokens, and whether an end token is among them."""
    starts = np.cumsum([0, *(len(ids) for ids, _ in rows)])[:-1]
    mask = np.concatenate([mask for _, mask in rows])
    ends = mask & np.isin(np.concatenate([ids for ids, _ in rows]), stop_ids)
    return np.add.reduceat(mask, starts, dtype=np.int64), np.logical_or.reduceat(ends, starts)


def pairs(
    records: Sequence[Pair], tokenizer: Tokenizer, limit: LengthLimit, name: str
) -> tuple[list[tuple[list[int], list[int], list[int], float]], TokenizationReport]:
    """Return (prompt, chosen, rejected, margin) of every pair; pairs with equal answers are dropped."""
    report = _report(records, tokenizer, limit, name)
    rows: list[tuple[list[int], list[int], list[int], float]] = []
    for i, pair in enumerate(records):
        (prompt, chosen), (_, rejected) = (
            chat.completion_ids(tokenizer, pair.prompt, answer, name=f"{name} record", number=i + 1)
            for answer in (pair.chosen, pair.rejected)
        )
        prompt, (chosen, rejected) = _truncate(report, i, prompt, [chosen, rejected], tokenizer.stop_ids)
        report.equal[i] = chosen == rejected
        if report.equal[i]:
            report.kept[i], report.trained[i] = False, 0
        if report.kept[i]:
            rows.append((prompt, chosen, rejected, pair.margin or 0.0))
    return rows, report


def unpaired(
    records: Sequence[UnpairedPreference], tokenizer: Tokenizer, limit: LengthLimit, name: str
) -> tuple[list[tuple[list[int], list[int], bool]], TokenizationReport]:
    """Return (prompt, answer, whether it is a good one) of every record, truncated as `pairs` are."""
    report = _report(records, tokenizer, limit, name)
    rows: list[tuple[list[int], list[int], bool]] = []
    for i, record in enumerate(records):
        prompt, answer = chat.completion_ids(
            tokenizer, record.prompt, record.completion, name=f"{name} record", number=i + 1
        )
        prompt, (answer,) = _truncate(report, i, prompt, [answer], tokenizer.stop_ids)
        if report.kept[i]:
            rows.append((prompt, answer, record.good))
    return rows, report


def _truncate(
    report: TokenizationReport, i: int, prompt: list[int], answers: list[list[int]], stop_ids: Sequence[int]
) -> tuple[list[int], list[list[int]]]:
    """Return prompt and answers cut to the limit; fill in entry `i` of the report."""
    longest, limit = max(map(len, answers)), report.limit.tokens
    report.lengths[i] = len(prompt) + longest
    prompt = prompt[prompt_tokens_cut(len(prompt), longest, limit) :]
    short = [answer[: limit - len(prompt)] for answer in answers]
    report.trained[i] = sum(map(len, short))
    report.truncated[i] = any(len(cut) < len(whole) for cut, whole in zip(short, answers, strict=True))
    report.trains_end[i] = short[0][-1] in stop_ids
    report.kept[i] = report.limit.truncates or report.lengths[i] <= limit
    return prompt, short


def prompt_tokens_cut(prompt: int, longest: int, limit: int) -> int:
    """Return the number of tokens to remove from the beginning of a prompt, so that the longest answer fits.

    Args: all in tokens. A prompt keeps half of the row.
    """
    return 0 if prompt + longest <= limit else max(0, prompt - max(limit // 2, limit - longest))


def prompts(
    records: Sequence[Prompt], tokenizer: Tokenizer, limit: LengthLimit, name: str
) -> tuple[list[tuple[list[int], dict[str, Any], str, bool]], TokenizationReport]:
    """Return (ids up to the assistant's header, columns for the rewards, place, plain); prompts over the limit are dropped."""
    report = _report(records, tokenizer, limit, name, has_answers=False)
    messages = [prompt.messages for prompt in records]
    rendered = chat.render_many(tokenizer, messages, generation_prompt=True, name=f"{name} record")
    report.lengths[:] = [len(r.ids) for r in rendered]
    report.kept[:] = ~report.over_limit
    rows = [
        (r.ids, {"prompt": [_said(m) for m in p.messages], **p.columns}, p.place, p.plain)
        for r, p, keep in zip(rendered, records, report.kept.tolist(), strict=True)
        if keep
    ]
    return rows, report


def _said(message: Message) -> Message:
    """Return a message as rewards get it."""
    return Message(role=message["role"], content=message["content"])


def documents(records: Sequence[Document], tokenizer: Tokenizer, limit: LengthLimit, name: str) -> TokenizationReport:
    """Report on documents with their end tokens. None is truncated or dropped: long ones span several rows."""
    end_token = tokenizer.decode([tokenizer.endoftext], skip_special=False)
    report = TokenizationReport(name, limit, len(records), end_token=end_token)
    for start in range(0, len(records), _BATCH):
        part = slice(start, min(start + _BATCH, len(records)))
        report.lengths[part] = [len(ids) + 1 for ids in tokenizer.encode_batch([d.text for d in records[part]])]
    report.trained[:], report.kept[:], report.trains_end[:] = report.lengths, True, True
    return report


def _report(
    records: Sequence[Record], tokenizer: Tokenizer, limit: LengthLimit, name: str, *, has_answers: bool = True
) -> TokenizationReport:
    end_token = tokenizer.decode([tokenizer.stop_ids[0]], skip_special=False)
    report = TokenizationReport(name, limit, len(records), has_answers, end_token)
    report.with_control_tokens, report.control_token = count_control_tokens(records, tokenizer)
    return report


def count_control_tokens(records: Sequence[Record], tokenizer: Tokenizer) -> tuple[int, str]:
    """Return the number of records with control tokens of a chat template in their text, and the first of these tokens."""
    own = [i for i in (tokenizer.bos, tokenizer.endoftext) if i is not None]
    tokens = tuple(dict.fromkeys([*_TEMPLATES, *(tokenizer.decode([i], skip_special=False) for i in own)]))
    count, first = 0, ""
    for record in records:
        found = next((token for m in messages_of(record) for token in tokens if token in m["content"]), "")
        count, first = count + bool(found), first or found
    return count, first
