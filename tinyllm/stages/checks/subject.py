"""Whom the checks look at: a tiny model made on the spot, or the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import torch

from tinyllm.model import hub
from tinyllm.model.config import ModelConfig
from tinyllm.model.transformer import CausalLM, SequenceScorer
from tinyllm.stages.checks.outcome import Skipped
from tinyllm.stages.common import Files, tokenizer_of
from tinyllm.text.tokenizer import Tokenizer

SENTENCES = (  # of very unequal lengths, in more scripts than one
    "Hi.",
    "The quick brown fox jumps over the lazy dog.",
    "What is 7 x 8?  It is 56; and 56 / 8 is 7 again.",
    "Two\nlines.",
    "Ein Stück Käse, s'il vous plaît – и чашку чая, 猫さん 🐈.",
    "def f(x):\n\treturn x + 1",
    "A model reads what stands before a token, and nothing that stands behind it.",
    "red, blue, red",
)
_ROW = 48  # tokens of a sentence that are used at most


@dataclass(frozen=True)
class Subject:
    """What is looked at, and where.

    model: in eval mode and float32, an adapter merged into it.
    scratch: an empty folder that is removed afterwards.
    folder: the checkpoint it came from; None: made on the spot.
    run: the run directory that the checkpoint is part of, if it is.
    """

    model: CausalLM | SequenceScorer
    tokenizer: Tokenizer
    device: torch.device
    scratch: Path
    folder: Path | None = None
    run: Path | None = None

    @property
    def writer(self) -> CausalLM:
        """The model, if it is one that writes text."""
        if isinstance(self.model, SequenceScorer):
            raise Skipped("a reward model writes no text")
        return self.model

    @property
    def checkpoint(self) -> Path:
        """Its folder, in a check of what the user has trained."""
        assert self.folder is not None
        return self.folder

    @cached_property
    def rows(self) -> list[list[int]]:
        """Token rows of unequal lengths, at most half a context long."""
        longest = min(_ROW, self.model.config.max_position_embeddings // 2)
        return [ids[:longest] for ids in self.tokenizer.encode_batch(SENTENCES)]

    @property
    def nats(self) -> float:
        """How far two ways to the same log-probability may be apart: rounding, which grows with depth and width."""
        return 1e-4 if self.folder is None else 1e-3

    def files(self) -> Files:
        return Files(self.model, self.tokenizer)

    def place(self, name: str) -> Path:
        """A new folder in `scratch`."""
        folder = self.scratch / name
        folder.mkdir(parents=True)
        return folder


@cache
def small_tokenizer() -> Tokenizer:
    return Tokenizer.train(SENTENCES * 2, 320)


def small_model(model_type: Literal["qwen3", "llama", "qwen2"] = "qwen3", seed: int = 0) -> CausalLM:
    """A model whose weights are of order one: where all log-probabilities are about -ln V, mistakes do not show."""
    config = ModelConfig(
        model_type=model_type,
        vocab_size=small_tokenizer().vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=96,
    )
    model = CausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 1.0))
    return model.eval()


def small(device: torch.device, scratch: Path) -> Subject:
    return Subject(small_model().to(device), small_tokenizer(), device, scratch)


def own(folder: Path, run: Path | None, device: torch.device, scratch: Path) -> Subject:
    """The checkpoint in `folder`."""
    model = loaded(folder, device)
    return Subject(model, tokenizer_of(model, folder), device, scratch, folder, run)


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def loaded(folder: Path, device: torch.device, *, merged: bool = True) -> CausalLM | SequenceScorer:
    if not is_adapter(folder):
        architectures = hub.read_config(folder)[1].get("architectures") or [""]
        if str(architectures[0]).endswith("ForSequenceClassification"):
            return hub.load_scorer(folder, device).eval()
    return hub.load_causal_lm(folder, device, merged=merged).eval()
