"""`tinyllm data inspect`: the data of a stage as it would be trained on, without training. No torch.

One pass over all records counts them, their duplicates, and the prompts that training and validation share; it keeps 25 bytes per record.
Tokens are counted on all records or, beyond `SAMPLE` records, on a uniform sample chosen by a hash of their text, which the report states.
Splitting, tokenization and validation are the code of the training stages (`splits`, `tokenization`, `validation`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinyllm.console import ProgressBar, show_reading
from tinyllm.data import tokenization, validation
from tinyllm.data.record_source import SPLITS, TEST, TRAIN, VAL, RecordSource, share_for_test
from tinyllm.data.records.formats import TITLES
from tinyllm.data.records.report import Report
from tinyllm.data.records.types import Record, with_system
from tinyllm.data.spelling import CANNOT, Fault, refusal, told_apart
from tinyllm.data.tokenization import LengthLimit, TokenizationReport
from tinyllm.data.tokens.documents import documents_for_test
from tinyllm.data.validation import Finding
from tinyllm.diagnostics.inspect.figures import fit, lengths
from tinyllm.diagnostics.inspect.rendered import shown
from tinyllm.diagnostics.inspect.sample import SAMPLE, SAMPLE_CHARACTERS, Survey, size
from tinyllm.diagnostics.inspect.tokenizer import Vocabulary
from tinyllm.errors import UserError, escape_unprintable
from tinyllm.rollout import checks
from tinyllm.text.tokenizer import Tokenizer

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


def survey(config: Any, kind: str) -> tuple[Survey, list[Report], list[Finding]]:
    """Read all records once. A bad row that would stop a stage is reported as a finding and skipped."""
    try:
        return *_pass(config, kind, config.data.on_bad_line), []
    except UserError as error:
        if config.data.on_bad_line != "error" or "-" in config.data.sources:
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
    by_record = _settle(found, config, kind, findings)
    repeated = found.repeated()
    limit = length_limit(config, kind, vocabulary.context)
    findings += _context_findings(config, vocabulary.context)
    tokenizer = vocabulary.tokenizer
    picked: dict[str, Sequence[Any]] = {name: found.records(name) for name in SPLITS}
    if kind != "documents" and config.chat.system.strip():
        picked = {name: [with_system(r, config.chat.system) for r in records] for name, records in picked.items()}
    total, sampled = int(found.kept.sum()), sum(map(len, picked.values()))
    picked, faults = _spelled(picked, tokenizer, config.data.on_bad_line, findings)
    unspelled = {name: len(of_split) for name, of_split in faults.items()} if sampled == total else {}
    total -= sum(unspelled.values())
    tokenized = (
        {} if tokenizer is None else {n: _tokenize(kind, r, tokenizer, limit, n) for n, r in picked.items() if r}
    )
    sampled = sum(map(len, picked.values()))  # without what cannot be spelled
    findings += _row_findings(
        config, kind, picked, tokenized, "" if sampled == total else f" (of {sampled:,} sampled records)"
    )
    findings += checks.findings(config.rewards, picked) if kind == "prompts" else []
    findings.sort(key=lambda finding: finding.level == "note")  # notes come last
    everything = [record for records in picked.values() for record in records]
    return {
        "schema_version": 1,
        "stage": "inspect",
        "verb": verb,
        "kind": kind,
        "sources": _sources(config, reports),
        "records": _counts(found, config, kind, picked, tokenizer, unspelled),
        "dropped": _tallies(reports, "dropped") | _unspelled(faults),
        "mended": _tallies(reports, "repaired"),
        "removed": _removed(config, int((~found.kept).sum())) if kind == "documents" else None,
        "split": _split(config, kind, reports, by_record),
        "repeated": repeated,
        "sample": {"records": sampled, "of": total},
        "tokenizer": vocabulary.to_dict(),
        "lengths": lengths(everything, tokenized),
        "fit": fit(tokenized, limit),
        "rewards": checks.described(config.rewards) if kind == "prompts" else {},
        "findings": [{k: escape_unprintable(v, keep="\n") for k, v in f.to_dict().items()} for f in findings],
        "refused": any(f.level == "refused" for f in findings),
        "examples": _examples(picked[TRAIN] or picked[VAL], tokenized.get(TRAIN), tokenizer, limit, shown),
    }


def _settle(found: Survey, config: Any, kind: str, findings: list[Finding]) -> bool:
    """Assign the records to their splits, and add what is to be said of these. Return whether they were split by record."""
    data = config.data
    if kind == "documents":
        found.settle_documents(data.val_fraction, exact=data.dedup != "none")
        findings += validation.check_splits(found.count(TRAIN), found.count(VAL), 0, data=data, what="documents")
        return False
    by_record, split = found.settle(data.val_fraction, share_for_test(data))
    repeated, counts = found.repeated(), (found.count(TRAIN), found.count(VAL))
    shared = repeated["prompts_in_both"]
    findings += validation.check_splits(*counts, shared, data=data, split=split, by_record=by_record)
    findings += found.label_findings
    if data.test:
        shared_test = (repeated["test_prompts_in_train"], repeated["test_prompts_in_val"])
        findings += validation.check_test(found.count(TEST), *shared_test, data=data)
    return by_record


def _spelled(
    picked: Mapping[str, Sequence[Any]], tokenizer: Tokenizer | None, on_bad_line: str, findings: list[Finding]
) -> tuple[dict[str, Sequence[Any]], dict[str, list[Fault]]]:
    """Return the records of each split that the vocabulary can spell, and what is wrong with the others. What stops the stage is added
    to the findings."""
    if tokenizer is None:
        return dict(picked), {}
    parts = {name: told_apart(records, tokenizer, name) for name, records in picked.items()}
    errors = (refusal(faults, len(kept), name, on_bad_line) for name, (kept, faults) in parts.items())
    if error := next(filter(None, errors), None):
        findings.append(Finding("refused", "unspellable", error.what, error.fix, error.where))
    return {name: kept for name, (kept, _) in parts.items()}, {name: faults for name, (_, faults) in parts.items()}


def _unspelled(faults: Mapping[str, Sequence[Fault]]) -> dict[str, dict[str, Any]]:
    """Return the records that cannot be spelled as an entry of what was dropped."""
    places = [escape_unprintable(fault.place) for of_split in faults.values() for fault in of_split]
    return {CANNOT: {"count": len(places), "places": places[:5]}} if places else {}


def _counts(
    found: Survey,
    config: Any,
    kind: str,
    picked: Mapping[str, Sequence[Any]],
    tokenizer: Tokenizer | None,
    unspelled: Mapping[str, int],
) -> dict[str, int | None]:
    """Return the number of records in each split. Documents are divided into val and test by their tokens: without a tokenizer, and of
    a sample, test is None and val counts both.
    """
    whole = {split: found.count(split) - unspelled.get(split, 0) for split in SPLITS}
    counts: dict[str, int | None] = dict(whole)
    share, held = share_for_test(config.data), picked[VAL]
    if kind != "documents" or not share or counts[TEST]:
        return counts
    if tokenizer is None or len(held) < whole[VAL]:
        return counts | {TEST: None}
    test = sum(documents_for_test([record.text for record in held], tokenizer, share))
    return counts | {VAL: len(held) - test, TEST: test}


def _removed(config: Any, exact: int) -> dict[str, Any]:
    """Return the number of exact duplicates that preparation removes; `near` ones, if it looks for them, are not counted here."""
    return {"dedup": config.data.dedup, "exact": exact}


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
        found += [one for side in SPLITS for one in validation.check_labels([r.good for r in picked[side]], side)]
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
    world = [source for source in config.data.sources if source.startswith("world")]
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
