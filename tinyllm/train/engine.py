"""One optimizer step, for every stage: sum over micro-batches and ranks, divide once, and check before updating.

The engine has a model, a loss and an optimizer. It knows no algorithm, dataset or run directory. What happens between steps
(evaluation, checkpoints, log lines) is `train.trainer`'s.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from tinyllm import allocator
from tinyllm import distributed as dist
from tinyllm.errors import FAILED, INTEGRITY, RESOURCES, UserError
from tinyllm.mean import Mean, values
from tinyllm.model.prefixes import plain_rows
from tinyllm.model.transformer import set_activation_checkpointing
from tinyllm.train import optimizers, schedules
from tinyllm.train.changes import Segments
from tinyllm.train.config import OptimConfig

Loss = Callable[[Any, Any], tuple[Mean, dict[str, Mean]]]  # (model, batch) -> (loss, metrics)


class _Replicated(Protocol):
    """The methods that `replicate` adds to a module."""

    def set_requires_gradient_sync(self, requires_gradient_sync: bool) -> None: ...


class Engine:
    """Trains a model one optimizer step at a time.

    Args:
        model: a plain module on its device; with several ranks it is replicated in place.
        loss: (model, batch) -> (Mean, metrics); the gradient of `total` is taken, and divided by the pooled `count`.
        config: optimizer and schedule.
        total_steps: the length of the schedule.
        precision: "bf16" runs the forward pass under autocast; weights, gradients and optimizer state stay float32.
        seed: dropout is a function of (seed, step, rank, micro-batch), so a resumed run draws the same masks.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        config: OptimConfig,
        total_steps: int,
        *,
        precision: Literal["fp32", "bf16"],
        seed: int,
    ):
        allocator.reserve_small_blocks()
        self.model, self.loss, self.config, self.seed = model, loss, config, seed
        self.segments: Segments = ((0, total_steps),)  # of the schedule; see `train.changes`
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.device = next(iter(self.trainable.values())).device
        self.precision = precision
        self.checkpointing = False
        self.optimizers = optimizers.build(model, config)
        self.updates = 0  # done so far
        self._replicated = replicate_model(model, self.device) if dist.world_size() > 1 else None

    def autocast(self) -> AbstractContextManager:
        """Return the context for a forward pass in this engine's precision."""
        # a block that is computed again casts its weights again, so that keeping those casts would only cost memory
        return autocast(self.precision, self.device, cache=not self.checkpointing)

    def set_checkpointing(self, enabled: bool) -> None:
        """Switch activation checkpointing on or off; see `transformer.set_activation_checkpointing`."""
        self.checkpointing = enabled
        set_activation_checkpointing(self.model, enabled)

    def step(self, batches: Sequence[Any], extra: dict[str, Mean] | None = None) -> dict[str, float]:
        """Do one optimizer step on this rank's micro-batches, of which every rank has the same number.

        Args:
            extra: further means to pool over ranks and report.

        Returns loss, grad_norm (before clipping), lr, the loss's metrics and `extra`, pooled over micro-batches and ranks.
        Raises: UserError (FAILED), before any weight has changed, if the loss or the gradient is not finite or no token is scored.
        """
        self.model.train()
        pooled = {name: detached(mean) for name, mean in (extra or {}).items()}
        for number, batch in enumerate(batches):
            torch.manual_seed(_mixed_seed(self.seed, self.updates, dist.rank(), number))
            if self._replicated is not None:  # gradients are exchanged once, in the last backward pass
                self._replicated.set_requires_gradient_sync(number == len(batches) - 1)
            for name, mean in self._backward(batch).items():
                pooled[name] = pooled[name] + mean if name in pooled else mean
        missing = [name for name, p in self.trainable.items() if p.grad is None]
        assert not missing, f"{len(missing)} trainable parameters received no gradient, first {missing[0]}"
        gradients = [p.grad for p in self.trainable.values() if p.grad is not None]
        pooled, (norm,) = _pooled(pooled, self.device, torch.nn.utils.get_total_norm(gradients))
        rate = schedules.rate(self.updates, self.segments, self.config)
        norm = self._scale(gradients, norm, pooled["loss"], rate)
        self._update(rate)
        return values(pooled) | {"grad_norm": norm, "lr": rate}

    def _backward(self, batch: Any) -> dict[str, Mean]:
        """Add the gradients of a micro-batch and return its loss and metrics. Nothing of their graph is left beside the next one."""
        with self.autocast():
            loss, metrics = self.loss(self.model, batch)
        assert isinstance(loss.total, Tensor)
        loss.total.backward()
        return {name: detached(mean) for name, mean in {"loss": loss, **metrics}.items()}

    def _scale(self, gradients: list[Tensor], norm: float, loss: Mean, rate: float) -> float:
        """Divide the summed gradients, of this norm, by the count and clip them; refuse what is not finite. Returns the norm between."""
        if not float(loss.count):
            raise UserError(
                f"step {self.updates + 1} has nothing to learn from: every token is masked",
                fix="check the data with `tinyllm data inspect`",
                code=FAILED,
            )
        # `replicate` averages over ranks; times the world size it is the sum again
        scale = dist.world_size() / float(loss.count)
        norm *= scale
        if not (torch.isfinite(torch.tensor([norm, loss.value])).all()):
            self.zero_grad()
            raise UserError(
                f"step {self.updates + 1}: loss {loss.value:.4g}, gradient norm {norm:.4g} at learning rate {rate:.3g}; "
                "the weights were not updated",
                fix="lower optim.learning_rate or raise optim.warmup_steps, under another --name or with --no-resume",
                code=FAILED,
            )
        torch._foreach_mul_(gradients, scale * min(1.0, self.config.clip_norm / (norm + 1e-12)))
        return norm

    def _update(self, rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            with self.autocast():  # of products inside an optimizer; weights and state stay float32
                optimizer.step()
        self.zero_grad()
        self.updates += 1

    def zero_grad(self) -> None:
        """Free all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def probe_memory(self, batch: Any) -> None:
        """Allocate the memory of a step without the update: forward, backward, and two optimizer tensors for each weight."""
        has_state = any(entry for optimizer in self.optimizers for entry in optimizer.state.values())
        reserved = [torch.empty_like(p) for p in self.trainable.values() for _ in range(0 if has_state else 2)]
        self.model.train()
        if self._replicated is not None:  # the first exchange of gradients decides in which order later ones are summed
            self._replicated.set_requires_gradient_sync(True)
        with plain_rows():  # other batches may share less
            self._backward(batch)
        self.zero_grad()
        del reserved

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer state as `<state>.<parameter name>`: with the weights and `updates`, all that resuming needs."""
        names = {id(p): name for name, p in self.trainable.items()}
        return {
            f"{key}.{names[id(p)]}": torch.as_tensor(value)
            for optimizer in self.optimizers
            for p, entry in optimizer.state.items()
            for key, value in entry.items()
        }

    def restore(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Restore what `state` returned after `updates` steps.

        Raises: UserError (INTEGRITY) for the state of another model or optimizer.
        """
        self.updates = updates
        optimizer_of = {
            id(p): optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            parameter = self.trainable.get(name)
            if parameter is None or (value.ndim and value.shape != parameter.shape):
                raise UserError(f"{key!r:.200} belongs to no parameter of this run", code=INTEGRITY)
            # fused Adam keeps its step count on the GPU
            device = self.device if kind != "step" or self.device.type == "cuda" else "cpu"
            optimizer_of[id(parameter)].state[parameter][kind] = value.to(device)
        for optimizer in self.optimizers:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            kinds = {frozenset(optimizer.state.get(p, ())) for p in parameters}
            if len(kinds) > 1 or (updates and kinds == {frozenset()}):
                raise UserError("the optimizer state is incomplete", code=INTEGRITY)


def replicate_model(model: nn.Module, device: torch.device) -> _Replicated:
    """Add torch.distributed's hooks to `model` in place, which average gradients over ranks during the backward pass. Returns the model.

    Buffers are not exchanged: rotary tables are equal on all ranks, and ranks may evaluate different numbers of batches.
    """
    from torch.distributed._composable.replicate import replicate
    from torch.nn.parallel import DistributedDataParallel

    options: dict[str, Any] = {"gradient_as_bucket_view": True}
    known = inspect.signature(DistributedDataParallel).parameters
    options["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False
    if device.type == "cuda":
        options["device_id"] = device
    return cast(_Replicated, replicate(model, **options))


def pool_over_ranks(means: dict[str, Mean], device: torch.device) -> dict[str, Mean]:
    """Sum every (total, count) over all ranks in one exchange, and fetch them once. All ranks must pass the same names."""
    return _pooled(means, device)[0]


def _pooled(means: dict[str, Mean], device: torch.device, *own: Tensor) -> tuple[dict[str, Mean], list[float]]:
    """Return `pool_over_ranks`, and scalars of this rank that are fetched with it: each time, the device waits for the next step."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    numbers = [
        torch.as_tensor(x, dtype=wide, device=device).detach() for m in means.values() for x in (m.total, m.count)
    ]
    found = torch.cat((dist.sum_(torch.stack(numbers)), *(x.to(wide)[None] for x in own))).tolist()
    return {name: Mean(*found[2 * i : 2 * i + 2]) for i, name in enumerate(means)}, found[len(numbers) :]


def autocast(precision: Literal["fp32", "bf16"], device: torch.device, *, cache: bool = True) -> AbstractContextManager:
    """Return the context for a forward pass: bfloat16 autocast, or nothing.

    Args:
        cache: keep the bfloat16 casts of trained weights until the context ends.
    """
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=cache) if precision == "bf16" else nullcontext()


def detached(mean: Mean) -> Mean:
    """Return the mean without its autograd graph, still on its device: metrics are fetched once per step, not once per metric."""
    return Mean(*(x.detach() if isinstance(x, Tensor) else x for x in (mean.total, mean.count)))


def _mixed_seed(*numbers: int) -> int:
    """Return a 63-bit seed that depends on all of the numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


def choose_device(requested: str) -> torch.device:
    """Return the device for "auto", "cpu", "cuda" or "mps". Raises: UserError (RESOURCES) if the requested one is not available."""
    # torch.distributed has no backend for mps, so several ranks on a Mac share its CPU
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and dist.world_size() == 1,
        "cpu": True,
    }
    kind = next(name for name, available in present.items() if available) if requested == "auto" else requested
    if not present[kind]:
        name = {"cuda": "CUDA", "mps": "MPS"}[kind]
        what = f"{name} was requested but is not available"
        raise UserError(what, where="device", fix="use --device cpu", code=RESOURCES)
    if kind == "cuda":
        index = dist.gpu(torch.cuda.device_count())
        if index >= torch.cuda.device_count():
            raise UserError(
                f"rank {dist.local_rank()} has no GPU: there are {torch.cuda.device_count()}",
                fix="lower --nproc",
                code=RESOURCES,
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device(kind)


def choose_precision(requested: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision for "auto", "fp32" or "bf16".

    "auto" is bf16 where the hardware multiplies it (AVX-512 BF16 or AMX on a CPU, Ampere and newer on NVIDIA). Emulation is
    slower than fp32.
    """
    if requested == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            # private, but unlike its public successor in every version from 2.8 on
            fast = device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
        return "bf16" if fast else "fp32"
    return "bf16" if requested == "bf16" else "fp32"
