"""Checks before a run directory is continued: it holds the same run, made from the same configuration, parent and data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyllm.config import yaml12
from tinyllm.console import say
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.train import checkpoint
from tinyllm.train.changes import (
    BATCH_SIZE,
    REWARMED,
    SAME,
    START_ANEW,
    STEPS,
    UNDONE,
    Change,
    Continuation,
    Segments,
    differences,
    refuse_other_run,
    refuse_without_steps,
    segments_of,
)
from tinyllm.train.config import OptimConfig
from tinyllm.train.schedules import SCHEDULES, rate

_SHOWN = 5  # sources in an error message


def changed_settings(
    folder: Path, config: str, facts: Mapping[str, Any], allowed: frozenset[str] | None
) -> list[Change]:
    """Return the settings that differ from those in config.yaml of a run. Comments and layout do not count.

    Args:
        config: the present configuration as YAML.
        facts: the content of run.json.
        allowed: see `changes.refuse_other_run`.

    Raises: UserError for settings that may not change or that no step would use (USAGE), and where config.yaml is gone or damaged and
    the settings are not those whose hash run.json holds (INTEGRITY).
    """
    path = folder / "config.yaml"
    if path.is_file() and path.read_bytes() == config.encode():
        return []
    before, now = settings_in(path), yaml12.parse(config, "")[0]
    assert now is not None
    if before is None:
        if facts.get("config_sha256") == hashlib.sha256(config.encode()).hexdigest():
            return []
        raise UserError(
            f"config.yaml {'cannot be read' if path.exists() else 'is missing'}, "
            "and these are not the settings that the run began with (sha256 differs)",
            where=str(path),
            fix=f"restore the file or the settings, or {START_ANEW}",
            code=INTEGRITY,
        )
    changes = differences(before, now.plain())
    done = max(map(checkpoint.step_of, checkpoint.steps(folder / "checkpoints")), default=0)
    refuse_other_run(changes, allowed, done, str(folder), str(path))
    steps = now.plain().get("train", {}).get("steps")
    if type(steps) is int:
        refuse_without_steps(changes, steps, done, str(folder))
    return changes


def settings_in(path: Path) -> dict[str, Any] | None:
    """Return the settings in a run's config.yaml; None where it is missing or is not one."""
    if not path.is_file():
        return None
    node, problems = yaml12.read_file(path, str(path))
    found = node.plain() if node is not None and not problems else None
    return found if isinstance(found, dict) else None


def refuse_unknown_origin(folder: Path, facts: Mapping[str, Any], allowed: bool) -> None:
    """Refuse to continue a run whose run.json is gone or damaged: its data and its parent may be others by now.

    Args:
        allowed: --allow-data-change.

    Raises: UserError (INTEGRITY).
    """
    if facts:
        return
    path = folder / "run.json"
    state = "is missing" if not path.exists() else "is empty" if not path.stat().st_size else "cannot be read"
    what = f"run.json {state}: the data and the parent that the run began with are unknown"
    if allowed:
        say(f"warning: {what}; continuing with the present ones (--allow-data-change)")
        return
    fix = "restore the file, or add --allow-data-change to continue with the present data and parent"
    raise UserError(what, where=str(path), fix=fix, code=INTEGRITY)


def refuse_other_parent(folder: Path, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raise UserError (USAGE) unless the parent and the reward model are those that the run began with."""
    for role in ("parent", "reward_model"):
        if now.get(role) == before.get(role) or not before or role not in before:
            continue
        name = role.replace("_", " ")
        began, present = (_parent_text(facts.get(role)) for facts in (before, now))
        raise UserError(
            f"{folder} began from {began}, its {name} is now {present}",
            where=str(folder / "run.json"),
            fix=START_ANEW,
        )


def _parent_text(facts: Any) -> str:
    if facts is None:
        return "new weights"
    known = facts if isinstance(facts, dict) else {}
    return f"{known.get('checkpoint')!s:.200} ({known.get('manifest_sha256')!s:.12})"


def earlier_data(folder: Path, now: Mapping[str, Any], before: Mapping[str, Any], allowed: bool) -> list[Any]:
    """Return the data of earlier sessions that are not the present data, oldest first.

    Raises: UserError (USAGE) if the data have changed and that is not allowed.
    """
    present, then = (_identities(facts.get("data")) for facts in (now, before))
    found = before["data_before"] if isinstance(before.get("data_before"), list) else []
    if not then or present == then:
        return found
    error = data_changed(folder, [name for name in {**then, **present} if present.get(name) != then.get(name)])
    if not allowed:
        raise error
    say(f"{error.what}; continuing with the present data (--allow-data-change)")
    return [*found, before["data"]]


def data_changed(folder: Path, names: Sequence[Any]) -> UserError:
    """Return the error for a run whose sources `names` have changed since it began."""
    return UserError(
        f"the data have changed since {folder} began: {', '.join(map(str, names[:_SHOWN]))}",
        where=str(folder / "run.json"),
        fix="restore them, add --allow-data-change to continue with the present data, or choose another --name",
    )


def _identities(data: Any) -> dict[str, Any]:
    """Return what identifies the content of every source, by its name. Standard input has no content to compare."""
    entries = [entry for entry in (data if isinstance(data, list) else []) if isinstance(entry, dict)]
    named = {
        str(e.get("source", e.get("shards"))): e.get("sha256", e.get("fingerprint", e.get("seed"))) for e in entries
    }
    return {name: identity for name, identity in named.items() if name != "-"}


# --- how it goes on --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extension:
    """The way in which a run goes on after `train.steps` was changed.

    Args:
        start: the number of steps after which it goes on.
        schedule: `SAME`, `UNDONE` or `REWARMED`.
        text: one line for the user.
    """

    start: int
    schedule: str
    text: str


def extend(
    change: Change,
    done: Sequence[int],
    optim: Any,
    segments: Segments,
    *,
    rewarm: bool,
    folder: str,
    later: Any = None,
) -> Extension:
    """Return how a run goes on with another `train.steps`.

    Args:
        change: of `train.steps`.
        done: the steps of its intact checkpoints, ascending.
        optim: the settings of the optimizer until now, an `OptimConfig`: they decide whether the schedule has decayed.
        segments: of the schedule so far.
        rewarm: start the schedule again: from step s = done[-1], the rate of update t is that of update t - s in a run of
            train.steps - s steps (re-warming and re-decaying, arXiv 2403.08763).
        later: the settings of the optimizer from now on, if they change.

    Raises: UserError (USAGE) for fewer steps than are done, and where the schedule has decayed and cannot be continued.
    """
    last, steps = done[-1], change.now
    if steps < last or (rewarm and steps == last):
        what = f"train.steps {steps} is not more than the {last} steps that {folder} has done"
        raise UserError(what, where=STEPS, fix=f"set train.steps above {last}, or choose another --name")
    if rewarm:
        text = f"the schedule starts again at step {last + 1}: warm-up and decay of a run of {steps - last} steps"
        warmup = (later or optim).warmup_steps
        short = f"; its warm-up of {warmup} steps does not end" if warmup > steps - last else ""
        return Extension(last, REWARMED, text + short)
    longer = (*segments[:-1], (segments[-1][0], steps))
    agreed = next((t for t in range(last) if rate(t, segments, optim) != rate(t, longer, optim)), last)
    schedule = optim.schedule
    if agreed == last:
        return Extension(last, SAME, f"the {schedule} schedule continues to step {steps}")
    if not SCHEDULES[schedule].plateau:
        what = f"train.steps: {change.before} -> {steps}, and the {schedule} schedule has already decayed over {change.before}"
        fix = f"add --rewarm to start the schedule again after step {last}, or choose another --name"
        raise UserError(f"{folder} cannot continue: {what}", where=STEPS, fix=fix)
    kept = [step for step in done if segments[-1][0] + optim.warmup_steps <= step <= agreed and step]
    if kept:
        text = (
            f"the {schedule} schedule continues from its plateau: step {kept[-1]} is the newest checkpoint before the decay began "
            f"after step {agreed}; later ones stay as decayed-step-*"
        )
        return Extension(kept[-1], SAME, text)
    text = (
        f"no checkpoint from before the decay (after step {agreed}) is left, so its decay is undone: the learning rate goes from "
        f"{rate(last - 1, segments, optim):.3g} back to {rate(last, longer, later or optim):.3g} at step {last + 1}"
    )
    return Extension(last, UNDONE, text)


def plan_continuation(
    folder: Path, changes: Sequence[Change], facts: Mapping[str, Any], config: str, *, rewarm: bool
) -> Continuation:
    """Decide how the run in `folder` goes on, and set aside the checkpoints that it leaves behind.

    Args:
        changes: `changed_settings`.
        facts: the content of run.json.
        config: the present configuration as YAML.

    Raises: UserError (USAGE) as `extend`, and for --rewarm without more steps.
    """
    found = facts["changes"] if isinstance(facts.get("changes"), list) else []
    recorded: list[dict[str, Any]] = [entry for entry in found if isinstance(entry, dict)]
    rewound = False
    for change in (change for change in changes if change.key == STEPS):
        plan = _extension(folder, change, config, segments_of(recorded, change.before), rewarm=rewarm)
        say(f"{change}: {plan.text}")
        rewound = bool(_set_aside_decayed(folder / "checkpoints", plan.start))
        extended = replace(change, schedule=plan.schedule, at=plan.start)
        recorded = [*recorded, extended.facts(plan.start)]
        changes = [extended, *(other for other in changes if other.key != STEPS)]
    sizes = [entry["from"] for entry in (*recorded, *(c.facts(0) for c in changes)) if entry.get("key") == BATCH_SIZE]
    steps = [entry["to"] for entry in recorded if entry.get("key") == STEPS and type(entry.get("to")) is int]
    segments = segments_of(recorded, steps[-1]) if steps else None
    if rewarm and len(segments or ()) < 2:
        fix = "raise train.steps, or leave out --rewarm"
        raise UserError("--rewarm applies where train.steps grows", where="--rewarm", fix=fix)
    return Continuation(list(changes), segments, next(iter(sizes), None), rewound)


def _extension(folder: Path, change: Change, config: str, segments: Segments, *, rewarm: bool) -> Extension:
    before, now = settings_in(folder / "config.yaml"), yaml12.parse(config, "")[0]
    assert before is not None
    assert now is not None
    optim, later = (OptimConfig(**settings.get("optim", {})) for settings in (before, now.plain()))
    done = [checkpoint.step_of(path) for path in _intact(folder / "checkpoints")]
    return extend(change, done or [0], optim, segments, rewarm=rewarm, folder=str(folder), later=later)


def _intact(checkpoints: Path) -> list[Path]:
    """Return the checkpoints that have all their files at their sizes, oldest first."""
    return [path for path in checkpoint.steps(checkpoints) if not any(checkpoint.faults(path, contents=False))]


def _set_aside_decayed(checkpoints: Path, start: int) -> list[Path]:
    """Rename the checkpoints after step `start` to `decayed-step-*`, the newest first, and return their new paths.

    They are kept, and do not count as checkpoints of the run. Damaged ones are left to `CheckpointManager.resume`, which reports them.
    """
    later = [path for path in reversed(_intact(checkpoints)) if checkpoint.step_of(path) > start]
    return [checkpoint.set_aside(path, checkpoint.DECAYED) for path in later]
