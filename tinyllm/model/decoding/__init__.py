"""Sampling from a model: prompts in, completions and their log-probabilities out. `generate` and `stream` are the interface."""

from tinyllm.model.decoding.completion import Completion, Sampling
from tinyllm.model.decoding.generate import gains_from_bfloat16, generate, stream

__all__ = ["Completion", "Sampling", "gains_from_bfloat16", "generate", "stream"]
