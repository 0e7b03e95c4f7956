"""Symptoms to causes: small functions that look at a run's log, `(log) -> Finding | None`, grouped by the stages they apply to.

A check is one symptom. Its thresholds are constants at the head of its file, each with the reason for it; the files are `running` (the
run as a process), `learning` (losses and gradients), `preferences`, `policy` and `answers`. To add one, write the function and put it into
the tuple at the foot of its file.
"""

from __future__ import annotations

from collections.abc import Callable

from tinyllm.stages.symptoms import answers, learning, policy, preferences, running
from tinyllm.stages.symptoms.log import Finding, Log

Check = Callable[[Log], Finding | None]

ANY: tuple[Check, ...] = (*running.CHECKS, *learning.CHECKS)
CHECKS: dict[str, tuple[Check, ...]] = {  # family of the stage -> its checks
    "pretrain": ANY,
    "sft": (*ANY, *answers.WRITTEN),
    "rm": (*ANY, *preferences.REWARD_MODEL),
    "offline": (*ANY, *preferences.OFFLINE, *answers.WRITTEN),
    "online": (*ANY, *policy.CHECKS, *answers.ONLINE),
}
