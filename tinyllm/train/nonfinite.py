"""Figures that are not finite: the one that selects `ckpt_best` ends the run, any other is told once and recorded as null.

A figure without values to average (`Mean` with a count of 0) is not a fault. It is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tinyllm.console import say
from tinyllm.errors import FAILED, UserError
from tinyllm.mean import Mean

Figures = Mapping[str, Mean | float]
_CHECK_DATA = "check data.val with `tinyllm data inspect`"
_EMPTY_REWARD = "set best_by to a figure that every held-out prompt has: this reward is None for all of them"


def check_selecting(found: Figures, name: str, step: int, precision: str) -> None:
    """Check the held-out figure that selects `ckpt_best`. Raises: UserError (FAILED) if it is not finite or averages nothing.

    NaN compares false with everything, so the first checkpoint, which may be untrained, would stay the best one.
    """
    figure = found[name]
    if isinstance(figure, Mean) and not float(figure.count):
        problem, fix = "has nothing to average", _EMPTY_REWARD if name.startswith("rewards/") else _CHECK_DATA
    elif not math.isfinite(_value(figure)):
        problem, fix = f"is {_described(figure)}", _fix(name, step, precision)
    else:
        return
    when = f"after step {step}" if step else "before the first step"
    raise UserError(
        f"{when} the held-out figure {name} {problem}; it selects the best checkpoint"
        + ("; the saved ones are untouched" if step else ""),
        fix=fix,
        code=FAILED,
    )


def _fix(name: str, step: int, precision: str) -> str:
    if name.startswith("reward"):
        return "check the functions under `rewards` on the prompts of data.val"
    if not step:
        return f"{_CHECK_DATA}, and the checkpoint that the run starts from with `tinyllm eval`"
    change = "set train.precision to fp32" if precision == "bf16" else "lower optim.learning_rate"
    return f"{change}, under another --name or with --no-resume"


class Told:
    """Warns of each figure that is not finite the first time it occurs."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def warn(self, found: Figures, split: str, step: int) -> None:
        """Print one line for the new ones among `found`. They are recorded as null, with a note in the key `nonfinite`."""
        bad = {name: figure for name, figure in found.items() if not math.isfinite(_value(figure, empty=0.0))}
        new = {f"{split} {name}": figure for name, figure in bad.items() if f"{split} {name}" not in self._names}
        if new:
            self._names |= set(new)
            text = ", ".join(f"{name} is {_described(figure)}" for name, figure in new.items())
            say(f"warning: step {step}: {text}; recorded as null")


def _value(figure: Mean | float, empty: float = math.nan) -> float:
    if isinstance(figure, Mean):
        return figure.value if float(figure.count) else empty
    return float(figure)


def _described(figure: Mean | float) -> str:
    value = str(_value(figure))
    return f"{value} (a mean of {float(figure.count):,.0f})" if isinstance(figure, Mean) else value
