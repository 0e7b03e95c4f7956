"""The second step of every stage as a user runs it, on given records and a given checkpoint: the loss and gradient that TRL computes.

Covers everything between records and loss: reading, chat template, masks, batches, normalization, engine. Gradients are compared entry by
entry; ours is read from the state of AdamW behind the step, whose first moment with beta1 = 0 is the gradient. A rollout is trained on
twice, so that in the second step ratios differ from 1 and are clipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

for package in ("transformers", "trl", "peft"):
    pytest.importorskip(package)
from tests.parity import jsonl, tiny  # noqa: E402
from tinyllm import algorithms  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
REWARD = """
def reward(columns, text, finished):
    return len(set(text)) / 8 - len(text) / 16
"""
GRADIENT = 2e-4  # of its largest entry; all of it is in float32
COMMON = {
    "train.steps": 2,
    "train.save_every": 1,
    "train.keep": 9,
    "train.precision": "fp32",
    "train.compile": "off",
    "train.eval_rows": 1,
    "data.max_length": 200,
    "optim.optimizer": "adamw",
    "optim.learning_rate": jsonl.RATE,
    "optim.weight_decay": 0.0,
    "optim.warmup_steps": 0,
    "optim.schedule": "constant",
    "optim.beta1": 0.0,
    "optim.beta2": jsonl.BETA2,
    "optim.eps": jsonl.EPS,
    "optim.clip_norm": 1e30,
}
ROLLOUT = {
    "rollout.keep": "true",
    "rollout.group_size": 4,
    "rollout.minibatches": 1,
    "rollout.epochs": 2,
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
    "dr_grpo": {"dr_grpo.scale": "none", "dr_grpo.clip_high": 0.28},
    "gspo": {"gspo.clip_low": 0.15, "gspo.clip_high": 0.25},
    "cispo": {"cispo.clip_high": 0.2},
    "rloo": {"rloo.kl_coef": 0.05, "rloo.clip": 0.95},
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
    for name in ("CONVERSATIONS", "PAIRS", "UNPAIRED", "PROMPTS", "DOCUMENTS", "MEASURED"):
        rows = getattr(jsonl, name)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    return folder


MORE = {"pretrain": {"data.max_length": jsonl.WINDOW, "data.val": '["MEASURED.jsonl"]'}}
FILES = {  # verb, records, rows in the step and in a micro-batch
    "sft": (["sft"], "CONVERSATIONS", 5, 1),
    "sft_packed": (["sft", "--set=packing=true"], "CONVERSATIONS", 2, 2),
    "sft_lora": (["sft", "--lora"], "CONVERSATIONS", 5, 5),
    "pretrain": (["pretrain"], "DOCUMENTS", 2, 1),
    "rm": (["rm"], "PAIRS", 5, 5),
    "dpo": (["align-offline", "--algorithm=dpo"], "PAIRS", 5, 5),
    "orpo": (["align-offline", "--algorithm=orpo"], "PAIRS", 5, 1),
    "simpo": (["align-offline", "--algorithm=simpo"], "PAIRS", 5, 5),
    "kto": (["align-offline", "--algorithm=kto"], "UNPAIRED", 5, 1),
}


def second_step(
    place: Path, stage: str, verb: list[str], records: str, rows: int, micro: int, more: dict[str, object]
) -> tuple[dict, tiny.Outcome, Path]:
    """The second row of metrics.jsonl, the loss and gradient of its step, and the run directory."""
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
    row = [line for line in lines if line["split"] == "train"][1]
    state = load_file(jsonl.after_two_steps(run) / "trainer" / "optimizer.safetensors")
    gradient = {name.removeprefix("exp_avg."): value for name, value in state.items() if name.startswith("exp_avg.")}
    return row, tiny.Outcome(row["loss"], gradient), run


def compare(stage: str, row: dict, ours: tiny.Outcome, oracle: tiny.Outcome) -> None:
    assert row["grad_norm"] == pytest.approx(ours.norm, rel=1e-3), "what is compared is not the gradient of the step"
    assert oracle.norm > 0.01
    assert row["loss"] == pytest.approx(oracle.loss, rel=1e-4, abs=1e-5)
    assert tiny.difference(ours, oracle).gradient < GRADIENT, stage


# What differs from another stage in its formula only, which `test_parity.py` compares at every run; these run with `-m slow`.
ALIKE = {"sft_packed", "orpo", "simpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo"}


def marked(stages: Iterable[str]) -> list[Any]:
    return [pytest.param(stage, marks=[pytest.mark.slow] * (stage in ALIKE)) for stage in stages]


@pytest.mark.parametrize("stage", marked(FILES))
def test_learning_from_files(place: Path, stage: str) -> None:
    row, ours, run = second_step(place, stage, *FILES[stage], more=MORE.get(stage, {}))
    oracle = getattr(jsonl, stage)(place / "model", run)
    if stage == "pretrain":
        control = jsonl.tokenizer_of(place / "model").convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|pad|>"])
        assert not ours.gradient["model.embed_tokens.weight"][
            control
        ].any()  # tokens that no text contains are not trained
        apart = [abs(one.loss - ours.loss) for one in oracle]
        oracle = oracle[apart.index(min(apart))]
        oracle.gradient["model.embed_tokens.weight"][control] = 0
    compare(stage, row, ours, oracle)


ONLINE = ("grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo", "ppo")


@pytest.mark.parametrize("algorithm", marked(ONLINE))
def test_learning_from_a_rollout(place: Path, algorithm: str) -> None:
    verb = ["align-online", f"--algorithm={algorithm}"]
    row, ours, run = second_step(place, algorithm, verb, "PROMPTS", rows=12, micro=4, more=ROLLOUT)
    assert 0.02 < row["clip_fraction"] < 0.95  # some of 12 rows, not all
    assert abs(row["ratio"] - 1) > 1e-3
    compare(algorithm, row, ours, getattr(jsonl, algorithm)(place / "model", run))


def test_every_algorithm_is_here() -> None:
    offline = {"dpo", "orpo", "simpo", "kto"}
    assert set(algorithms.names("online")) == set(ONLINE)
    assert set(algorithms.names("offline")) == offline <= FILES.keys()
