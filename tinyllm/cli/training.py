"""The commands that run one configured stage: training, alignment, evaluation and chat."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllm.cli.options import READING, TUNING, Common, command
from tinyllm.cli.run_stage import run_stage
from tinyllm.errors import UserError
from tinyllm.streams import decode_argument

if TYPE_CHECKING:
    from tinyllm.algorithms import Family

Algorithm = Annotated[
    str | None, typer.Option("--algorithm", "-a", help="Name of an algorithm, or path/to/my_loss.py.")
]
Lora = Annotated[bool, typer.Option("--lora", help="Train a LoRA adapter instead of all weights.")]
Task = Annotated[list[str] | None, typer.Option("--task", "-t", help="Name of a task, see above. Repeatable.")]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Answer this prompt and exit. Repeatable.")]


def register_learning(app: typer.Typer, panel: str) -> None:
    command(app, "pretrain", TUNING, panel)(pretrain)
    command(app, "sft", TUNING, panel)(sft)


def register_alignment(app: typer.Typer, panel: str) -> None:
    command(app, "rm", TUNING, panel)(rm)
    command(app, "align-offline", TUNING, panel, more=partial(_listed, "offline", "dpo"))(align_offline)
    command(app, "align-online", TUNING, panel, more=partial(_listed, "online", "grpo"))(align_online)


def register_use(app: typer.Typer, panel: str) -> None:
    command(app, "eval", READING, panel, more=_tasks)(evaluate)
    command(app, "chat", tuple(name for name in READING if name != "nproc"), panel)(chat)


def pretrain(common: Common) -> None:
    """Train a base model on raw text; with --checkpoint, continue from the weights of another one."""
    run_stage("pretrain", common)


def sft(common: Common, lora: Lora = False) -> None:
    """Fine-tune a base model on conversations (supervised fine-tuning)."""
    run_stage("sft-lora" if lora else "sft", common, keys=_adapter(lora))


def rm(common: Common, lora: Lora = False) -> None:
    """Train a reward model on preference pairs."""
    run_stage("rm", common, keys=_adapter(lora))


def align_offline(common: Common, algorithm: Algorithm = None, lora: Lora = False) -> None:
    """Align on preference data. Default: DPO; --algorithm selects another."""
    keys = {"algorithm": algorithm, **_adapter(lora)}
    run_stage(_known(algorithm, "offline") or _own(common) or "dpo", common, default="dpo", keys=keys)


def align_online(common: Common, algorithm: Algorithm = None, lora: Lora = False) -> None:
    """Align with rewards for generated answers. Default: GRPO; --algorithm selects another."""
    keys = {"algorithm": algorithm, **_adapter(lora)}
    run_stage(_known(algorithm, "online") or _own(common) or "grpo", common, default="grpo", keys=keys)


def _adapter(lora: bool) -> dict[str, str]:
    """Return the setting that switches LoRA on: its section, with what the configuration says of it."""
    return {"lora": "{}"} if lora else {}


def evaluate(common: Common, task: Task = None) -> None:
    """Report perplexity and bits per byte of a checkpoint on held-out text; with --task, benchmarks."""
    run_stage("eval", common, keys={"task": f"[{', '.join(task)}]" if task else None})


def chat(common: Common, prompt: Prompts = None) -> None:
    """Chat with a checkpoint."""
    if common.json and not prompt:
        raise UserError("--json needs a prompt", where="--json", fix='add -p "..."')
    run_stage("chat", common, prompts=list(map(decode_argument, prompt or [])), stream=not common.json)


def _known(algorithm: str | None, family: Family) -> str | None:
    """Return the algorithm. UserError if it is neither built in nor a file."""
    from tinyllm import algorithms  # brings pydantic, which --help does not need

    if algorithm is None or algorithms.is_file(algorithm) or algorithm in (known := algorithms.names(family)):
        return algorithm
    from tinyllm.config import nearest

    near = " or ".join(nearest(algorithm, known))
    fix = f"use --algorithm {near}" if near else f"choose one of {', '.join(known)}, or path/to/my_loss.py"
    raise UserError(f"unknown {family} algorithm {algorithm!r}", where="--algorithm", fix=fix)


def _own(common: Common) -> str:
    """Return the path of a user's own algorithm that is named by --set or in the file of --config; empty if there is none."""
    from tinyllm import algorithms
    from tinyllm.cli.resolve import algorithm_in_file

    sets = [text.partition("=") for text in common.set or []]
    named = [value for key, _, value in sets if key.strip() == "algorithm"]
    path = named[-1] if named else algorithm_in_file(common.config) if common.config else ""
    return path if algorithms.is_file(path) else ""


def _listed(family: Family, default: str) -> str:
    """Return one line per algorithm of a family: its name and the title of its file."""
    from tinyllm import algorithms

    lines = []
    for entry in algorithms.entries(family):
        title = (entry.module.__doc__ or "").partition("\n")[0].split(":")[0].rstrip(".")
        lines.append(f"{entry.name}{' (default)' if entry.name == default else ''}: {title}")
    return "\n\n".join(["Algorithms:", *lines])


def _tasks() -> str:
    """Return one line per benchmark task: its name and the title of its file."""
    from tinyllm.evals import tasks

    return "\n\n".join(["Tasks:", *(f"{name}: {tasks.title_of(name)}" for name in tasks.names())])
