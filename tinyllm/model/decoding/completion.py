"""What is asked of the sampler, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from tinyllm.config.sampling import LEAST_TEMPERATURE
from tinyllm.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling. UserError for a value out of range."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    """divides the logits; 0 is greedy"""
    top_k: int = 0
    """sample among so many of the most probable tokens; 0 keeps all"""
    top_p: float = 1.0
    """sample among the most probable tokens that together reach this probability; 1 keeps all"""
    repetition_penalty: float = 1.0
    """divides positive logits of tokens that the prompt or the completion has, and multiplies negative ones (arXiv 1909.05858); 1: off"""
    stop: tuple[int, ...] = ()
    """ids that end a completion, and are part of it"""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, valid, rule in (
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
            (
                "temperature",
                self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < float("inf"),
                f"0 (greedy), or {LEAST_TEMPERATURE:g} or more",
            ),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0"),
        ):
            if not valid:
                raise UserError(
                    f"{name} {getattr(self, name)} is out of range", where="sampling", fix=f"set it to {rule}"
                )

    @property
    def of_all(self) -> bool:
        """Whether tokens are sampled, from the whole vocabulary."""
        return self.temperature > 0 and self.top_k == 0 and self.top_p == 1


@dataclass
class Completion:
    """The sampled continuation of one prompt."""

    ids: list[int] = field(default_factory=list)  # with the stop token
    log_probs: list[float] = field(default_factory=list)  # in nats, at `temperature`, before top-k and top-p
    finished: bool = False  # by a stop token, not by the length
