"""The model under test: a tiny one built for the purpose, or the user's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch

from tinyllm.diagnostics.checks.result import CheckSkipped
from tinyllm.model import hub
from tinyllm.model.adapter_config import ADAPTER
from tinyllm.model.architectures import ARCHITECTURES
from tinyllm.model.config import ModelConfig
from tinyllm.model.features import DEFAULT_TYPE, ModelType
from tinyllm.model.transformer import CausalLM, SequenceScorer
from tinyllm.stages.checkpoint_files import CheckpointFiles
from tinyllm.stages.common import load_tokenizer
from tinyllm.text.tokenizer import Tokenizer

SENTENCES = (  # of very unequal lengths, in several scripts
    "Hi.",
    "The quick brown fox jumps over the lazy dog.",
    "What is 7 x 8?  It is 56; and 56 / 8 is 7 again.",
    "Two\nlines.",
    "Ein Stück Käse, s'il vous plaît – и чашку чая, 猫さん 🐈.",
    "def f(x):\n\treturn x + 1",
    "A model reads what stands before a token, and nothing that stands behind it.",
    "red, blue, red",
)
_MAX_ROW_LENGTH = 48  # tokens


@dataclass(frozen=True)
class Target:
    """The model under test.

    model: in eval mode and float32, with an adapter merged into it.
    scratch: an empty folder that is removed afterwards.
    folder: the checkpoint the model was loaded from; None for the tiny model.
    run: the run directory that contains the checkpoint, if any.
    base: the base model of an adapter, where the user named it.
    """

    model: CausalLM | SequenceScorer
    tokenizer: Tokenizer
    device: torch.device
    scratch: Path
    folder: Path | None = None
    run: Path | None = None
    base: Path | None = None

    @property
    def causal_lm(self) -> CausalLM:
        """The model, if it generates text. Raises: CheckSkipped for a reward model."""
        if isinstance(self.model, SequenceScorer):
            raise CheckSkipped("a reward model does not generate text")
        return self.model

    @property
    def checkpoint_folder(self) -> Path:
        """The folder, for checks that run on checkpoints only."""
        assert self.folder is not None
        return self.folder

    @cached_property
    def rows(self) -> list[list[int]]:
        """Token ids of `SENTENCES`, each cut to half the context length at most."""
        longest = min(_MAX_ROW_LENGTH, self.model.config.max_position_embeddings // 2)
        return [ids[:longest] for ids in self.tokenizer.encode_batch(SENTENCES)]

    @property
    def tolerance(self) -> float:
        """Allowed difference in nats between two computations of one log-probability. Rounding grows with depth and width."""
        return 1e-4 if self.folder is None else 1e-3

    def files(self) -> CheckpointFiles:
        return CheckpointFiles(self.model, self.tokenizer)

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer as a checkpoint holds it."""
        self.tokenizer.save(folder, model_max_length=self.model.config.max_position_embeddings)

    def new_folder(self, name: str) -> Path:
        """Create a folder in `scratch`."""
        folder = self.scratch / name
        folder.mkdir(parents=True)
        return folder


@cache
def small_tokenizer() -> Tokenizer:
    return Tokenizer.train(SENTENCES * 2, 320)


def small_model(model_type: ModelType = DEFAULT_TYPE, seed: int = 0) -> CausalLM:
    """Build a tiny model with weights of order one.

    At the usual initialization every log-probability is about -ln V, which hides errors.
    """
    row = ARCHITECTURES[model_type]
    config = ModelConfig(
        model_type=model_type,
        vocab_size=small_tokenizer().vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4 if "num_key_value_heads" in row.derived else 2,
        head_dim=8,
        max_position_embeddings=96,
        sliding_window=8 if row.absent.get("sliding_window") else None,
    )
    model = CausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 1.0))
    return model.eval()


def small_target(device: torch.device, scratch: Path) -> Target:
    """Return the tiny model as the target."""
    return Target(small_model().to(device), small_tokenizer(), device, scratch)


def checkpoint_target(
    folder: Path, run: Path | None, device: torch.device, scratch: Path, base: Path | None = None
) -> Target:
    """Load the checkpoint in `folder` as the target."""
    model = load_model(folder, device, base=base)
    return Target(model, load_tokenizer(model, folder, base), device, scratch, folder, run, base)


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).is_file()


def load_model(
    folder: Path, device: torch.device, *, merged: bool = True, base: Path | None = None
) -> CausalLM | SequenceScorer:
    """Load a language model, an adapter with its base, or a reward model, in eval mode."""
    load = hub.load_scorer if hub.is_scorer(folder) else hub.load_causal_lm
    return load(folder, device, merged=merged, base=base).eval()
