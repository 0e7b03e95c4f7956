"""The range of sampling temperatures, shared by the settings of all commands and by the sampler itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

LEAST_TEMPERATURE = 1e-5
"""Logits divided by less than this can exceed the range of float32. Long before, sampling equals greedy decoding."""


def _greedy_or_divisible(value: float) -> float:
    if not (value == 0 or value >= LEAST_TEMPERATURE):
        raise ValueError(f"expected 0 (greedy) or a number >= {LEAST_TEMPERATURE:g}")
    return value


Temperature = Annotated[float, Field(ge=LEAST_TEMPERATURE)]
TemperatureOrGreedy = Annotated[float, AfterValidator(_greedy_or_divisible)]
