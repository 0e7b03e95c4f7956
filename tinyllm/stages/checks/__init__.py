"""What `tinyllm verify` compares. A check is a function `(Subject) -> [Compared, …]`; it may raise `Skipped`.

`training` looks at steps and runs, `forward` at what a model computes, `files` at what is written down, `words` at text. To add a check,
write the function and give it a line in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tinyllm.stages.checks import files, forward, training, words
from tinyllm.stages.checks.outcome import Compared
from tinyllm.stages.checks.subject import Subject


class Check(NamedTuple):
    """A check and whom it applies to: this machine (a tiny model made on the spot), a checkpoint of the user's, or both.

    fatal: a UserError of it ends the command: what is not what was written is not looked at any further.
    """

    name: str
    look: Callable[[Subject], list[Compared]]
    machine: bool = True
    checkpoint: bool = True
    fatal: bool = False


CHECKS = (
    Check("manifest", files.manifest, machine=False, fatal=True),
    Check("repeat", training.repeat, checkpoint=False),
    Check("micro-batches", training.micro_batches, checkpoint=False),
    Check("ranks", training.ranks, checkpoint=False),
    Check("resume", training.resume, checkpoint=False),
    Check("state", files.state, machine=False),
    Check("checkpoint", files.damage, checkpoint=False),
    Check("packing", forward.packing),
    Check("generation", forward.generation),
    Check("lora", forward.adapter),
    Check("tokenizer", words.tokenizer),
    Check("template", words.template),
    Check("export", files.export),
    Check("transformers", files.transformers),
    Check("precision", training.precision),
)
