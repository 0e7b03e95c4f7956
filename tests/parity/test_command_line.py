"""One step of every stage as a user runs it, on given records and a given checkpoint: the loss and gradient norm that TRL computes.

Whatever lies between the records and the loss is covered: reading, the chat template, masks, batches, normalisation, the engine.
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
sys.path.insert(0, str(Path(__file__).parent))
import jsonl  # noqa: E402

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
KNOBS = {
    "grpo": {"grpo.kl_coef": 0.02},
    "simpo": {"simpo.beta": 2.0, "simpo.gamma": 1.0},
    "dapo": {"rollout.sampling_rounds": 1, "rollout.overlong_buffer": 0},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command-line")
    jsonl.checkpoint(folder / "model")
    for name in ("CONVERSATIONS", "PAIRS", "JUDGEMENTS", "PROMPTS"):
        rows = getattr(jsonl, name)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    return folder


def first_step(place: Path, *verb: str, rows: int, records: str, **settings: object) -> tuple[dict, Path]:
    """The first row of metrics.jsonl, and the run directory."""
    data = f'["{records}.jsonl"]'
    batch = {"train.batch_size": rows, "train.micro_batch_size": rows, "data.train": data, "data.val": data}
    chosen = [f"--set={key}={value}" for key, value in (COMMON | batch | settings).items()]
    command = [sys.executable, "-m", "tinyllm", *verb, "--checkpoint=model", "--device=cpu", "--json", *chosen]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    run = place / json.loads(done.stdout)["run"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in lines if line["split"] == "train"), run


@pytest.mark.parametrize(
    ("verb", "records"),
    [
        ("sft", "CONVERSATIONS"),
        ("rm", "PAIRS"),
        ("dpo", "PAIRS"),
        ("orpo", "PAIRS"),
        ("simpo", "PAIRS"),
        ("kto", "JUDGEMENTS"),
    ],
)
def test_learning_from_files(place: Path, verb: str, records: str) -> None:
    words = (verb,) if verb in ("sft", "rm") else ("align-offline", f"--algorithm={verb}")
    row, run = first_step(place, *words, rows=len(getattr(jsonl, records)), records=records, **KNOBS.get(verb, {}))
    loss, norm = getattr(jsonl, verb)(place / "model", run)
    assert row["loss"] == pytest.approx(loss, rel=1e-5)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "dr_grpo", "rloo"])
def test_learning_from_a_rollout(place: Path, algorithm: str) -> None:
    """On policy the loss is about 0 whatever the code does; the gradient is not."""
    settings = ROLLOUT | KNOBS.get(algorithm, {})
    row, run = first_step(place, "align-online", f"--algorithm={algorithm}", rows=12, records="PROMPTS", **settings)
    loss, norm = getattr(jsonl, algorithm)(place / "model", run)
    assert row["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert norm > 0.01
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
