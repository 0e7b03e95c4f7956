"""tinyllm: train, align and evaluate a small language model end to end."""

__version__ = "0.1.0"
