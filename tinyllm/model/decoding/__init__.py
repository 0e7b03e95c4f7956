"""Sampling from a model: prompts in, completions and their log-probabilities out. `generate` and `stream` are the interface."""

from tinyllm.model.decoding.completion import Completion, Sampling
from tinyllm.model.decoding.generate import generate, stream

__all__ = ["Completion", "Sampling", "generate", "stream"]
