"""Patterns of layers in config.json: which layers attend to a sliding window only, and which have rotary embeddings. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

FULL, SLIDING = "full_attention", "sliding_attention"


class LayerPattern(NamedTuple):
    """A pattern of layers: how it is read from config.json, and how it is written for a `ModelConfig`."""

    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[Any], dict[str, Any]]


NO_PATTERN = LayerPattern(lambda found: {}, lambda config: {})


def same_window(default: int | None) -> LayerPattern:
    """Return the pattern of a window that all layers share; null means none."""

    def read(found: Mapping[str, Any]) -> dict[str, Any]:
        return {"sliding_window": found.get("sliding_window", default)}

    return LayerPattern(read, lambda config: {"sliding_window": config.sliding_window})


def late_window(default: int | None, late: Callable[[Mapping[str, Any], int], bool]) -> LayerPattern:
    """Return the pattern of a window that counts only where `use_sliding_window` is true.

    Args:
        late: whether a layer has the window, where the file lists no `layer_types`.
    """

    def read(found: Mapping[str, Any]) -> dict[str, Any]:
        window = found.get("sliding_window", default) if found.get("use_sliding_window") else None
        types = [SLIDING if window is not None and late(found, layer) else FULL for layer in _layers(found)]
        return _windows(window, found.get("layer_types") or types)

    def write(config: Any) -> dict[str, Any]:
        return {"use_sliding_window": True, **_window_entries(config)} if config.sliding_window is not None else {}

    return LayerPattern(read, write)


def from_layer(default: int) -> Callable[[Mapping[str, Any], int], bool]:
    """Return a test for layers from `max_window_layers` on."""

    def late(found: Mapping[str, Any], layer: int) -> bool:
        first = found.get("max_window_layers")
        return layer >= (default if first is None else first)

    return late


def gemma(pattern: int) -> LayerPattern:
    """Return the pattern of a window in all layers but every `pattern`-th, where the file lists no `layer_types`.

    Gemma's files always state the divisor of the attention scores, too: `head_dim` where there is none of its own.
    """

    def read(found: Mapping[str, Any]) -> dict[str, Any]:
        every = found.get("sliding_window_pattern") or pattern
        types = [SLIDING if (layer + 1) % every else FULL for layer in _layers(found)]
        scalar = found.get("query_pre_attn_scalar") or 256
        own = {"query_pre_attn_scalar": None if scalar == (found.get("head_dim") or 256) else scalar}
        return {**_windows(found.get("sliding_window", 4096), found.get("layer_types") or types), **own}

    def write(config: Any) -> dict[str, Any]:
        # transformers needs a window even where no layer has it
        entries = {"sliding_window": 4096} | {
            key: value for key, value in _window_entries(config).items() if value is not None
        }
        return {**entries, "query_pre_attn_scalar": config.query_pre_attn_scalar or config.head_dim}

    return LayerPattern(read, write)


def _layers(found: Mapping[str, Any]) -> range:
    count = found.get("num_hidden_layers")
    return range(count if type(count) is int and count < 10_000 else 0)


def _windows(window: Any, types: Any) -> dict[str, Any]:
    if SLIDING not in types:
        return {"sliding_window": None, "layer_types": ()}
    return {"sliding_window": window, "layer_types": types if FULL in types or window is None else ()}


def _window_entries(config: Any) -> dict[str, Any]:
    types = [SLIDING if config.window(layer) is not None else FULL for layer in range(config.num_hidden_layers)]
    return {"sliding_window": config.sliding_window, "layer_types": types}


def _has_rope(found: Mapping[str, Any], layer: int) -> bool:
    named = found.get("no_rope_layers")
    if isinstance(named, list) and layer < len(named):
        return bool(named[layer])
    return (layer + 1) % (found.get("no_rope_layer_interval") or 4) != 0


def smollm3() -> LayerPattern:
    """Return the pattern of layers without rotary embeddings, which are the ones that a window would be for."""
    windows = late_window(None, lambda found, layer: not _has_rope(found, layer))

    def read(found: Mapping[str, Any]) -> dict[str, Any]:
        rope = [int(_has_rope(found, layer)) for layer in _layers(found)]
        return {**windows.read(found), "no_rope_layers": () if all(rope) else rope}

    def write(config: Any) -> dict[str, Any]:
        rope = config.no_rope_layers or (1,) * config.num_hidden_layers
        return {**windows.write(config), "no_rope_layers": list(rope)}

    return LayerPattern(read, write)


def phi3() -> LayerPattern:
    """Return the pattern of one window, with the original context, which Phi-3 keeps beside its scaling."""
    window = same_window(None)

    def write(config: Any) -> dict[str, Any]:
        scaling = config.rope_scaling
        context = (
            {} if scaling is None else {"original_max_position_embeddings": scaling.original_max_position_embeddings}
        )
        return {**window.write(config), **context}

    return LayerPattern(window.read, write)
