"""Settings of rollouts. Apart from the code that uses them, so that they are validated without importing torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from tinyllm.config import Config
from tinyllm.config.sampling import Temperature
from tinyllm.errors import UserError


class RolloutConfig(Config):
    """A rollout samples train.batch_size x minibatches answers; each is trained on `epochs` times."""

    group_size: int = Field(8, ge=1)
    """answers per prompt"""
    minibatches: int = Field(2, ge=1)
    """optimizer steps in one pass over a rollout"""
    epochs: int = Field(1, ge=1)
    """passes over a rollout"""
    max_new_tokens: int = Field(32, ge=1)
    """the longest answer"""
    temperature: Temperature = 1.0
    """of sampling, and of every log-probability in the loss"""
    unfinished_penalty: float = Field(0.5, ge=0)
    """subtracted from the reward of an answer that reached max_new_tokens without an end token"""
    overlong_buffer: int = Field(0, ge=0)
    """the reward falls by up to 1 over this many tokens before max_new_tokens; 0 turns this off"""
    sampling_rounds: int = Field(1, ge=1)
    """groups whose rewards are all equal have no gradient and are replaced by new ones, in up to this many rounds; 1: they are kept"""
    keep: bool = False
    """write every rollout to logs/rollouts: ids, log-probabilities, rewards and advantages, as safetensors"""
    tolerance: float = Field(0.1, gt=0)
    """the largest mean difference (nats) of sampler and training in a token: more stops the run in its first rollout, and warns later"""

    @model_validator(mode="after")
    def _groups_can_differ(self) -> RolloutConfig:
        if self.sampling_rounds > 1 and self.group_size < 2:
            raise ValueError(
                f"sampling_rounds {self.sampling_rounds} needs a group_size of 2 or more: a single answer has nothing to be compared with"
            )
        if self.overlong_buffer > self.max_new_tokens:
            raise ValueError(
                f"overlong_buffer {self.overlong_buffer} is more than max_new_tokens {self.max_new_tokens}"
            )
        return self

    def check_batch(self, batch_size: int, ranks: int = 1, *, micro_batch_size: int = 1) -> None:
        """Raise UserError if a rank's share of a rollout is no whole number of groups; the fix names the nearest batch that is.

        That batch is one of whole micro-batches; if none is near, the fix names a smaller micro_batch_size as well.
        """
        if self._divides(batch_size, ranks):
            return
        distances = range(batch_size + self.group_size * ranks + 1)
        near = (size for d in distances for size in (batch_size + d, batch_size - d))
        fits = [size for size in near if size > 0 and self._divides(size, ranks)]
        whole = (n for n in fits if n % min(n, micro_batch_size) == 0 and abs(n - batch_size) <= batch_size // 4)
        nearest = next(whole, fits[0])
        micro = next(n for n in range(min(nearest, micro_batch_size), 0, -1) if nearest % n == 0)
        smaller = f" and train.micro_batch_size to {micro}" if micro < min(nearest, micro_batch_size) else ""
        over = f" over {ranks} ranks" if ranks > 1 else ""
        raise UserError(
            f"train.batch_size {batch_size} x rollout.minibatches {self.minibatches}{over} is not a multiple of "
            f"rollout.group_size {self.group_size}",
            where="train.batch_size",
            fix=f"set train.batch_size to {nearest}{smaller}",
        )

    def _divides(self, batch_size: int, ranks: int) -> bool:
        return batch_size % ranks == 0 and batch_size * self.minibatches // ranks % self.group_size == 0

    @property
    def steps(self) -> int:
        """Optimizer steps from one rollout to the next."""
        return self.minibatches * self.epochs
