"""What a stage will need of the memory, from its settings and its parent's config.json: before anything is loaded. No torch.

Rows are counted as long as `data.max_length` allows; shorter records need less. The reward model is counted as large as the policy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyllm import algorithms
from tinyllm import distributed as dist
from tinyllm.errors import RESOURCES, UserError
from tinyllm.model.adapter_config import ADAPTER, base_folder, read_adapter
from tinyllm.model.config import ModelConfig
from tinyllm.model.hf_config import read_config
from tinyllm.rollout.rewards import REWARD_MODEL
from tinyllm.stages.config import (
    AlignOfflineConfig,
    AlignOnlineConfig,
    PretrainConfig,
    RmConfig,
    StageConfig,
    TunedConfig,
)
from tinyllm.train import estimate
from tinyllm.train.memory import available_memory

_CPU_FACTS, _GPU = Path("/proc/cpuinfo"), Path("/dev/nvidiactl")
_HALF = {"bfloat16", "float16"}


def plan(config: StageConfig, parent: Path | None, base: Path | None = None) -> estimate.Training | None:
    """Return what decides the memory of a training stage; None for one that does not train.

    Args:
        parent: the checkpoint that it starts from; None: new weights.
        base: of an adapter, where it is not the one that the adapter names.
    """
    if not isinstance(config, PretrainConfig | TunedConfig):
        return None
    if parent is not None:
        shape, half = _described(parent, base)
    else:
        assert isinstance(config, PretrainConfig)
        shape, half = config.model, False
    train, count = config.train, shape.parameters()
    bf16 = computes_in_bf16(train.precision, config.device)
    ranks = dist.world_size()
    micro = min(train.micro_batch_size, train.batch_size)
    run = estimate.Training(
        shape,
        rows=micro,
        length=min(config.data.max_length, shape.max_position_embeddings),
        weights=4 * count,
        trained=count,
        bf16=bf16,
        accumulates=train.batch_size > train.micro_batch_size * ranks,
    )
    if isinstance(config, TunedConfig) and config.lora is not None:
        adapter = estimate.adapter_parameters(shape, config.lora)
        frozen = (2 if half and bf16 else 4) * count
        run = replace(run, weights=frozen + 4 * adapter, trained=adapter, head="frozen")
    if isinstance(config, RmConfig):
        run = replace(run, head="none")
    if isinstance(config, RmConfig | AlignOfflineConfig):
        run = replace(run, rows=2 * micro)  # two answers for each record
    if isinstance(config, AlignOnlineConfig):
        run = _online(config, run, half)
    there = available_memory() // dist.local_world_size()
    mode = train.activation_checkpointing
    wanted = mode == "on" or (mode == "auto" and bool(there) and estimate.wants_checkpointing(run, there))
    return replace(run, checkpointing=wanted)


def refuse_too_large(config: StageConfig, parent: Path | None, base: Path | None = None) -> None:
    """Raise UserError (RESOURCES) if not even weights, gradients and optimizer state fit into the memory of this machine.

    Said before anything is loaded: on most systems a process that takes too much is killed without a word.
    """
    run, there = plan(config, parent, base), available_memory() // dist.local_world_size()
    if run is None or not there or config.device in ("cuda", "mps") or (config.device == "auto" and _GPU.exists()):
        return
    needed = estimate.PROCESS + estimate.fixed(run)
    if needed <= there:
        return
    parts = estimate.needs(run)
    adapter = isinstance(config, TunedConfig) and config.lora is None and estimate.PROCESS + run.weights // 2 < there
    raise UserError(
        f"{run.shape.parameters():,} parameters need {needed / 1e9:.1f} GB (weights {parts['weights'] / 1e9:.1f}, gradients "
        f"{4 * run.trained / 1e9:.1f}, optimizer state {parts['optimizer state'] / 1e9:.1f}), and there are {there / 1e9:.1f} GB",
        where=str(parent or "model"),
        fix="train an adapter instead: --set lora.r=8"
        if adapter
        else "use a smaller model, or a machine with more memory",
        code=RESOURCES,
    )


def refuse_too_large_to_load(folder: Path, base: Path | None = None) -> None:
    """Raise UserError (RESOURCES) if the float32 weights of a model do not fit into the memory of this machine."""
    # a config.json may describe more than its files hold, which is said when they are read
    count, there = min(shape_of(folder, base).parameters(), _most_in_files(folder, base)), available_memory()
    if there and 4 * count + estimate.PROCESS > there:
        what = f"{count:,} parameters in float32 need {(4 * count + estimate.PROCESS) / 1e9:.1f} GB"
        fix = "use a smaller model, or a machine with more memory"
        raise UserError(f"{what}, and there are {there / 1e9:.1f} GB", where=str(folder), fix=fix, code=RESOURCES)


def _most_in_files(folder: Path, base: Path | None) -> int:
    """Return an upper bound of the parameters in the weights of a checkpoint, of an adapter in those of its base."""
    if (folder / ADAPTER).is_file():
        folder = base_folder(folder, read_adapter(folder)[1], base)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) // 2


def shape_of(folder: Path, base: Path | None = None) -> ModelConfig:
    """Return the shape of a model; of an adapter, that of its base."""
    return _described(folder, base)[0]


def computes_in_bf16(precision: str, device: str) -> bool:
    """Return what `engine.choose_precision` will choose, as far as that can be known without torch."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda" or (device == "auto" and _GPU.exists()):
        return True
    return (
        device != "mps"
        and _CPU_FACTS.exists()
        and "avx512_bf16" in _CPU_FACTS.read_text(encoding="utf-8", errors="replace")
    )


def _described(folder: Path, base: Path | None) -> tuple[ModelConfig, bool]:
    """Return the shape of a model, and whether its matrices can be kept in bfloat16. Those that an adapter is merged into cannot."""
    merged = (folder / ADAPTER).is_file()
    if merged:
        folder = base_folder(folder, read_adapter(folder)[1], base)
    shape, found = read_config(folder)
    dtype: Any = found.get("dtype", found.get("torch_dtype"))
    return shape, dtype in _HALF and not merged


def _online(config: AlignOnlineConfig, run: estimate.Training, half: bool) -> estimate.Training:
    """Return the plan with what online alignment adds: sampling, a critic, a reference and a reward model."""
    algorithm, rollout, count = algorithms.load(config.algorithm, "online"), config.rollout, run.shape.parameters()
    context = min(run.length + rollout.max_new_tokens, run.shape.max_position_embeddings)
    sampled = config.train.batch_size * rollout.minibatches // dist.world_size()
    frozen = 0
    if config.lora is None and (config.track_kl or algorithm.uses_reference(config.settings())):
        frozen += (2 if half and run.bf16 else 4) * count
    if config.rewards.get(REWARD_MODEL):
        frozen += 4 * count
    run = replace(run, length=context, sampled=sampled, context=context, frozen=frozen)
    if not algorithm.needs_critic:
        return run
    return replace(run, decoders=2, weights=run.weights + 4 * count, trained=run.trained + count)
