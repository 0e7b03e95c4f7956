"""Training throughput of the 1.4M model (rows of 256) against transformers' Llama of the same size: same run, same threads, in turns.

    python benchmarks/throughput.py [--steps 5] [--rounds 5] [--no-compile]

Needs the `parity` extra. Prints tokens per second of each contestant (the median over rounds) and ours as a multiple of theirs.
"Default" is what `tinyllm pretrain` does with its shipped configuration in a run of some minutes: bf16 where the CPU multiplies it,
Muon, and blocks compiled after the first steps. Llama's default is its own: float32, AdamW, not compiled.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from tinyllm import distributed as dist
from tinyllm.algorithms import next_token
from tinyllm.data.datasets.batches import TokenBatch
from tinyllm.model.config import ModelConfig
from tinyllm.model.transformer import CausalLM, compile_blocks, initialise
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine, choose_precision

ROWS, LENGTH = 16, 256
SHAPE = ModelConfig()


def ours(*, optimizer: str, precision: str, compiled: bool) -> Callable[[torch.Tensor], None]:
    model = CausalLM(SHAPE)
    initialise(model, 0)
    loss = partial(next_token.loss, next_token.Settings())
    engine = Engine(model, loss, OptimConfig(optimizer=optimizer), 10_000, precision=precision, seed=0)
    if compiled:
        compile_blocks(model)
    mask = torch.ones(ROWS, LENGTH + 1, dtype=torch.bool)
    mask[:, 0] = False
    return lambda ids: engine.step([TokenBatch(ids, mask)])


def theirs(*, bf16: bool) -> Callable[[torch.Tensor], None]:
    from transformers import LlamaConfig, LlamaForCausalLM

    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    )
    model = LlamaForCausalLM(LlamaConfig(**{n: getattr(SHAPE, n) for n in names}, tie_word_embeddings=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(ids: torch.Tensor) -> None:
        ids = ids[:, :LENGTH]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(dist.threads_per_rank())
    fast = choose_precision("auto", torch.device("cpu"))
    contestants = {
        "transformers Llama, default (fp32)": theirs(bf16=False),
        "transformers Llama, bf16 autocast": theirs(bf16=True),
        "tinyllm, fp32, AdamW, eager": ours(optimizer="adamw", precision="fp32", compiled=False),
        f"tinyllm, {fast}, AdamW, eager": ours(optimizer="adamw", precision=fast, compiled=False),
        f"tinyllm, {fast}, Muon, eager": ours(optimizer="muon", precision=fast, compiled=False),
    }
    if not options.no_compile:
        contestants[f"tinyllm, default ({fast}, Muon, compiled)"] = ours(
            optimizer="muon", precision=fast, compiled=True
        )
    ids = torch.randint(0, SHAPE.vocab_size, (ROWS, LENGTH + 1))
    for step in contestants.values():
        for _ in range(3):
            step(ids)
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):  # in turns, so that a machine that slows down slows all of them down
        for name, step in contestants.items():
            start = time.perf_counter()
            for _ in range(options.steps):
                step(ids)
            speeds[name].append(options.steps * ROWS * LENGTH / (time.perf_counter() - start))
    base = statistics.median(speeds["transformers Llama, default (fp32)"])
    rounds = f"{options.rounds} rounds of {options.steps} steps"
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {ROWS} rows of {LENGTH}, {rounds}")
    for name, found in speeds.items():
        print(f"{name:42} {statistics.median(found):8,.0f} tokens/s   {statistics.median(found) / base:.2f} x")


if __name__ == "__main__":
    main()
