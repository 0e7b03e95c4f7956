"""Real runs of every stage, half a second of training each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support import small
from tinyllm import algorithms, signals
from tinyllm.config import dump, yaml12
from tinyllm.errors import UserError
from tinyllm.model.transformer import SequenceScorer
from tinyllm.rollout.config import RolloutConfig
from tinyllm.stages import align_offline, align_online, pretrain, rm, sft
from tinyllm.stages.config import AlignOfflineConfig, AlignOnlineConfig, PretrainConfig, RmConfig, SftConfig
from tinyllm.train.config import OptimConfig
from tinyllm.train.run import Invocation

Records = Callable[[], list[dict[str, Any]]]
WORDS = ("red", "blue", "7", "colour", "number")
STEPS = {"pretrain": 24, "sft": 24, "rm": 24, "offline": 24, "online": 16}
RULES = """
def length(columns, text, finished):
    return min(len(text), 20) / 20

def nothing(columns, text, finished):
    return 0.0

def one(columns, text, finished):
    return float(text.strip() == "red")

def same(columns, text, finished):
    return 0.7
"""


def prepare(folder: Path) -> None:
    """Write what all runs share: a parent, reward functions, a reward model."""
    small.saved(small.rough(), folder / "rough")
    tuned = run("sft", {"train.steps": 60, "name": "parent"})
    shutil.copytree((tuned / "checkpoints" / "ckpt_latest").resolve(), folder / "parent")
    shutil.rmtree(folder / "runs")
    small.saved(small.rough(SequenceScorer, seed=3), folder / "judge")
    (folder / "rule.py").write_text(RULES)


def run(
    stage: str, settings: Mapping[str, Any], records: Records | None = None, held_out: Records | None = None
) -> Path:
    """Train a stage or an algorithm in the current folder, to its end or to an error. Returns the run directory."""
    family = next((f for f in ("offline", "online") if stage in algorithms.names(f)), stage)
    data = small.written(Path(f"{family}.jsonl"), (records or _GOOD[family])())
    module, kind = _STAGES[family]
    values: dict[str, Any] = {"name": "real", "parent": Path("rough" if family == "sft" else "parent")}
    values |= small.common(data, steps=STEPS[family], eval_every=2 if family == "online" else 4, save_every=100)
    if family == "pretrain":
        values |= {"parent": None, "model": small.SHAPE.model_copy(update={"vocab_size": 300})}
    if family in ("offline", "online"):
        values["algorithm"] = stage
    if family == "online":
        size, minibatches = 1 if stage == "ppo" else 4, 1 if stage == "rloo" else 2
        values["rollout"] = RolloutConfig(group_size=size, minibatches=minibatches, max_new_tokens=24)
        values |= {"rewards": {"rule.py:length": 1.0}, "optim": OptimConfig(learning_rate=2e-3, warmup_steps=1)}
    config = kind(**values)
    if held_out is not None:
        settings = {**settings, "data.val": (str(small.written(Path("val.jsonl"), held_out())),)}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        part = getattr(config, section) if section else config
        changed = part.model_copy(update={name: value})
        config = config.model_copy(update={section: changed}) if section else changed
    with suppress(UserError, signals.Stop):
        module.run(config, Invocation(yaml12.write(dump(config))))
    return next(path.parent for path in Path("runs").rglob("run.json") if "data" not in path.parts)


_STAGES = {
    "pretrain": (pretrain, PretrainConfig),
    "sft": (sft, SftConfig),
    "rm": (rm, RmConfig),
    "offline": (align_offline, AlignOfflineConfig),
    "online": (align_online, AlignOnlineConfig),
}


def answer(number: int) -> str:
    return " ".join(WORDS[: 1 + number % 5])


def pairs(count: int = 40, swapped: Callable[[int], bool] = lambda i: False) -> list[dict[str, Any]]:
    """Return preferences for red over blue, those for which `swapped` is true the other way round."""
    rows = []
    for i in range(count):
        answers = "red " * (1 + i % 5), "blue " * (1 + i % 4)
        chosen, rejected = reversed(answers) if swapped(i) else answers
        rows.append({"prompt": f"What is {i}?", "chosen": chosen, "rejected": rejected})
    return rows


_GOOD: dict[str, Records] = {
    "pretrain": lambda: [{"text": f"{w} is a colour. " * 3 + f"What is {i}?"} for i, w in enumerate(small.TEXTS * 3)],
    "sft": lambda: [{"prompt": f"What is {i}?", "completion": answer(i)} for i in range(40)],
    "rm": pairs,
    "offline": pairs,
    "online": lambda: [{"prompt": f"What is {i}?", "answer": answer(i)} for i in range(40)],
}
