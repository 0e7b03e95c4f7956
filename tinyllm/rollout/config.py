"""How answers are written and what they are worth: settings alone, so that they can be checked without importing torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from tinyllm.config import Config


class RolloutConfig(Config):
    """One rollout writes train.batch_size x minibatches answers; each is learned from `epochs` times."""

    group_size: int = Field(8, ge=1)
    """answers to one prompt"""
    minibatches: int = Field(2, ge=1)
    """optimiser steps in one pass over a rollout"""
    epochs: int = Field(1, ge=1)
    max_new_tokens: int = Field(32, ge=1)
    temperature: float = Field(1.0, gt=0)
    """of sampling, and of every log-probability in the loss"""
    unfinished_penalty: float = Field(0.5, ge=0)
    """taken from the reward of an answer that did not end by itself"""
    overlong_buffer: int = Field(0, ge=0)
    """an answer's reward falls by up to 1 over its last so many tokens before max_new_tokens; 0 turns this off"""
    sampling_rounds: int = Field(1, ge=1)
    """groups whose answers all earned the same teach nothing: they are replaced by new ones, in at most so many rounds; 1 keeps them"""
    keep: bool = False
    """write every rollout to logs/rollouts: ids, log-probabilities, rewards and advantages, as safetensors"""
    tolerance: float = Field(0.1, gt=0)
    """the run stops where sampler and training disagree by more than this about a token's log-probability, on average (nats)"""

    @model_validator(mode="after")
    def _groups_can_differ(self) -> RolloutConfig:
        if self.sampling_rounds > 1 and self.group_size < 2:
            raise ValueError(
                "sampling_rounds above 1 needs a group_size of 2 or more: an answer alone has nothing to differ from"
            )
        if self.overlong_buffer > self.max_new_tokens:
            raise ValueError(
                f"overlong_buffer {self.overlong_buffer} is more than max_new_tokens {self.max_new_tokens}"
            )
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps between two rollouts."""
        return self.minibatches * self.epochs
