"""Log-likelihoods of BLiMP's sentences by `tinyllm eval` and by transformers: every one of them, and the accuracy of every file.

    python benchmarks/likelihoods.py MODEL FILE [FILE ...] [--start TOKEN] [--rows 300] [--threads 2]

MODEL is a checkpoint folder of any architecture; TOKEN is the start token, as `tinyllm eval --set start=TOKEN` takes it, for example
`<|endoftext|>`. transformers reads sentence by sentence, without padding, and sums in float64. Needs the `parity` extra. Exit code 1 if
an accuracy differs or a log-likelihood by more than 1e-3 nats.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

TOLERANCE = 1e-3  # nats; sentences have about 30 of them


def ours(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the rows that eval scores, file by file, with its log-likelihoods; and the accuracies that the command reports."""
    from tinyllm.cli.resolve import STAGES, resolve
    from tinyllm.evals import run
    from tinyllm.evals.benchmark import read_all
    from tinyllm.evals.conventions import conventions
    from tinyllm.evals.evaluator import Evaluator
    from tinyllm.model import hub
    from tinyllm.text.tokenizer import Tokenizer
    from tinyllm.train.run import Invocation

    files = json.dumps([str(path) for path in options.files])
    given = [f"parent={options.model}", f"data.val={files}", f"rows={options.rows}", "task=[choice]"]
    config = resolve(STAGES["eval"], None, [*given, f"start={json.dumps(options.start)}"], {}, {}, fast=False).config
    results = run.run(config, Invocation(""))["results"]
    tokenizer = Tokenizer.load(options.model)
    around = conventions(tokenizer, config)
    evaluator = Evaluator(hub.load_causal_lm(options.model).eval(), tokenizer, around, False, config)
    found, accuracies = [], {}
    for benchmark in read_all(["choices"], config):
        scores = evaluator.score_choices(benchmark)
        texts = [item.choices for item in benchmark.items]
        found.append({"name": benchmark.name, "texts": texts, "scores": scores, "start": around.names["start"]})
        key = "choice" if len(options.files) == 1 else f"choice/{benchmark.name}"
        accuracies[benchmark.name] = results[key]["acc,none"]
    return found, accuracies


def theirs(model: Path, found: list[dict[str, Any]]) -> list[list[list[float]]]:
    """Return the log-likelihoods of the same sentences by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    @torch.no_grad()
    def score(start: str | None, text: str) -> float:
        first = [] if start is None else [tokenizer.convert_tokens_to_ids(start)]
        ids = first + tokenizer.encode(text, add_special_tokens=False)
        log_probs = network(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        return float(log_probs.gather(1, torch.tensor(ids[1:])[:, None]).sum())

    return [[[score(file["start"], text) for text in two] for two in file["texts"]] for file in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--start", default="auto")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(options.threads)
    found, accuracies = ours(options)
    expected = theirs(options.model, found)
    line = "{:<44} {:>6} {:>9} {:>13} {:>16}".format
    print(line("file", "pairs", "tinyllm", "transformers", "largest gap, nats"))
    failed = False
    for file, want in zip(found, expected, strict=True):
        right = sum(good >= bad for good, bad in want) / len(want)
        pairs = zip(file["scores"], want, strict=True)
        gap = max(abs(a - b) for two, others in pairs for a, b in zip(two, others, strict=True))
        accuracy = accuracies[file["name"]]
        failed |= gap > TOLERANCE or abs(accuracy - right) > 1e-9
        print(line(file["name"], len(want), f"{accuracy:.4f}", f"{right:.4f}", f"{gap:.1e}"))
    print(f"start token: {found[0]['start']}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
