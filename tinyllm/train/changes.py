"""Settings that may change when a run is resumed, and what becomes of the schedule when `train.steps` grows.

A resumed run has the settings it began with, with three exceptions. What is logged, evaluated and kept may change, because no weight
depends on it. Settings of `train`, `optim` and `device` may change if --change names them. `train.steps` may grow where the learning
rates of all steps done are those of the longer schedule as well: such a run equals one that was planned for the longer schedule from the
beginning. Everything else (model, data, algorithm, seed) describes another run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyllm.errors import UserError

START_ANEW = "choose another --name, or add --no-resume to move the old run aside"
STEPS, BATCH_SIZE = "train.steps", "train.batch_size"
_WITHOUT_EFFECT = (
    "eval_every",
    "save_every",
    "log_every",
    "keep",
    "keep_every",
    "activation_checkpointing",
    "save_dtype",
)
FREE = frozenset({"name", *(f"train.{key}" for key in _WITHOUT_EFFECT)})
_FIXED = {
    "optim.optimizer": "the saved state is that of the other optimizer",
    "train.eval_rows": "held-out figures before and after it could not be compared",
}
SAME, UNDONE, REWARMED = "continued", "decay undone", "rewarmed"  # the schedule of a run that was extended
Segments = tuple[tuple[int, int], ...]
"""The learning rate schedule starts anew at each segment (first update, end); usually ((0, train.steps),). See `schedules.rate`."""
_SHOWN = 5  # keys in an error message


@dataclass(frozen=True)
class Change:
    """One setting that differs from that of the run's earlier sessions; `None` where there is no such key."""

    key: str
    before: Any
    now: Any
    schedule: str = ""  # for `train.steps`: one of the constants above
    at: int | None = None  # the number of steps done before, where it is known in advance

    def __str__(self) -> str:
        return f"{self.key:.80}: {_shown(self.before)} -> {_shown(self.now)}"

    def facts(self, step: int) -> dict[str, Any]:
        """Return what run.json records: the key, its values, and the number of steps done before."""
        found = {"at_step": step if self.at is None else self.at, "key": self.key, "from": self.before, "to": self.now}
        return found | ({"schedule": self.schedule} if self.schedule else {})


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the settings that differ between two nested configurations, by dotted key. One that an earlier version lacks is not set."""
    old, new = dict(_flat(before)), dict(_flat(now))
    pairs = [(key, old.get(key), new.get(key)) for key in {**old, **new}]
    return [Change(key, a, b) for key, a, b in pairs if a != b and not all(value in (None, []) for value in (a, b))]


def refuse_other_run(
    changes: Sequence[Change], allowed: frozenset[str] | None, done: int, folder: str, where: str
) -> None:
    """Raise UserError (USAGE) for settings that cannot change, or only with --change.

    Args:
        allowed: the keys given with --change; None: nothing that affects the weights may change, and no option is named.
        done: steps of the newest checkpoint.
        folder, where: the run directory and its config.yaml, for the message.
    """
    fixed = [c for c in changes if c.key not in FREE and (allowed is None or not _is_changeable(c.key))]
    allowed = allowed or frozenset()
    unasked = [c for c in changes if c.key not in FREE and c.key not in allowed and not _is_judged_later(c, done)]
    if not fixed and not unasked:
        return
    wrong = fixed or unasked
    listed = "; ".join(map(str, wrong[:_SHOWN])) + (f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
    what = f"{folder} already contains a run with a different configuration: {listed}"
    if asked := [c.key for c in fixed if c.key in allowed]:
        why = _FIXED.get(asked[0], "only settings of train and optim can")
        what += f"; {asked[0]:.80} cannot change in a run: {why}"
    options = " ".join(f"--change {c.key}={_value(c.now)}" for c in unasked[:_SHOWN])
    fix = START_ANEW if fixed else f"to continue with the new values add {options}; otherwise {START_ANEW}"
    raise UserError(what, where=where, fix=fix)


def refuse_without_steps(changes: Sequence[Change], steps: int, done: int, folder: str) -> None:
    """Raise UserError (USAGE) for settings that no step would use: all `steps` of the run are done."""
    unused = [c for c in changes if c.key not in FREE and c.key != STEPS]
    if unused and steps <= done:
        what = (
            f"{folder} has done all {steps} steps, nothing is left to train with {'; '.join(map(str, unused[:_SHOWN]))}"
        )
        raise UserError(
            what, where="--change", fix=f"add a larger train.steps, for example --set train.steps={2 * done}"
        )


def moved_to(step: int, recorded: Sequence[Any]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Divide the changes in run.json for a session that begins after `step` steps, before some of them were made.

    The steps after `step` are done again, with the settings as they are now: such a change is in force from `step` on. Several of one
    key become one. Those of `train.steps` stay, because they say where a segment of the schedule begins.

    Returns: the changes that stay as they are, and the others with their new step.
    """
    stay: list[Any] = []
    moved: dict[str, dict[str, Any]] = {}
    for entry in recorded:
        known = entry if isinstance(entry, dict) else {}
        key, at = known.get("key"), known.get("at_step")
        if (
            type(at) is not int
            or at <= step
            or not isinstance(key, str)
            or key == STEPS
            or not {"from", "to"} <= {*known}
        ):
            stay.append(entry)
            continue
        moved[key] = {**entry, "at_step": step, "from": moved.get(key, entry)["from"]}
    return stay, [entry for entry in moved.values() if entry["from"] != entry["to"]]


def _is_changeable(key: str) -> bool:
    section, _, rest = key.partition(".")
    return key == "device" or (section in ("train", "optim") and bool(rest) and key not in _FIXED)


def _is_judged_later(change: Change, done: int) -> bool:
    """Return whether `extend` decides: for more steps, and for fewer than are done, which no option allows."""
    numbers = type(change.before) is int and type(change.now) is int
    return change.key == STEPS and numbers and not done <= change.now < change.before


# --- how a run goes on ------------------------------------------------------------------------------------------------------------------


@dataclass
class Continuation:
    """The changes of settings with which a run continues.

    Args:
        changes: settings that change when the session begins, not recorded yet.
        segments: of the schedule; None: of `train.steps` as it is.
        batch_size_before: the run's first batch size, if it was ever changed.
        rewound: it goes on from an earlier checkpoint than its newest.
    """

    changes: list[Change] = field(default_factory=list)
    segments: Segments | None = None
    batch_size_before: int | None = None
    rewound: bool = False


def segments_of(changes: Sequence[Any], steps: int) -> Segments:
    """Return the segments of a schedule from the changes in run.json, and the present `train.steps`."""
    found: list[list[int]] = []
    for change in changes:
        if not (isinstance(change, dict) and change.get("key") == STEPS):
            continue
        numbers = [n for name in ("from", "to", "at_step") if type(n := change.get(name)) is int and n >= 0]
        if len(numbers) < 3:
            continue
        before, now, at = numbers
        found = found or [[0, before]]
        if change.get("schedule") == REWARMED and at > found[-1][0]:
            found.append([at, now])
        else:
            found[-1][1] = now
    return (*((start, end) for start, end in found[:-1]), (found[-1][0] if found else 0, steps))


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return f"{'(none)' if value is None else value!s:.80}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
