"""Checks of what is written down: export and reload, transformers, damaged checkpoints, a run's own files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinyllm.errors import INTEGRITY, UserError
from tinyllm.model import hub, lora
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer
from tinyllm.stages.checks.forward import log_probs, scores
from tinyllm.stages.checks.outcome import Broken, Compared, Skipped, furthest
from tinyllm.stages.checks.subject import Subject, is_adapter, loaded, small_model
from tinyllm.stages.common import Files
from tinyllm.stages.keeping import read_state
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine

_FAMILIES: tuple[Literal["qwen3", "llama", "qwen2"], ...] = ("qwen3", "llama", "qwen2")
_MOST_BYTES = 4 << 30  # of a checkpoint that is loaded and written again: more would take minutes

# --- export ----------------------------------------------------------------------------------------------------------------------


def export(subject: Subject) -> list[Compared]:
    """Saved in Hugging Face's layout and loaded back: every bit of the result."""
    found = []
    for model, folder in _exported(subject):
        again = loaded(folder, subject.device)
        found.append(furthest(_figures(model, subject), _figures(again, subject)))
    return [Compared(f"{_what(subject)} before saving and after loading, {_kinds(subject)}", max(found), 0.0)]


def transformers(subject: Subject) -> list[Compared]:
    """The same folders in Hugging Face's own code."""
    theirs = _transformers()
    found = [
        furthest(_figures(model, subject), _their_figures(theirs, folder, subject))
        for model, folder in _exported(subject)
    ]
    what = f"{_what(subject)} here and in transformers {theirs.__version__}, {_kinds(subject)}"
    return [Compared(what, max(found), subject.nats, "" if isinstance(subject.model, SequenceScorer) else "nats")]


def _transformers() -> Any:
    if find_spec("transformers") is None:
        raise Skipped("transformers is not installed (pip install transformers)")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers as theirs
    except Exception as error:  # theirs to mend: a broken installation of theirs says nothing about ours
        raise Skipped(f"transformers does not import: {type(error).__name__}: {error}") from error
    theirs.logging.set_verbosity_error()
    theirs.logging.disable_progress_bar()
    return theirs


def _exported(subject: Subject) -> Iterator[tuple[CausalLM | SequenceScorer, Path]]:
    """Each model with a folder it was saved to: a small one of every family, or the user's own."""
    small = subject.folder is None
    for kind in _FAMILIES if small else (subject.model.config.model_type,):
        model = small_model(kind).to(subject.device) if small else subject.model
        folder = subject.scratch / "exported" / kind
        if not folder.exists():
            folder.mkdir(parents=True)
            Files(model, subject.tokenizer).write(folder)
        yield model, folder


def _what(subject: Subject) -> str:
    return "scores" if isinstance(subject.model, SequenceScorer) else "log-probabilities"


def _kinds(subject: Subject) -> str:
    return ", ".join(_FAMILIES) if subject.folder is None else subject.model.config.model_type


def _figures(model: CausalLM | SequenceScorer, subject: Subject) -> Tensor:
    return scores(model, subject) if isinstance(model, SequenceScorer) else log_probs(model, subject)


@torch.no_grad()
def _their_figures(theirs: Any, folder: Path, subject: Subject) -> Tensor:
    """As `_figures`, row by row: without padding there is nothing to agree about but the model."""
    judges = isinstance(subject.model, SequenceScorer)
    kind = theirs.AutoModelForSequenceClassification if judges else theirs.AutoModelForCausalLM
    model = kind.from_pretrained(folder, local_files_only=True).float().eval().to(subject.device)
    rows = [model(torch.tensor([ids], device=subject.device)).logits[0] for ids in subject.rows]
    return torch.stack([row[0] for row in rows]) if judges else torch.cat(rows).log_softmax(-1)


# --- damage ----------------------------------------------------------------------------------------------------------------------


def damage(subject: Subject) -> list[Compared]:
    """A checkpoint with one flipped bit, in each of its files in turn, and without one of them: neither may be accepted."""
    place = subject.place("damage")
    older, newer = (checkpoint.save(place, step, subject.files().write) for step in (1, 2))
    checkpoint.verify(newer)
    files = [path for path in sorted(newer.rglob("*")) if path.is_file() and path.name != checkpoint.MANIFEST]
    accepted = 0
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        for damaged in (content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            accepted += not _refused(newer)
        path.write_bytes(content)
    checkpoint.verify(newer)
    files[0].unlink()
    found = checkpoint.newest(place, lambda *_: None)
    return [
        Compared(
            f"damaged checkpoints that were accepted: {len(files)} files, a flipped bit in each and each missing",
            accepted,
            0,
            "checkpoints",
        ),
        Compared("resume passes over a damaged checkpoint to the one before it", int(found != older), 0),
    ]


def _refused(folder: Path) -> bool:
    try:
        checkpoint.verify(folder)
    except UserError as error:
        return error.code == INTEGRITY
    return False


# --- a run's own files -----------------------------------------------------------------------------------------------------------


def manifest(subject: Subject) -> list[Compared]:
    """Every file of every checkpoint of the run, against size and sha256 in its manifest. Raises UserError (exit 3)."""
    folders = _checkpoints(subject)
    if not folders:
        raise Skipped("a model from elsewhere has no manifest")
    sizes = []
    for folder in folders:
        with advised():
            checkpoint.verify(folder)
        sizes += [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    what = f"files that are not what was written, of {len(sizes)} in {len(folders)} checkpoints ({sum(sizes) / 1e6:,.1f} MB)"
    return [Compared(what, 0, 0, "files")]


@contextmanager
def advised() -> Iterator[None]:
    """Say what to do about a damaged checkpoint."""
    try:
        yield
    except UserError as error:
        if error.code != INTEGRITY or error.fix:
            raise
        fix = "restore it from a copy, or remove it: resume passes over it to the one before"
        raise UserError(error.what, where=error.where, fix=fix, code=INTEGRITY) from None


def _checkpoints(subject: Subject) -> list[Path]:
    """Of the run, or the one that was named, oldest first; none for a model from elsewhere."""
    if subject.run is not None:
        return checkpoint.steps(subject.run / "checkpoints")
    return [subject.checkpoint] if (subject.checkpoint / checkpoint.MANIFEST).is_file() else []


def state(subject: Subject) -> list[Compared]:
    """The newest checkpoint into a fresh model and optimizer, and out of them into files: the same tensors, to the byte?"""
    folder = next(reversed(_checkpoints(subject)), subject.checkpoint)
    if not (folder / "trainer" / "optimizer.safetensors").is_file():
        raise Skipped("this checkpoint has no optimizer state")
    names = _tensor_files(folder)
    size = sum((folder / name).stat().st_size for name in names)
    if size > _MOST_BYTES:
        raise Skipped(f"{size / 1e9:,.1f} GB would take minutes")
    again = subject.place("state")
    _rewrite(folder, again, subject)
    if (written := _tensor_files(again)) != names:
        raise Broken(f"{folder} holds {', '.join(names)}; written were {', '.join(written)}")
    changed = [_changed(load_file(folder / name), load_file(again / name)) for name in names]
    what = (
        f"tensors of {folder.name} that change when loaded and saved again: {', '.join(names)} ({size / 1e6:,.1f} MB)"
    )
    return [Compared(what, sum(changed), 0, "tensors")]


def _tensor_files(folder: Path) -> list[str]:
    """Weights, critic and optimizer state. A rollout under way (trainer/source-…) belongs to the source, not to the model."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")]
    return sorted(name for name in found if not name.startswith("trainer/source-"))


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    """Tensors that are not the same to the byte. Headers are not compared: a newer version may have more to say in them."""

    def same(a: Tensor, b: Tensor) -> bool:
        bits = [x.reshape(-1).view(torch.uint8) for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)

    return sum(not (name in before and name in after and same(before[name], after[name])) for name in before | after)


def _rewrite(folder: Path, again: Path, subject: Subject) -> None:
    """What a resumed run reads, and what it would write at once."""
    model: Any = loaded(folder, subject.device, merged=False)
    config, base = lora.read_config(folder) if is_adapter(folder) else (None, "")
    if (folder / "trainer" / "critic.safetensors").is_file():
        model = ActorCritic(model, hub.scorer_from(model, 0))
    files = Files(model, Tokenizer.load(folder), adapter=config, base=base)
    files.restore(folder)
    tensors = load_file(folder / "trainer" / "optimizer.safetensors")
    rule: Literal["muon", "adamw"] = "muon" if any(key.startswith("momentum.") for key in tensors) else "adamw"
    updates = read_state(folder)["updates"]
    engine = Engine(model, _no_loss, OptimConfig(optimizer=rule), max(1, updates), precision="fp32", seed=0)
    engine.restore(tensors, updates)
    files.write(again)
    (again / "trainer").mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in engine.state().items()}, again / "trainer" / "optimizer.safetensors")


def _no_loss(model: Any, batch: Any) -> Any:
    raise AssertionError("nothing is trained here")
