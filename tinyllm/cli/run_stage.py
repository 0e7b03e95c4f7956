"""Run one configured stage: resolve its configuration, check it, start ranks if needed, and only then import the stage and torch."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from tinyllm import console
from tinyllm import distributed as dist
from tinyllm.cli.options import Common
from tinyllm.cli.printing import results
from tinyllm.cli.printing.text import prints_on_stderr
from tinyllm.distributed import heartbeat
from tinyllm.errors import UserError


def run_stage(
    key: str,
    common: Common,
    *,
    default: str = "",
    keys: dict[str, Any] | None = None,
    function: str = "run",
    **more: Any,
) -> None:
    """Resolve the configuration of a stage, then import and run it and print its result.

    Args:
        key: the stage in `resolve.STAGES`, or the name of an algorithm.
        default: the stage whose configuration an algorithm without one of its own starts from.
        keys: configuration keys set by the command's own options; None values are left out.
        function: the function of the stage's module.
        more: passed to that function.
    """
    # importing the settings takes a tenth of a second, which --help does not need
    from tinyllm.cli.resolve import resolve, stage_of
    from tinyllm.stages.planning import consistency

    stage = stage_of(key, default or key)
    console.Quiet.on = common.quiet
    options = {k: v for k, v in {**common.keys(), **(keys or {})}.items() if v is not None}
    changes = common.change or []
    with prints_on_stderr(common.json):
        resolved = resolve(
            stage, common.config, common.set or [], options, os.environ, fast=common.fast_dev_run, changes=changes
        )
    consistency.check_ranks(resolved.config, common.nproc)
    consistency.check_groups(resolved.config, max(common.nproc, dist.world_size()))
    if heartbeat.folder() is None and (common.nproc > 1 or common.max_restarts) and not common.dry_run:
        _launch(common, stage.place, resolved.config.data)
    for note in (*resolved.notes, *(f"warning: {doubt}" for doubt in consistency.warnings(resolved.config))):
        console.say(note)
    if common.dry_run:
        with prints_on_stderr(common.json):
            _check_rewards(resolved.config)
        results.plan(stage.place, resolved, fast=common.fast_dev_run, as_json=common.json)
        return
    from tinyllm.config import parse_set
    from tinyllm.data import first_record
    from tinyllm.stages.config import data_kind
    from tinyllm.train.run import Invocation

    kind = data_kind(resolved.config)
    if kind is not None:
        first_record.check(resolved.config.data, kind)
    resume = common.resume or heartbeat.training_has_begun()  # --no-resume starts over once, not at every restart
    call = Invocation(
        resolved.to_yaml(),
        fast=common.fast_dev_run,
        resume=resume,
        allow_data_change=common.allow_data_change,
        change=frozenset(parse_set(text)[0] for text in changes),
        rewarm=common.rewarm,
    )
    with prints_on_stderr(common.json):
        found = stage.function(function)(resolved.config, call, **more)
    if dist.is_main():
        results.result(found, as_json=common.json)


def _check_rewards(config: Any) -> None:
    """Try the rewards of an online stage on the first rows of its data. A stage that runs does so by itself, on all of them."""
    from tinyllm.stages.config import AlignOnlineConfig

    if isinstance(config, AlignOnlineConfig):
        from tinyllm.rollout import checks

        checks.check_first(config.rewards, config.data, config.seed, **{"task": config.task} if config.task else {})


def _launch(common: Common, stage: str, data: Any) -> None:
    """Start the ranks as processes and exit with their exit code. Under torchrun they are running already."""
    if dist.world_size() == 1:
        if "-" in (data.test if stage == "pretrain" else data.sources):  # pretraining writes shards of the others first
            message = "several processes cannot share standard input"
            raise UserError(message, where="data.train", fix="save it to a file and name that, or leave out --nproc")
        from tinyllm.distributed.launcher import launch

        debug = common.debug or bool(os.environ.get("TINYLLM_DEBUG"))
        arguments = [sys.executable, "-m", "tinyllm", *sys.argv[1:]]
        raise typer.Exit(launch(common.nproc, arguments, common.max_restarts, debug=debug))
    if common.max_restarts:
        message = "--max-restarts applies to ranks started by --nproc"
        raise UserError(message, where="--max-restarts", fix="give it to torchrun instead: torchrun --max-restarts=3 …")
    if common.nproc not in (1, dist.world_size()):
        message = f"--nproc {common.nproc}, and {dist.world_size()} ranks have been started already"
        fix = "leave out --nproc: srun --ntasks, mpirun -n or torchrun --nproc_per_node is the number of ranks"
        raise UserError(message, where="--nproc", fix=fix)
