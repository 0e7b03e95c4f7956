"""Settings of the training loop and of the optimizer. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tinyllm.config import Config, OneOf, with_sections
from tinyllm.train import optimizers, schedules


def _with_own_settings(base: type[OptimConfig]) -> type[OptimConfig]:
    """Add a section for every optimizer and schedule that has settings of its own."""
    return with_sections(base, optimizers.settings() | schedules.settings())


@_with_own_settings
class OptimConfig(Config):
    """Optimizer and learning rate schedule."""

    optimizer: Annotated[str, OneOf(optimizers.names)] = "adamw"
    """a file of tinyllm/train/optimizers"""
    learning_rate: float = Field(1e-3, gt=0)
    """peak, reached after the warm-up"""
    weight_decay: float = Field(0.1, ge=0)
    """decoupled; on matrices only, never on norms and biases"""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    """of Muon"""
    schedule: Annotated[str, OneOf(schedules.names)] = "cosine"
    """cosine decays all the way; wsd stays at the peak and decays linearly over the last decay_fraction; constant"""
    warmup_steps: int = Field(10, ge=0)
    decay_fraction: float = Field(0.2, gt=0, le=1)
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """final learning rate as a fraction of the peak"""
    clip_norm: float = Field(1.0, gt=0)
    """gradients with a larger norm are scaled down to it"""


class TrainConfig(Config):
    """The training loop. Counts are optimizer steps."""

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(16, ge=1)
    """rows per optimizer step, over all micro-batches and ranks"""
    micro_batch_size: int = Field(16, ge=1)
    """rows per forward pass; lower it if memory runs out, results do not change"""
    eval_every: int = Field(100, ge=1)
    eval_rows: int = Field(256, ge=1)
    """maximum number of validation rows"""
    save_every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)
    """number of checkpoints kept, beside the best"""
    keep_every: int = Field(0, ge=0)
    """checkpoints whose step is a multiple of this are never removed; 0: none"""
    log_every: int = Field(10, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    """on what each block adds to the residual stream; that of an adapter is lora.dropout"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the hardware supports it natively"""
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    """compute each block again in the backward pass instead of keeping its activations; results do not change. auto: if memory is short"""
    save_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """of model.safetensors; auto: that of the parent's weights. Training and resuming use float32 weights in any case"""
    compile: Literal["auto", "on", "off"] = "auto"
    """auto: if the run is long enough to benefit and a C++ compiler is installed"""

    @model_validator(mode="after")
    def _micro_batches_fill_the_step(self) -> TrainConfig:
        micro = min(self.micro_batch_size, self.batch_size)
        if self.batch_size % micro:
            fits = next(n for n in range(micro, 0, -1) if self.batch_size % n == 0)
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}; {fits} would fit"
            )
        return self
