"""`tinyllm data inspect`: the data of a stage as it would be trained on, without training. No torch.

One pass over all records counts them, their duplicates, and the prompts that training and validation share; it keeps 25 bytes per record.
Tokens are counted on all records or, beyond `SAMPLE` records, on a uniform sample chosen by a hash of their text, which the report states.
Splitting, tokenization and validation are the code of the training stages (`splits`, `tokenization`, `validation`).
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyllm.console import ProgressBar, show_reading
from tinyllm.data import splits, tokenization, validation
from tinyllm.data.records.formats import TITLES
from tinyllm.data.records.report import Report
from tinyllm.data.records.types import Record, messages_of, prompt_of
from tinyllm.data.splits import BY_HASH, TRAIN, VAL, RecordSource
from tinyllm.data.tokenization import LengthLimit, TokenizationReport
from tinyllm.data.validation import Finding
from tinyllm.diagnostics.inspect.figures import fit, lengths
from tinyllm.diagnostics.inspect.rendered import shown
from tinyllm.diagnostics.inspect.tokenizer import Vocabulary
from tinyllm.errors import UserError, escape_unprintable
from tinyllm.text.tokenizer import Tokenizer

SAMPLE = 20_000  # largest number of records to tokenize
SAMPLE_CHARACTERS = 64_000_000  # largest size of the sample
_TOKENIZE: dict[str, Callable[..., tuple[list[Any], TokenizationReport]]] = {
    "documents": lambda *a: ([], tokenization.documents(*a)),
    "conversations": tokenization.conversations,
    "pairs": tokenization.pairs,
    "unpaired": tokenization.unpaired,
    "prompts": tokenization.prompts,
}


def world_options(config: Any, kind: str) -> dict[str, Any]:
    """Return the options that this configuration passes to the bundled world."""
    names = {"conversations": ("wrong", "flawed"), "pairs": ("noise",), "unpaired": ("noise",), "prompts": ("task",)}
    return {name: getattr(config, name) for name in names.get(kind, ()) if getattr(config, name)}


# --- one pass --------------------------------------------------------------------------------------------------------------------


@dataclass
class Survey:
    """Hashes of all records, and a sample of the records."""

    max_records: int = SAMPLE
    max_characters: int = SAMPLE_CHARACTERS
    side: bytearray = field(default_factory=bytearray)
    openings: array = field(default_factory=lambda: array("Q"))  # of records without a split
    prompts: array = field(default_factory=lambda: array("Q"))
    whole: array = field(default_factory=lambda: array("Q"))
    sample: list[tuple[int, int, Record]] = field(default_factory=list)  # heap of (-key, -number, record)
    characters: int = 0  # of the sample
    val: np.ndarray = field(init=False)  # (N,) bool
    keys: np.ndarray = field(init=False)  # (N,) uint64, of whole records
    prompt_keys: np.ndarray = field(init=False)  # (N,) uint64

    def add(self, side: str, record: Record) -> None:
        """Add a record of `side` TRAIN, VAL, or SPLIT for one that `settle` will assign."""
        messages = messages_of(record)
        key, number = splits.text_hash(messages), len(self.side)
        self.side.append((TRAIN, VAL, BY_HASH).index(side))
        self.whole.append(key)
        self.prompts.append(splits.text_hash(prompt_of(record)))
        if side == BY_HASH:
            self.openings.append(splits.text_hash(splits.opening_of(record)))
        if len(self.sample) >= self.max_records and -key < self.sample[0][0]:
            return
        heapq.heappush(self.sample, (-key, -number, record))
        self.characters += size(record)
        while len(self.sample) > 1 and (len(self.sample) > self.max_records or self.characters > self.max_characters):
            self.characters -= size(heapq.heappop(self.sample)[2])
            self.max_records = min(self.max_records, max(1, len(self.sample)))

    def settle(self, val_fraction: float) -> tuple[bool, tuple[int, int]]:
        """Assign records that have no split. Return whether this was done by record instead of by prompt, and (held out, all)."""
        found = np.frombuffer(self.side, np.uint8)
        self.prompt_keys, self.keys = (np.array(kept, np.uint64) for kept in (self.prompts, self.whole))
        open_ = found == 2
        openings = np.array(self.openings, np.uint64)
        held, by_record = splits.split_by_hash(openings, lambda: self.keys[open_], val_fraction)
        self.val = found == 1
        self.val[open_] = held
        return by_record, (int(held.sum()), len(held))

    def records(self, val: bool) -> list[Record]:
        """Return the sampled records of one split, in the order of the data."""
        return [record for _, number, record in sorted(self.sample, key=lambda s: -s[1]) if self.val[-number] == val]

    def repeated(self) -> dict[str, int]:
        """Count duplicates within each split, validation records also in train, and validation records whose prompt is also in train."""
        train, val = self.keys[~self.val], self.keys[self.val]
        return {
            "train": len(train) - len(np.unique(train)),
            "val": len(val) - len(np.unique(val)),
            "val_in_train": int(np.isin(val, train).sum()),
            "prompts_in_both": int(np.isin(self.prompt_keys[self.val], self.prompt_keys[~self.val]).sum()),
        }


def size(record: Record) -> int:
    """Return the number of characters of a record."""
    return sum(len(message["content"]) for message in messages_of(record))


def survey(config: Any, kind: str) -> tuple[Survey, list[Report], list[Finding]]:
    """Read all records once. A bad row that would stop a stage is reported as a finding and skipped."""
    try:
        return *_pass(config, kind, config.data.on_bad_line), []
    except UserError as error:
        if config.data.on_bad_line != "error" or "-" in (*config.data.train, *config.data.val):
            raise
        try:
            found, reports = _pass(config, kind, "skip")
        except UserError:
            raise error from None
        return found, reports, [Finding("refused", "bad_row", error.what, error.fix, error.where)]


def _pass(config: Any, kind: str, on_bad_line: str) -> tuple[Survey, list[Report]]:
    source = RecordSource(config.data, kind, config.seed, on_bad_line=on_bad_line, **world_options(config, kind))
    found, done = Survey(SAMPLE, SAMPLE_CHARACTERS), 0
    with ProgressBar("inspect", source.size) as bar:
        for number, (side, record) in enumerate(source):
            found.add(side, record)
            done += size(record)
            if number % 256 == 0:
                show_reading(bar, source.bytes_read, done)
    return found, [reader.report for reader in source.readers]


# --- the report ------------------------------------------------------------------------------------------------------------------


def run(config: Any, kind: str, verb: str, vocabulary: Vocabulary, *, shown: int = 3) -> dict[str, Any]:
    """Return the report of a stage's data: counts, lengths, findings, and examples token by token.

    Args:
        kind: the kind of records that the stage trains on.
        verb: the command of the stage.
        vocabulary: the tokenizer, and the context of the model; without one lengths are in characters and words.
        shown: number of records shown token by token.

    Raises: UserError if the data cannot be read.
    """
    found, reports, findings = survey(config, kind)
    by_record, split = found.settle(config.data.val_fraction)
    repeated = found.repeated()
    total = len(found.side)
    held = int(found.val.sum())
    if kind == "documents":
        findings += validation.check_splits(total - held, held, 0, data=config.data, what="documents")
    else:
        shared = repeated["prompts_in_both"]
        findings += validation.check_splits(
            total - held, held, shared, data=config.data, split=split, by_record=by_record
        )
    limit = length_limit(config, kind, vocabulary.context)
    findings += _context_findings(config, vocabulary.context)
    tokenizer, picked = vocabulary.tokenizer, {name: found.records(name == VAL) for name in (TRAIN, VAL)}
    tokenized = (
        {} if tokenizer is None else {n: _tokenize(kind, r, tokenizer, limit, n) for n, r in picked.items() if r}
    )
    sampled = len(found.sample)
    findings += _row_findings(
        config, kind, picked, tokenized, "" if sampled == total else f" (of {sampled:,} sampled records)"
    )
    everything = [*picked[TRAIN], *picked[VAL]]
    return {
        "schema_version": 1,
        "stage": "inspect",
        "verb": verb,
        "kind": kind,
        "sources": _sources(config, reports),
        "records": {"train": total - held, "val": held},
        "dropped": _tallies(reports, "dropped"),
        "mended": _tallies(reports, "repaired"),
        "split": _split(config, kind, reports, by_record),
        "repeated": repeated,
        "sample": {"records": sampled, "of": total},
        "tokenizer": vocabulary.to_dict(),
        "lengths": lengths(everything, tokenized),
        "fit": fit(tokenized, limit),
        "findings": [{k: escape_unprintable(v, keep="\n") for k, v in f.to_dict().items()} for f in findings],
        "refused": any(f.level == "refused" for f in findings),
        "examples": _examples(picked[TRAIN] or picked[VAL], tokenized.get(TRAIN), tokenizer, limit, shown),
    }


def length_limit(config: Any, kind: str, context: int | None) -> LengthLimit:
    """Return the length limit of a record in the stage of this configuration."""
    if kind == "documents":
        return LengthLimit(config.data.max_length)
    max_new_tokens = config.rollout.max_new_tokens if kind == "prompts" else 0
    return LengthLimit(config.data.max_length, config.data.too_long, context, max_new_tokens)


def _context_findings(config: Any, context: int | None) -> list[Finding]:
    if context is None or config.data.max_length <= context:
        return []
    what = f"data.max_length {config.data.max_length} exceeds the model's context of {context} tokens"
    return [Finding("refused", "context", what, f"set it to {context}", "data.max_length")]


def _tokenize(
    kind: str, records: Sequence[Record], tokenizer: Tokenizer, limit: LengthLimit, name: str
) -> TokenizationReport:
    return _TOKENIZE[kind](records, tokenizer, limit, name)[1]


def _row_findings(
    config: Any,
    kind: str,
    picked: Mapping[str, Sequence[Any]],
    tokenized: Mapping[str, TokenizationReport],
    of_sample: str,
) -> list[Finding]:
    """Return the findings of `validation` for the rows of both splits. Counts of a sample are marked as such."""
    found = [finding for report in tokenized.values() for finding in validation.check_tokenization(report)]
    if kind == "unpaired":
        found += [one for side in (TRAIN, VAL) for one in validation.check_labels([r.good for r in picked[side]], side)]
    kept = int(tokenized[TRAIN].kept.sum()) if TRAIN in tokenized else len(picked[TRAIN])
    if of_sample or not kept:
        return [Finding(f.level, f.rule, f.what + of_sample, f.fix, f.where) for f in found]
    size, batch = config.data.max_length, config.train.batch_size
    if kind == "documents" and TRAIN not in tokenized:
        return found
    if kind == "documents":
        return found + validation.check_batch_size(
            int(tokenized[TRAIN].lengths.sum()) // size, batch, f"rows of {size} tokens"
        )
    if kind == "prompts":
        return found + validation.check_rollout_size(
            kept, batch * config.rollout.minibatches // config.rollout.group_size
        )
    if kind == "conversations" and config.packing:
        return found
    return found + validation.check_batch_size(kept, batch, "records" if kind == "conversations" else TITLES[kind])


def _split(config: Any, kind: str, reports: Sequence[Report], by_record: bool) -> str:
    if config.data.val:
        return "val"
    if not reports:
        return "world"
    return "text" if kind == "documents" else "record" if by_record else "prompt"


def _sources(config: Any, reports: Sequence[Report]) -> list[dict[str, Any]]:
    world = [source for source in (*config.data.train, *config.data.val) if source.startswith("world")]
    found: list[dict[str, Any]] = [{"source": source, "format": "world", "notes": []} for source in world]
    for report in reports:
        for file in report.files:
            named = {"source": escape_unprintable(file.source), "format": file.format, "rows": file.rows}
            left_out = [f"without the column {name}" for name in file.ignored]
            notes = [escape_unprintable(note) for note in [*file.notes, *left_out[:8], *["…"] * (len(left_out) > 8)]]
            found.append(named | {"records": file.records, "notes": notes})
    return found


def _tallies(reports: Sequence[Report], which: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for report in reports:
        for reason, tally in getattr(report, which).items():
            kept = found.setdefault(escape_unprintable(reason), {"count": 0, "places": []})
            kept["count"] += tally.count
            kept["places"] = [*kept["places"], *map(escape_unprintable, tally.locations)][:5]
    return found


def _examples(
    found: Sequence[Record],
    report: TokenizationReport | None,
    tokenizer: Tokenizer | None,
    limit: LengthLimit,
    max_records: int,
) -> list[dict[str, Any]]:
    """Return the first records token by token. The last of them is one that is too long, if there is one."""
    chosen = list(range(min(max_records, len(found))))
    if chosen and report is not None and report.over_limit.any() and not report.over_limit[chosen].any():
        chosen[-1] = int(report.over_limit.argmax())
    return [{"record": i + 1, "rows": shown(found[i], tokenizer, limit)} for i in chosen]
