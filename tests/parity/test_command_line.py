"""One step of every stage as a user runs it, on given records and a given checkpoint: the loss and gradient norm that TRL computes.

Covers everything between records and loss: reading, chat template, masks, batches, normalization, engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("transformers", "trl", "peft"):
    pytest.importorskip(package)
from tests.parity import jsonl  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
REWARD = """
def reward(columns, text, finished):
    return len(set(text)) / 8 - len(text) / 16
"""
COMMON = {
    "train.steps": 1,
    "train.precision": "fp32",
    "train.compile": "off",
    "train.eval_rows": 1,
    "data.max_length": 200,
    "optim.learning_rate": 1e-30,
    "optim.clip_norm": 1e30,
}
ROLLOUT = {
    "rollout.keep": "true",
    "rollout.group_size": 4,
    "rollout.minibatches": 1,
    "rollout.max_new_tokens": 12,
    "rollout.temperature": 1.0,
    "rewards": '{"reward.py:reward": 1.0}',
    "task": "[]",
}
KNOBS = {  # as `jsonl` gives them to TRL
    "rm": {"bradley_terry.centering": 0.01},
    "dpo": {"dpo.beta": 0.1},
    "orpo": {"orpo.weight": 0.1, "orpo.prompt_loss": "true"},
    "simpo": {"simpo.beta": 2.0, "simpo.gamma": 1.0},
    "kto": {"kto.beta": 0.1},
    "grpo": {"grpo.kl_coef": 0.02, "grpo.clip_low": 0.2, "grpo.clip_high": 0.28},
    "dapo": {"rollout.sampling_rounds": 1, "rollout.overlong_buffer": 0, "dapo.clip_low": 0.2, "dapo.clip_high": 0.28},
    "dr_grpo": {"dr_grpo.scale": "none"},
    "rloo": {"rloo.kl_coef": 0.05},
    "ppo": {
        "rollout.temperature": 0.8,
        "ppo.gamma": 0.97,
        "ppo.lam": 0.9,
        "ppo.clip": 0.2,
        "ppo.value_clip": 0.2,
        "ppo.vf_coef": 0.5,
        "ppo.kl_coef": 0.05,
    },
    "sft_lora": {"lora.r": 4, "lora.rslora": "true", "lora.dora": "true"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command-line")
    jsonl.checkpoint(folder / "model")
    for name in ("CONVERSATIONS", "PAIRS", "UNPAIRED", "PROMPTS"):
        rows = getattr(jsonl, name)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    return folder


FILES = {  # verb, records, rows in the step and in a micro-batch
    "sft": (["sft"], "CONVERSATIONS", 5, 1),
    "sft_packed": (["sft", "--set=packing=true"], "CONVERSATIONS", 2, 2),
    "sft_lora": (["sft", "--lora"], "CONVERSATIONS", 5, 5),
    "rm": (["rm"], "PAIRS", 5, 5),
    "dpo": (["align-offline", "--algorithm=dpo"], "PAIRS", 5, 5),
    "orpo": (["align-offline", "--algorithm=orpo"], "PAIRS", 5, 1),
    "simpo": (["align-offline", "--algorithm=simpo"], "PAIRS", 5, 5),
    "kto": (["align-offline", "--algorithm=kto"], "UNPAIRED", 5, 1),
}


def first_step(
    place: Path, stage: str, verb: list[str], records: str, rows: int, micro: int, more: dict[str, object]
) -> tuple[dict, Path]:
    """The first row of metrics.jsonl, and the run directory."""
    data = f'["{records}.jsonl"]'
    batch = {"train.batch_size": rows, "train.micro_batch_size": micro, "data.train": data, "data.val": data}
    settings = [f"--set={key}={value}" for key, value in (COMMON | batch | more | KNOBS.get(stage, {})).items()]
    options = [f"--name={stage}", "--checkpoint=model", "--device=cpu", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "tinyllm", *verb, *options, *settings]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    run = place / json.loads(done.stdout)["run"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in lines if line["split"] == "train"), run


@pytest.mark.parametrize("stage", FILES)
def test_learning_from_files(place: Path, stage: str) -> None:
    row, run = first_step(place, stage, *FILES[stage], more={})
    loss, norm = getattr(jsonl, stage)(place / "model", run)
    assert row["loss"] == pytest.approx(loss, rel=1e-5)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "dr_grpo", "rloo", "ppo"])
def test_learning_from_a_rollout(place: Path, algorithm: str) -> None:
    """On policy the loss is about 0 for any code; the gradient is not."""
    verb = ["align-online", f"--algorithm={algorithm}"]
    row, run = first_step(place, algorithm, verb, "PROMPTS", rows=12, micro=4, more=ROLLOUT)
    loss, norm = getattr(jsonl, algorithm)(place / "model", run)
    assert row["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert norm > 0.01
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
