"""The life of a real chat model: sft --lora, rm, align-offline, align-online (several seeds), chat; with the held-out figure of each stage.

    python benchmarks/real_models.py MODEL DATA [--out FOLDER] [--seeds 3] [--threads 2] [--share 1.0] [--print]

MODEL is a checkpoint folder with a chat template. DATA is a folder with `sft/lf_alpaca_en_demo.json.gz` (Alpaca records) and
`preference/persona_openness.jsonl.gz` (statements with an answer that matches a persona and one that does not). `--print` only writes the
data and prints the commands. `--share 0.1` runs a tenth of the steps. Results are printed and written to `result.json`.

The tasks are chosen so that 135M parameters can learn them on two cores in 40 minutes, and so that a figure can fail to move:

- sft: short Alpaca answers, and a few sums that are answered by the number alone. Held-out loss.
- rm and align-offline (DPO): "Is the following statement something you would say?", answered by one word. Held-out accuracy of the order
  of the two answers; it is near 0.5 for a model that has no preference.
- align-online (GRPO): sums of numbers up to 20, right or wrong, with answers of at most 8 tokens. A rule judges them, groups differ (after
  sft some answers are right and some are not, which is what GRPO learns from), a rollout takes a second or two, and the 80 questions
  that examine are sums which no stage has trained on. Word problems (MAWPS) were tried: 0 to 5 % of the sampled answers are right,
  so most groups have nothing to learn from.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATHS = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)  # packages may lie there
LARGEST, HELD_OUT_SUMS, SHOWN_SUMS = 20, 80, 160
QUESTION = "What is 17 + 8?"


# --- data ----------------------------------------------------------------------------------------------------------------------------


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def prepare(data: Path, folder: Path) -> None:
    """Write sft.jsonl, pairs.jsonl and sums.jsonl, each with a file of held-out records."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = [(a, b) for a in range(1, LARGEST + 1) for b in range(1, LARGEST + 1)]
    random.Random(0).shuffle(sums)
    asked = [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in sums]
    write(folder / "sums_test.jsonl", asked[:HELD_OUT_SUMS])
    write(folder / "sums.jsonl", asked[HELD_OUT_SUMS:])

    with gzip.open(data / "sft" / "lf_alpaca_en_demo.json.gz", "rt") as file:
        records = [row for row in json.load(file) if 0 < len(row["output"]) <= 300]
    said = [
        conversation("\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]) for row in records
    ]
    shown = [conversation(row["question"], row["answer"]) for row in asked[HELD_OUT_SUMS:][:SHOWN_SUMS]]
    questions = {row["messages"][0]["content"] for row in said[:60]}
    write(folder / "sft_test.jsonl", said[:60])
    write(folder / "sft.jsonl", [row for row in said[60:] if row["messages"][0]["content"] not in questions] + shown)

    with gzip.open(data / "preference" / "persona_openness.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    names = {"prompt": "question", "chosen": "answer_matching_behavior", "rejected": "answer_not_matching_behavior"}
    pairs = [{ours: row[theirs].strip() for ours, theirs in names.items()} for row in rows]
    write(folder / "pairs_test.jsonl", pairs[:100])
    write(folder / "pairs.jsonl", pairs[100:500])


# --- stages --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A command, the parent it starts from (MODEL, or the name of a stage), and its settings."""

    command: str
    parent: str
    steps: int
    batch: int
    rate: float
    files: str
    settings: tuple[str, ...] = ()


STAGES = {
    "sft": Stage("sft", "MODEL", 36, 16, 5e-4, "sft", ("data.max_length=192",)),
    "rm": Stage("rm", "sft", 28, 16, 5e-4, "pairs", ("data.max_length=128",)),
    "dpo": Stage(
        "align-offline --algorithm dpo", "sft", 28, 16, 2e-4, "pairs", ("data.max_length=128", "dpo.beta=0.1")
    ),
    "grpo": Stage(
        "align-online --algorithm grpo",
        "dpo",
        32,
        32,
        2e-4,
        "sums",
        (
            "data.max_length=64",
            "rewards={exact_answer: 1.0}",
            "track_kl=false",
            "rollout={group_size: 8, minibatches: 1, max_new_tokens: 8, temperature: 1.0}",
        ),
    ),
}


def command_of(name: str, parent: str, seed: int, share: float) -> list[str]:
    """Return the command line of a stage."""
    stage = STAGES[name]
    steps = max(2, round(stage.steps * share))
    settings = [
        f"data.train=[{stage.files}.jsonl]",
        f"data.test=[{stage.files}_test.jsonl]",
        f"train.steps={steps}",
        f"train.batch_size={stage.batch}",
        "train.micro_batch_size=16",
        f"train.eval_every={steps}",
        f"train.save_every={steps}",
        "train.eval_rows=200",
        "train.log_every=5",
        "train.compile=off",
        f"optim.learning_rate={stage.rate}",
        "optim.warmup_steps=3",
        "optim.weight_decay=0.0",
        *stage.settings,
    ]
    given = [part for setting in settings for part in ("--set", setting)]
    run = f"{name}-{seed}" if name == "grpo" else name
    options = ["--lora", "--checkpoint", parent, "--name", run, "--seed", str(seed)]
    return ["tinyllm", *stage.command.split(), *options, *given]


def run(command: Sequence[str], folder: Path, threads: int) -> tuple[dict[str, Any], float]:
    """Run a command and return its result and its minutes.

    Raises: SystemExit where it fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": PATHS}
    started = time.monotonic()
    line = [sys.executable, "-m", *command, "--json"]
    done = subprocess.run(line, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {shlex.join(command)}")
    return json.loads(done.stdout), (time.monotonic() - started) / 60


def whole_life(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all stages and return a row for each."""
    checkpoints = {"MODEL": str(options.model.resolve())}
    rows = []
    for name, seed in [("sft", 0), ("rm", 0), ("dpo", 0), *(("grpo", seed) for seed in range(options.seeds))]:
        command = command_of(name, checkpoints[STAGES[name].parent], seed, options.share)
        result, minutes = run(command, folder, options.threads)
        checkpoints.setdefault(name, result["checkpoint"])
        rows.append({"stage": name, "seed": seed, "minutes": minutes, "moved": result["moved"], "result": result})
        show(rows[-1])
        (folder / "result.json").write_text(json.dumps(rows, indent=2))
    for name in ("MODEL", "grpo"):
        command = ["tinyllm", "chat", "--checkpoint", checkpoints[name], "-p", QUESTION, "--set", "temperature=0"]
        result, minutes = run(command, folder, options.threads)
        rows.append({"stage": f"chat of {name}", "minutes": minutes, "result": result})
        print(
            f"{rows[-1]['stage']:<14} {minutes:6.1f} min  {QUESTION} {result['exchanges'][0]['answer']!r}", flush=True
        )
    return rows


def show(row: Mapping[str, Any]) -> None:
    """Print the row of a stage."""
    moved = row["moved"]
    figure = f"{moved['what']}: {moved['from']:.4f} -> {moved['to']:.4f}"
    print(f"{row['stage']:<7} seed {row['seed']} {row['minutes']:6.1f} min  {figure}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    folder = (options.out or Path(tempfile.mkdtemp(prefix="real-models-"))).resolve()
    prepare(options.data, folder)
    if options.print:
        for name, stage in STAGES.items():
            parent = "MODEL" if stage.parent == "MODEL" else f"RUN_OF_{stage.parent.upper()}"
            print(shlex.join(command_of(name, parent, 0, options.share)))
        return
    rows = whole_life(folder, options)
    spent = sum(row["minutes"] for row in rows)
    once = sum(row["minutes"] for row in rows if row.get("seed", 0) == 0)
    print(f"{spent:.1f} minutes, {once:.1f} with one seed; {folder / 'result.json'}")


if __name__ == "__main__":
    main()
