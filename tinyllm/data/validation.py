"""Checks of the data of a stage, before anything is trained: refused where nothing can be learned, otherwise a warning.

The token rows are checked by means of the reports that `tokenization` makes, so nothing is read twice. `tinyllm data inspect` shows
the same findings without training. The contents of files (roles, empty texts, columns) are checked by the readers. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tinyllm.console import say
from tinyllm.errors import UserError

if TYPE_CHECKING:
    from tinyllm.data.config import DataConfig
    from tinyllm.data.tokenization import TokenizationReport

FEW_ENDS = 0.5  # warn if a smaller share of the records trains an end token, even if none was truncated
FEW_HELD_OUT = 5  # say so of fewer validation records, which choose the best checkpoint
MAX_HELD_OUT = 0.5  # warn if a larger share is held out, unless data.val_fraction is larger


@dataclass(frozen=True)
class Finding:
    """One fault. `refused` ends a stage with exit code 2, a `warning` or a `note` is one line."""

    level: Literal["refused", "warning", "note"]
    rule: str
    what: str
    fix: str = ""
    where: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def report_findings(findings: Iterable[Finding]) -> None:
    """Print the warnings and notes. Raises: UserError for the first finding that is refused."""
    findings = list(findings)
    for finding in findings:
        if finding.level != "refused":
            say(f"{finding.level}: {finding.what}" + f"; {finding.fix}" * bool(finding.fix))
    for finding in findings:
        if finding.level == "refused":
            raise UserError(finding.what, where=finding.where, fix=finding.fix)


# --- before tokenization ---------------------------------------------------------------------------------------------------------


def check_splits(
    train: int,
    val: int,
    shared: int,
    *,
    data: DataConfig,
    split: tuple[int, int] = (0, 0),
    by_record: bool = False,
    what: str = "records",
) -> list[Finding]:
    """Check that there are records in both splits, and that no prompt is in both.

    Args:
        train, val: number of records.
        shared: number of held-out records whose prompt is trained on.
        split: of the records split by prompt, the number held out and the total.
        by_record: all records have one prompt and were split by record.
        what: a noun for the records.
    """
    if not train or not val:
        fix = f"name more {what} in data.train" + ", or some in data.val" * (not data.val)
        message = f"{train:,} {what} to train on and {val:,} to validate on"
        return [Finding("refused", "empty_side", message, fix, "data")]
    findings = []
    if not data.val and what == "records" and val < FEW_HELD_OUT <= train:
        message = f"{val:,} of {train + val:,} {what} validate: figures of so few are mostly chance"
        findings.append(Finding("note", "few_held_out", message, "raise data.val_fraction, or name data.val"))
    if by_record:
        message = f"all {split[1]:,} {what} have the same prompt: they are split by their answers"
        findings.append(Finding("warning", "one_prompt", message))
    elif shared:
        message = (
            f"{shared:,} of {val:,} val {what} have a prompt that is trained on: validation looks better than it is"
        )
        fix = "remove them from train or val, or leave data.val empty" if data.val else ""
        findings.append(Finding("warning", "shared_prompts", message, fix, "data.val"))
    held, total = split
    if not by_record and data.val_fraction < MAX_HELD_OUT < held / max(1, total):
        message = f"{held:,} of {total:,} {what} are held out: many share a prompt, and a prompt is in one split"
        findings.append(Finding("warning", "much_held_out", message, "name data.val"))
    return findings


def check_test(test: int, trained: int, selecting: int, *, data: DataConfig) -> list[Finding]:
    """Report records of data.test that are not independent.

    Args: test, trained, selecting: number of test records, and of those whose prompt is also in train and in val.
    """
    same = sorted(set(data.test) & set(data.val))
    findings = []
    for shared, split, why in (
        (trained, "train", "is trained on: the test figures look better than they are"),
        (selecting, "val", "is in val: the checkpoint that they examine was chosen by them"),
    ):
        if shared:
            message = f"{shared:,} of {test:,} test records have a prompt that {why}"
            if split == "val" and same:
                message += f" (data.val and data.test both name {same[0]})"
            findings.append(
                Finding("warning", "shared_test", message, f"remove them from {split} or test", "data.test")
            )
    return findings


def check_same_documents(shared: int, test: int) -> list[Finding]:
    """Report documents of data.test that are also in val. Args: shared, test: their number, and that of all test documents."""
    if not shared:
        return []
    message = f"{shared:,} of {test:,} test documents are in val: the checkpoint that they examine was chosen by them"
    return [Finding("warning", "shared_test", message, "remove them from val or test", "data.test")]


def check_split_labels(labels: np.ndarray, held: np.ndarray) -> list[Finding]:
    """Check that labeled answers, split by prompt, leave both labels in both splits.

    Args: labels, held: (N,) bool, whether an answer is good, and whether it is held out.
    """
    for name, good in (("good", True), ("bad", False)):
        sides = set(held[labels == good].tolist())
        if len(sides) == 1 and len(set(labels.tolist())) == 2:
            count, missing = int((labels == good).sum()), "training" if True in sides else "validation"
            message = f"{count:,} of {len(labels):,} answers are {name}, all to one prompt: none is left for {missing}"
            fix = f"name a file with answers of both labels in data.val, or add {name} answers to other prompts"
            return [Finding("refused", "one_label", message, fix, "data")]
    return []


def check_batch_size(records: int, batch_size: int, what: str = "records") -> list[Finding]:
    """Check that a step uses every record at most once."""
    if records >= batch_size:
        return []
    message = f"train: {records:,} {what} for a batch of {batch_size:,}: every step uses some of them more than once"
    fix = f"set train.batch_size to {records}" + " or less" * (records > 1)
    return [Finding("warning", "small_data", message, fix, "train.batch_size")]


def check_rollout_size(prompts: int, needed: int) -> list[Finding]:
    """Check that a rollout of `needed` prompts uses every prompt at most once."""
    if prompts >= needed:
        return []
    message = f"train: {prompts:,} prompts for rollouts of {needed:,}: every rollout uses some of them more than once"
    return [Finding("warning", "small_data", message, "add prompts, or lower train.batch_size", "train.batch_size")]


def check_columns(missing: int, total: int, needed: Sequence[str], split: str) -> list[Finding]:
    """Report prompts that lack a column the rewards read; these are dropped."""
    if not missing:
        return []
    names = " and ".join(map(repr, needed))
    message = f"{missing:,} of {total:,} {split} prompts have no column {names}, which the rewards read: dropped"
    return [Finding("warning", "missing_column", message, "", "rewards")]


# --- after tokenization ----------------------------------------------------------------------------------------------------------


def check_tokenization(report: TokenizationReport) -> list[Finding]:
    """Check the token rows of one split. The training split must meet stricter conditions than the held-out one."""
    if not report.total:
        return [Finding("refused", "nothing_left", f"0 {report.name} records", "name records in data.train", "data")]
    if refused := _refused(report):
        return [refused]
    kept, findings = int(report.kept.sum()), _dropped(report)
    truncated = int((report.kept & report.truncated).sum())
    ends = int((report.kept & report.trains_end).sum())
    if report.has_answers and not ends:
        findings.append(_no_end(report, kept, truncated))
    elif truncated:
        message = f"{truncated:,} of {kept:,} {report.name} records lose the end of an answer ({truncated / kept:.1%})"
        message += f", and only {ends / kept:.0%} train {report.end_token}" if ends < FEW_ENDS * kept else ""
        findings.append(Finding("warning", "cut_off", message, _increase_limit(report), "data.max_length"))
    elif report.has_answers and ends < FEW_ENDS * kept:
        message = f"only {ends:,} of {kept:,} {report.name} records train the end token {report.end_token}"
        findings.append(Finding("warning", "few_ends", message, "end more answers with the end token"))
    if report.with_control_tokens:
        message = (
            f"{report.with_control_tokens:,} of {report.total:,} {report.name} records have control tokens in their text "
            f"({report.control_token}), which are encoded as text"
        )
        findings.append(Finding("warning", "spelled_tokens", message, "use messages without a chat template applied"))
    return findings


def _refused(report: TokenizationReport) -> Finding | None:
    """Return the finding where no record is left, or where one is too long and `data.too_long` is error."""
    limit, long = report.limit, int(report.over_limit.sum())
    if limit.too_long == "error" and long:
        message = (
            f"{long:,} of {report.total:,} {report.name} records are longer than {limit.tokens:,} tokens; "
            f"the longest has {int(report.lengths.max()):,}"
        )
        fix = f"{_increase_limit(report)}, or data.too_long to drop"
        return Finding("refused", "too_long", message, fix, limit.setting)
    if report.kept.any():
        return None
    equal = int(report.equal.sum())
    number = "all" if equal == report.total else f"{equal:,}"
    reason = f": {number} have equal answers after truncation" if equal else ""
    message = f"none of {report.total:,} {report.name} records can be trained on at {limit.tokens:,} tokens{reason}"
    fix = _increase_limit(report) if long else "use records with answers"
    return Finding("refused", "nothing_left", message, fix, limit.setting)


def _dropped(report: TokenizationReport) -> list[Finding]:
    """Return a warning for each reason for which records are dropped."""
    long, lost = report.over_limit, ~report.kept & ~report.equal
    reasons = {
        "leave no room for an answer": lost & long & (not report.has_answers),
        "have no answer left to train on": lost & (report.limit.truncates | ~long) & report.has_answers,
        "have equal answers after truncation": report.equal & long,
        "have equal answers": report.equal & ~long,
    }
    findings = []
    for reason, mask in reasons.items():
        if count := int(mask.sum()):
            share = f"{count / report.total:.1%}"
            message = f"{count:,} of {report.total:,} {report.name} records {reason} and are dropped ({share})"
            fix = _increase_limit(report) if (mask & long).any() else ""
            findings.append(Finding("warning", "dropped", message, fix, report.limit.setting))
    return findings


def _no_end(report: TokenizationReport, kept: int, truncated: int) -> Finding:
    """Return the finding for a split without an end token to train on; for held-out records it is a warning."""
    level: Literal["refused", "warning"] = "refused" if report.name == "train" else "warning"
    if truncated < kept:
        what = f"none of {kept:,} {report.name} records trains an end token ({report.end_token})"
        fix = "use a tokenizer whose chat template ends answers with it"
        return Finding(level, "no_end", f"{what}: the model would never learn to stop", fix)
    message = (
        f"all {kept:,} {report.name} records lose the end of an answer at {report.limit.tokens:,} tokens: "
        f"the model would never learn to stop ({report.end_token})"
    )
    return Finding(level, "no_end", message, _increase_limit(report), "data.max_length")


def _increase_limit(report: TokenizationReport) -> str:
    """Return the setting with which 99 % of the records fit, or what else to do if the model has too few positions."""
    limit, needed = report.limit, length_quantile(report.lengths)
    if limit.context is None or needed + limit.max_new_tokens <= limit.context:
        return f"set data.max_length to {needed} or more, then 99 % of the records fit"
    if limit.max_new_tokens and needed < limit.context:
        return f"set rollout.max_new_tokens to {limit.context - needed} or less, then 99 % of the prompts fit"
    if limit.max_length < (most := limit.context - limit.max_new_tokens):
        return f"set data.max_length to {most}, the model's maximum (99 % of the records fit at {needed:,})"
    return f"shorten them: 99 % of the records need {needed:,} tokens, but the model has {limit.context:,} positions"


def length_quantile(lengths: Sequence[int] | np.ndarray, share: float = 0.99) -> int:
    """Return the length that this share of the records does not exceed."""
    return int(np.quantile(np.asarray(lengths), share, method="inverted_cdf"))


def check_labels(good: Sequence[bool], split: str) -> list[Finding]:
    """Check that unpaired preferences have both labels."""
    if len(set(good)) == 2 or not good:
        return []
    message = f"all {len(good):,} {split} answers have the same label: there is nothing to learn from"
    fix = "add answers with the other label"
    if split == "val":
        message = f"all {len(good):,} val answers have the same label ({'good' if good[0] else 'bad'})"
        fix = "name a file with answers of both labels in data.val, or raise data.val_fraction"
    return [Finding("refused", "one_label", message, fix, "data")]
