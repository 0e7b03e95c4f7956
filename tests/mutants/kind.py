"""What a mutant is: one change to one file of the package, and the tests that must notice it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

MISTAKES = {  # seen in public code for the whole life of a model; "extra" are those of our own invention
    "1": "log-probabilities gathered without the one-token shift",
    "2": "preference data without prompt or end token, an empty response mask: DPO is ln 2 with zero gradient, for ever",
    "3": "GSPO without the length normalisation; GRPO without completion mask, or without KL though it is configured",
    "4": "ORPO from a ratio of probabilities instead of odds",
    "5": "PPO that ignores gamma and lambda; a mask that includes the prompt; no whitening or clipping",
    "6": "reward read at mask.sum()-1 under left padding; padding after EOS not masked; rollouts without attention mask or template",
    "7": "end of document never a target; first response token never trained; SFT and chat templates that differ",
    "8": "a missing reward model or a failed resume replaced by random weights",
    "9": "perplexity as the mean of batch means; only rank 0's shard measured; the best checkpoint a copy of the last",
    "10": "training forward on the unwrapped module under DDP: gradients not summed",
    "11": "fp16 weights in the resume file; LoRA that skips non-square layers; no warm-up",
    "12": "pickled checkpoints; settings read with a default, so that typos are silent",
}


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` wherever it stands in `file`; a table that no longer fits the source is refused."""

    name: str
    mistake: str  # a key of MISTAKES, or "extra"
    plants: str
    file: str  # in tinyllm/
    old: str
    new: str
    targets: str  # pytest's files and node ids under tests/, separated by spaces
    count: int = 1  # how often `old` stands there
    keeps: str = ""  # the check, gate, symptom or promise that it breaks, as "gate: KL within bound"

    @property
    def digest(self) -> str:
        """A hash of the change and of the names of its tests: a result is of this mutant, and not of one that had its name."""
        return hashlib.sha256("\0".join((self.file, self.old, self.new, self.targets)).encode()).hexdigest()[:16]
