"""Every key of config.json changed, one at a time: a checkpoint is read as transformers reads it, or refused, never read as another.

`python -m tests.parity.architectures --keys` does so for all checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.parity.architectures import TOLERANCE, apart, our_logits, their_logits, tokens
from tests.parity.checkpoints import edited, folder, theirs
from tests.parity.edits import FULL, SLIDING, Edit, put
from tinyllm.errors import UserError
from tinyllm.model import hub

LENGTH = 100
UNSHAPED = (  # keys that another class might read, or that are missing from the file
    {"hidden_act": "gelu"},
    {"hidden_activation": "relu"},
    {"activation_function": "relu"},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"partial_rotary_factor": 0.5},
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    {"rope_theta": 50.0},
    {"use_sliding_window": True, "sliding_window": 5},
    {"use_sliding_window": True, "max_window_layers": "2"},
    {"sliding_window": 5},
    {"layer_types": [SLIDING, FULL, FULL]},
    {"layer_types": [FULL, SLIDING, FULL], "sliding_window": 5},
    {"no_rope_layers": [1, 0, 1]},
    {"logits_scaling": 2.0},
    {"embedding_multiplier": 2.0},
    {"final_logit_softcapping": 3.0},
    {"attn_logit_softcapping": 3.0},
    {"query_pre_attn_scalar": 7},
    {"use_bidirectional_attention": True},
    {"qk_norm": True},
    {"clip_qkv": 0.5},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False},
    {"reorder_and_upcast_attn": True},
    {"add_cross_attention": True},
    {"is_decoder": False},
    {"pretraining_tp": 2},
    {"attention_dropout": 0.5},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
)


def mutations(name: str) -> Iterator[tuple[str, Edit]]:
    """Yield edits: every key of config.json changed, removed and null, and keys of `UNSHAPED` added."""
    config = json.loads((folder(name) / "config.json").read_text())
    for key, value in config.items():
        if key in ("model_type", "architectures", "transformers_version", "dtype"):
            continue
        yield f"{key} removed", put(**{key: ...})
        yield f"{key} null", put(**{key: None})
        if isinstance(value, bool):
            yield f"{key} {not value}", put(**{key: not value})
        elif isinstance(value, int | float):
            yield f"{key} {2 * value}", put(**{key: 2 * value})
    for values in UNSHAPED:
        yield f"with {values}", put(**values)


def outcome_of(name: str, edit: Edit, plain: Tensor) -> str | None:
    """Return what became of a mutation: equal, refused, or a difference; None if transformers cannot load it whole.

    Args:
        plain: transformers' logits without the edit.
    """
    where, row = edited(folder(name), edit), tokens(LENGTH)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            where, dtype="float32", attn_implementation="eager", output_loading_info=True
        )
        expected = their_logits(model.eval(), row) if not any(report.values()) else None
    except Exception:  # whatever transformers raises for a broken configuration
        expected = None
    try:
        found = our_logits(hub.load_causal_lm(where).eval(), [row])[0]
    except UserError:
        return "refused"
    except Exception as crash:
        return f"DIFFERENT: {crash!r}"
    if expected is None:
        return None
    gap = apart(found, expected)
    if gap <= TOLERANCE:
        return "equal" if apart(expected, plain) <= TOLERANCE else "equal, and changed"
    return f"DIFFERENT {gap:.1e}"


def sweep(name: str) -> tuple[dict[str, int], list[str]]:
    """Return the count of each outcome over the mutations of a checkpoint, and those that we read differently."""
    counts: dict[str, int] = {}
    wrong = []
    plain = their_logits(theirs(name), tokens(LENGTH))
    for what, edit in mutations(name):
        found = outcome_of(name, edit, plain) or "transformers does not load it"
        if found.startswith("DIFFERENT"):
            wrong.append(f"{name}: {what}: {found}")
            found = "DIFFERENT"
        counts[found] = counts.get(found, 0) + 1
    return counts, wrong
