"""Reward hacking, made visible: what is optimised against what is wanted, over the distance from the parent.

An online run trains on a proxy (its reward, often a reward model's guess). Where the truth is known as well (`rewards/gold`, with weight 0
if it is only to be watched), the two can part: the proxy goes on rising while gold turns and falls (arXiv 2210.10760). `fork` finds that
point.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GOLD, MODEL = "rewards/gold", "rewards/reward_model"
FALL = 0.1  # of gold below its peak, on a scale from -1 to 1: about four standard errors of 256 answers
_SEEN = {"kl": "objective/kl", "gold": GOLD, "entropy": "entropy", "length": "length", "repetition": "repetition"}


def points(rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The held-out figures of an online run in the order of its steps: proxy, gold, kl, entropy, length, repetition."""
    found = []
    for row in rows:
        if row.get("split") == "eval" and "reward" in row:
            proxy = row[MODEL] if MODEL in row else row["reward"]
            found.append(
                {"step": row["step"], "proxy": proxy, **{k: row[name] for k, name in _SEEN.items() if name in row}}
            )
    return found


def fork(seen: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The step with the best gold, and the onset: the first later one where gold is `FALL` below it and the proxy is not below its
    value there. None where gold is not known or nothing forks."""
    if not seen or any("gold" not in point for point in seen):
        return {"best": None, "onset": None}
    best = seen[0]
    for point in seen:
        if point["gold"] > best["gold"]:
            best = point
        elif point["gold"] <= best["gold"] - FALL and point["proxy"] >= best["proxy"]:
            return {"best": best["step"], "onset": point["step"]}
    return {"best": best["step"], "onset": None}


def monitor(run: Path) -> dict[str, Any]:
    """Of a run directory: `points`, and the `fork`."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    seen = points([json.loads(line) for line in lines])
    return {"points": seen, **fork(seen)}
