"""Checks of checkpoints: damage is detected, files match their manifest, trainer state survives loading and saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tinyllm.diagnostics.checks.result import CheckError, CheckSkipped, Comparison, Effect
from tinyllm.diagnostics.checks.target import Target, is_adapter, load_model
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.model import hub, lora
from tinyllm.model.transformer import ActorCritic
from tinyllm.stages.checkpoint_files import CheckpointFiles
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint
from tinyllm.train.checkpointing import read_state
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine

_OPTIMIZER, _CRITIC = "trainer/optimizer.safetensors", "trainer/critic.safetensors"
_MAX_STATE_BYTES = 4 << 30  # larger tensors would take minutes to load and save

# --- damage ----------------------------------------------------------------------------------------------------------------------


def damage(target: Target) -> list[Comparison]:
    """Flip one bit in every file of a checkpoint, and remove every file, one at a time: each must be detected."""
    folder = target.new_folder("damage")
    older, newer = (checkpoint.save(folder, step, target.files().write) for step in (1, 2))
    intact = checkpoint.newest(folder, lambda *_: None)
    files, accepted = _damage_each_file(newer)
    for path in files[:1]:
        path.unlink()
    found = checkpoint.newest(folder, lambda *_: None)
    return [
        Comparison(
            "damage",
            f"damaged checkpoints accepted as valid: each of {len(files)} files with one flipped bit, and each removed",
            accepted,
            0,
            "checkpoints",
            n=2 * len(files),
        ),
        Comparison(
            "fallback",
            "resume skips a damaged checkpoint and uses the one before it",
            int(found != older),
            0,
            n=len(checkpoint.steps(folder)),
            effects=(Effect("intact one used", int(intact == newer), 1),),
        ),
    ]


def _damage_each_file(folder: Path) -> tuple[list[Path], int]:
    """Damage every file of a checkpoint in two ways, one at a time. Returns the files, and how often the checkpoint still verified."""
    checkpoint.verify(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != checkpoint.MANIFEST]
    accepted = 0
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        for damaged in (content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            accepted += not _is_rejected(folder)
        path.write_bytes(content)
    checkpoint.verify(folder)
    return files, accepted


def _is_rejected(folder: Path) -> bool:
    try:
        checkpoint.verify(folder)
    except UserError as error:
        return error.code == INTEGRITY
    return False


# --- the user's checkpoints ------------------------------------------------------------------------------------------------------


def manifest(target: Target) -> list[Comparison]:
    """Compare every file of every checkpoint of the run with the size and sha256 in its manifest.

    Raises: UserError (INTEGRITY) with the first file that differs.
    """
    folders = _checkpoints(target)
    if not folders:
        raise CheckSkipped("the checkpoint has no manifest: it was not written by tinyllm")
    sizes = []
    for folder in folders:
        with restore_hint():
            checkpoint.verify(folder)
        sizes += [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    what = f"files that differ from their manifest, of {len(sizes)} in {len(folders)} checkpoints ({sum(sizes) / 1e6:,.1f} MB)"
    # that nothing was found means something only if damage is found: in a checkpoint with a copy of the tokenizer
    copy = checkpoint.save(target.new_folder("control"), 1, target.save_tokenizer)
    files, accepted = _damage_each_file(copy)
    effect = Effect("damaged copies detected", 2 * len(files) - accepted, max(1, 2 * len(files)))
    return [Comparison("files", what, 0, 0, "files", n=len(sizes), effects=(effect,))]


@contextmanager
def restore_hint() -> Iterator[None]:
    """Add a fix to errors about a damaged checkpoint."""
    try:
        yield
    except UserError as error:
        if error.code != INTEGRITY or error.fix:
            raise
        fix = "restore it from a backup or remove it: resume then uses the checkpoint before it"
        raise UserError(error.what, where=error.where, fix=fix, code=INTEGRITY) from None


def _checkpoints(target: Target) -> list[Path]:
    """Return the checkpoints of the run, oldest first, or the one that was named, if it has a manifest."""
    if target.run is not None:
        return checkpoint.steps(target.run / "checkpoints")
    return [target.checkpoint_folder] if (target.checkpoint_folder / checkpoint.MANIFEST).is_file() else []


def state(target: Target) -> list[Comparison]:
    """Restore the newest checkpoint into other weights and a new optimizer, save these, and compare the tensors byte for byte."""
    folder = next(reversed(_checkpoints(target)), target.checkpoint_folder)
    if not (folder / _OPTIMIZER).is_file():
        raise CheckSkipped("this checkpoint has no optimizer state")
    names = _tensor_files(folder)
    size = sum((folder / name).stat().st_size for name in names)
    if size > _MAX_STATE_BYTES:
        raise CheckSkipped(
            f"the tensors take {size / 1e9:,.1f} GB, more than the {_MAX_STATE_BYTES / 1e9:.1f} GB checked"
        )
    copy = target.new_folder("state")
    replaced = _restore_and_save(folder, copy, target)
    if (written := _tensor_files(copy)) != names:
        raise CheckError(f"{folder} contains {', '.join(names)}; saved again, {', '.join(written)}")
    found = []
    for name in names:
        before, after = load_file(folder / name), load_file(copy / name)
        if name == _OPTIMIZER and not before and not read_state(folder)["updates"]:
            continue  # no step was taken yet
        what = f"tensors of {folder.name} changed by restoring and saving {name} ({(folder / name).stat().st_size / 1e6:,.1f} MB)"
        changed, n = _count_changed(before, after), len(before)
        effect = Effect("other tensors before", min(n, replaced[name]), max(1, n))
        found.append(Comparison(name, what, changed, 0, "tensors", n=n, effects=(effect,)))
    return found


def _tensor_files(folder: Path) -> list[str]:
    """Return the files of weights, critic and optimizer state. An unfinished rollout (trainer/source-*) belongs to the source."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")]
    return sorted(name for name in found if not name.startswith("trainer/source-"))


def _count_changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    """Count the tensors that are not equal byte for byte. Headers may differ: a newer version may add metadata."""

    def same(a: Tensor, b: Tensor) -> bool:
        bits = [x.reshape(-1).view(torch.uint8) for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)

    return sum(not (name in before and name in after and same(before[name], after[name])) for name in before | after)


def _restore_and_save(folder: Path, copy: Path, target: Target) -> dict[str, int]:
    """Restore what a resumed run restores, and save it at once. Returns by file how many tensors had other values before.

    All weights are NaN before, and the optimizer has no state, so what is not restored is not equal.
    """
    model: Any = load_model(folder, target.device, merged=False, base=target.base)
    config, base = lora.read_config(folder) if is_adapter(folder) else (None, "")
    if (folder / _CRITIC).is_file():
        model = ActorCritic(model, hub.scorer_from(model, 0))
    dtype = torch.float32 if config else hub.file_dtype(folder)
    files = CheckpointFiles(model, Tokenizer.load(folder), adapter=config, base=base, dtype=dtype)
    tensors = load_file(folder / _OPTIMIZER)
    optimizer: Literal["muon", "adamw"] = "muon" if any(key.startswith("momentum.") for key in tensors) else "adamw"
    updates = read_state(folder)["updates"]
    engine = Engine(model, _no_loss, OptimConfig(optimizer=optimizer), max(1, updates), precision="fp32", seed=0)
    with torch.no_grad():
        for weight in engine.trainable.values():
            weight.fill_(float("nan"))
    weights = lora.WEIGHTS if config else "model.safetensors"
    other = {weights: _count_nan(files.model), _OPTIMIZER: _count_changed(tensors, engine.state())}
    if dtype != torch.float32:
        other[hub.MASTER.as_posix()] = other[weights]
    if files.critic is not None:
        other[_CRITIC] = _count_nan(files.critic)
    files.restore(folder)
    engine.restore(tensors, updates)
    files.write(copy)
    (copy / "trainer").mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in engine.state().items()}, copy / _OPTIMIZER)
    return other


def _count_nan(model: nn.Module) -> int:
    """Count the weights that are NaN in every place."""
    return sum(bool(weight.isnan().all()) for weight in model.parameters())


def _no_loss(model: Any, batch: Any) -> Any:
    raise AssertionError("this engine takes no steps")
