"""How many rows are decoded together, and what that needs of memory. Free of torch, since plans of memory need it."""

from __future__ import annotations

from tinyllm.model.config import ModelConfig

COPIED_BYTES = 64 << 20  # of weights that are copied; reading more takes longer than calling two products more a layer
PACKED_BYTES = 1 << 30  # of weights that are packed for several rows, which takes as much memory once more
NARROWED_BYTES = 1 << 32  # of weights that are copied to bfloat16 for few rows, half as much
# at most; the keys and values of more rows do not stay in the cache of a CPU
_ROWS = {"cpu": 64, "cuda": 256, "mps": 64}
_BYTES = {"cpu": 1 << 29, "cuda": 1 << 34, "mps": 1 << 30}  # of all rows' keys and values


def bytes_of_token(config: ModelConfig, width: int) -> int:
    """Return the bytes of the keys and values of one token. width: bytes of a number."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * width


def together(config: ModelConfig, rows: int, capacity: int, device: str, width: int) -> int:
    """Return how many of `rows` are decoded together.

    Args:
        capacity: tokens of the longest row, prompt and completion.
        device: its type.
        width: bytes of a number in the cache.
    """
    fits = _BYTES[device] // (capacity * bytes_of_token(config, width))
    return max(1, min(rows, _ROWS[device], fits))
