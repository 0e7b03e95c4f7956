"""One optimiser step, for every stage: sum over micro-batches and ranks, divide once, look before updating.

The engine knows a model, a loss and an optimiser; it knows no algorithm, no data set and no run directory, and it has no flags.
What happens between steps (evaluation, checkpoints, log lines) is hooks, run by the stage that owns it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tinyllm import dist
from tinyllm.errors import FAILED, INTEGRITY, RESOURCES, UserError
from tinyllm.mean import Mean
from tinyllm.train import optim

Loss = Callable[[nn.Module, Any], tuple[Mean, dict[str, Mean]]]


class Engine:
    """Owns the model while it is trained.

    Args:
        model: a plain module on its device; under several ranks `replicate` hooks itself into it, in place.
        loss: (model, batch) -> (Mean, metrics); the gradient of `total` is taken, `count` divides at the end.
        config: optimiser and schedule.
        total_steps: the length of the schedule.
        precision: "bf16" runs the forward under autocast; weights, gradients and optimiser state stay float32.
        seed: dropout at (step, rank, micro-batch) is a function of it, so a resumed run draws the same masks.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        config: optim.OptimConfig,
        total_steps: int,
        *,
        precision: Literal["fp32", "bf16"],
        seed: int,
    ):
        self.model, self.loss, self.config, self.total_steps, self.seed = model, loss, config, total_steps, seed
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.device = next(iter(self.trained.values())).device
        self.precision = precision
        self.optimizers = optim.build(model, config)
        self.updates = 0  # done so far
        if dist.world_size() > 1:
            replicated(model, self.device)

    def autocast(self) -> AbstractContextManager:
        return autocast(self.precision, self.device)

    def step(self, batches: Sequence[Any], extra: dict[str, Mean] | None = None) -> dict[str, float]:
        """Update once on these micro-batches (one optimiser step's share of this rank; every rank has equally many).

        Returns loss, grad_norm, lr, the algorithm's metrics and `extra`, pooled over micro-batches and ranks.
        Raises UserError, before any weight has changed, where the loss or the gradient is not finite.
        """
        self.model.train()
        pooled = {name: detached(mean) for name, mean in (extra or {}).items()}
        for number, batch in enumerate(batches):
            torch.manual_seed(_mixed(self.seed, self.updates, dist.rank(), number))
            if dist.world_size() > 1:  # ranks meet once, in the last backward pass
                self.model.set_requires_gradient_sync(number == len(batches) - 1)
            with self.autocast():
                loss, metrics = self.loss(self.model, batch)
            loss.total.backward()
            for name, mean in {"loss": loss, **metrics}.items():
                pooled[name] = pooled[name] + detached(mean) if name in pooled else detached(mean)
        pooled = pool_over_ranks(pooled, self.device)
        rate = optim.learning_rate(self.updates, self.total_steps, self.config)
        norm = self._scale_gradients(pooled["loss"], rate)
        self._update(rate)
        return {name: mean.value for name, mean in pooled.items()} | {"grad_norm": norm, "lr": rate}

    def _scale_gradients(self, loss: Mean, rate: float) -> float:
        """Divide the summed gradients by the count, clip, and refuse what is not finite. Returns the norm before clipping."""
        missing = [name for name, p in self.trained.items() if p.grad is None]
        if missing:
            raise AssertionError(f"{len(missing)} trainable parameters received no gradient, first {missing[0]}")
        if not float(loss.count):
            raise UserError(
                f"step {self.updates + 1} has nothing to learn from: every token is masked",
                fix="inspect the data",
                code=FAILED,
            )
        gradients = [p.grad for p in self.trained.values()]
        # replicate averages over ranks; times the world size it is the sum again
        scale = dist.world_size() / float(loss.count)
        norm = float(torch.nn.utils.get_total_norm(gradients)) * scale
        if not (torch.isfinite(torch.tensor([norm, loss.value])).all()):
            self.zero_grad()
            raise UserError(
                f"step {self.updates + 1}: loss {loss.value:.4g}, gradient norm {norm:.4g} at learning rate {rate:.3g}; "
                "nothing was updated",
                fix="lower optim.learning_rate or raise optim.warmup_steps, under another --name or with --no-resume",
                code=FAILED,
            )
        torch._foreach_mul_(gradients, scale * min(1.0, self.config.clip_norm / (norm + 1e-12)))
        return norm

    def _update(self, rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.zero_grad()
        self.updates += 1

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def rehearse(self, batch: Any) -> None:
        """The memory of a step, without the step: forward, backward, and room for what the optimiser will keep beside each weight."""
        kept = sum(len(entry) for optimizer in self.optimizers for entry in optimizer.state.values())
        room = [torch.empty_like(p) for p in self.trained.values() for _ in range(0 if kept else 2)]
        self.model.train()
        if dist.world_size() > 1:  # ranks meet here, too: the first exchange decides in which order later ones add up
            self.model.set_requires_gradient_sync(True)
        with self.autocast():
            loss, _ = self.loss(self.model, batch)
        loss.total.backward()
        self.zero_grad()
        del room

    def state(self) -> dict[str, Tensor]:
        """The optimisers' tensors under `<state>.<parameter name>`; with `updates` it is all that resuming needs."""
        names = {id(p): name for name, p in self.trained.items()}
        return {
            f"{key}.{names[id(p)]}": torch.as_tensor(value)
            for optimizer in self.optimizers
            for p, entry in optimizer.state.items()
            for key, value in entry.items()
        }

    def restore(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Take up where `state` was taken, after `updates` steps. UserError (INTEGRITY) where that was another model's or optimiser's."""
        self.updates = updates
        homes = {
            id(p): optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            parameter = self.trained.get(name)
            if parameter is None or (value.ndim and value.shape != parameter.shape):
                raise UserError(f"{key!r:.200} belongs to no parameter of this run", code=INTEGRITY)
            # fused Adam keeps its step count beside the weights, so that it need not be fetched
            place = self.device if kind != "step" or self.device.type == "cuda" else "cpu"
            homes[id(parameter)].state[parameter][kind] = value.to(place)
        for optimizer in self.optimizers:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            kinds = {frozenset(optimizer.state.get(p, ())) for p in parameters}
            if len(kinds) > 1 or (updates and kinds == {frozenset()}):
                raise UserError("the optimiser's state is not complete", code=INTEGRITY)


def replicated(model: nn.Module, device: torch.device) -> None:
    """Let torch.distributed hook itself into `model`, in place: gradients meet during the backward pass.

    Buffers are not exchanged: rotary tables are equal everywhere, and ranks may evaluate unequal numbers of batches.
    """
    from torch.distributed._composable.replicate import replicate
    from torch.nn.parallel import DistributedDataParallel

    options: dict[str, Any] = {"gradient_as_bucket_view": True}
    known = inspect.signature(DistributedDataParallel).parameters
    options["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False
    if device.type == "cuda":
        options["device_id"] = device
    replicate(model, **options)


def pool_over_ranks(means: dict[str, Mean], device: torch.device) -> dict[str, Mean]:
    """Add every (total, count) over all ranks in one exchange, fetched once. All ranks must name the same means."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    numbers = [
        torch.as_tensor(x, dtype=wide, device=device).detach() for m in means.values() for x in (m.total, m.count)
    ]
    pairs = dist.sum_(torch.stack(numbers)).view(-1, 2).tolist()
    return {name: Mean(total, count) for name, (total, count) in zip(means, pairs, strict=True)}


def autocast(precision: Literal["fp32", "bf16"], device: torch.device) -> AbstractContextManager:
    """The context a forward pass runs in."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def detached(mean: Mean) -> Mean:
    """The same mean without its graph, still on its device: metrics are fetched once a step, not once a metric."""
    return Mean(*(x.detach() if isinstance(x, Tensor) else x for x in (mean.total, mean.count)))


def _mixed(*numbers: int) -> int:
    """A 63-bit seed that depends on all of the numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


def choose_device(asked: str) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "mps"; UserError (exit 4) where it is asked for and absent."""
    # torch.distributed has no backend for mps, so several ranks on a Mac share its CPU
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and dist.world_size() == 1,
        "cpu": True,
    }
    kind = next(name for name, there in present.items() if there) if asked == "auto" else asked
    if not present[kind]:
        raise UserError(
            f"device {kind} was asked for and is not there", where="device", fix="use --device cpu", code=RESOURCES
        )
    if kind == "cuda":
        if dist.local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"rank {dist.local_rank()} has no GPU: there are {torch.cuda.device_count()}",
                fix="lower --nproc",
                code=RESOURCES,
            )
        torch.cuda.set_device(dist.local_rank())
        return torch.device("cuda", dist.local_rank())
    return torch.device(kind)


def choose_precision(asked: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """bf16 where the hardware multiplies it: AVX-512 BF16 or AMX on a CPU, Ampere and newer on NVIDIA. Emulation is slower than fp32."""
    if asked == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        return "bf16" if fast else "fp32"
    return "bf16" if asked == "bf16" else "fp32"
