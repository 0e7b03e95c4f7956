"""Things to try: changed settings as command line options, with values computed from the run's configuration."""

from __future__ import annotations

from typing import Any

from tinyllm.diagnostics.run_log import RunLog, Series

MIN_LEARNING_RATE = 1e-4  # the smallest value suggested; the shipped configurations have 2e-4 to 5e-3

MIN_ROLLOUTS = 3  # with one value; fewer may be chance
ANOTHER_TASK = "use easier prompts or a reward that grades partly, or do more SFT first"


def zero_rewards(log: RunLog) -> list[Series]:
    """Return the rewards that were 0 on every answer, as far as means tell, on held-out prompts as well."""
    return [series for series in log.reward_parts() if _constant(log, series) and series.last.value == 0]


def nothing_rewarded(log: RunLog) -> bool:
    """Return whether no reward tells answers apart, and one is 0: then no setting of the optimizer or the sampler helps."""
    return bool(zero_rewards(log)) and all(_constant(log, series) for series in log.reward_parts())


def _constant(log: RunLog, series: Series) -> bool:
    return len(series) >= MIN_ROLLOUTS and len({*series.values, *log.held_out(series.name).values}) == 1


def set_option(key: str, value: Any) -> str:
    """Return the command line option that changes a setting."""
    text = f"{value:.2g}" if isinstance(value, float) else str(value)
    return f"--set {key}={text}"


def lower_learning_rate(log: RunLog, factor: float = 3) -> str:
    return f"lower the learning rate: {set_option('optim.learning_rate', log.learning_rate / factor)}"


def raise_learning_rate(log: RunLog, factor: float = 3) -> str:
    rate = max(log.learning_rate * factor, MIN_LEARNING_RATE)
    return f"raise the learning rate: {set_option('optim.learning_rate', rate)}"


def train_longer(log: RunLog) -> str:
    return f"train longer: {set_option('train.steps', 2 * log.steps)}"


def longer_rows(log: RunLog) -> str:
    length = 2 * int(log.setting("data.max_length", 256))
    return f"allow longer rows: {set_option('data.max_length', length)}"


def more_records(log: RunLog) -> str:
    """Return the option for twice as many records of the bundled world, or advice without an option for the user's own data."""
    kind, _, number = str((log.setting("data.train", []) or [""])[0]).partition(":")
    if kind == "world" and number.isdecimal():
        return f"use more records: --set 'data.train=[world:{2 * int(number)}]'"
    return "use more, and more varied, records in data.train"


def full_precision() -> str:
    return f"train in full precision: {set_option('train.precision', 'fp32')}"


def stronger_kl_penalty(log: RunLog) -> str:
    """Return the option for twice the KL penalty, or for a lower learning rate where the algorithm has no penalty."""
    key = f"{log.stage}.kl_coef"
    coefficient = log.setting(key)
    if coefficient is None:
        return lower_learning_rate(log)
    return f"increase the KL penalty: {set_option(key, 2.0 * float(coefficient) or 0.05)}"
