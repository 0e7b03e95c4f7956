"""`tinyllm lifecycle`: every stage in order, in one process, and one table of what each of them moved."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tinyllm.config import Resolved
from tinyllm.data import world
from tinyllm.stages import align_offline, align_online, chat, data, evaluate, pretrain, rm, sft
from tinyllm.stages.common import Call
from tinyllm.stages.config import ChatConfig
from tinyllm.stages.parents import find
from tinyllm.train.progress import say

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


def run(resolved: Mapping[str, Resolved]) -> dict[str, Any]:
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


def peak_memory_mb() -> int:
    """The most this process has held, in MB (10^6 bytes); 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)
