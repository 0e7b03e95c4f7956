"""How answers are written and what they are worth: settings alone, so that they can be checked without importing torch."""

from __future__ import annotations

from pydantic import Field

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
    tolerance: float = Field(0.1, gt=0)
    """the run stops where sampler and training disagree by more than this about a token's log-probability, on average (nats)"""

    @property
    def steps(self) -> int:
        """Optimiser steps between two rollouts."""
        return self.minibatches * self.epochs
