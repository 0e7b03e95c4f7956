"""`tinyllm lifecycle`: every stage in order, in one process, gates, and one scorecard; `--smoke` rehearses it in a minute."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllm import __version__
from tinyllm.config import Resolved
from tinyllm.data import world
from tinyllm.stages import align_offline, align_online, chat, data, evaluate, pretrain, report, rm, sft
from tinyllm.stages.common import Call
from tinyllm.stages.config import ChatConfig
from tinyllm.stages.exam import COLUMNS
from tinyllm.stages.life import STEPS, Life
from tinyllm.stages.machine import described, peak_memory_mb
from tinyllm.stages.parents import RUNS, find
from tinyllm.train.engine import choose_device, choose_precision
from tinyllm.train.progress import say
from tinyllm.train.run import read_facts

_QUESTIONS = 12


def _chat(config: ChatConfig, call: Call) -> dict[str, Any]:
    """The chat row: the same held-out questions put to the pretrained model and to the fine-tuned one; how good the answers were."""
    asked = [row for row in world.prompts(40, seed=config.seed, split="val") if len(row["prompt"]) == 1][:_QUESTIONS]
    questions = [row["prompt"][0]["content"] for row in asked]
    before = find("sft", None, fast=True).folder
    worth = []
    for parent in (before, config.parent):
        answers = []
        for question in questions:  # each in a conversation of its own
            found = chat.run(config.model_copy(update={"parent": parent}), call, [question], stream=False)
            answers += found["exchanges"]
        scores = [world.gold(row, a["answer"], a["finished"]) for row, a in zip(asked, answers, strict=True)]
        worth.append(sum(scores) / len(scores))
    return {
        **found,
        "exchanges": answers,
        "moved": {"what": "gold reward of its answers", "from": worth[0], "to": worth[1]},
    }


_STAGES = {
    "data": data.prepare,
    "pretrain": pretrain.run,
    "eval": evaluate.run,
    "sft": sft.run,
    "sft-lora": sft.run,
    "chat": _chat,
    "rm": rm.run,
    "dpo": align_offline.run,
    "orpo": align_offline.run,
    "ppo": align_online.run,
    "gspo": align_online.run,
    "grpo": align_online.run,
}


def rehearse(resolved: Mapping[str, Resolved]) -> dict[str, Any]:
    """Run the rehearsal of every stage, each from the one before it."""
    started, rows = time.monotonic(), []
    for name, stage in _STAGES.items():
        begun = time.monotonic()
        say(f"--- {name}")
        call = Call(resolved[name].to_yaml(), fast=True)
        found = stage(resolved[name].config, call)
        rows.append({**found, "stage": name, "seconds": round(time.monotonic() - begun, 2)})
    return {
        "schema_version": 1,
        "stage": "lifecycle",
        "stages": rows,
        "seconds": round(time.monotonic() - started, 2),
        "peak_memory_mb": peak_memory_mb(),
    }


def run(
    lives: Mapping[str, Mapping[str, Resolved]], preset: str, name: str, *, questions: int, resume: bool = True
) -> dict[str, Any]:
    """Live every life (its name -> configurations by stage; the first is the one that is shown), and write the scorecard.

    name: of the folder under runs/lifecycle that the scorecard of several lives goes to.

    Returns the scorecard, with the paths of its files under `files`.
    """
    seeds, card = [], {}
    for own_name, resolved in lives.items():
        life = Life(own_name, resolved, questions=questions, resume=resume)
        records = life.go()
        mine = scorecard(life, records, preset)
        seeds.append(
            {
                "seed": mine["seed"],
                "passed": mine["passed"],
                "seconds": mine["seconds"],
                "gates": _valid(_flat(records)),
            }
        )
        card = card or _valid(mine)
        folder = life.folder if len(lives) == 1 else RUNS / "lifecycle" / name
        if len(seeds) > 1:
            card |= {"seeds": seeds, "passed": all(s["passed"] for s in seeds)}
        folder.mkdir(parents=True, exist_ok=True)
        files = {"json": folder / "scorecard.json", "html": folder / "report.html"}
        files["json"].write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        files["html"].write_text(report.page(card), encoding="utf-8")
    return {**card, "stage": "lifecycle", "files": {kind: path.as_posix() for kind, path in files.items()}}


def _valid(value: Any) -> Any:
    """The same without numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _valid(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_valid(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{r['stage']}/{gate['name']}": {"value": gate["value"], "passed": gate["passed"]}
        for r in records
        for gate in r["gates"]
    }


def scorecard(life: Life, records: Sequence[dict[str, Any]], preset: str) -> dict[str, Any]:
    """Everything about one life as one dict: what scorecard.json holds and `report.page` shows."""
    policies = [r for r in records if STEPS[r["stage"]].policy]
    first = life.resolved["pretrain"].config
    device = choose_device(first.device)
    seconds = sum(r["seconds"] + r["examined_seconds"] for r in records)
    return {
        "schema_version": 1,
        "preset": preset,
        "seed": first.seed,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join(["tinyllm", *sys.argv[1:]]),
        "version": __version__,
        "machine": described(str(device), choose_precision(first.train.precision, device)),
        "seconds": round(seconds, 1),
        "peak_memory_mb": max(r["peak_memory_mb"] for r in records),
        "passed": all(gate["passed"] for r in records for gate in r["gates"]),
        "stages": [_about(life, r) for r in records],
        "columns": COLUMNS,
        "scores": {r["stage"]: r["figures"] for r in policies},
        "by_task": {r["stage"]: r["by_task"] for r in policies if r["by_task"]},
        "measured": {r["stage"]: r["measured"] for r in records if r["measured"]},
        "prompts": life.samples(),
        "hacking": [fork for fork in life.forks() if fork["points"] and "gold" in fork["points"][0]],
    }


def _about(life: Life, record: Mapping[str, Any]) -> dict[str, Any]:
    stage, step = record["stage"], STEPS[record["stage"]]
    folder = life.run_of(stage)
    facts = read_facts(folder)
    return {
        "stage": stage,
        "title": step.title,
        "parent": step.parent,
        "run": folder.as_posix(),
        "checkpoint": (folder / "checkpoints" / "ckpt_best").as_posix(),
        "manifest_sha256": record["manifest_sha256"],
        "seconds": record["seconds"],
        "peak_memory_mb": record["peak_memory_mb"],
        "parameters": facts["parameters"],
        "trainable_parameters": facts["trainable_parameters"],
        "tokens": record["result"]["tokens"],
        "config": life.resolved[stage].to_yaml(),
        "curves": _curves(folder),
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


def _curves(folder: Path) -> dict[str, dict[str, list[list[float]]]]:
    """Of metrics.jsonl the figures worth a curve, on training and held-out records."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {}
    for name in _CURVES:
        sides = {
            side: [[r["step"], r[name]] for r in rows if r["split"] == side and r.get(name) is not None]
            for side in ("train", "eval")
        }
        if any(len(points) > 1 for points in sides.values()):
            found[name] = {side: points for side, points in sides.items() if points}
    return found
