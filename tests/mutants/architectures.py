"""Features of models from elsewhere: rules of rope, windows, soft caps, norms, scales, and how their files state them."""

from __future__ import annotations

from mutants.kind import Mutant

FEATURES, TABLE, HUB = "model/test_features.py", "model/test_architectures.py", "model/test_hub.py"


def feature(name: str, plants: str, file: str, old: str, new: str, targets: str = FEATURES, count: int = 1) -> Mutant:
    return Mutant(f"architecture-{name}", "extra", plants, f"model/{file}", old, new, targets, count)


# fmt: off
MUTANTS = [
    feature("linear", "linear scaling is ignored", "rope.py",
            "_plain(rope.theta, rope.width) / scaling.factor", "_plain(rope.theta, rope.width)"),
    feature("llama3-long", "llama3 scaling keeps long waves", "rope.py", "kept / factor, kept)", "kept, kept)"),
    feature("llama3-smooth", "llama3 scaling does not interpolate", "rope.py",
            "(1 - smooth) * kept / factor + smooth * kept", "kept / factor"),
    feature("yarn-ramp", "yarn scales fast waves instead of slow ones", "rope.py",
            "    kept = 1 - ramp\n", "    kept = ramp\n"),
    feature("yarn-sharpness", "yarn does not sharpen attention", "rope.py",
            "0.1 * scale * math.log(factor) + 1.0", "1.0"),
    feature("dynamic-length", "dynamic scaling begins with the first token", "rope.py",
            "max(length, rope.context)", "2 * rope.context"),
    feature("longrope-side", "longrope has the factors of short texts for all", "rope.py",
            "if length > original else", "if False else"),
    feature("cache-outdated", "keys that were rotated for a shorter text are kept", "decoding/engine.py",
            "if not self.model.model.forgetful:", "if True:"),
    feature("packed-length", "the documents of a packed row are rotated by the length of the row", "positions.py",
            "return place - first, last - first + 1", "return place - first, 0 * last + attend.shape[1]"),
    feature("layers-without-rope", "every layer has rotary embeddings", "config.py",
            "and not self.no_rope_layers[layer]", "and False"),
    feature("window-wide", "a window is one token too wide", "positions.py",
            "keys > queries - window", "keys >= queries - window"),
    feature("window-all-layers", "every layer has the window", "config.py",
            "self.sliding_window if not self.layer_types or self.layer_types[layer] == SLIDING else None", "self.sliding_window"),
    feature("window-uncached", "a window does not hold in the cache", "positions.py",
            "start + length <= window", "length <= window"),
    feature("softcap-late", "attention scores are limited after the mask", "kernels.py",
            "soft_capped(q @ k.transpose(2, 3) * scale, softcap).masked_fill(~mask, -torch.inf)",
            "soft_capped((q @ k.transpose(2, 3) * scale).masked_fill(~mask, -torch.inf), softcap)"),
    feature("softcap-slope", "the gradient of limited logits is that of unlimited ones", "heads.py",
            ".mul_(1 - (logits / cap).square_())", ".mul_(1)"),
    feature("softcap-temperature", "logits are limited after the temperature", "heads.py",
            "softcap / temperature", "softcap"),
    feature("residual", "what a sublayer adds is not scaled", "transformer.py", "x * self.residual_multiplier", "x"),
    feature("embedding", "embeddings are not scaled", "transformer.py", "x = x * self.config.embedding_scale", "pass"),
    feature("logits", "logits are not scaled", "transformer.py", "hidden / self.config.logits_scaling", "hidden"),
    feature("gain", "the gain is the weight, not one more", "transformer.py",
            "self.weight + self.offset if self.offset", "self.weight if self.offset"),
    feature("null-is-default", "null in config.json is the default of the class", "hf_config.py",
            "or (key in found and k in MAY_BE_NONE)", "or False", TABLE),
    feature("window-unstated", "a pattern of layers is not written", "layer_patterns.py",
            'return {"use_sliding_window": True, **_window_entries(config)} if config.sliding_window is not None else {}',
            "return {}", TABLE),
    feature("another-head", "a head of its own is dropped where config.json says tied", "hub.py",
            "if head and torch.equal(weights[HEAD], weights[EMBEDDING]):", "if head:", HUB),
    feature("lone-head", "a file with the head only has no embedding", "hub.py",
            "        names[EMBEDDING] = head\n", "", HUB),
    feature("buffers", "buffers that older versions saved are unknown tensors", "hf_names.py",
            "if not _BUFFERS.search(theirs):", "if True:", HUB),
    feature("entries-dropped", "entries of config.json that nothing here reads are dropped", "hub.py",
            "if key not in _NOT_KEPT}", "if False}", HUB),
    feature("bare-names", "a file that was saved without the head is not understood", "hf_names.py",
            "if bare and prefix + theirs in ours else theirs", "if False else theirs", HUB),
]
