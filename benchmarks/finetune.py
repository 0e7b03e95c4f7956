"""LoRA fine-tuning of a real chat model against TRL and PEFT: the same rows, order, adapter at the start and settings, in turns.

    python benchmarks/finetune.py MODEL DATA [--steps 60] [--precision fp32 bf16] [--checkpointing on off] [--device cpu] [--threads 2]
        [--out FOLDER]

MODEL is a checkpoint folder with a chat template, DATA a file of Alpaca records, whose last records are held out. Each contestant is a
process of its own, so that peaks of memory do not mix: of the whole process, as the system counts it, or on a GPU what torch allocated
there. tinyllm runs its command; TRL gets rows that transformers rendered and tokenized with the model's template, and that they equal
ours is part of the table. Needs the `parity` extra. Prints a table, and writes `result.json` with all figures into the folder.

Loss 0 and loss N are means over the scored tokens of the held-out records, before the first and after the last step. TRL's model is
loaded in the precision that is compared; its adapter is float32, as PEFT has it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATHS = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)  # packages may lie there
LORA = {"r": 16, "alpha": 32, "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
RATE, WARMUP, WEIGHT_DECAY, BETAS, CLIP = (
    2e-4,
    0,
    0.0,
    (0.9, 0.95),
    1.0,
)  # the warm-ups start differently: TRL at a rate of 0


# --- data ----------------------------------------------------------------------------------------------------------------------------


def write_records(source: Path, folder: Path, held_out: int) -> None:
    """Write Alpaca records as conversations, `train.jsonl` and `val.jsonl`."""
    content = source.read_bytes()
    rows = []
    for record in json.loads(gzip.decompress(content) if source.suffix == ".gz" else content):
        question = record["instruction"] + ("\n\n" + record["input"] if record.get("input") else "")
        said = [{"role": "user", "content": question}, {"role": "assistant", "content": record["output"]}]
        rows.append(json.dumps({"messages": said}))
    (folder / "train.jsonl").write_text("\n".join(rows[:-held_out]) + "\n")
    (folder / "val.jsonl").write_text("\n".join(rows[-held_out:]) + "\n")


def rendered(tokenizer: Any, messages: list[dict[str, str]], longest: int) -> tuple[list[int], list[bool]]:
    """Return ids and mask of a question and its answer with transformers: scored are the answer and the token that ends it."""
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=True, return_dict=False, add_generation_prompt=True)
    assert whole[: len(prompt)] == prompt, "the prompt is no prefix of the conversation"
    end = len(whole)
    while tokenizer.decode(whole[end - 1 : end]).isspace():
        end -= 1
    return whole[:longest], [len(prompt) <= place < end for place in range(len(whole))][:longest]


def prepare(folder: Path, run: Path, options: argparse.Namespace) -> None:
    """Write the rows that a finished run of ours trained on, in its order, as transformers renders them; and its adapter at the start.

    Runs in a process of its own, after our run: `rows.json` says how many rows of either side are equal.
    """
    from transformers import AutoTokenizer

    from tinyllm.config import load
    from tinyllm.data.loading import sft_dataset
    from tinyllm.data.splits import read_split
    from tinyllm.model import hub, lora
    from tinyllm.stages.common import load_tokenizer, make_source
    from tinyllm.stages.config import SftConfig

    config = load(SftConfig, files=[run / "config.yaml"]).config
    model = hub.load_causal_lm(options.model)
    ours_by = load_tokenizer(model, options.model)
    split = read_split(config.data, "conversations", config.seed)
    train = sft_dataset(split.train, ours_by, config.data.max_length, "train")
    val = sft_dataset(split.val, ours_by, config.data.max_length, "val")
    ours = {"train": train.rows, "val": val.rows}
    theirs_by = AutoTokenizer.from_pretrained(options.model)
    theirs: dict[str, list[tuple[list[int], list[bool]]]] = {}
    for name in ours:
        messages = [json.loads(line)["messages"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        rows = [rendered(theirs_by, one, options.length) for one in messages]
        theirs[name] = [row for row in rows if any(row[1])]
    equal = {
        name: sum(
            ids.tolist() == want and mask.tolist() == scored
            for (ids, mask), (want, scored) in zip(ours[name], theirs[name], strict=False)
        )
        for name in ours
    }
    source = make_source(train, config)
    order = []
    for step in range(options.steps):
        order += sorted(source.records(step), key=train.length)  # as the source cuts them into micro-batches
    found = {
        "train": [theirs["train"][number] for number in order],
        "val": theirs["val"][: options.held_out],
        "equal": {name: f"{equal[name]} of {len(ours[name])}" for name in ours},
    }
    (folder / "rows.json").write_text(json.dumps(found))
    assert config.lora is not None
    lora.attach(model, config.lora, seed=config.seed)
    (folder / "start").mkdir(exist_ok=True)
    lora.save(model, config.lora, folder / "start", str(options.model.resolve()))


# --- contestants ---------------------------------------------------------------------------------------------------------------------


def ours_command(folder: Path, options: argparse.Namespace, precision: str, checkpointing: str) -> list[str]:
    """Return the command line of our run."""
    settings = {
        "lora": json.dumps(LORA),
        "data.train": json.dumps([str(folder / "train.jsonl")]),
        "data.val": json.dumps([str(folder / "val.jsonl")]),
        "data.max_length": options.length,
        "train.steps": options.steps,
        "train.batch_size": options.batch,
        "train.micro_batch_size": options.micro,
        "train.eval_every": options.steps,
        "train.eval_rows": options.held_out,
        "train.save_every": options.steps,
        "train.log_every": 1,
        "train.precision": precision,
        "train.compile": "off",
        "optim.learning_rate": RATE,
        "optim.warmup_steps": WARMUP,
        "optim.schedule": "constant",
        "optim.weight_decay": WEIGHT_DECAY,
        "optim.beta1": BETAS[0],
        "optim.beta2": BETAS[1],
        "optim.clip_norm": CLIP,
    }
    if checkpointing != "default":
        settings["train.activation_checkpointing"] = checkpointing
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "tinyllm", "sft", "--lora", "--checkpoint", str(options.model.resolve())]
    return [*command, "--name", "finetune", "--no-resume", "--json", "--device", options.device, *given]


def our_figures(folder: Path) -> dict[str, Any]:
    """Return losses and seconds of a step from the run's metrics.jsonl."""
    run = next((folder / "runs").rglob("metrics.jsonl"))
    rows = [json.loads(line) for line in run.read_text().splitlines()]
    held_out = [row["loss"] for row in rows if row["split"] == "eval"]
    train = [row for row in rows if row["split"] == "train"]
    counts = [row["tokens"] for row in train]
    spent = [count - before for count, before in zip(counts, [0, *counts[:-1]], strict=True)]
    seconds = [count / row["tokens_per_second"] for count, row in zip(spent, train, strict=True)]
    return {
        "loss_0": held_out[0],
        "loss_n": held_out[-1],
        "train_losses": [row["loss"] for row in train],
        "gradient_norms": [row["grad_norm"] for row in train],
        "seconds": seconds,
        **({"memory": train[-1]["gpu_memory_mb"] * 1e6} if "gpu_memory_mb" in train[-1] else {}),
    }


def theirs(folder: Path, options: argparse.Namespace, precision: str, checkpointing: str) -> dict[str, Any]:
    """Train with TRL's SFTTrainer and PEFT. Runs in a process of its own."""
    import torch
    import transformers
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    rows = json.loads((folder / "rows.json").read_text())
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    model = PeftModel.from_pretrained(base, folder / "start", is_trainable=True)
    norms: list[float] = []
    losses: list[float] = []
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            seconds.append(time.perf_counter() - self.start)

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict[str, float], **named: Any) -> None:
            if "grad_norm" in logs:
                norms.append(logs["grad_norm"])
                losses.append(logs["loss"])

    def labeled(pairs: Sequence[tuple[list[int], list[bool]]]) -> Dataset:
        labels = [[token if scored else -100 for token, scored in zip(*pair, strict=True)] for pair in pairs]
        return Dataset.from_dict({"input_ids": [ids for ids, _ in pairs], "labels": labels})

    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(dir=folder),
        per_device_train_batch_size=options.micro,
        gradient_accumulation_steps=options.batch // options.micro,
        max_steps=options.steps,
        learning_rate=RATE,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARMUP,
        weight_decay=WEIGHT_DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=CLIP,
        bf16=precision == "bf16",
        gradient_checkpointing=checkpointing != "off",
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing != "off" else None,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=options.device == "cpu",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model,
        settings,
        train_dataset=labeled(rows["train"]),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        callbacks=[Clock()],
    )

    @torch.no_grad()
    def held_out() -> float:
        total, count = 0.0, 0
        model.eval()
        place = next(model.parameters()).device
        for ids, mask in rows["val"]:
            with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = model(input_ids=torch.tensor([ids], device=place)).logits[0, :-1].float().cpu()
            scored = torch.tensor(mask[1:])
            log_probs = logits[scored].log_softmax(-1)
            total -= float(log_probs.gather(1, torch.tensor(ids[1:])[scored][:, None]).sum())
            count += int(scored.sum())
        return total / count

    before = held_out()
    trainer.train()
    return {
        "loss_0": before,
        "loss_n": held_out(),
        "train_losses": losses,
        "gradient_norms": norms,
        "seconds": seconds,
        **({"memory": torch.cuda.max_memory_allocated()} if options.device == "cuda" else {}),
    }


# --- runs ----------------------------------------------------------------------------------------------------------------------------


def child(command: Sequence[str], folder: Path, threads: int, log: Path) -> int:
    """Run a process to its end and return its peak of memory in bytes.

    Raises: SystemExit with the end of its output where it fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": PATHS, "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command[:6])} failed:\n{log.read_text()[-3000:]}")
    return usage.ru_maxrss * 1024


@contextmanager
def said(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def contest(folder: Path, options: argparse.Namespace, precision: str, checkpointing: str) -> dict[str, Any]:
    """Return the figures of both sides in one setting."""
    folder.mkdir()
    write_records(options.data, folder, options.held_out)
    arguments = [sys.executable, str(Path(__file__).resolve()), *options.again]
    with said(f"tinyllm, {precision}, checkpointing {checkpointing}"):
        command = ours_command(folder, options, precision, checkpointing)
        memory = child(command, folder, options.threads, folder / "ours.log")
    ours = {"memory": memory} | our_figures(folder)
    with said("rows"):
        child([*arguments, "--child", "rows", str(folder), precision, checkpointing], folder, 1, folder / "rows.log")
    with said(f"TRL, {precision}, checkpointing {checkpointing}"):
        command = [*arguments, "--child", "theirs", str(folder), precision, checkpointing]
        memory = child(command, folder, options.threads, folder / "theirs.log")
    other = {"memory": memory} | json.loads((folder / "theirs.json").read_text())
    equal = json.loads((folder / "rows.json").read_text())["equal"]
    return {"precision": precision, "checkpointing": checkpointing, "rows": equal, "tinyllm": ours, "trl": other}


def show(found: dict[str, Any], steps: int) -> None:
    """Print one setting as a block of the table."""
    ours, other = found["tinyllm"], found["trl"]
    pace = [statistics.median(side["seconds"][1:] or side["seconds"]) for side in (ours, other)]
    print(f"\n{found['precision']}, checkpointing {found['checkpointing']}; equal rows: {found['rows']}")
    line = "{:<28} {:>14} {:>14} {:>14}".format
    print(line("", "tinyllm", "TRL", "ratio, gap"))
    for name, key in (("held-out loss, step 0", "loss_0"), (f"held-out loss, step {steps}", "loss_n")):
        print(line(name, f"{ours[key]:.6f}", f"{other[key]:.6f}", f"{abs(ours[key] / other[key] - 1):.1e}"))
    first = ours["train_losses"][0], other["train_losses"][0]
    print(line("training loss, step 1", f"{first[0]:.6f}", f"{first[1]:.6f}", f"{abs(first[0] / first[1] - 1):.1e}"))
    print(line("seconds a step, median", f"{pace[0]:.2f}", f"{pace[1]:.2f}", f"{pace[0] / pace[1]:.2f}"))
    memory = ours["memory"] / 2**30, other["memory"] / 2**30
    print(line("peak memory, GiB", f"{memory[0]:.2f}", f"{memory[1]:.2f}", f"{memory[0] / memory[1]:.2f}"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--checkpointing", nargs="+", default=["on", "off"], choices=["on", "off", "default"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.model, options.data = options.model.resolve(), options.data.resolve()
    numbers = ("steps", "batch", "micro", "length", "held_out", "threads")
    named = [part for key in numbers for part in (f"--{key.replace('_', '-')}", str(getattr(options, key)))]
    options.again = [str(options.model), str(options.data), "--device", options.device, *named]
    if options.child:
        what, place, *setting = options.child
        folder = Path(place)
        if what == "rows":
            prepare(folder, next((folder / "runs").rglob("metrics.jsonl")).parent, options)
        else:
            (folder / "theirs.json").write_text(json.dumps(theirs(folder, options, *setting)))
        return
    out = options.out or Path(tempfile.mkdtemp(prefix="finetune-"))
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    results = []
    for precision in options.precision:
        for checkpointing in options.checkpointing:
            results.append(contest(out / f"{precision}-{checkpointing}", options, precision, checkpointing))
            show(results[-1], options.steps)
            (out / "result.json").write_text(json.dumps(results, indent=2))
    print(f"\n{options.device}, {options.threads} threads; all figures: {out / 'result.json'}")


if __name__ == "__main__":
    main()
