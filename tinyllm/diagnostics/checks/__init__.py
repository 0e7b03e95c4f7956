"""The checks of `tinyllm verify`, in the order in which they run.

A check is a function `(Target) -> list[Comparison]` that may raise `CheckSkipped`. To add one, write the function and add a row to
`CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tinyllm.diagnostics.checks import checkpoints, export, forward, tokenizer, training
from tinyllm.diagnostics.checks.result import Comparison
from tinyllm.diagnostics.checks.target import Target


class Check(NamedTuple):
    """A check and the targets it applies to.

    on_machine: it runs without RUN, on a tiny model built for the purpose.
    on_checkpoint: it runs on the user's checkpoint.
    fatal: a UserError of this check ends the command, because the other checks cannot use damaged files.
    """

    name: str
    run: Callable[[Target], list[Comparison]]
    on_machine: bool = True
    on_checkpoint: bool = True
    fatal: bool = False


CHECKS = (
    Check("manifest", checkpoints.manifest, on_machine=False, fatal=True),
    Check("repeat", training.repeat, on_checkpoint=False),
    Check("micro-batches", training.micro_batches, on_checkpoint=False),
    Check("ranks", training.ranks, on_checkpoint=False),
    Check("resume", training.resume, on_checkpoint=False),
    Check("state", checkpoints.state, on_machine=False),
    Check("checkpoint", checkpoints.damage, on_checkpoint=False),
    Check("packing", forward.packing),
    Check("generation", forward.generation),
    Check("lora", forward.adapter),
    Check("tokenizer", tokenizer.round_trip),
    Check("template", tokenizer.chat_template),
    Check("export", export.reload),
    Check("transformers", export.transformers),
    Check("precision", training.precision),
)
