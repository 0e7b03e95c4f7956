"""Checks of exported models: saved and loaded again here, and loaded by transformers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyllm.diagnostics.checks.forward import reward_scores, token_log_probs
from tinyllm.diagnostics.checks.result import CheckSkipped, Comparison, Effect, largest, max_difference
from tinyllm.diagnostics.checks.target import Target, load_model, small_model
from tinyllm.model.architectures import ARCHITECTURES
from tinyllm.model.transformer import CausalLM, SequenceScorer
from tinyllm.stages.checkpoint_files import CheckpointFiles


def reload(target: Target) -> list[Comparison]:
    """Compare a model with itself after saving it in the Hugging Face layout and loading it again."""
    found, effects, n = [], [], 0
    for model, folder in _exported(target):
        ours = _outputs(model, target)
        found.append(max_difference(ours, _outputs(load_model(folder, target.device), target)))
        effects.append(_spread(ours))
        n += ours.numel()
    what = f"{_quantity(target)} before saving vs after loading ({_model_types(target)})"
    return [Comparison("outputs", what, largest(found), 0.0, _unit(target), n=n, effects=(_varies(effects),))]


def transformers(target: Target) -> list[Comparison]:
    """Compare a model with the same exported folder loaded by transformers."""
    library = _import_transformers()
    found, effects, n = [], [], 0
    for model, folder in _exported(target):
        ours = _outputs(model, target)
        found.append(max_difference(ours, _transformers_outputs(library, folder, target)))
        effects.append(_spread(ours))
        n += ours.numel()
    what = f"{_quantity(target)} in tinyllm vs transformers {library.__version__} ({_model_types(target)})"
    effect = _varies(effects)
    return [Comparison("outputs", what, largest(found), target.tolerance, _unit(target), n=n, effects=(effect,))]


def _spread(outputs: Tensor) -> float:
    """Return by how much an output differs between texts or positions. Of constant outputs, any two models agree."""
    return float((outputs.amax(0) - outputs.amin(0)).max())


def _varies(spreads: list[float]) -> Effect:
    return Effect("range of outputs", min(spreads), 1e-3)


def _unit(target: Target) -> str:
    return "" if isinstance(target.model, SequenceScorer) else "nats"


def _import_transformers() -> Any:
    if find_spec("transformers") is None:
        raise CheckSkipped("transformers is not installed (pip install transformers)")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers as library
    except Exception as error:  # a broken installation of transformers does not make our export wrong
        raise CheckSkipped(f"transformers cannot be imported: {type(error).__name__}: {error}") from error
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def _exported(target: Target) -> Iterator[tuple[CausalLM | SequenceScorer, Path]]:
    """Yield models with the folder each was saved to: the target, or a tiny model of every type."""
    small = target.folder is None
    for kind in ARCHITECTURES if small else (target.model.config.model_type,):
        model = small_model(kind).to(target.device) if small else target.model
        folder = target.scratch / "exported" / kind
        if not folder.exists():
            folder.mkdir(parents=True)
            CheckpointFiles(model, target.tokenizer).write(folder)
        yield model, folder


def _quantity(target: Target) -> str:
    return "rewards" if isinstance(target.model, SequenceScorer) else "log-probabilities"


def _model_types(target: Target) -> str:
    return ", ".join(ARCHITECTURES) if target.folder is None else target.model.config.model_type


def _outputs(model: CausalLM | SequenceScorer, target: Target) -> Tensor:
    return reward_scores(model, target) if isinstance(model, SequenceScorer) else token_log_probs(model, target)


@torch.no_grad()
def _transformers_outputs(library: Any, folder: Path, target: Target) -> Tensor:
    """Return the same as `_outputs`, computed row by row, so that padding does not matter."""
    is_scorer = isinstance(target.model, SequenceScorer)
    kind = library.AutoModelForSequenceClassification if is_scorer else library.AutoModelForCausalLM
    # "eager" is the definition: up to 5.17, the attention that transformers takes by itself ignores the soft caps of Gemma 2
    model = kind.from_pretrained(folder, local_files_only=True, attn_implementation="eager")
    model = model.float().eval().to(target.device)
    rows = [model(torch.tensor([ids], device=target.device)).logits[0] for ids in target.rows]
    return torch.stack([row[0] for row in rows]) if is_scorer else torch.cat(rows).log_softmax(-1)
