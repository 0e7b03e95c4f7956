"""Checks of rewards against the data, before a model is loaded: columns, blank answers, and a trial on a few rows. No torch.

The trial calls every reward with plausible answers to a few prompts of every split: the reference answer, an empty text and an
ordinary sentence. Values do not matter, only that they are finite numbers or None.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from tinyllm.console import say
from tinyllm.data.config import DataConfig, is_world
from tinyllm.data.record_source import TEST, TRAIN, VAL, RecordSource
from tinyllm.data.records.detect import field_option, similar_column
from tinyllm.data.records.types import Prompt
from tinyllm.data.sources.paths import expand, is_pipe
from tinyllm.data.validation import Finding, check_columns, report_findings
from tinyllm.errors import UserError
from tinyllm.io.shell import set_option
from tinyllm.rollout import answers
from tinyllm.rollout.rewards import COMPARING, REWARD_MODEL, Reward, load_rewards, names
from tinyllm.rollout.scoring import Answered, score

ROWS = 3  # of each split in the trial
_TRIAL_SECONDS = 10.0  # a reward that takes longer is not called again
_SLOW = 0.2  # seconds per answer that are worth a message
_SENTENCE = "I think that it is about 7, because there are many of them."


def check(
    weights: Mapping[str, float], splits: Mapping[str, Sequence[Prompt]], *, on_bad_line: str = "error"
) -> dict[str, list[Prompt]]:
    """Return the prompts of each split that all rewards can score, after a trial on the first of them.

    Raises:
        UserError: a reward cannot be loaded, no prompt has the columns it reads, an answer is blank, or the trial fails.
    """
    rewards = list(load_rewards(weights).values())
    kept = {split: _scorable(rewards, prompts, split, on_bad_line) for split, prompts in splits.items()}
    _trial(rewards, [row for prompts in kept.values() for row in prompts[:ROWS]])
    return kept


def check_first(weights: Mapping[str, float], data: DataConfig, seed: int, **world_options: Any) -> None:
    """Check rewards on the first rows of the data, which are all that is read. Pipes are left out. Raises: as `check`.

    Data that are not there yet are left out as well: a dry run may precede their download.
    """
    rewards = load_rewards(weights)
    files = [source for source in data.sources if not is_world(source)]
    try:
        found = expand(files) if files else ()
    except UserError:
        return
    if any(source == "-" for source in files) or any(map(is_pipe, found)):
        return
    rows: dict[str, list[Prompt]] = {}
    for split, sources in ((TRAIN, data.train), (VAL, data.val), (TEST, data.test)):
        if sources:
            part = RecordSource(
                data.model_copy(update={"train": sources, "val": (), "test": ()}), "prompts", seed, **world_options
            )
            rows[split] = [record for _, record in islice(part, ROWS) if isinstance(record, Prompt)]
    for split, prompts in rows.items():
        _scorable(list(rewards.values()), prompts, split, data.on_bad_line, quiet=True)
    _trial(list(rewards.values()), [row for prompts in rows.values() for row in prompts])


def findings(weights: Mapping[str, float], splits: Mapping[str, Sequence[Any]]) -> list[Finding]:
    """Return what `check` refuses as a finding of `data inspect`.

    The default reward, of the bundled world, may not be meant for other data: for these it is a warning with the reward that fits.
    """
    train = splits[TRAIN]
    if dict(weights) == {"gold": 1.0} and train and not any("task" in prompt.columns for prompt in train):
        return [_not_of_world(train[0])]
    try:
        check(weights, splits)
    except UserError as error:
        return [Finding("refused", "reward", error.what, error.fix, error.where)]
    return []


def _not_of_world(prompt: Prompt) -> Finding:
    """Return the warning that the default reward cannot score these prompts, and the option that helps."""
    columns = [column for column in prompt.columns if column != "prompt"]
    missing = "task" if "answer" in columns else "answer"
    what = f"align-online with the default reward would stop: gold needs a column {missing!r}"
    fix = "--set 'rewards={exact_answer: 1.0}'"
    if missing == "answer":
        close = difflib.get_close_matches("answer", columns, n=1)
        what += f"; the prompts have {', '.join(columns) or 'none'}" + (
            f" - did you mean {close[0]!r}?" if close else ""
        )
        named = f"{set_option('data.field.answer', close[0])} {fix}" if close else ""
        fix = named or "add the column answer, or name another reward: --set 'rewards={NAME: 1.0}'"
    return Finding("warning", "reward", what, fix, "rewards")


def _scorable(
    rewards: Iterable[Reward], prompts: Sequence[Prompt], split: str, on_bad_line: str, *, quiet: bool = False
) -> list[Prompt]:
    """Return the prompts with all columns that the rewards read, and without blank answers where these are compared with."""
    needed = {column: reward.name for reward in rewards for column in reward.required}
    kept = [prompt for prompt in prompts if needed.keys() <= prompt.columns.keys() | {"prompt"}]
    if prompts and not kept and split != TEST:
        _missing(rewards, prompts[0])
    findings = check_columns(len(prompts) - len(kept), len(prompts), sorted(needed), split)
    if any(reward.name in COMPARING and not reward.own for reward in rewards):
        usable = [prompt for prompt in kept if not answers.unusable(prompt.columns["answer"])]
        if len(usable) < len(kept):
            findings += _unusable(kept, len(kept) - len(usable), split, on_bad_line, some=bool(usable))
        kept = usable
    if not quiet:
        report_findings(findings)
    return kept


def _missing(rewards: Iterable[Reward], prompt: Prompt) -> None:
    """Raise UserError for the first column that a reward reads and the prompts do not have."""
    for reward in rewards:
        for column in reward.required:
            if column in prompt.columns or column == "prompt":
                continue
            have = ", ".join(c for c in prompt.columns if c != "prompt") or "none"
            close = next(iter(similar_column(column, prompt.columns, 0.75)), "")
            what = f"the reward {reward.name} needs a column {column!r}; the prompts have {have}"
            what += f" - did you mean {close!r}?" if close else ""
            fix = f"add the column {column}"
            if reward.name == "gold" and not reward.own and "answer" in prompt.columns:
                fix = "use --set 'rewards={exact_answer: 1.0}'"
            elif close and reward.own:
                fix = f"rename the parameter {column} to {close}"
            elif close and column == "answer":
                fix = f"name the column: {field_option(column, close)}"
            raise UserError(what, where=reward.place or "rewards", fix=fix)


def _unusable(prompts: Sequence[Prompt], count: int, split: str, on_bad_line: str, *, some: bool) -> list[Finding]:
    first = next(p for p in prompts if answers.unusable(p.columns["answer"]))
    what = f"answer: {answers.unusable(first.columns['answer'])}, found {first.columns['answer']!r:.60}"
    if on_bad_line == "skip" and some:
        return [Finding("warning", "blank_answer", f"{count:,} {split} prompts dropped: {what}, as in {first.place}")]
    more = f" ({count:,} {split} prompts)" if count > 1 else ""
    fix = "write the answer, or skip bad rows: --set data.on_bad_line=skip"
    raise UserError(what + more, where=first.place or "data", fix=fix)


# --- the trial -------------------------------------------------------------------------------------------------------------------


def _trial(rewards: Sequence[Reward], prompts: Sequence[Prompt]) -> None:
    for reward in rewards:
        started, calls = time.monotonic(), 0
        for number in range(3):
            rows = [_answered(prompt, number + place) for place, prompt in enumerate(prompts)]
            for part in [rows] if reward.style == "batch" else [[row] for row in rows]:
                if time.monotonic() - started < _TRIAL_SECONDS:
                    score(reward, part)
                    calls += len(part)
        seconds = (time.monotonic() - started) / max(1, calls)
        if seconds > _SLOW:
            say(f"the reward {reward.name} takes about {seconds:.1f} s per answer")


def _answered(prompt: Prompt, number: int) -> Answered:
    """Return one of three plausible answers to a prompt."""
    columns = {"prompt": list(prompt.messages), **prompt.columns}
    known = answers.references(columns["answer"]) if "answer" in columns else []
    text = ([*known[:1], _SENTENCE][0], "", _SENTENCE)[number % 3]
    return Answered(columns, text, number % 2 == 0, list(range(1, len(text.split()) + 1)), prompt.place, prompt.plain)


def described(weights: Mapping[str, float]) -> dict[str, str]:
    """Return the metric of every reward and what it is, for the plan of a run."""
    found = {}
    for key, name in names(weights).items():
        role = f"x {weights[key]:g}" if weights[key] else "measured, not trained on"
        found[f"rewards/{name}"] = f"{'the reward model' if key == REWARD_MODEL else key} {role}"
    return found
