"""What one H100 or H200 does with this code: pretraining, LoRA, decoding, a GRPO step and the tests, beside the card's own limits.

    python benchmarks/gpu.py [--only NAME ...] [--rounds 3] [--out FILE] [--tiny]

Sections, in this order: ceilings, pretrain, lora, decode, grpo, stages. Each prints lines `name: value unit` and the seconds it took; all
of them are sized for 8 minutes. FILE receives all figures as JSON after every section; without `--out`, `$OUT/gpu.json` does where OUT is
set. Weights and tokens are random. `lora` and `decode` compare with transformers and PEFT (the `parity` extra): the same weights and rows,
in turns; a contestant whose package is missing is left out. `--tiny` proves every section with small shapes, without a GPU on a CPU.

- ceilings: copying a tensor, and a product of two square matrices in bf16.
- pretrain: optimizer steps in bf16 autocast with compiled blocks. The share of the peak counts 6 N + 12 L H D T operations a token.
- lora: steps of the adapter of a bf16 model of Qwen3-0.6B's shape; documents that do not attend to each other are one row for transformers.
- decode: new tokens at temperature 1 with the same shape, none of which ends a row.
- grpo: a rollout, its scoring, which most rollouts of one step do without, and the update of all weights.
- stages: the tests in `tests/gpu`.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyllm.algorithms import grpo as grpo_algorithm
from tinyllm.algorithms import next_token
from tinyllm.data.datasets.batches import TokenBatch
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.model import lora as adapters
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.model.decoding import Sampling, generate
from tinyllm.model.transformer import CausalLM, compile_blocks
from tinyllm.rollout.config import RolloutConfig
from tinyllm.rollout.judge import Judge
from tinyllm.rollout.rewards import Reward
from tinyllm.rollout.source import RolloutSource
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine, autocast

ROOT = Path(__file__).resolve().parents[1]
PEAK = 989e12  # operations a second in bf16 of an H100 SXM or H200, by the data sheet
RANK, ALPHA = 16, 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Step = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """Shapes and counts of all sections."""

    pretrained: dict[str, tuple[ModelConfig, int]]  # name: shape, rows in a step
    tuned: ModelConfig  # of the sections behind pretrain
    copied: int = 1 << 30  # bytes
    product: int = 8192
    steps: int = 10
    rows: int = 4
    length: int = 2048
    documents: int = 8  # of a row
    decoded: tuple[int, ...] = (1, 256)
    prompt: int = 32
    new: int = 128
    prompts: int = 8
    answers: int = 8
    rounds: int = 3


def _shape(width: int, inner: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=50304,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
        max_position_embeddings=1024,
    )


QWEN3 = ModelConfig(
    vocab_size=151936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=4096,
)
SMALL = ModelConfig(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
)
FULL = Sizes(
    pretrained={"124M": (_shape(768, 2048, 12, 12), 32), "360M": (_shape(1024, 2816, 24, 16), 16)}, tuned=QWEN3
)
TINY = Sizes(
    copied=1 << 20,
    product=64,
    pretrained={"tiny": (SMALL, 2)},
    steps=1,
    tuned=SMALL,
    rows=2,
    length=64,
    documents=4,
    decoded=(1, 4),
    prompt=4,
    new=4,
    prompts=2,
    answers=2,
    rounds=1,
)


class Report:
    """Prints figures as they are measured, and writes all of them into a file."""

    def __init__(self, path: Path | None, device: torch.device):
        self.path, self.device = path, device
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.found: dict[str, Any] = {"card": card, "torch": torch.__version__, "figures": {}, "seconds": {}}
        print(f"card: {card}\ntorch: {torch.__version__}", flush=True)

    def add(self, name: str, value: float | str, unit: str = "") -> None:
        self.found["figures"][name] = {"value": value, "unit": unit}
        shown = value if isinstance(value, str) else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
        print(f"{name}: {shown} {unit}".rstrip(), flush=True)

    def ratio(self, name: str, ours: float, theirs: float) -> None:
        self.add(name, ours / theirs, "x")

    def end(self, section: str, seconds: float) -> None:
        self.found["seconds"][section] = seconds
        print(f"{section}: took {seconds:.0f} s", flush=True)
        if self.path is not None:
            self.path.write_text(json.dumps(self.found, indent=2) + "\n")


# --- measuring -----------------------------------------------------------------------------------------------------------------------


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(step: Step, count: int, device: torch.device) -> float:
    """Return the seconds of one call, the mean over `count`."""
    wait(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    wait(device)
    return (time.perf_counter() - start) / count


def in_turns(contestants: dict[str, Step], rounds: int, count: int, device: torch.device) -> dict[str, float]:
    """Return the seconds of one call of each, the median over rounds, in which they take turns."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, step in contestants.items():
            found[name].append(seconds_of(step, count, device))
    return {name: statistics.median(each) for name, each in found.items()}


def random_model(shape: ModelConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> CausalLM:
    """Return a model with random weights, made on the device: drawing 600 million numbers on a CPU takes longer than most sections."""
    torch.manual_seed(0)
    with torch.device(device):
        model = CausalLM(shape)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.02)
    return model.to(dtype)


def transformers_model(model: CausalLM) -> Any:
    """Return transformers' Qwen3 with a copy of the weights of `model`, on its device and in its dtype, with its usual attention (sdpa)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    names += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    config = Qwen3Config(**{name: getattr(model.config, name) for name in names})
    weight = model.lm_head.weight
    with torch.device(weight.device):
        theirs = Qwen3ForCausalLM(config).to(weight.dtype)
    theirs.load_state_dict(model.state_dict())
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    return theirs


def missing(section: str, *packages: str) -> bool:
    """Return whether the contestant cannot run, and say so."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        print(f"{section}: transformers is left out, {' and '.join(absent)} not installed", flush=True)
    return bool(absent)


def next_token_engine(model: CausalLM, optimizer: str) -> Engine:
    loss = partial(next_token.loss, next_token.Settings())
    return Engine(model, loss, OptimConfig(optimizer=optimizer), 10_000, precision="bf16", seed=0)


# --- sections ------------------------------------------------------------------------------------------------------------------------


def ceilings(report: Report, sizes: Sizes, device: torch.device) -> None:
    source = torch.zeros(sizes.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(sizes.product, sizes.product, device=device, dtype=torch.bfloat16) for _ in range(2))
    contestants: dict[str, Step] = {"copy": lambda: target.copy_(source), "product": lambda: a @ b}
    in_turns(contestants, 1, 3, device)
    found = in_turns(contestants, sizes.rounds, 20, device)
    report.add("copy bandwidth, read and written", 2 * sizes.copied / found["copy"] / 1e9, "GB/s")
    report.add(f"bf16 product of {sizes.product}", 2 * sizes.product**3 / found["product"] / 1e12, "TFLOP/s")


def pretrain(report: Report, sizes: Sizes, device: torch.device) -> None:
    for name, (shape, rows) in sizes.pretrained.items():
        length = shape.max_position_embeddings
        ids = torch.randint(0, shape.vocab_size, (rows, length), device=device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, 0] = False
        attention = 12 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * length
        parameters = shape.parameters()
        report.add(f"pretrain, {name}, parameters", parameters / 1e6, "M")
        for optimizer in ("adamw", "muon"):
            engine = next_token_engine(random_model(shape, device), optimizer)
            compile_blocks(engine.model)
            step = partial(engine.step, [TokenBatch(ids, mask)])
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            label = f"pretrain, {name}, {optimizer}"
            report.add(f"{label}, first 3 steps with compiling", 3 * seconds_of(step, 3, device), "s")
            speed = rows * length / seconds_of(step, sizes.steps, device)
            report.add(label, speed, "tokens/s")
            report.add(f"{label}, of {PEAK / 1e12:.0f} TFLOP/s", speed * (6 * parameters + attention) / PEAK, "")
            if device.type == "cuda":
                report.add(f"{label}, peak memory", torch.cuda.max_memory_allocated(device) / 2**30, "GiB")
            del engine, step
            release()
        torch.compiler.reset()


def packed(sizes: Sizes, device: torch.device) -> tuple[TokenBatch, TokenBatch]:
    """Return rows of documents of unequal lengths, and the same rows as one document each. All tokens but first ones are scored."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, sizes.tuned.vocab_size, (sizes.rows, sizes.length), generator=generator)
    starts = torch.rand(sizes.rows, sizes.length - 1, generator=generator).topk(sizes.documents - 1).indices + 1
    first = torch.zeros_like(ids).scatter_(1, starts, 1)
    first[:, 0] = 1
    plain = torch.ones_like(ids, dtype=torch.bool)
    plain[:, 0] = False
    return TokenBatch(ids, first == 0, first.cumsum(1)).to(device), TokenBatch(ids, plain).to(device)


def peft_step(model: CausalLM, ids: Tensor, device: torch.device) -> Step:
    """Return a step of PEFT's adapter on a copy of `model`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    adapted = get_peft_model(transformers_model(model), config).train()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)

    def step() -> None:
        with autocast("bf16", device):
            loss = adapted(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def lora(report: Report, sizes: Sizes, device: torch.device) -> None:
    model = random_model(sizes.tuned, device, torch.bfloat16)
    documents, plain = packed(sizes, device)
    contestants: dict[str, Step] = {}
    if not missing("lora", "transformers", "peft"):
        contestants["transformers and PEFT, rows"] = peft_step(model, plain.ids, device)
    adapters.attach(model, LoRAConfig(r=RANK, alpha=ALPHA, targets=TARGETS))
    engine = next_token_engine(model, "adamw")
    contestants["tinyllm, rows of documents"] = partial(engine.step, [documents])
    contestants["tinyllm, rows"] = partial(engine.step, [plain])
    in_turns(contestants, 1, 2, device)
    found = in_turns(contestants, sizes.rounds, min(3, sizes.steps), device)
    speeds = {name: sizes.rows * sizes.length / seconds for name, seconds in found.items()}
    compare(report, "lora", speeds)


def compare(report: Report, section: str, speeds: dict[str, float]) -> None:
    """Report speeds, and ours as multiples of theirs."""
    for name, speed in speeds.items():
        report.add(f"{section}, {name}", speed, "tokens/s")
    theirs = [speed for name, speed in speeds.items() if name.startswith("transformers")]
    for name, speed in speeds.items():
        if theirs and name.startswith("tinyllm"):
            report.ratio(f"{section}, {name}, of transformers", speed, theirs[0])


def generating(model: Any, prompts: list[list[int]], new: int, device: torch.device) -> Step:
    """Return a call of transformers' `generate`."""
    ids = torch.tensor(prompts, device=device)
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}

    def step() -> None:
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **settings)
        assert found.shape[1] == ids.shape[1] + new

    return step


def with_graphs(step: Step) -> None:
    os.environ["TINYLLM_CUDA_GRAPHS"] = "1"
    try:
        step()
    finally:
        del os.environ["TINYLLM_CUDA_GRAPHS"]


def decode(report: Report, sizes: Sizes, device: torch.device) -> None:
    model = random_model(sizes.tuned, device, torch.bfloat16).eval()
    theirs = None if missing("decode", "transformers") else transformers_model(model).eval()
    for rows in sizes.decoded:
        prompts = torch.randint(0, sizes.tuned.vocab_size, (rows, sizes.prompt)).tolist()

        def contestants(new: int, prompts: list[list[int]] = prompts) -> dict[str, Step]:
            ours = partial(generate, model, prompts, Sampling(new))
            found: dict[str, Step] = {"tinyllm": ours, "tinyllm, CUDA graphs": partial(with_graphs, ours)}
            if theirs is not None:
                found["transformers"] = generating(theirs, prompts, new, device)
            return found

        in_turns(contestants(min(8, sizes.new)), 1, 1, device)
        seconds = in_turns(contestants(sizes.new), sizes.rounds, 1, device)
        compare(report, f"decode, {rows} rows", {name: rows * sizes.new / each for name, each in seconds.items()})


class Words:
    """Shows ids as text, for rewards that count them."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def different(columns: Any, text: str, finished: bool) -> float:
    words = text.split()
    return len(set(words)) / len(words)


def grpo(report: Report, sizes: Sizes, device: torch.device) -> None:
    model = random_model(sizes.tuned, device)
    settings, rows = grpo_algorithm.Settings(kl_coef=0.0), sizes.prompts * sizes.answers
    loss = partial(grpo_algorithm.loss, settings, temperature=1.0)
    optim = OptimConfig(optimizer="adamw", learning_rate=1e-6)
    engine = Engine(model, loss, optim, 10_000, precision="bf16", seed=0)
    prompts = torch.randint(0, sizes.tuned.vocab_size, (sizes.prompts, sizes.prompt)).tolist()
    source = RolloutSource(
        model,
        [TokenPrompt(ids, {}) for ids in prompts],
        Judge(Words(), [(Reward("different", different), 1.0)], None, 0.0, 0.0),  # type: ignore[arg-type]
        partial(grpo_algorithm.compute_advantages, settings),
        RolloutConfig(group_size=sizes.answers, minibatches=1, max_new_tokens=sizes.new),
        reference=None,
        stop=(),
        batch_size=rows,
        micro_batch_size=rows,
        seed=0,
        autocast=engine.autocast,
    )
    found: dict[str, list[float]] = {"sampling": [], "scoring": [], "learning": []}
    for number in range(
        1 + sizes.rounds
    ):  # the first one is a warm-up, and the only one that the source scores by itself
        batches: list[Any] = []
        seconds = {"sampling": seconds_of(lambda n=number, into=batches: into.extend(source(n)), 1, device)}
        seconds["scoring"] = seconds_of(partial(score, engine, batches), 1, device)
        seconds["learning"] = seconds_of(partial(engine.step, batches), 1, device)
        for part, each in seconds.items() if number else ():
            found[part].append(each)
    label = f"grpo, {sizes.prompts} x {sizes.answers} answers of {sizes.new}"
    for part, each in found.items():
        report.add(f"{label}, {part}", statistics.median(each), "s")
    repeated = [ids for ids in prompts for _ in range(sizes.answers)]
    with engine.autocast():  # the source samples without, in the dtype of the weights
        seconds_narrow = seconds_of(partial(generate, model, repeated, Sampling(sizes.new)), 1, device)
    report.add(f"{label}, sampling in bf16 autocast", seconds_narrow, "s")


@torch.no_grad()
def score(engine: Engine, batches: list[Any]) -> None:
    """Compute the log-probabilities of a rollout as the source does."""
    with engine.autocast():
        for batch in batches:
            engine.model.log_probs(batch.ids, batch.mask, group=batch.group)


def stages(report: Report, sizes: Sizes, device: torch.device) -> None:
    """Run the tests of `tests/gpu` in a process of their own; without a GPU they are skipped."""
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    if done.returncode:
        print(f"{done.stdout}{done.stderr}"[-6000:], flush=True)
    lines = (done.stdout or done.stderr).strip().splitlines()
    report.add("stages", lines[-1] if lines else f"pytest ended with {done.returncode} and said nothing")


SECTIONS: dict[str, Callable[[Report, Sizes, torch.device], None]] = {
    function.__name__: function for function in (ceilings, pretrain, lora, decode, grpo, stages)
}


def release() -> None:
    """Return freed memory to the card, so that the next model finds it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="small shapes and one step, to see that the script runs")
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.tiny):
        print("error: this machine has no CUDA device; --tiny proves the script on a CPU", file=sys.stderr)
        raise SystemExit(2)
    out = options.out or (Path(os.environ["OUT"]) / "gpu.json" if os.environ.get("OUT") else None)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    sizes = TINY if options.tiny else FULL
    if options.rounds:
        sizes = replace(sizes, rounds=options.rounds)
    report = Report(out, device)
    for name in SECTIONS:
        if name in options.only:
            start = time.perf_counter()
            SECTIONS[name](report, sizes, device)
            release()
            report.end(name, time.perf_counter() - start)


if __name__ == "__main__":
    main()
