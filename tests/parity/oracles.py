"""TRL's own trainers on the tiny world: each trains one step at learning rate 0 and returns its loss and gradient.

Nothing of a loss is written here. TRL prepares and collates the data, scores the reference, forms advantages, accumulates micro-batches
and logs; a callback copies the gradient just before the optimizer would use it. Only sampling is replaced, by the answers in `tiny`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.parity import tiny

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
disable_progress_bars()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for the text of `tiny.text`: one word, one token."""
    words = {tiny.text([i]): i for i in range(tiny.SHAPE.vocab_size)}
    whole = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<eos>", pad_token="<pad>")


def policy(name: str = "policy") -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny.folder() / name, dtype=torch.float64)


def scorer(name: str = "scorer") -> nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(tiny.folder() / name, dtype=torch.float64)


@cache
def _output() -> str:
    return tempfile.mkdtemp(dir=tiny.folder())


def arguments(rows: int, parts: int = 1) -> dict[str, Any]:
    """Arguments of one step over `rows` records in `parts` micro-batches that changes no weights and uses no network or disk."""
    return {
        "output_dir": _output(),
        "per_device_train_batch_size": rows // parts,
        "gradient_accumulation_steps": parts,
        "max_steps": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


class _Watch(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.gradient: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        self.gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def one_step(trainer: transformers.Trainer) -> tiny.Outcome:
    """The trainer's own `train()`: the loss it logs and the gradient it would have applied."""
    watch = _Watch()
    trainer.add_callback(watch)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return tiny.Outcome(next(row["loss"] for row in trainer.state.log_history if "loss" in row), watch.gradient)


def adapted(adapter: Path) -> nn.Module:
    """The policy with an adapter, as PEFT reads it."""
    return PeftModel.from_pretrained(policy(), adapter, is_trainable=True)


def sft(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], parts: int = 1, model: nn.Module | None = None, **settings: Any
) -> tiny.Outcome:
    """Prompts and completions; the loss is over completions. Adapter weights are named as in its file."""
    records = [{"prompt": tiny.text(p) + " ", "completion": tiny.text(c)} for p, c in rows]
    data, config = Dataset.from_list(records), SFTConfig(**arguments(len(rows), parts) | settings)
    found = one_step(SFTTrainer(model or policy(), config, train_dataset=data, processing_class=tokenizer()))
    return tiny.Outcome(found.loss, renamed(found.gradient))


def renamed(gradient: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A gradient with PEFT's names of adapter weights as they are in its file, without their prefix."""
    added = r"^base_model\.model\.|(?<=vector)\.default\.weight|\.default"
    return {re.sub(added, "", name): g for name, g in gradient.items()}


def pairs(margin: bool = False) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": tiny.text(p.prompt) + " ",
                "chosen": tiny.text(p.chosen),
                "rejected": tiny.text(p.rejected),
                **({"margin": p.margin} if margin else {}),
            }
            for p in tiny.PAIRS
        ]
    )


def reward(margin: bool, centering: float | None) -> tiny.Outcome:
    config = RewardConfig(**arguments(len(tiny.PAIRS)), center_rewards_coefficient=centering)
    return one_step(RewardTrainer(scorer(), config, train_dataset=pairs(margin=margin), processing_class=tokenizer()))


def dpo(parts: int = 1, **settings: Any) -> tiny.Outcome:
    config = DPOConfig(**arguments(len(tiny.PAIRS), parts), **settings)
    return one_step(
        DPOTrainer(policy(), policy("reference"), config, train_dataset=pairs(), processing_class=tokenizer())
    )


def orpo(weight: float) -> tiny.Outcome:
    config = ORPOConfig(**arguments(len(tiny.PAIRS)), beta=weight, remove_unused_columns=False)
    return one_step(ORPOTrainer(policy(), config, train_dataset=pairs(), processing_class=tokenizer()))


def cpo(**settings: Any) -> tiny.Outcome:
    """Losses of pairs without a reference: SimPO, and cDPO where the reference's log-probabilities are 0."""
    config = CPOConfig(**arguments(len(tiny.PAIRS)), cpo_alpha=0.0, remove_unused_columns=False, **settings)
    return one_step(CPOTrainer(policy(), config, train_dataset=pairs(), processing_class=tokenizer()))


def kto(order: Sequence[int], trained: str, reference: str, **settings: Any) -> tiny.Outcome:
    """TRL pairs record i with the answer of the record before it; `order` makes that the answer that we pair it with."""
    unpaired = [tiny.UNPAIRED[i] for i in order]
    records = [
        {"prompt": tiny.text(j.prompt) + " ", "completion": tiny.text(j.answer), "label": j.good} for j in unpaired
    ]
    config = KTOConfig(**arguments(len(records)), **settings)
    data = Dataset.from_list(records)
    models = policy(trained), policy(reference)
    return one_step(KTOTrainer(*models, config, train_dataset=data, processing_class=tokenizer()))
