"""Six small runs, each trained from the one before it, for the tests of `tinyllm runs`. Trained once per process.

pretrain/base -> sft/full/talk, sft/peft/lora/talk; talk -> rlhf/rm/judge, rlhf/offline/dpo-pairs; talk and judge -> rlhf/online/ppo-both
"""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tests.support import small
from tinyllm.config import dump, yaml12
from tinyllm.model.config import LoRAConfig
from tinyllm.rollout.config import RolloutConfig
from tinyllm.stages import align_offline, align_online, pretrain, rm, sft
from tinyllm.stages.config import AlignOfflineConfig, AlignOnlineConfig, PretrainConfig, RmConfig, SftConfig
from tinyllm.train.run import Invocation

BASE, TALK, ADAPTER = Path("runs/pretrain/base"), Path("runs/sft/full/talk"), Path("runs/sft/peft/lora/talk")
JUDGE, DPO, PPO = Path("runs/rlhf/rm/judge"), Path("runs/rlhf/offline/dpo-pairs"), Path("runs/rlhf/online/ppo-both")
RUNS = (BASE, TALK, ADAPTER, JUDGE, DPO, PPO)
STEPS = (0, 2, 4)
LAST = "checkpoints/step-00000004"


def write_records(folder: Path) -> None:
    """Write the training records of every stage to `folder`."""
    numbers = range(60)
    small.written(folder / "texts.jsonl", [{"text": f"What is {i}? It is a number, red or blue."} for i in numbers])
    talk = [
        {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "red"}]}
        for i in numbers
    ]
    small.written(folder / "talk.jsonl", talk)
    small.pairs(folder / "pairs.jsonl")
    small.written(folder / "prompts.jsonl", [{"prompt": f"What is {i}?", "answer": str(i % 10)} for i in range(40)])


def make_config(kind: type, source: str, name: str, **changes: Any) -> Any:
    """Return the small configuration of a stage with records from `source`. Keys of `train` change single settings."""
    sections = small.common(Path(source), keep=9)
    train = changes.pop("train", {})
    sections["train"] = sections["train"].model_copy(update=train)
    sections["data"] = kind.model_fields["data"].annotation(**dict(sections["data"]))
    return kind(**{**sections, "name": name, **changes})


def run_stage(stage: Any, config: Any, **call: Any) -> Path:
    """Run a stage and return its run directory."""
    return Path(stage.run(config, Invocation(yaml12.write(dump(config)), **call))["run"])


def train_base(name: str = "base", **changes: Any) -> Path:
    shape = small.SHAPE.model_copy(update={"vocab_size": 300})
    return run_stage(pretrain, make_config(PretrainConfig, "texts.jsonl", name, model=shape, **changes))


def train_talk(name: str = "talk", parent: Path = BASE, call: dict[str, Any] | None = None, **changes: Any) -> Path:
    return run_stage(sft, make_config(SftConfig, "talk.jsonl", name, parent=parent, **changes), **(call or {}))


def _train_ppo() -> Path:
    config = make_config(
        AlignOnlineConfig,
        "prompts.jsonl",
        "both",
        algorithm="ppo",
        parent=TALK,
        reward_model=JUDGE,
        train={"eval_every": 1, "save_every": 1},
        rollout=RolloutConfig(group_size=4, minibatches=2, max_new_tokens=8),
        rewards={"reward_model": 1.0},
    )
    return run_stage(align_online, config)


@cache
def build() -> Path:
    """Train the six runs and return the folder that contains runs/. Do not change it: use `copy_to`."""
    folder = Path(tempfile.mkdtemp(prefix="tinyllm-run-tree-"))
    for place in (folder, folder.with_name(f"{folder.name}-moved")):
        atexit.register(shutil.rmtree, place, ignore_errors=True)
    write_records(folder)
    with contextlib.chdir(folder):
        train_base()
        train_talk()
        train_talk(lora=LoRAConfig(r=2))
        run_stage(rm, make_config(RmConfig, "pairs.jsonl", "judge", parent=TALK))
        run_stage(align_offline, make_config(AlignOfflineConfig, "pairs.jsonl", "pairs", parent=TALK))
        _train_ppo()
    # Adapters name their base by an absolute path, which leads nowhere from then on: every copy has to find its own.
    moved = folder.with_name(f"{folder.name}-moved")
    return folder.rename(moved)


def copy_to(folder: Path) -> Path:
    """Copy the six runs and their data to `folder`."""
    return Path(shutil.copytree(build(), folder, symlinks=True, dirs_exist_ok=True))


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object in a file. None removes a key."""
    found = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}), encoding="utf-8")


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
