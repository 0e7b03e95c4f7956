"""Records as JSON lines, a checkpoint with a chat template, and TRL's loss and gradient of a step on them.

The step is the second of a run: its weights are those of the checkpoint behind the first, so that nothing is at its start any more (policy
and reference, policy and behavior policy, an adapter's B). A frozen reference and the policy that sampled are the model the run began with.

Conversations go to TRL as they stand. For pairs and unpaired answers it is given the text that the checkpoint's own chat template renders,
up to the answer's `<|im_end|>`: rendering them itself, TRL would also score the line break that the template puts after it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
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
RATE, BETA2, EPS = 2e-3, 0.95, 1e-8  # of AdamW
WINDOW = 40  # tokens in a row of `pretrain`
DOCUMENTS = [{"text": f"{good} {bad}"} for good, bad in zip(GOOD, BAD, strict=True)]
MEASURED = [{"text": "Held out, and long enough for a row of its own: one, two, three, four, five, six."}]


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


def _trained(trainer: type, config: type, *models: nn.Module, args: dict[str, Any], **given: Any) -> tiny.Outcome:
    return oracles.one_step(trainer(*models, args=config(**args), **given))


def after_two_steps(run: Path) -> Path:
    return run / "checkpoints" / "step-00000002"


def after_one_step(run: Path) -> Path:
    """The checkpoint that the second step starts from. In the middle of a rollout none is written: then the last update is undone."""
    found, last = run / "checkpoints" / "step-00000001", after_two_steps(run)
    if not found.is_dir():
        shutil.copytree(last, found)
        state = load_file(last / "trainer" / "optimizer.safetensors")
        whole = "policy." if any(name.startswith("exp_avg.policy.") for name in state) else ""
        for file, prefix in (("model", whole), ("trainer/critic", "critic.")):
            if (path := found / f"{file}.safetensors").is_file():
                weights = {n: w + _last_update(state, prefix + n) for n, w in load_file(path).items()}
                save_file(weights, path, {"format": "pt"})
    return found


def _last_update(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """What AdamW subtracted in its second step, with beta1 = 0 and no weight decay (arXiv 1412.6980, algorithm 1)."""
    return RATE * state[f"exp_avg.{name}"] / ((state[f"exp_avg_sq.{name}"] / (1 - BETA2**2)).sqrt() + EPS)


def sft(folder: Path, run: Path) -> tiny.Outcome:
    model = _model(after_one_step(run))
    return _trained(SFTTrainer, SFTConfig, model, **_given(CONVERSATIONS, folder, assistant_only_loss=True))


sft_packed = sft  # which document stands in which row changes nothing


def sft_lora(folder: Path, run: Path) -> tiny.Outcome:
    """The adapter that the command wrote, as PEFT reads it."""
    adapted = PeftModel.from_pretrained(_model(folder), after_one_step(run), is_trainable=True)
    found = _trained(SFTTrainer, SFTConfig, adapted, **_given(CONVERSATIONS, folder, assistant_only_loss=True))
    return tiny.Outcome(found.loss, oracles.renamed(found.gradient))


def pretrain(folder: Path, run: Path) -> list[tiny.Outcome]:
    """transformers on the text, for every place at which the rows of `pretrain` may begin: it is a random one.

    Two rows that follow each other, in a stream in which each document is followed by its end token.
    """
    texts = AutoTokenizer.from_pretrained(folder)
    end = texts.convert_tokens_to_ids("<|endoftext|>")
    stream = [i for row in DOCUMENTS for i in [*texts(row["text"], add_special_tokens=False).input_ids, end]]
    model, found = _model(after_one_step(run)), []
    for start in range(WINDOW):
        ids = torch.tensor([stream[start + n * WINDOW : start + (n + 1) * WINDOW + 1] for n in (0, 1)])
        if ids.shape != (2, WINDOW + 1):
            break
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        found.append(tiny.Outcome(loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    return found


def rm(folder: Path, run: Path) -> tiny.Outcome:
    scorer = AutoModelForSequenceClassification.from_pretrained(after_one_step(run), dtype=torch.float32)
    return _trained(RewardTrainer, RewardConfig, scorer, **_given(PAIRS, folder, center_rewards_coefficient=0.01))


def dpo(folder: Path, run: Path) -> tiny.Outcome:
    models = _model(after_one_step(run)), _model(folder)
    return _trained(DPOTrainer, DPOConfig, *models, **_given(PAIRS, folder, beta=0.1))


def orpo(folder: Path, run: Path) -> tiny.Outcome:
    given = _given(PAIRS, folder, beta=0.1, remove_unused_columns=False)
    return _trained(ORPOTrainer, ORPOConfig, _model(after_one_step(run)), **given)


def simpo(folder: Path, run: Path) -> tiny.Outcome:
    knobs = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0, "remove_unused_columns": False}
    return _trained(CPOTrainer, CPOConfig, _model(after_one_step(run)), **_given(PAIRS, folder, **knobs))


def kto(folder: Path, run: Path) -> tiny.Outcome:
    order = tiny.rotated(UnpairedDataset([TokenUnpaired([], [], True)] * len(UNPAIRED), 0))
    rows = [UNPAIRED[i] for i in order]
    models = _model(after_one_step(run)), _model(folder)
    return _trained(KTOTrainer, KTOConfig, *models, **_given(rows, folder, beta=0.1))


Answers = list[tuple[list[int], list[int]]]


def _kept(run: Path) -> tuple[Answers, list[float], int]:
    """Prompts with the answers that the command sampled and kept, their rewards, and the number of answers per prompt."""
    kept = load_file(run / "logs" / "rollouts" / "00000000.safetensors")
    rows = []
    for ids, mask in zip(kept["ids"], kept["mask"], strict=True):
        begin = int(mask.nonzero()[0])
        rows.append((ids[:begin].tolist(), ids[mask].tolist()))
    return rows, kept["reward"].tolist(), int((kept["group"] == 0).sum())


class _Rollout:
    """What TRL is given for a kept rollout, sampled by the model in `folder` and trained on by that of the first checkpoint.

    Where sampling would begin the weights become those that sampled, where rewards are asked for those of the policy again.
    """

    def __init__(self, folder: Path, run: Path):
        self.rows, self.rewards, self.size = _kept(run)
        self.model, self.start, self.tokenizer = _model(after_one_step(run)), _model(folder), tokenizer_of(folder)
        self.policy = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.data = Dataset.from_list([{"prompt": str(number)} for number in range(len(self.rows) // self.size)])
        self.arguments = oracles.arguments(len(self.rows)) | {
            "num_generations": self.size,
            "shuffle_dataset": False,
            "num_iterations": 2,  # of more than one, or TRL takes the policy for the behavior policy
            "steps_per_generation": 1,
        }

    def write(self) -> Answers:
        self.model.load_state_dict(self.start.state_dict())
        return self.rows

    def judge(self, **_: Any) -> list[float]:
        self.model.load_state_dict(self.policy)
        return self.rewards

    def refer(self, trainer: GRPOTrainer | RLOOTrainer) -> None:
        if trainer.ref_model is not None:
            trainer.ref_model.load_state_dict(self.start.state_dict())


def _group_relative(settings: Row) -> Callable[[Path, Path], tiny.Outcome]:
    """TRL's GRPO on a kept rollout."""

    def oracle(folder: Path, run: Path) -> tiny.Outcome:
        rollout = _Rollout(folder, run)

        def write(prompts: list[str], trainer: GRPOTrainer) -> Row:
            rows = rollout.write()
            return {"prompt_ids": [p for p, _ in rows], "completion_ids": [a for _, a in rows], "logprobs": None}

        config = GRPOConfig(**rollout.arguments | settings)
        given = {"train_dataset": rollout.data, "processing_class": rollout.tokenizer, "rollout_func": write}
        trainer = GRPOTrainer(rollout.model, rollout.judge, config, **given)
        rollout.refer(trainer)
        return oracles.one_step(trainer)

    return oracle


def rloo(folder: Path, run: Path) -> tiny.Outcome:
    rollout = _Rollout(folder, run)
    config = RLOOConfig(**rollout.arguments, beta=0.05, epsilon=0.95)
    given = {"train_dataset": rollout.data, "processing_class": rollout.tokenizer}
    trainer = RLOOTrainer(rollout.model, rollout.judge, config, **given)
    rollout.refer(trainer)

    def generate(asked: list[Any]) -> tuple[list[list[int]], list[list[int]], list[Any]]:  # it has no rollout_func
        rows = rollout.write()
        return [p for p, _ in rows], [a for _, a in rows], asked

    trainer._generate = generate
    return oracles.one_step(trainer)


_BOUNDS = {"epsilon": 0.2, "epsilon_high": 0.28}
_SEQUENCE = {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.15, "epsilon_high": 0.25}
grpo = _group_relative(_BOUNDS | {"loss_type": "grpo", "beta": 0.02})
dapo = _group_relative(_BOUNDS | {"loss_type": "dapo"})
dr_grpo = _group_relative(_BOUNDS | {"loss_type": "dr_grpo", "scale_rewards": "none", "max_completion_length": 12})
gspo = _group_relative(_SEQUENCE)
cispo = _group_relative({"loss_type": "cispo", "epsilon_high": 1.2})


def ppo(folder: Path, run: Path) -> tiny.Outcome:
    """By hand: TRL has no PPO. The critic is read from the command's checkpoints."""
    rows, rewards, _ = _kept(run)

    def critic(step: str) -> nn.Module:
        found = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
        found.load_state_dict(load_file(run / "checkpoints" / step / "trainer" / "critic.safetensors"))
        found.get_input_embeddings().padding_idx = None
        return found

    start, trained = _model(folder), _model(after_one_step(run))
    players = by_hand.Players(trained, critic("step-00000001"), start, critic("step-00000000"), start)
    knobs = by_hand.Knobs(
        gamma=0.97, lam=0.9, clip=0.2, value_clip=0.2, vf_coef=0.5, kl_coef=0.05, k3=False, whiten=True, temperature=0.8
    )
    return by_hand.ppo(knobs, players, rows, rewards)
