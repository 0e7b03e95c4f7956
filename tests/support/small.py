"""A vocabulary, a model and records so small that a whole stage runs inside a test in a third of a second."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tinyllm.model import hub
from tinyllm.model.config import ModelConfig
from tinyllm.model.transformer import CausalLM, SequenceScorer
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.config import OptimConfig, TrainConfig

SHAPE = ModelConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=96,
)
TEXTS = [
    "system\nuser\nassistant\n",
    "What is red? It is a colour.",
    "What is 7? It is a number.",
    "red, blue, red",
] * 3


@cache
def tokenizer(texts: tuple[str, ...] = tuple(TEXTS)) -> Tokenizer:
    return Tokenizer.train(texts, 300)


def rough(kind: type = CausalLM, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """A model with weights of order one: at a std of 0.02 every log-probability is about -ln V and hides mistakes."""
    model = kind(SHAPE.model_copy(update={"vocab_size": tokenizer().vocab_size}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (scale if p.ndim > 1 else 1))
    return model.eval()


def saved(model: CausalLM | SequenceScorer, folder: Path, texts: Tokenizer | None = None) -> Path:
    """A checkpoint as it would come from elsewhere: without a manifest."""
    texts = texts or tokenizer()
    folder.mkdir(parents=True)
    hub.save(model, folder, bos=None, stop=texts.stop_ids, pad=texts.pad)
    texts.save(folder, model_max_length=SHAPE.max_position_embeddings)
    return folder


def written(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Records as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(path: Path, count: int = 40) -> Path:
    """Preferences of unequal lengths: the chosen answers are red, the rejected blue."""
    rows = [
        {"prompt": f"What is {i}?", "chosen": "red " * (1 + i % 5), "rejected": "blue " * (1 + i % 4)}
        for i in range(count)
    ]
    return written(path, rows)


def common(data: Path, **train: Any) -> dict[str, Any]:
    """The sections that every stage has, for four steps of eight records."""
    settings = {"steps": 4, "batch_size": 8, "micro_batch_size": 4, "eval_every": 2, "save_every": 2, "log_every": 1}
    return {
        "data": {
            "train": (str(data),),
            "max_length": 64,
            "val_fraction": 0.2,
        },  # each stage has a section of its own kind
        "train": TrainConfig(**{**settings, "precision": "fp32", "compile": "off", **train}),
        "optim": OptimConfig(learning_rate=1e-2, warmup_steps=1),
    }


def metrics(run: Path, split: str = "train") -> list[dict[str, Any]]:
    """The lines a run has logged."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]
