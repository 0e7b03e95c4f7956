"""What is wrong with the data of a stage, found before anything is trained: refused where nothing could be learned, else counted aloud.

The facts are gathered where records become token rows (`rows`), so that nothing is read twice; here they are judged. `tinyllm data
inspect` shows the same findings without training. What files hold (roles, empty texts, columns) the readers check. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tinyllm.errors import UserError
from tinyllm.train.progress import say

if TYPE_CHECKING:
    from tinyllm.stages.config import DataConfig
    from tinyllm.stages.rows import Facts

FEW = 0.5  # of the records train an end token: said even where nothing was cut
MOST_HELD_OUT = 0.5  # of the records, unless more was asked for


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `refused` ends a stage with exit code 2, a `warning` is one line."""

    level: Literal["refused", "warning"]
    rule: str
    what: str
    fix: str = ""
    where: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def settle(findings: Iterable[Finding]) -> None:
    """Say the warnings. Raises: UserError for the first finding that refuses."""
    found = list(findings)
    for finding in found:
        if finding.level == "warning":
            say(f"warning: {finding.what}" + f"; {finding.fix}" * bool(finding.fix))
    for finding in found:
        if finding.level == "refused":
            raise UserError(finding.what, where=finding.where, fix=finding.fix)


# --- before there are tokens -----------------------------------------------------------------------------------------------------


def sides(
    train: int,
    val: int,
    shared: int,
    *,
    data: DataConfig,
    split: tuple[int, int] = (0, 0),
    by_record: bool = False,
    what: str = "records",
) -> list[Finding]:
    """Whether there is something to train on and something to validate with, and nothing on both sides.

    Args:
        train, val: records.
        shared: held-out records whose prompt is trained on.
        split: of those whose side was decided by their prompt, how many are held out, and how many there are.
        by_record: all records have one prompt, so they could not be split by it.
        what: they are.
    """
    if not train or not val:
        fix = f"name more {what} in data.train" + ", or some in data.val" * (not data.val)
        told = f"{train:,} {what} to train on and {val:,} to validate with"
        return [Finding("refused", "empty_side", told, fix, "data")]
    found = []
    if by_record:
        told = f"all {train + val:,} {what} have the same prompt: they are split by their answers"
        found.append(Finding("warning", "one_prompt", told))
    elif shared:
        told = (
            f"{shared:,} of {val:,} val {what} have a prompt that is trained on, so validation looks better than it is"
        )
        fix = "take them out of one side, or leave data.val empty" if data.val else ""
        found.append(Finding("warning", "shared_prompts", told, fix, "data.val"))
    held, total = split
    if not by_record and data.val_fraction < MOST_HELD_OUT < held / max(1, total):
        told = f"{held:,} of {total:,} {what} are held out: many have the same prompt, and a prompt is on one side"
        found.append(Finding("warning", "much_held_out", told, "name data.val"))
    return found


def batch(records: int, batch_size: int, what: str = "records") -> list[Finding]:
    """Whether a step sees every record once at most."""
    if records >= batch_size:
        return []
    told = f"train: {records:,} {what} for a batch of {batch_size:,}: every step sees some of them more than once"
    return [Finding("warning", "small_data", told, f"set train.batch_size to {records} or less", "train.batch_size")]


def rollout(prompts: int, asked: int) -> list[Finding]:
    """Whether a rollout asks every prompt once at most."""
    if prompts >= asked:
        return []
    told = f"train: {prompts:,} prompts for rollouts of {asked:,}: every rollout asks some of them more than once"
    return [Finding("warning", "small_data", told, "give more prompts, or lower train.batch_size", "train.batch_size")]


def columns(missing: int, total: int, needed: Sequence[str], what: str) -> list[Finding]:
    """Prompts without what the rewards read; they are left out."""
    if not missing:
        return []
    names = " and ".join(map(repr, needed))
    told = f"{missing:,} of {total:,} {what} prompts have no column {names}, which the rewards read: left out"
    return [Finding("warning", "missing_column", told, "", "rewards")]


# --- of token rows ---------------------------------------------------------------------------------------------------------------


def rows(facts: Facts) -> list[Finding]:
    """What became of the records of one side; of a training side more is asked than of a held-out one."""
    if not facts.total:
        return [Finding("refused", "nothing_left", f"0 {facts.what} records", "name records in data.train", "data")]
    if refused := _refused(facts):
        return [refused]
    kept, found = int(facts.kept.sum()), _dropped(facts)
    cut_off = int((facts.kept & facts.open).sum())
    ends = int((facts.kept & facts.ends).sum())
    if facts.answered and not ends:
        found.append(_endless(facts, kept, cut_off))
    elif cut_off:
        share = f"{cut_off:,} of {kept:,} {facts.what} records lose the end of an answer ({cut_off / kept:.1%})"
        few = f", and only {ends / kept:.0%} train {facts.end}" if ends < FEW * kept else ""
        found.append(Finding("warning", "cut_off", f"{share}{few}", _longer(facts), "data.max_length"))
    elif facts.answered and ends < FEW * kept:
        what = f"only {ends:,} of {kept:,} {facts.what} records train the end token {facts.end}"
        found.append(Finding("warning", "few_ends", what, "the model will seldom learn to stop"))
    if facts.spelled:
        what = (
            f"{facts.spelled:,} of {facts.total:,} {facts.what} records have control tokens written out in their text "
            f"({facts.spelling}), which are encoded as text"
        )
        found.append(Finding("warning", "spelled_tokens", what, "give messages to which no template was applied"))
    return found


def _refused(facts: Facts) -> Finding | None:
    """Where not one record is left, and where none may be too long."""
    room, long = facts.room, int(facts.long.sum())
    if room.too_long == "error" and long:
        what = (
            f"{long:,} of {facts.total:,} {facts.what} records are longer than {room.limit:,} tokens; "
            f"the longest has {int(facts.length.max()):,}"
        )
        return Finding("refused", "too_long", what, f"{_longer(facts)}, or data.too_long to drop", room.where)
    if facts.kept.any():
        return None
    equal = int(facts.equal.sum())
    why = (
        "" if not equal else f": {'all' if equal == facts.total else f'{equal:,}'} have equal answers once they are cut"
    )
    what = f"none of {facts.total:,} {facts.what} records can be learned from at {room.limit:,} tokens{why}"
    return Finding("refused", "nothing_left", what, _longer(facts) if long else "give records with answers", room.where)


def _dropped(facts: Facts) -> list[Finding]:
    """Records that are left out although nobody asked for that."""
    long, lost = facts.long, ~facts.kept & ~facts.equal
    reasons = {
        "leave no room for an answer": lost & long & (not facts.answered),
        "have no answer left to learn": lost & (facts.room.cuts | ~long) & facts.answered,
        "have equal answers once they are cut": facts.equal & long,
        "have equal answers": facts.equal & ~long,
    }
    found = []
    for why, which in reasons.items():
        if count := int(which.sum()):
            told = (
                f"{count:,} of {facts.total:,} {facts.what} records {why} and are dropped ({count / facts.total:.1%})"
            )
            fix = _longer(facts) if (which & long).any() else ""
            found.append(Finding("warning", "dropped", told, fix, facts.room.where))
    return found


def _endless(facts: Facts, kept: int, cut_off: int) -> Finding:
    """Nobody would learn to stop. Of held-out records this is only said."""
    level: Literal["refused", "warning"] = "refused" if facts.what == "train" else "warning"
    if cut_off < kept:
        what = f"none of {kept:,} {facts.what} records trains an end token ({facts.end}): the model would never stop"
        return Finding(level, "no_end", what, "use a tokenizer whose chat template ends answers with it")
    what = (
        f"all {kept:,} {facts.what} records lose the end of an answer at {facts.room.limit:,} tokens: "
        f"the model would never learn to stop ({facts.end})"
    )
    return Finding(level, "no_end", what, _longer(facts), "data.max_length")


def _longer(facts: Facts) -> str:
    """What to set so that 99 % of the records fit; or, where the model has no room for that, what else to do."""
    room, needed = facts.room, fits(facts.length)
    if room.context is None or needed + room.max_new_tokens <= room.context:
        return f"set data.max_length to {needed} or more: 99 % of the records fit then"
    if room.max_new_tokens and needed < room.context:
        return f"set rollout.max_new_tokens to {room.context - needed} or less: 99 % of the prompts fit then"
    if room.max_length < room.context - room.max_new_tokens:
        return f"set data.max_length to {room.context - room.max_new_tokens}, the most the model takes: 99 % of the records need {needed:,}"
    return f"shorten them: 99 % of the records need {needed:,} tokens and the model takes {room.context:,}"


def fits(lengths: Sequence[int] | np.ndarray, share: float = 0.99) -> int:
    """The length that so many of the records do not exceed."""
    return int(np.quantile(np.asarray(lengths), share, method="inverted_cdf"))


def labels(good: Sequence[bool], what: str) -> list[Finding]:
    """Whether judged answers have something to tell apart."""
    if len(set(good)) == 2 or not good:
        return []
    told = f"all {len(good):,} {what} answers have one label: there is nothing to tell apart"
    return [Finding("refused", "one_label", told, "add answers with the other label", "data")]
