"""Records as JSON lines, a checkpoint with a chat template, and TRL's loss and gradient norm of the first step on them.

Conversations go to TRL as they stand. For pairs and unpaired answers it is given the text that the checkpoint's own chat template renders,
up to the answer's `<|im_end|>`: rendering them itself, TRL would also score the line break that the template puts after it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.parity import by_hand, oracles, tiny
from tinyllm.data.datasets.datasets import TokenUnpaired, UnpairedDataset
from tinyllm.model import hub
from tinyllm.model.transformer import CausalLM
from tinyllm.text.tokenizer import Tokenizer

Row = dict[str, Any]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = [
    [said("system", "You are terse."), said("user", "Which river runs through Cologne?")],
    [said("user", "Sort these: 4 1 3")],
    [said("user", "Hello!"), said("assistant", "Hello. What is it?"), said("user", "Say it in Greek,\nplease.")],
    [said("user", "Count to three.")],
    [said("user", "What is 12 + 30?")],
]
GOOD = ["The Rhine.", "1 3 4", "Γειά σου, κόσμε! 🙂", "One, two,\nthree.", "42"]
BAD = ["The Danube, I think, or perhaps the Elbe.", "4 3 1", "Hi.", "Three.", "It is 43, give or take a few."]
CONVERSATIONS = [{"messages": [*asked, said("assistant", good)]} for asked, good in zip(ASKED, GOOD, strict=True)]
PAIRS = [
    {
        "prompt": asked,
        "chosen": [said("assistant", good)],
        "rejected": [said("assistant", bad)],
        "margin": 0.25 * number,
    }
    for number, (asked, good, bad) in enumerate(zip(ASKED, GOOD, BAD, strict=True))
]
UNPAIRED = [
    {"prompt": asked, "completion": [said("assistant", (bad, good)[number % 2])], "label": bool(number % 2)}
    for number, (asked, good, bad) in enumerate(zip(ASKED, GOOD, BAD, strict=True))
]
PROMPTS = [{"prompt": asked} for asked in ASKED[:3]]


def checkpoint(folder: Path) -> None:
    """A tiny model with weights of order one, its tokenizer and its chat template."""
    texts = [turn["content"] for asked in ASKED for turn in asked] + GOOD + BAD
    tokenizer = Tokenizer.train(texts, 320)
    shape = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256}
    model = CausalLM(tiny.SHAPE.model_copy(update=shape))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1.0 if parameter.ndim == 1 else 0.0)
    tiny.draw(model, 4, 0.3)
    tokenizer.save(folder, model_max_length=256)
    hub.save(model, folder, bos=tokenizer.bos, stop=tokenizer.stop_ids, pad=tokenizer.pad)


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    found = AutoTokenizer.from_pretrained(folder)
    found.eos_token = "<|im_end|>"  # what ends an answer; in the file it is what ends a document
    return found


def _model(folder: Path) -> nn.Module:
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # transformers gives the embedding of <|pad|> no gradient, not even where an untrained policy wrote that token itself
    found.get_input_embeddings().padding_idx = None
    return found


def _text(row: Row, tokenizer: PreTrainedTokenizerBase) -> Row:
    """The row with prompt and answers as the template renders them."""
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    found = {**row, "prompt": prompt}
    for name in {"chosen", "rejected", "completion"} & row.keys():
        whole = tokenizer.apply_chat_template([*row["prompt"], *row[name]], tokenize=False)
        found[name] = whole.removeprefix(prompt).removesuffix("\n")
    return found


def _given(rows: list[Row], folder: Path, **settings: Any) -> dict[str, Any]:
    tokenizer = tokenizer_of(folder)
    data = Dataset.from_list([_text(row, tokenizer) if "prompt" in row else row for row in rows])
    return {"train_dataset": data, "processing_class": tokenizer, "args": oracles.arguments(len(rows)) | settings}


def _trained(
    trainer: type, config: type, *models: nn.Module, args: dict[str, Any], **given: Any
) -> tuple[float, float]:
    """Loss and gradient norm."""
    return _norm(oracles.one_step(trainer(*models, args=config(**args), **given)))


def _norm(found: tiny.Outcome) -> tuple[float, float]:
    return found.loss, float(torch.stack([g.norm() for g in found.gradient.values()]).norm())


def sft(folder: Path, run: Path) -> tuple[float, float]:
    return _trained(SFTTrainer, SFTConfig, _model(folder), **_given(CONVERSATIONS, folder, assistant_only_loss=True))


sft_packed = sft  # which document stands in which row changes nothing


def sft_lora(folder: Path, run: Path) -> tuple[float, float]:
    """The adapter that the command initialized and wrote, as PEFT reads it."""
    adapted = PeftModel.from_pretrained(_model(folder), run / "checkpoints" / "ckpt_best", is_trainable=True)
    return _trained(SFTTrainer, SFTConfig, adapted, **_given(CONVERSATIONS, folder, assistant_only_loss=True))


def rm(folder: Path, run: Path) -> tuple[float, float]:
    """The command initializes the score head, so it is read from its checkpoint; at its learning rate nothing has moved."""
    scorer = AutoModelForSequenceClassification.from_pretrained(run / "checkpoints" / "ckpt_best", dtype=torch.float32)
    return _trained(RewardTrainer, RewardConfig, scorer, **_given(PAIRS, folder, center_rewards_coefficient=0.01))


def dpo(folder: Path, run: Path) -> tuple[float, float]:
    return _trained(DPOTrainer, DPOConfig, _model(folder), _model(folder), **_given(PAIRS, folder, beta=0.1))


def orpo(folder: Path, run: Path) -> tuple[float, float]:
    return _trained(
        ORPOTrainer, ORPOConfig, _model(folder), **_given(PAIRS, folder, beta=0.1, remove_unused_columns=False)
    )


def simpo(folder: Path, run: Path) -> tuple[float, float]:
    knobs = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0, "remove_unused_columns": False}
    return _trained(CPOTrainer, CPOConfig, _model(folder), **_given(PAIRS, folder, **knobs))


def kto(folder: Path, run: Path) -> tuple[float, float]:
    order = tiny.rotated(UnpairedDataset([TokenUnpaired([], [], True)] * len(UNPAIRED), 0))
    rows = [UNPAIRED[i] for i in order]
    return _trained(KTOTrainer, KTOConfig, _model(folder), _model(folder), **_given(rows, folder, beta=0.1))


Answers = list[tuple[list[int], list[int]]]


def _kept(run: Path) -> tuple[Answers, list[float], int]:
    """Prompts with the answers that the command sampled and kept, their rewards, and the number of answers per prompt."""
    kept = load_file(run / "logs" / "rollouts" / "00000000.safetensors")
    rows = []
    for ids, mask in zip(kept["ids"], kept["mask"], strict=True):
        begin = int(mask.nonzero()[0])
        rows.append((ids[:begin].tolist(), ids[mask].tolist()))
    return rows, kept["reward"].tolist(), int((kept["group"] == 0).sum())


def _group_relative(settings: Row) -> Callable[[Path, Path], tuple[float, float]]:
    """TRL's GRPO on a kept rollout."""

    def oracle(folder: Path, run: Path) -> tuple[float, float]:
        rows, rewards, size = _kept(run)
        written = {"prompt_ids": [p for p, _ in rows], "completion_ids": [a for _, a in rows], "logprobs": None}
        given = {"processing_class": tokenizer_of(folder), "args": GRPOConfig(**_arguments(rows, size) | settings)}
        given |= {"train_dataset": _numbered(rows, size), "rollout_func": lambda prompts, trainer: dict(written)}
        return _norm(oracles.one_step(GRPOTrainer(_model(folder), lambda **_: rewards, **given)))

    return oracle


def _arguments(rows: Answers, size: int) -> Row:
    return oracles.arguments(len(rows)) | {"num_generations": size, "shuffle_dataset": False}


def _numbered(rows: Answers, size: int) -> Dataset:
    """Stand-ins for the prompts of the rollout."""
    return Dataset.from_list([{"prompt": str(number)} for number in range(len(rows) // size)])


def rloo(folder: Path, run: Path) -> tuple[float, float]:
    rows, rewards, size = _kept(run)
    settings = RLOOConfig(**_arguments(rows, size), beta=0.05, epsilon=0.2)
    given = {"train_dataset": _numbered(rows, size), "processing_class": tokenizer_of(folder), "args": settings}
    trainer = RLOOTrainer(_model(folder), lambda **_: rewards, **given)
    trainer._generate = lambda asked: ([p for p, _ in rows], [a for _, a in rows], asked)  # it has no rollout_func
    return _norm(oracles.one_step(trainer))


grpo = _group_relative({"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.02})
dapo = _group_relative({"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28})
dr_grpo = _group_relative({"loss_type": "dr_grpo", "scale_rewards": "none", "max_completion_length": 12})


def ppo(folder: Path, run: Path) -> tuple[float, float]:
    """By hand: TRL has no PPO. The critic is read from the command's checkpoint."""
    rows, rewards, _ = _kept(run)
    critic = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    critic.load_state_dict(load_file(run / "checkpoints" / "ckpt_best" / "trainer" / "critic.safetensors"))
    critic.get_input_embeddings().padding_idx = None
    policy = _model(folder)
    knobs = by_hand.Knobs(
        gamma=0.97, lam=0.9, clip=0.2, value_clip=0.2, vf_coef=0.5, kl_coef=0.05, k3=False, whiten=True, temperature=0.8
    )
    return _norm(by_hand.ppo(knobs, by_hand.Players(policy, critic, policy, critic, policy), rows, rewards))
