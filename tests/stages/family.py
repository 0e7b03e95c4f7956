"""Six small runs, each from the one before it, really trained: what `tinyllm runs` has to make sense of. Made once a process.

pretrain/base -> sft/full/talk, sft/peft/lora/talk; talk -> rlhf/rm/judge, rlhf/offline/dpo-pairs; talk and judge -> rlhf/online/ppo-both
"""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import small

from tinyllm.config import dump, yaml12
from tinyllm.model.config import LoRAConfig
from tinyllm.rollout.config import RolloutConfig
from tinyllm.stages import align_offline, align_online, pretrain, rm, sft
from tinyllm.stages.common import Call
from tinyllm.stages.config import AlignOfflineConfig, AlignOnlineConfig, PretrainConfig, RmConfig, SftConfig

BASE, TALK, ADAPTER = Path("runs/pretrain/base"), Path("runs/sft/full/talk"), Path("runs/sft/peft/lora/talk")
JUDGE, DPO, PPO = Path("runs/rlhf/rm/judge"), Path("runs/rlhf/offline/dpo-pairs"), Path("runs/rlhf/online/ppo-both")
RUNS = (BASE, TALK, ADAPTER, JUDGE, DPO, PPO)
STEPS = (0, 2, 4)
LAST = "checkpoints/step-00000004"


def data(folder: Path) -> None:
    """The records that every stage learns from."""
    numbers = range(60)
    small.written(folder / "texts.jsonl", [{"text": f"What is {i}? It is a number, red or blue."} for i in numbers])
    talk = [
        {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "red"}]}
        for i in numbers
    ]
    small.written(folder / "talk.jsonl", talk)
    small.pairs(folder / "pairs.jsonl")
    small.written(folder / "prompts.jsonl", [{"prompt": f"What is {i}?", "answer": str(i % 10)} for i in range(40)])


def settings(kind: type, source: str, name: str, **changes: Any) -> Any:
    sections = small.common(Path(source), keep=9)
    train = changes.pop("train", {})
    sections["train"] = sections["train"].model_copy(update=train)
    sections["data"] = kind.model_fields["data"].annotation(**dict(sections["data"]))
    return kind(**{**sections, "name": name, **changes})


def trained(stage: Any, config: Any, **call: Any) -> Path:
    return Path(stage.run(config, Call(yaml12.write(dump(config)), **call))["run"])


def base(name: str = "base", **changes: Any) -> Path:
    shape = small.SHAPE.model_copy(update={"vocab_size": 300})
    return trained(pretrain, settings(PretrainConfig, "texts.jsonl", name, model=shape, **changes))


def talk(name: str = "talk", parent: Path = BASE, call: dict[str, Any] | None = None, **changes: Any) -> Path:
    return trained(sft, settings(SftConfig, "talk.jsonl", name, parent=parent, **changes), **(call or {}))


@cache
def whole() -> Path:
    """A folder with all six runs. Copy it before you change anything: `copied`."""
    folder = Path(tempfile.mkdtemp(prefix="tinyllm-family-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data(folder)
    with contextlib.chdir(folder):
        base()
        talk()
        talk(lora=LoRAConfig(r=2))
        trained(rm, settings(RmConfig, "pairs.jsonl", "judge", parent=TALK))
        trained(align_offline, settings(AlignOfflineConfig, "pairs.jsonl", "pairs", parent=TALK))
        online = {
            "rollout": RolloutConfig(group_size=4, minibatches=2, max_new_tokens=8),
            "rewards": {"reward_model": 1.0},
        }
        trained(
            align_online,
            settings(
                AlignOnlineConfig,
                "prompts.jsonl",
                "both",
                algorithm="ppo",
                parent=TALK,
                reward_model=JUDGE,
                train={"eval_every": 1, "save_every": 1},
                **online,
            ),
        )
    return folder


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(whole(), folder, symlinks=True, dirs_exist_ok=True))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object in a file; None takes one out."""
    found = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}), encoding="utf-8")


def flip(path: Path) -> None:
    """Another last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
