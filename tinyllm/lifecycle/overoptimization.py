"""Reward overoptimization: proxy reward against gold reward over the KL from the parent (Gao et al. 2022, arXiv 2210.10760).

An online run trains on a proxy (its reward, often the score of a reward model). Where the gold reward is known too (`rewards/gold`, with
weight 0 if it is only monitored), the proxy can keep rising while gold peaks and falls. `overoptimization` finds that point.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GOLD, MODEL = "rewards/gold", "rewards/reward_model"
FALL = 0.1  # of gold below its peak, on a scale from -1 to 1: about four standard errors of 256 answers
_METRICS = {"kl": "objective/kl", "gold": GOLD, "entropy": "entropy", "length": "length", "repetition": "repetition"}


def eval_points(rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the held-out metrics of an online run by step: step, proxy, gold, kl, entropy, length, repetition."""
    found = []
    for row in rows:
        proxy = row.get(MODEL, row.get("reward")) if row.get("split") == "eval" else None
        if proxy is not None:  # null: it was not finite
            metrics = {key: row[name] for key, name in _METRICS.items() if row.get(name) is not None}
            found.append({"step": row["step"], "proxy": proxy, **metrics})
    return found


def overoptimization(points: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the step with the best gold reward (`best`) and the step where overoptimization begins (`onset`).

    The onset is the first step after the best one where gold is at least `FALL` lower and the proxy is not lower. Both are None if gold
    is not known, and `onset` is None if there is no such step.
    """
    if not points or any("gold" not in point for point in points):
        return {"best": None, "onset": None}
    best = points[0]
    for point in points:
        if point["gold"] > best["gold"]:
            best = point
        elif point["gold"] <= best["gold"] - FALL and point["proxy"] >= best["proxy"]:
            return {"best": best["step"], "onset": point["step"]}
    return {"best": best["step"], "onset": None}


def of_run(run_dir: Path) -> dict[str, Any]:
    """Return the `points` of a run directory, and their `best` and `onset`."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    points = eval_points([json.loads(line) for line in lines])
    return {"points": points, **overoptimization(points)}
