"""Peak memory and step time of fine-tuning at real shapes, against TRL with gradient checkpointing: same run, in turns.

    python benchmarks/memory.py [135M-full 360M-lora ...] [--work FOLDER] [--no-trl] [--set KEY=VALUE]

Each contestant is a process of its own: `tinyllm` with its own command, or TRL's trainer. The weights are random and in bfloat16, a
micro-batch is one row of 1024 tokens, --batch of them make a step, and forward passes compute in bfloat16. The peak is the resident
memory that the system reports for the process, from its start to its end; the step time is the median after the first step. Beside
the measured peak stands the one that `--dry-run` predicts. Needs the `parity` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LENGTH = 1024
PROMPT, ANSWER = 448, 64  # tokens of an online stage
SMALL = {"vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6}
SHAPES: dict[str, dict[str, Any]] = {
    "15M": {**SMALL, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 64},
    "135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
    "360M": {
        "vocab_size": 49152,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "head_dim": 64,
    },
    "0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "1.7B": {
        "vocab_size": 49152,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 64,
    },
}
TARGETS = ("135M-full", "360M-lora", "0.6B-lora", "1.7B-lora")
STAGES = {
    "full": ["sft"],
    "lora": ["sft", "--lora"],
    "dpo": ["align-offline"],
    "dpo_lora": ["align-offline", "--set", "lora.r=8"],
    "grpo": ["align-online"],
    "grpo_lora": ["align-online", "--set", "lora.r=8"],
}


# --- inputs ------------------------------------------------------------------------------------------------------------------------


def make_model(shape: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint with random weights and a small tokenizer, one tensor at a time in float32."""
    import torch

    from tinyllm.model import hub
    from tinyllm.model.config import ModelConfig
    from tinyllm.model.transformer import CausalLM
    from tinyllm.text.tokenizer import Tokenizer

    torch.manual_seed(0)
    config = ModelConfig(
        **{"model_type": "llama", "tie_word_embeddings": True, "max_position_embeddings": 2048, **shape}
    )
    model = hub.without_weights(CausalLM, config).to(torch.bfloat16)
    weights = {}
    for name, tensor in model.state_dict().items():
        weights[name] = (
            torch.randn(tensor.shape).mul_(0.02) if tensor.ndim > 1 else torch.ones(tensor.shape)
        ).bfloat16()
    model.load_state_dict(weights, assign=True)
    tokenizer = Tokenizer.train(["system\nuser\nassistant\n", "red blue green " * 9] * 3, 300)
    folder.mkdir(parents=True)
    hub.save(model, folder, bos=None, stop=tokenizer.stop_ids, pad=tokenizer.pad, dtype=torch.bfloat16)
    tokenizer.save(folder, model_max_length=2048)


def make_data(model: Path, folder: Path) -> None:
    """Write conversations, pairs and prompts of the length that is measured."""
    from tinyllm.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model)

    def text(tokens: int, number: int) -> str:
        words: list[str] = [str(number)]
        while len(tokenizer.encode(" ".join(words))) < tokens:
            words.append(("red", "blue", "green", "other")[(len(words) * 7 + number * len(words)) % 4])
        return " ".join(words)

    long, prompt = LENGTH - 24, PROMPT - 16
    rows = {
        "talk": [[("user", "Go on."), ("assistant", text(long, i))] for i in range(24)],
        "pairs": [(text(long, i), text(long, i + 1)) for i in range(24)],
        "prompts": [text(prompt, i) for i in range(24)],
    }
    lines = {
        "talk": [{"messages": [{"role": r, "content": t} for r, t in row]} for row in rows["talk"]],
        "pairs": [{"prompt": "Go on.", "chosen": a, "rejected": b} for a, b in rows["pairs"]],
        "prompts": [{"prompt": t, "answer": "1"} for t in rows["prompts"]],
    }
    for name, some in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")


# --- contestants -------------------------------------------------------------------------------------------------------------------


def command(kind: str, model: Path, data: Path, steps: int, batch: int, extra: list[str]) -> list[str]:
    """Return the command line of a stage of ours."""
    online, pairs = kind.startswith("grpo"), kind.startswith("dpo")
    source = data / ("prompts" if online else "pairs" if pairs else "talk")
    settings = {
        "data.train": f"[{source}.jsonl]",
        "data.max_length": PROMPT if online else LENGTH,
        "data.val_fraction": 0.2,
        "train.steps": steps,
        "train.batch_size": 8 if online else batch,
        "train.micro_batch_size": 8 if online else 1,
        "train.eval_rows": 2,
        "train.log_every": 1,
        "train.precision": "bf16",
        "train.compile": "off",
    }
    if online:
        settings |= {
            "rollout.max_new_tokens": ANSWER,
            "rollout.minibatches": 1,
            "rollout.group_size": 4,
            "rewards": "{exact_answer: 1.0}",
        }
        settings |= {"rollout.tolerance": 9}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    more = [part for text in extra for part in ("--set", text)]
    return [*STAGES[kind], "--checkpoint", str(model), "--name", kind, "--no-resume", *sets, *more]


def ours(kind: str, model: Path, work: Path, steps: int, batch: int, extra: list[str]) -> dict[str, float]:
    """Run a stage of ours; return its peak (GB), seconds per step and the peak that --dry-run predicts (GB)."""
    arguments = command(kind, model, work, steps, batch, extra)
    planned = json.loads(_run([sys.executable, "-m", "tinyllm", *arguments, "--dry-run", "--json"], work)[0])["cost"]
    peak = _run([sys.executable, "-m", "tinyllm", *arguments, "--quiet"], work)[1]
    newest = max((work / "runs").rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    rows = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
    logged = [row for row in rows if row["split"] == "train"]
    before = [0, *(row["tokens"] for row in logged)]
    seconds = [(row["tokens"] - tokens) / row["tokens_per_second"] for tokens, row in zip(before, logged, strict=False)]
    seconds = seconds[1:] or seconds
    predicted = planned.get("memory at its peak, about (MB)", 0) / 1e3
    return {"peak": peak, "seconds": statistics.median(seconds), "predicted": predicted}


def theirs(kind: str, model: Path, work: Path, steps: int, batch: int) -> dict[str, float]:
    """Run TRL's trainer; return its peak (GB) and seconds per step."""
    out, peak = _run(
        [sys.executable, str(Path(__file__).resolve()), "--trl", kind, str(model), str(steps), str(batch)], work
    )
    return {"peak": peak, "seconds": float(out.split()[-1])}


def run_trl(kind: str, model: Path, steps: int, batch: int) -> None:
    """Train with TRL in this process and print the median seconds of a step."""
    import time

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter() - self.began)

    ids = torch.randint(0, 300, (24, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    # full fine-tuning needs float32 weights, as ours does; a frozen base need not
    config = SFTConfig(
        output_dir="trl",
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=batch,
        gradient_checkpointing=True,
        bf16=True,
        max_length=LENGTH,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32" if kind == "full" else "bfloat16"},
    )
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear") if kind == "lora" else None
    trainer = SFTTrainer(
        model=str(model),
        args=config,
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=adapter,
        callbacks=[Clock()],
    )
    trainer.train()
    print(statistics.median(times[1:] or times))


def _run(command: list[str], work: Path) -> tuple[str, float]:
    """Run a command and return what it printed, and the peak of its resident memory in GB."""
    path = f"{Path(__file__).resolve().parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        child = subprocess.Popen(command, cwd=work, env=env, stdout=out, stderr=error)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, error):
            file.seek(0)
            texts.append(file.read())
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {child.returncode}\n{texts[0][-2000:]}{texts[1][-4000:]}")
    return texts[0], used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cases", nargs="*", default=TARGETS, help=f"SIZE-STAGE of {', '.join(SHAPES)} and {', '.join(STAGES)}"
    )
    parser.add_argument("--work", type=Path, help="folder for models and runs, kept; none: a temporary one")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2, help="micro-batches in a step")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of ours")
    parser.add_argument("--trl", nargs=4, metavar=("KIND", "MODEL", "STEPS", "BATCH"), help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=2, metavar=("SIZE", "WORK"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prepare:
        size, work = given.prepare[0], Path(given.prepare[1])
        make_model(SHAPES[size], work / size)
        make_data(work / size, work)
        return
    if given.trl:
        run_trl(given.trl[0], Path(given.trl[1]), *map(int, given.trl[2:]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        print(
            f"{'case':<16} {'peak GB':>8} {'predicted':>10} {'s/step':>8} {'TRL GB':>8} {'TRL s/step':>11} {'memory':>8} {'time':>6}"
        )
        for case in given.cases:
            size, _, kind = case.partition("-")
            model = work / size
            if not model.is_dir():
                _run([sys.executable, str(Path(__file__).resolve()), "--prepare", size, str(work)], work)
            found = ours(kind, model, work, given.steps, given.batch, given.set)
            line = f"{case:<16} {found['peak']:8.2f} {found['predicted']:10.2f} {found['seconds']:8.2f}"
            if kind in ("full", "lora") and not given.no_trl:
                other = theirs(kind, model, work, given.steps, given.batch)
                ratios = [found[what] / other[what] for what in ("peak", "seconds")]
                line += f" {other['peak']:8.2f} {other['seconds']:11.2f} {ratios[0]:8.2f} {ratios[1]:6.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
