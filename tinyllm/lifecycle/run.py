"""`tinyllm lifecycle`: every stage in one process, with acceptance gates and one scorecard; with `--smoke`, tiny runs of every command."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllm import __version__
from tinyllm.config import Resolved
from tinyllm.console import say
from tinyllm.data import world
from tinyllm.evals import run as evals
from tinyllm.html import report
from tinyllm.io import strict_json
from tinyllm.io.files import write_text_atomically, writing
from tinyllm.lifecycle.evaluation import COLUMNS
from tinyllm.lifecycle.pipeline import Pipeline
from tinyllm.lifecycle.sources import measured_on
from tinyllm.lifecycle.stages import SMOKE_TEST, STAGES
from tinyllm.stages import chat, data
from tinyllm.stages.config import ChatConfig
from tinyllm.stages.parents import RUNS, find_checkpoint
from tinyllm.train import lock
from tinyllm.train.engine import choose_device, choose_precision
from tinyllm.train.fast_dev_runs import FAST_DEV_RUN
from tinyllm.train.memory import machine_facts, peak_memory_mb
from tinyllm.train.run import Invocation, read_facts

_CHAT_QUESTIONS = 12


# --- the smoke test ---------------------------------------------------------------------------------------------------------------


def smoke_test(resolved: Mapping[str, Resolved]) -> dict[str, Any]:
    """Run the given commands with their `fast_dev_run` settings, each from the one before it. Return one row per command.

    Raises: UserError (RESOURCES) if another process runs the smoke test: each replaces the runs of the one before.
    """
    started, folder = time.monotonic(), RUNS / "lifecycle" / FAST_DEV_RUN
    lock.acquire(folder, fix="wait for it to finish")
    try:
        rows = [_smoke_row(name, resolved[name]) for name in SMOKE_TEST if name in resolved]
    finally:
        lock.release(folder)
    return {
        "schema_version": 1,
        "stage": "lifecycle",
        "stages": rows,
        "seconds": round(time.monotonic() - started, 2),
        "peak_memory_mb": peak_memory_mb(),
    }


def _smoke_row(name: str, resolved: Resolved) -> dict[str, Any]:
    """Run one command of the smoke test. Return its result with the name of the command and the seconds it took."""
    functions: dict[str, Callable[[Any, Invocation], dict[str, Any]]] = {name: s.run for name, s in STAGES.items()}
    functions |= {"data": data.prepare, "eval": evals.run, "chat": _chat}
    started = time.monotonic()
    say(f"--- {name}")
    found = functions[name](resolved.config, Invocation(resolved.to_yaml(), fast=True))
    return {**found, "stage": name, "seconds": round(time.monotonic() - started, 2)}


def _chat(config: ChatConfig, call: Invocation) -> dict[str, Any]:
    """Ask the pretrained and the fine-tuned model the same test questions. Return the mean gold reward of both."""
    prompts = [row for row in world.prompts(40, seed=config.seed, split="test") if len(row["prompt"]) == 1]
    prompts = prompts[:_CHAT_QUESTIONS]
    questions = [row["prompt"][0]["content"] for row in prompts]
    means = []
    for parent in (find_checkpoint("sft", None, fast=True).folder, config.parent):
        exchanges = []
        for question in questions:  # each in its own conversation
            found = chat.run(config.model_copy(update={"parent": parent}), call, [question], stream=False)
            exchanges += found["exchanges"]
        gold = [world.gold(row, e["answer"], e["finished"]) for row, e in zip(prompts, exchanges, strict=True)]
        means.append(sum(gold) / len(gold))
    return {
        **found,
        "exchanges": exchanges,
        "moved": {"what": "gold reward of its answers", "from": means[0], "to": means[1]},
    }


# --- lifecycles -------------------------------------------------------------------------------------------------------------------


def run(
    lifecycles: Mapping[str, Mapping[str, Resolved]], preset: str, name: str, *, questions: int, resume: bool = True
) -> dict[str, Any]:
    """Run every lifecycle and write the scorecard.

    Args:
        lifecycles: name -> configurations by stage, one lifecycle per seed. The scorecard shows the first in full.
        preset: shown in the scorecard.
        name: folder below runs/lifecycle for the scorecard of several lifecycles.
        questions: test questions for each stage.
        resume: keep finished stages.

    Returns the scorecard, with the paths of its files under `files`.
    """
    seeds: list[dict[str, Any]] = []
    card: dict[str, Any] = {}
    files: dict[str, Path] = {}
    for own_name, resolved in lifecycles.items():
        pipeline = Pipeline(own_name, resolved, questions=questions, resume=resume)
        try:
            records = pipeline.run()
            own = scorecard(pipeline, records, preset)
            summary = {key: own[key] for key in ("seed", "passed", "seconds")}
            seeds.append({**summary, "gates": _gates_of(records)})
            card = card or own
            folder = pipeline.folder if len(lifecycles) == 1 else RUNS / "lifecycle" / name
            if len(seeds) > 1:
                card |= {"seeds": seeds, "passed": all(s["passed"] for s in seeds)}
            finite = strict_json.without_nonfinite(card)
            files = _write_reports(folder, finite)
        finally:
            pipeline.close()
    return {**finite, "stage": "lifecycle", "files": {kind: path.as_posix() for kind, path in files.items()}}


def _write_reports(folder: Path, card: dict[str, Any]) -> dict[str, Path]:
    """Write scorecard.json and report.html, each in one rename. Raises: UserError (RESOURCES)."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = {"json": folder / "scorecard.json", "html": folder / "report.html"}
    write_text_atomically(files["json"], strict_json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    write_text_atomically(files["html"], report.page(card))
    return files


def _gates_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return STAGE/GATE -> value and outcome."""
    return {
        f"{r['stage']}/{gate['name']}": {key: gate[key] for key in ("value", "n", "passed")}
        for r in records
        for gate in r["gates"]
    }


# --- the scorecard ----------------------------------------------------------------------------------------------------------------


def scorecard(pipeline: Pipeline, records: Sequence[dict[str, Any]], preset: str) -> dict[str, Any]:
    """Return the scorecard of one lifecycle: the contents of scorecard.json, and the input of `report.page`."""
    policies = [r for r in records if STAGES[r["stage"]].is_policy]
    first = pipeline.resolved["pretrain"].config
    device = choose_device(first.device)
    seconds = sum(r["seconds"] + r["examined_seconds"] for r in records)
    return {
        "schema_version": 1,
        "preset": preset,
        "seed": first.seed,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join(["tinyllm", *sys.argv[1:]]),
        "version": __version__,
        "machine": machine_facts(str(device), choose_precision(first.train.precision, device)),
        "seconds": round(seconds, 1),
        "peak_memory_mb": max(r["peak_memory_mb"] for r in records),
        "passed": all(gate["passed"] for r in records for gate in r["gates"]),
        "stages": [_stage_summary(pipeline, r) for r in records],
        "columns": COLUMNS,
        "scores": {r["stage"]: r["figures"] for r in policies},
        "last": {r["stage"]: r["last"] for r in policies if r["last"]["step"] != r["best_step"]},
        "splits": {r["stage"]: r["splits"] for r in records},
        "by_task": {r["stage"]: r["by_task"] for r in policies if r["by_task"]},
        "sources": measured_on(pipeline.resolved),
        "measured": {r["stage"]: r["measured"] for r in records if r["measured"]},
        "prompts": pipeline.samples(),
        "hacking": [run for run in pipeline.overoptimization() if run["points"] and "gold" in run["points"][0]],
    }


def _stage_summary(pipeline: Pipeline, record: Mapping[str, Any]) -> dict[str, Any]:
    stage = STAGES[record["stage"]]
    run_dir = pipeline.run_dir(stage.name)
    facts = read_facts(run_dir)
    return {
        "stage": stage.name,
        "title": stage.title,
        "parent": stage.parent,
        "run": run_dir.as_posix(),
        "checkpoint": (run_dir / "checkpoints" / "ckpt_best").as_posix(),
        "best_step": record["best_step"],
        "last_step": record["last"]["step"],
        "manifest_sha256": record["manifest_sha256"],
        "seconds": record["seconds"],
        "peak_memory_mb": record["peak_memory_mb"],
        "parameters": facts["parameters"],
        "trainable_parameters": facts["trainable_parameters"],
        "tokens": record["result"]["tokens"],
        "config": pipeline.resolved[stage.name].to_yaml(),
        "curves": _curves(run_dir),
        "gates": record["gates"],
    }


_CURVES = (
    "loss",
    "bits_per_byte",
    "accuracy",
    "rewards/margins",
    "rewards/accuracies",
    "reward",
    "rewards/gold",
    "finished",
)


def _curves(run_dir: Path) -> dict[str, dict[str, list[list[float]]]]:
    """Return metric -> split -> (step, value) for the metrics in `_CURVES`."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {}
    for name in _CURVES:
        splits = {
            split: [[r["step"], r[name]] for r in rows if r["split"] == split and r.get(name) is not None]
            for split in ("train", "eval")
        }
        if any(len(points) > 1 for points in splits.values()):
            found[name] = {split: points for split, points in splits.items() if points}
    return found
