"""Settings of rotary position embeddings beyond the context that a model was pretrained with, and their keys in config.json.

Hugging Face has written them in several ways, which may stand side by side in one file. They are resolved as transformers 5 does:
`rope_scaling`, if it is not empty, replaces `rope_parameters`, and a `rope_theta` inside wins over one beside it.
Left out: multimodal sections, rotary embeddings of a part of the head outside Phi-3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tinyllm.config import Config, list_to_tuple

_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "longrope": ("original_max_position_embeddings", "short_factor", "long_factor"),
}
_BESIDE = (
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
)  # in the same object, but not of the scaling itself
Factors = Annotated[tuple[float, ...], BeforeValidator(list_to_tuple)]
_BY_LAYER = ("full_attention", "sliding_attention")


class RopeScaling(Config):
    """A rule that stretches the wavelengths of rotary embeddings. Keys are those of Hugging Face's `rope_parameters`."""

    rope_type: Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
    """linear: positions divided by factor (arXiv 2306.15595); dynamic: a base that grows with the length (NTK); yarn (arXiv
    2309.00071); llama3: long wavelengths divided by factor; longrope: a factor for each wavelength (arXiv 2402.13753)"""
    factor: float | None = Field(None, gt=0)
    """length of the new context, in units of the original one"""
    original_max_position_embeddings: int | None = Field(None, ge=1)
    """the context of pretraining, in tokens"""
    low_freq_factor: float | None = Field(None, gt=0)
    """llama3: waves longer than original context / this are divided by factor"""
    high_freq_factor: float | None = Field(None, gt=0)
    """llama3: waves shorter than original context / this are kept"""
    beta_fast: float = Field(32.0, gt=0)
    """yarn: waves that turn more often than this within the original context are kept"""
    beta_slow: float = Field(1.0, gt=0)
    """yarn: waves that turn less often than this are divided by factor"""
    truncate: bool = True
    """yarn: round the range between the two betas outward to whole dimensions"""
    attention_factor: float | None = Field(None, gt=0)
    """yarn, longrope: multiplies sine and cosine; none: as the paper suggests"""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """yarn: two parts of another attention factor"""
    short_factor: Factors = ()
    """longrope: divides each frequency, for texts within the original context"""
    long_factor: Factors = ()
    """longrope: the same for longer texts"""

    @property
    def by_length(self) -> bool:
        """True where the frequencies depend on the length of the text."""
        return self.rope_type in ("dynamic", "longrope")

    @model_validator(mode="after")
    def _complete(self) -> RopeScaling:
        if missing := [name for name in _REQUIRED[self.rope_type] if not getattr(self, name)]:
            raise ValueError(f"rope_type {self.rope_type} needs {', '.join(missing)}")
        return self


def read_rope(found: Mapping[str, Any], default_theta: float, *, by_layer: bool = False) -> dict[str, Any]:
    """Return the fields of `ModelConfig` about rotary embeddings that a config.json states.

    Args:
        default_theta: base where the file has none.
        by_layer: the architecture has one object for layers with full attention and one for those with a window.

    Raises:
        KeyError: the name of a key that is not understood.
    """
    given = dict(_object(found.get("rope_parameters")))
    scaling = _object(found.get("rope_scaling"))
    theta, fields = found.get("rope_theta") or default_theta, dict[str, Any]()
    if by_layer:
        local = _object(given.get("sliding_attention"))
        if set(local) - {"rope_theta"} and local.get("rope_type", "default") != "default":
            raise KeyError("rope_parameters.sliding_attention")
        fields["rope_local_base_freq"] = local.get("rope_theta") or found.get("rope_local_base_freq") or 10000.0
        full = {**_object(given.get("full_attention")), **scaling}
    elif any(key in given for key in _BY_LAYER):
        raise KeyError("rope_parameters")
    else:
        full = dict(scaling or given)
    kind = full.get("rope_type", full.get("type", "default"))
    fields["rope_theta"] = full.get("rope_theta") or theta
    if type(theta) not in (int, float) or theta <= 0:
        fields["rope_theta"] = theta  # to be refused, also where another one would be used
    fields["partial_rotary_factor"] = full.get("partial_rotary_factor") or found.get("partial_rotary_factor") or 1.0
    outside = None if by_layer else found.get("original_max_position_embeddings")  # wins in transformers, too
    fields["rope_scaling"] = None if kind == "default" else _scaling(found, kind, full, outside)
    return fields


def _object(value: Any) -> Mapping[str, Any]:
    if value and not isinstance(value, dict):
        raise KeyError("rope_parameters")
    return value or {}


def _scaling(found: Mapping[str, Any], kind: Any, full: Mapping[str, Any], outside: Any) -> dict[str, Any]:
    if kind == "su" or (kind == "yarn" and found.get("model_type") == "phi3"):
        kind = "longrope"  # its first names
    if kind not in _REQUIRED:
        raise KeyError("rope_type")
    values = {key: value for key, value in full.items() if value is not None and key not in _BESIDE}
    if unknown := sorted(set(values) - set(RopeScaling.model_fields)):
        raise KeyError(unknown[0])
    if kind in ("yarn", "llama3", "longrope"):
        inside = values.get("original_max_position_embeddings") or found.get("max_position_embeddings")
        values["original_max_position_embeddings"] = outside or inside
    return {"rope_type": kind, **values}


def rope_entries(
    theta: float, scaling: RopeScaling | None, partial: float, local_theta: float | None
) -> dict[str, Any]:
    """Return the keys of config.json for rotary embeddings, in the old and the new spelling, which agree."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        kept = {
            key: value for key, value in scaling.model_dump(exclude_defaults=True).items() if value not in (None, ())
        }
        rope |= {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}
    if partial != 1.0:
        rope["partial_rotary_factor"] = partial
    entries: dict[str, Any] = {"rope_parameters": rope}
    if local_theta is not None:
        local = {"rope_type": "default", "rope_theta": local_theta}
        entries["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
        entries["rope_local_base_freq"] = local_theta
    if scaling is not None:
        entries["rope_scaling"] = {
            key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")
        }
    if partial != 1.0:
        entries["partial_rotary_factor"] = partial
    return entries
