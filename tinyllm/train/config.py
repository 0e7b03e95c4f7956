"""How long, how much at once, and by which rule: settings alone, so that they can be checked without importing torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tinyllm.config import Config


class OptimConfig(Config):
    """How gradients become updates."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    """its peak, reached after the warm-up"""
    weight_decay: float = Field(0.1, ge=0)
    """decoupled; on matrices only, never on gains and biases"""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's"""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """cosine falls all the way; wsd stays at the peak and falls linearly over the last decay_fraction"""
    warmup_steps: int = Field(10, ge=0)
    decay_fraction: float = Field(0.2, gt=0, le=1)
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """the last learning rate, as a fraction of the peak"""
    clip_norm: float = Field(1.0, gt=0)
    """gradients longer than this are scaled down to it"""


class TrainConfig(Config):
    """The loop. Everything is counted in optimiser steps."""

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(16, ge=1)
    """rows in one optimiser step, over all micro-batches and ranks"""
    micro_batch_size: int = Field(16, ge=1)
    """rows in one forward pass; lower it if memory runs out, nothing else changes"""
    eval_every: int = Field(100, ge=1)
    eval_rows: int = Field(256, ge=1)
    """rows of the validation split that are scored at most"""
    save_every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)
    """checkpoints kept beside the best"""
    keep_every: int = Field(0, ge=0)
    """checkpoints whose step is a multiple of this are kept for good (milestones); 0: none"""
    log_every: int = Field(10, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the hardware multiplies it"""
    compile: Literal["auto", "on", "off"] = "auto"
    """auto: when the run is long enough to pay for it and a C++ compiler is there"""

    @model_validator(mode="after")
    def _micro_batches_fill_the_step(self) -> TrainConfig:
        micro = min(self.micro_batch_size, self.batch_size)
        if self.batch_size % micro:
            fits = next(n for n in range(micro, 0, -1) if self.batch_size % n == 0)
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}; that may be {fits}"
            )
        return self
