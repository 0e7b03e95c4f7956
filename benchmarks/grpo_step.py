"""One GRPO step against TRL: the same weights, prompts, group size, answer length and optimizer, in turns in one run.

    python benchmarks/grpo_step.py [MODEL] [--prompts 8] [--answers 8] [--prompt 30] [--new 64] [--steps 3] [--rounds 3] [--threads 2]
        [--micro 64] [--precision fp32|bf16] [--tiny]

MODEL is a checkpoint folder with a tokenizer; without one, the 1.4M shape with random weights. A step samples answers, scores them with a
function (the share of different tokens), and makes one update of AdamW without a reference model. No token ends an answer, so that both
compute as many. Both run in float32, TRL's default on a CPU, or both with products in bfloat16. Prints seconds a step (the median), of
ours also the share of sampling, and the ratio. Needs the `parity` extra. `--tiny` proves the script in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from decode import random_model
from gpu import Words, different
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from tinyllm.algorithms import grpo
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.model import hub
from tinyllm.rollout import source as rollouts
from tinyllm.rollout.config import RolloutConfig
from tinyllm.rollout.judge import Judge
from tinyllm.rollout.rewards import Reward
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine, autocast

RATE = 1e-6


class Ours:
    def __init__(self, folder: Path, prompts: list[list[int]], options: argparse.Namespace):
        model = hub.load_causal_lm(folder)
        settings = grpo.Settings(kl_coef=0.0)
        config = RolloutConfig(group_size=options.answers, minibatches=1, max_new_tokens=options.new)
        self.source = rollouts.RolloutSource(
            model,
            [TokenPrompt(ids, {}) for ids in prompts],
            Judge(Words(), [(Reward("different", different), 1.0)], None, 0.0, 0.0),  # type: ignore[arg-type]
            partial(grpo.compute_advantages, settings),
            config,
            reference=None,
            stop=(),
            batch_size=options.prompts * options.answers,
            micro_batch_size=options.micro,
            seed=0,
            autocast=partial(autocast, options.precision, torch.device("cpu")),
        )
        loss = partial(grpo.loss, settings, temperature=1.0)
        optim = OptimConfig(optimizer="adamw", learning_rate=RATE)
        self.engine = Engine(model, loss, optim, 10_000, precision=options.precision, seed=0)
        self.sampling: list[float] = []
        self.done = 0

    def steps(self, count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            sampled = time.perf_counter()
            batches = self.source(self.done)
            self.sampling.append(time.perf_counter() - sampled)
            self.engine.step(batches)
            self.done += 1
            seconds.append(time.perf_counter() - start)
        return seconds


class Clock(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


class TRL:
    def __init__(self, folder: Path, tokenizer: Any, texts: list[str], options: argparse.Namespace):
        self.folder, self.tokenizer, self.texts, self.options = folder, tokenizer, texts, options
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.output = tempfile.mkdtemp()

    def steps(self, count: int) -> list[float]:
        options, rows = self.options, self.options.prompts * self.options.answers

        def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            # TRL cuts an answer behind its end token, which is one of thousands here
            assert options.tiny or sum(map(len, completion_ids)) > 0.9 * options.new * len(completion_ids)
            return [len(set(ids)) / len(ids) for ids in completion_ids]

        config = GRPOConfig(
            output_dir=self.output,
            per_device_train_batch_size=min(rows, options.micro),
            gradient_accumulation_steps=max(1, rows // options.micro),
            num_generations=options.answers,
            max_completion_length=options.new,
            temperature=1.0,
            beta=0.0,
            max_steps=count,
            learning_rate=RATE,
            bf16=options.precision == "bf16",
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            generation_kwargs={"eos_token_id": None},
        )
        clock = Clock()
        texts = Dataset.from_list([{"prompt": text} for text in self.texts])
        trainer = GRPOTrainer(self.model, reward, config, texts, processing_class=self.tokenizer, callbacks=[clock])
        trainer.train()
        return clock.seconds


def words(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of which every word is a token."""
    whole = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="w1", pad_token="w2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=30)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro", type=int, default=64)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.prompts, options.answers, options.prompt, options.new, options.steps, options.rounds = 2, 2, 4, 4, 1, 1
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or random_model(Path(temporary), tiny=options.tiny)
        tokenizer = AutoTokenizer.from_pretrained(folder) if options.model else words(64 if options.tiny else 4096)
        numbers = torch.randint(10, len(tokenizer) - 1, (options.prompts, 4 * options.prompt)).tolist()
        texts = [tokenizer.decode(tokenizer(tokenizer.decode(row))["input_ids"][: options.prompt]) for row in numbers]
        ids = [tokenizer(text)["input_ids"] for text in texts]
        ours, theirs = Ours(folder, ids, options), TRL(folder, tokenizer, texts, options)
        lengths = f"{min(map(len, ids))} to {max(map(len, ids))}"
        print(
            f"{options.model or '1.4M shape, random weights'}; {options.prompts} prompts of {lengths} tokens x "
            f"{options.answers} answers of {options.new}; {options.precision}, {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}, {options.rounds} rounds of {options.steps} steps"
        )
        ours.steps(1)
        theirs.steps(1)
        ours.sampling.clear()
        found: dict[str, list[float]] = {"TRL": [], "tinyllm": []}
        for _ in range(options.rounds):  # in turns, so that a machine that slows down slows both down
            found["TRL"] += theirs.steps(options.steps)
            found["tinyllm"] += ours.steps(options.steps)
    theirs_median, ours_median = (statistics.median(seconds) for seconds in found.values())
    sampling = statistics.median(ours.sampling)
    print(f"TRL      {theirs_median:6.2f} s a step")
    print(
        f"tinyllm  {ours_median:6.2f} s a step ({sampling:.2f} s of it sampling and scoring)   {theirs_median / ours_median:.2f} x TRL"
    )


if __name__ == "__main__":
    main()
