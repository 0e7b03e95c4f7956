"""Training throughput of the 1.4M model beside transformers, plain PyTorch and the matrix products alone: same run, same threads, in turns.

    python benchmarks/throughput.py [--threads N] [--steps 5] [--rounds 5] [--no-compile] [--tiny]

Needs the `parity` extra. Prints tokens per second of each contestant, the median over rounds, and ours as a multiple of theirs.

- transformers: its Llama of this size as it comes: float32, AdamW, not compiled; and under bfloat16 autocast where the CPU multiplies it.
- plain PyTorch: a decoder of 60 lines, below, with `torch.compile`, AdamW and the precision that is faster.
- tinyllm: eager, as a run begins, and with compiled blocks; Muon is the shipped setting.
- products: every matrix product of a step, once, with nothing between them. Nobody is faster without computing less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm import distributed as dist
from tinyllm.algorithms import next_token
from tinyllm.data.datasets.batches import TokenBatch
from tinyllm.model.config import ModelConfig
from tinyllm.model.native import kernels as native_kernels
from tinyllm.model.transformer import CausalLM, compile_blocks, initialise
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine, autocast, choose_precision

CPU = torch.device("cpu")
Step = Callable[[Tensor], None]


def ours(shape: ModelConfig, ids: Tensor, *, optimizer: str, precision: str, compiled: bool) -> Step:
    model = CausalLM(shape)
    initialise(model, 0)
    loss = partial(next_token.loss, next_token.Settings())
    engine = Engine(model, loss, OptimConfig(optimizer=optimizer), 10_000, precision=precision, seed=0)
    if compiled:
        compile_blocks(model)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    return lambda ids: engine.step([TokenBatch(ids, mask)])


def transformers_llama(shape: ModelConfig, precision: str) -> Step:
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
    model = LlamaForCausalLM(LlamaConfig(**{n: getattr(shape, n) for n in names}, tie_word_embeddings=True))
    return _with_adamw(
        model, lambda ids: model(input_ids=ids[:, :-1].contiguous(), labels=ids[:, :-1].contiguous()).loss, precision
    )


def plain_pytorch(shape: ModelConfig, precision: str, *, compiled: bool) -> Step:
    model = Plain(shape)
    called = torch.compile(model) if compiled else model
    return _with_adamw(model, lambda ids: called(ids[:, :-1], ids[:, 1:]), precision)


def _with_adamw(model: nn.Module, loss_of: Callable[[Tensor], Tensor], precision: str) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(ids: Tensor) -> None:
        with autocast(precision, CPU):
            loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


class PlainBlock(nn.Module):
    def __init__(self, shape: ModelConfig):
        super().__init__()
        self.heads, self.width = shape.num_attention_heads, shape.head_dim
        inner, size = self.heads * self.width, shape.hidden_size
        self.before_attention, self.before_mlp = nn.RMSNorm(size), nn.RMSNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * inner, bias=False), nn.Linear(inner, size, bias=False)
        self.gate_up = nn.Linear(size, 2 * shape.intermediate_size, bias=False)
        self.down = nn.Linear(shape.intermediate_size, size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = (
            part.view(rows, length, self.heads, self.width).transpose(1, 2)
            for part in self.qkv(self.before_attention(x)).chunk(3, -1)
        )
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.before_mlp(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Plain(nn.Module):
    """A decoder as one would write it: rotary embeddings, RMS norms, a gated MLP, a tied head, cross-entropy of all logits at once."""

    def __init__(self, shape: ModelConfig):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.hidden_size)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size)
        half = shape.head_dim // 2
        speeds = 10000.0 ** -(torch.arange(half) / half)
        angles = torch.arange(shape.max_position_embeddings)[:, None] * speeds
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x, length = self.embedding(ids), ids.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def products(shape: ModelConfig, rows: int, length: int, precision: str) -> Step:
    """Return a step of products alone: x W^T, its two gradients, and those of attention without a mask."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size, inner, tokens = shape.hidden_size, shape.num_attention_heads * shape.head_dim, rows * length
    kv = shape.num_key_value_heads * shape.head_dim
    of_layer = [(size, inner), (size, kv), (size, kv), (inner, size)]
    of_layer += [(size, shape.intermediate_size)] * 2 + [(shape.intermediate_size, size)]
    matrices = of_layer * shape.num_hidden_layers + [(size, shape.vocab_size)]
    made = [
        (torch.randn(tokens, a, dtype=dtype), torch.randn(b, a, dtype=dtype), torch.randn(tokens, b, dtype=dtype))
        for a, b in matrices
    ]
    heads = torch.randn(rows * shape.num_attention_heads, length, shape.head_dim, dtype=dtype)
    scores = torch.randn(len(heads), length, length, dtype=dtype)

    def step(_: Tensor) -> None:
        for x, weight, gradient in made:
            x @ weight.T, gradient @ weight, gradient.T @ x
        for _ in range(shape.num_hidden_layers):
            for _ in range(2):  # scores and their gradient
                torch.bmm(heads, heads.mT)
            for _ in range(4):  # outputs, and the gradients of queries, keys and values
                torch.bmm(scores, heads)

    return step


def entered(shape: ModelConfig, ids: Tensor, fast: str, *, compiled: bool) -> dict[str, Step]:
    """Return the contestants by name."""
    found = {"transformers Llama, default (fp32, AdamW)": transformers_llama(shape, "fp32")}
    if fast == "bf16":
        found["transformers Llama, bf16 autocast"] = transformers_llama(shape, "bf16")
    kinds = {"eager": False} | ({"compiled": True} if compiled else {})
    for kind, on in kinds.items():
        found[f"plain PyTorch, {fast}, AdamW, {kind}"] = plain_pytorch(shape, fast, compiled=on)
    found[f"tinyllm, {fast}, AdamW, eager"] = ours(shape, ids, optimizer="adamw", precision=fast, compiled=False)
    for kind, on in kinds.items():
        found[f"tinyllm, {fast}, Muon, {kind}"] = ours(shape, ids, optimizer="muon", precision=fast, compiled=on)
    found[f"products alone, {fast}"] = products(shape, len(ids), ids.shape[1] - 1, fast)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=dist.threads_per_rank())
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="one small step of each, to see that the script runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fast = choose_precision("auto", CPU)
    shape, rows, length = ModelConfig(), 16, 256
    if options.tiny:
        shape = ModelConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, head_dim=16)
        rows, length, options.steps, options.rounds, options.no_compile = 2, 16, 1, 1, True
    ids = torch.randint(0, shape.vocab_size, (rows, length + 1))
    contestants = entered(shape, ids, fast, compiled=not options.no_compile)
    for step in contestants.values():
        for _ in range(1 if options.tiny else 3):
            step(ids)
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):  # in turns, so that a machine that slows down slows all of them down
        for name, step in contestants.items():
            start = time.perf_counter()
            for _ in range(options.steps):
                step(ids)
            speeds[name].append(options.steps * rows * length / (time.perf_counter() - start))
    found = {name: statistics.median(each) for name, each in speeds.items()}
    native = "on" if native_kernels.library() else "off"
    rounds = f"{options.rounds} rounds of {options.steps} steps"
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {rows} rows of {length}, {rounds}, native kernels {native}"
    )
    for name, speed in found.items():
        last = next(s for n, s in found.items() if n.startswith("tinyllm") and "Muon, eager" in n)
        print(f"{name:42} {speed:8,.0f} tokens/s   tinyllm, Muon, eager: {last / speed:.2f} x")


if __name__ == "__main__":
    main()
