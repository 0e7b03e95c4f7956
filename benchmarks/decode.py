"""Decoding against transformers' `generate`: the same weights, prompts and number of new tokens, in turns in one run.

    python benchmarks/decode.py [MODEL] [--rows 1 16 64 256] [--prompt 32] [--new 128] [--rounds 3] [--threads 1] [--device cpu] [--bf16]
        [--tiny]

MODEL is a checkpoint folder; without one, the 1.4M shape with random weights. Tokens are drawn at temperature 1 from the whole vocabulary,
and none ends a row. Prints new tokens per second (the median over rounds) and ours as a multiple of each of theirs. transformers runs
in float32, its default here, and with `--bf16` in bfloat16 as well. Needs the `parity` extra. `--tiny` proves the script in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tinyllm.model import hub
from tinyllm.model.config import ModelConfig
from tinyllm.model.decoding import Sampling, generate
from tinyllm.model.transformer import CausalLM, initialise

Contestant = Callable[[list[list[int]], int], None]  # (prompts, new tokens)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ours(folder: Path, device: torch.device, dtype: torch.dtype) -> Contestant:
    model = hub.load_causal_lm(folder, device).to(dtype)

    def run(prompts: list[list[int]], new: int) -> None:
        found = generate(model, prompts, Sampling(new))
        assert all(len(completion.ids) == new for completion in found)
        wait(device)

    return run


def theirs(folder: Path, device: torch.device, dtype: torch.dtype) -> Contestant:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def run(prompts: list[list[int]], new: int) -> None:
        ids = torch.tensor(prompts, device=device)
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
        )
        assert found.shape[1] == ids.shape[1] + new
        wait(device)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.rows, options.prompt, options.new, options.rounds = [1, 4], 4, 4, 1
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or random_model(Path(temporary), tiny=options.tiny)
        vocabulary = hub.load_causal_lm(folder).config.vocab_size
        contestants = {"transformers, fp32": theirs(folder, device, torch.float32)}
        if options.bf16:
            contestants["transformers, bf16"] = theirs(folder, device, torch.bfloat16)
            contestants["tinyllm, bf16"] = ours(folder, device, torch.bfloat16)
        contestants["tinyllm, fp32"] = ours(folder, device, torch.float32)
    print(
        f"{options.model or '1.4M shape, random weights'}; prompts of {options.prompt} tokens, {options.new} new; {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {options.rounds}"
    )
    for rows in options.rows:
        prompts = torch.randint(0, vocabulary, (rows, options.prompt)).tolist()
        for run in contestants.values():
            run(prompts, min(4, options.new))
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(options.rounds):  # in turns, so that a machine that slows down slows all of them down
            for name, run in contestants.items():
                start = time.perf_counter()
                run(prompts, options.new)
                speeds[name].append(rows * options.new / (time.perf_counter() - start))
        median = {name: statistics.median(found) for name, found in speeds.items()}
        for name, speed in median.items():
            ratios = [f"{speed / other:.2f} x {who}" for who, other in median.items() if who.startswith("transformers")]
            compared = "   ".join(ratios) if name.startswith("tinyllm") else ""
            print(f"{rows:4} rows  {name:20} {speed:10,.0f} tokens/s   {compared}", flush=True)


def random_model(folder: Path, *, tiny: bool) -> Path:
    """Write a model of the 1.4M shape with random weights."""
    model = CausalLM(ModelConfig(vocab_size=64, num_hidden_layers=1) if tiny else ModelConfig())
    initialise(model, 0)
    hub.save(model, folder, bos=None, stop=(), pad=None)
    return folder


if __name__ == "__main__":
    main()
