"""Bugs that `tinyllm verify` must find, each a function of `patch`, which sets an attribute (`setattr`, or that of monkeypatch).

`bugs_of_verify` says which checks must fail.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tinyllm import distributed as dist
from tinyllm.algorithms import grpo, next_token
from tinyllm.data.datasets import packing
from tinyllm.data.datasets.batches import Source
from tinyllm.data.datasets.datasets import SFTDataset
from tinyllm.diagnostics.checks import checkpoints, export, target
from tinyllm.diagnostics.checks import tokenizer as tokenizer_checks
from tinyllm.mean import Mean
from tinyllm.model import hub, kernels, lora, transformer
from tinyllm.model.decoding import choosing
from tinyllm.model.decoding import engine as decoding
from tinyllm.stages.checkpoint_files import CheckpointFiles
from tinyllm.text import chat, own_files
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint, engine, schedules
from tinyllm.train.checkpointing import CheckpointManager
from tinyllm.train.engine import Engine

Patch = Callable[[Any, str, Any], None]


def cache_off_by_one(patch: Patch) -> None:
    """New keys and values overwrite the last cached ones."""

    original = decoding.Engine._logits

    def logits(self):
        found, ring = original(self), self.ring
        for cached in (ring.keys, ring.values):
            cached[..., (ring.column - 1) % ring.capacity, :] = cached[..., ring.place, :]
            cached[..., ring.place, :] = 0
        return found

    patch(decoding.Engine, "_logits", logits)


def merged_with_twice_the_scale(patch: Patch) -> None:
    original = lora.merge

    def merge(model: nn.Module) -> nn.Module:
        for layer in lora.layers(model).values():
            layer.scaling *= 2
        return original(model)

    patch(lora, "merge", merge)


def mean_per_micro_batch(patch: Patch) -> None:
    """The loss is divided per micro-batch, so the engine sums means."""
    original = next_token.loss

    def loss(settings, model, batch):
        mean, metrics = original(settings, model, batch)
        return Mean(mean.total / mean.count, 1.0), metrics

    patch(next_token, "loss", loss)


def grpo_mean_per_micro_batch(patch: Patch) -> None:
    original = grpo.loss

    def loss(settings, model, batch, temperature=1.0):
        mean, metrics = original(settings, model, batch, temperature)
        return Mean(mean.total / batch.mask.sum() * mean.count, mean.count), metrics

    patch(grpo, "loss", loss)


def optimizer_state_not_restored(patch: Patch) -> None:
    patch(Engine, "restore", lambda self, tensors, updates: setattr(self, "updates", updates))


def dropout_not_seeded(patch: Patch) -> None:
    patch(engine, "_mixed_seed", lambda *numbers: random.SystemRandom().getrandbits(63))


def attention_across_documents(patch: Patch) -> None:
    original = transformer.attention_mask

    def attention_mask(device, attend, *rest):
        return original(device, None if attend is None else attend.bool(), *rest)

    patch(transformer, "attention_mask", attention_mask)


def gradients_not_summed_over_ranks(patch: Patch) -> None:
    patch(dist, "sum_", lambda tensor: tensor)


def control_tokens_parsed_in_text(patch: Patch) -> None:
    def encode_batch(self, texts):
        return [found.ids for found in self._whole.encode_batch(list(texts), add_special_tokens=False)]

    patch(Tokenizer, "encode_batch", encode_batch)


def template_without_newline(patch: Patch) -> None:
    broken = own_files.CHAT_TEMPLATE.replace("{{- '\\n' -}}\n", "")
    patch(own_files, "CHAT_TEMPLATE", broken)
    patch(chat, "CHAT_TEMPLATE", broken)  # which is still taken for ours


def manifest_not_verified(patch: Patch) -> None:
    patch(checkpoint, "verify", lambda folder: None)


def wrong_rope_theta_in_config_json(patch: Patch) -> None:
    original = hub.describe
    changed = {"rope_theta": 20_000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}}
    patch(hub, "describe", lambda model, **ids: {**original(model, **ids), **changed})


def wrong_rope_theta_for_transformers(patch: Patch) -> None:
    original = hub.describe
    changed = {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}}
    patch(hub, "describe", lambda model, **ids: {**original(model, **ids), **changed})


def norm_too_large_in_bf16(patch: Patch, factor: float = 1.5) -> None:
    original = kernels.rms_norm

    def rms_norm(x, weight, eps):
        found = original(x, weight, eps)
        return found if found.dtype == x.dtype == weight.dtype else found * factor

    patch(kernels, "rms_norm", rms_norm)


def norm_far_too_large_in_bf16(patch: Patch) -> None:
    """For a model that was trained for some steps, whose logits are small."""
    norm_too_large_in_bf16(patch, 30.0)


# --- training that trains nothing, or the same thing twice -----------------------------------------------------------------------


def update_frozen(patch: Patch) -> None:
    patch(schedules, "rate", lambda *_: 0.0)


def gradient_zero(patch: Patch) -> None:
    original = next_token.loss

    def loss(settings, model, batch):
        mean, metrics = original(settings, model, batch)
        return Mean(mean.total.detach() + 0 * mean.total, mean.count), metrics

    patch(next_token, "loss", loss)


def dropout_off(patch: Patch) -> None:
    patch(torch.nn.functional, "dropout", lambda x, *_, **__: x)


def every_rank_trains_on_all_rows(patch: Patch) -> None:
    """The sum over two ranks is then twice the gradient, and so is the count: the quotient is right."""
    original = Source.__init__

    def init(self, *given, rank=0, world_size=1, **more):
        original(self, *given, **more)

    patch(Source, "__init__", init)


def resume_starts_over(patch: Patch) -> None:
    """The run ends with the weights of the uninterrupted one."""
    patch(CheckpointManager, "resume", lambda self: None)


def newest_checkpoint_is_the_oldest(patch: Patch) -> None:
    patch(checkpoint, "newest", lambda folder, warn: next(iter(checkpoint.steps(folder)), None))


def autocast_off(patch: Patch) -> None:
    patch(torch, "autocast", lambda *_, **__: nullcontext())


# --- models and texts with which nothing can go wrong ----------------------------------------------------------------------------


def constant_model(patch: Patch) -> None:
    """Every token is as probable as any other, whatever stands before it."""
    original = target.small_model

    def small_model(*given):
        model = original(*given)
        nn.init.zeros_(model.lm_head.weight)
        return model

    patch(target, "small_model", small_model)
    patch(export, "small_model", small_model)


def constant_checkpoint(patch: Patch) -> None:
    """The same of a checkpoint, and a reward model with the same reward for every text."""
    original = target.load_model

    def load_model(folder, device, **how):
        model = original(folder, device, **how)
        nn.init.zeros_((model.score if hasattr(model, "score") else model.lm_head).weight)
        return model

    patch(target, "load_model", load_model)


def one_document_in_each_row(patch: Patch) -> None:
    patch(packing, "best_fit", lambda sizes, length: [[i] for i in range(len(sizes))])


def prompts_of_one_length(patch: Patch) -> None:
    patch(target, "SENTENCES", target.SENTENCES[:1] * 8)


def no_texts(patch: Patch) -> None:
    patch(tokenizer_checks, "SENTENCES", ())
    patch(tokenizer_checks, "_INJECTION", "")


def nothing_is_scored(patch: Patch) -> None:
    original = SFTDataset.collate

    def collate(self, indices, epoch, step):
        batch = original(self, indices, epoch, step)
        return replace(batch, mask=torch.zeros_like(batch.mask))

    patch(SFTDataset, "collate", collate)


def prompts_without_tokens(patch: Patch) -> None:
    patch(target.Target, "rows", property(lambda self: [[] for _ in target.SENTENCES]))


def checkpoint_without_files(patch: Patch) -> None:
    patch(CheckpointFiles, "write", lambda self, folder: None)


def stop_tokens_ignored(patch: Patch) -> None:
    original = decoding.Engine.__init__

    def init(self, model, sampling, **how):
        original(self, model, replace(sampling, stop=()), **how)

    patch(decoding.Engine, "__init__", init)


def temperature_ignored_by_the_sampler(patch: Patch) -> None:
    patch(choosing, "_scaled", lambda logits, temperature: logits)


def control_tokens_without_names(patch: Patch) -> None:
    original = Tokenizer.decode
    patch(Tokenizer, "decode", lambda self, ids, *, skip_special=True: original(self, ids))


def decoded_without_spaces_around(patch: Patch) -> None:
    original = Tokenizer.decode
    patch(Tokenizer, "decode", lambda self, ids, **how: original(self, ids, **how).strip())


# --- adapters --------------------------------------------------------------------------------------------------------------------


def adapter_without_scale(patch: Patch) -> None:
    original = lora.LoRALinear.__init__

    def init(self, base, config, generator):
        original(self, base, config, generator)
        self.scaling, self.dora = 0.0, False

    patch(lora.LoRALinear, "__init__", init)


def adapter_stays_enabled(patch: Patch) -> None:
    @contextmanager
    def disabled(model):
        yield model

    patch(lora, "disabled", disabled)


def adapter_starts_at_random(patch: Patch) -> None:
    original = lora.LoRALinear.__init__

    def init(self, base, config, generator):
        original(self, base, config, generator)
        nn.init.ones_(self.lora_B.weight)

    patch(lora.LoRALinear, "__init__", init)


# --- checkpoints -----------------------------------------------------------------------------------------------------------------


def weights_not_restored(patch: Patch) -> None:
    patch(CheckpointFiles, "restore", lambda self, folder: None)


def critic_not_restored(patch: Patch) -> None:
    original = CheckpointFiles.restore

    def restore(self, folder):
        critic, self.critic = self.critic, None
        original(self, folder)
        self.critic = critic

    patch(CheckpointFiles, "restore", restore)


def state_is_what_was_read_from_the_file(patch: Patch) -> None:
    """The optimizer need not be restored, then."""
    read: dict[str, Tensor] = {}
    original = checkpoints.load_file

    def load_file(path):
        read.clear()
        read.update(original(path))
        return dict(read)

    patch(checkpoints, "load_file", load_file)
    patch(Engine, "state", lambda self: dict(read))


def weights_kept_before_restoring(patch: Patch) -> None:
    """Those that are restored are then the weights that are there already."""
    patch(Tensor, "fill_", lambda self, value: self)
