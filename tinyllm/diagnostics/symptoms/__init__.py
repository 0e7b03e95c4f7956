"""The symptoms that `tinyllm explain` looks for: checks `(RunLog) -> Finding | None`, grouped by the stages they apply to.

Each looks for one symptom, and declares the series that it reads. Its thresholds are named constants at the top of its file, each with its
reason. To add one, write a function under `@check` and add it to a tuple at the end of its file.
"""

from __future__ import annotations

from tinyllm.diagnostics.symptoms import answers, learning, policy, preferences, process
from tinyllm.diagnostics.symptoms.check import Check

ALL_STAGES: tuple[Check, ...] = (*process.CHECKS, *learning.CHECKS)
CHECKS: dict[str, tuple[Check, ...]] = {  # by `RunLog.family`; only those that can find something there
    "pretrain": (*ALL_STAGES, *learning.LOSS, *learning.SUPERVISED),
    "sft": (*ALL_STAGES, *learning.LOSS, *learning.SUPERVISED, *answers.FINE_TUNING),
    "rm": (*ALL_STAGES, *learning.LOSS, *learning.SUPERVISED, *preferences.REWARD_MODEL),
    "offline": (*ALL_STAGES, *learning.LOSS, *preferences.OFFLINE),
    "online": (*ALL_STAGES, *policy.CHECKS, *answers.ONLINE),
}
