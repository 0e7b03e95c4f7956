"""The symptoms that `tinyllm explain` looks for: functions `(RunLog) -> Finding | None`, grouped by the stages they apply to.

Each function checks for one symptom. Its thresholds are named constants at the top of its file, each with its reason. To add one, write
the function and add it to a tuple at the end of its file.
"""

from __future__ import annotations

from collections.abc import Callable

from tinyllm.diagnostics.run_log import RunLog
from tinyllm.diagnostics.symptoms import answers, learning, policy, preferences, process
from tinyllm.diagnostics.symptoms.finding import Finding

Check = Callable[[RunLog], Finding | None]

ALL_STAGES: tuple[Check, ...] = (*process.CHECKS, *learning.CHECKS)
CHECKS: dict[str, tuple[Check, ...]] = {  # by `RunLog.family`
    "pretrain": ALL_STAGES,
    "sft": (*ALL_STAGES, *answers.FINE_TUNING),
    "rm": (*ALL_STAGES, *preferences.REWARD_MODEL),
    "offline": (*ALL_STAGES, *preferences.OFFLINE, *answers.FINE_TUNING),
    "online": (*ALL_STAGES, *policy.CHECKS, *answers.ONLINE),
}
