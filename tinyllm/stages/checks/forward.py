"""Checks of the forward pass: the key-value cache, packed rows, LoRA."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyllm.data.batches import right_padded
from tinyllm.data.packing import Packed
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig
from tinyllm.model.generate import Completion, Sampling, generate
from tinyllm.model.transformer import CausalLM, SequenceScorer
from tinyllm.stages.checks.outcome import Compared, Skipped, furthest
from tinyllm.stages.checks.subject import Subject, is_adapter

_NEW_TOKENS = 24
_EVERY = 7  # every so many ids end a text, so that rows leave the batch at different times

# --- generation ------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def generation(subject: Subject) -> list[Compared]:
    """What the sampler writes with its cache, against a forward pass over each whole text as training makes it."""
    model, prompts = subject.writer, subject.rows
    greedy = generate(model, prompts, Sampling(_NEW_TOKENS, temperature=0.0))
    ids, mask = _texts(prompts, greedy, subject.device)
    before = model.logits(model(ids)[:, :-1][mask[:, 1:]]).float().log_softmax(-1)  # (N, V)
    best, chosen = before.max(-1), ids[mask]
    lost = best.values - before.gather(1, chosen[:, None]).squeeze(1)  # 0 where the best token was taken
    same = int((best.indices == chosen).sum())
    lengths = f"{len(prompts)} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens"
    ending = Sampling(_NEW_TOKENS, temperature=0.7, stop=tuple(range(0, model.config.vocab_size, _EVERY)))
    sampled = generate(model, prompts, ending)
    return [
        Compared(
            f"greedy tokens of the cache and of a whole forward, {lengths} ({same} of {len(chosen)} the same)",
            float(lost.max()),
            subject.nats,
            "nats",
        ),
        _reported("greedy", model, prompts, greedy, 1.0, subject),
        _reported("sampled, rows leaving as they end", model, prompts, sampled, ending.temperature, subject),
    ]


def _texts(prompts: Sequence[list[int]], written: Sequence[Completion], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts with what was written behind them, padded on the right, and which tokens were written: both (B, T)."""
    ids = right_padded([[*p, *w.ids] for p, w in zip(prompts, written, strict=True)], 0)
    mask = right_padded([[False] * len(p) + [True] * len(w.ids) for p, w in zip(prompts, written, strict=True)], False)
    return ids.to(device), mask.to(device)


def _reported(
    what: str,
    model: CausalLM,
    prompts: Sequence[list[int]],
    written: Sequence[Completion],
    temperature: float,
    subject: Subject,
) -> Compared:
    ids, mask = _texts(prompts, written, subject.device)
    trained_on = model.log_probs(ids, mask, temperature=temperature).log_probs[mask].cpu()
    reported = torch.tensor([value for w in written for value in w.log_probs])
    what = f"log-probabilities of sampler and training forward ({what}, {len(reported)} tokens)"
    return Compared(what, furthest(reported, trained_on), subject.nats, "nats")


# --- packing ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def packing(subject: Subject) -> list[Compared]:
    """Several texts in a row that do not see each other, against each text in a row of its own."""
    model = subject.writer
    rows = [(ids, [True] * len(ids)) for ids in subject.rows]
    packed = Packed(rows, pad=0, length=2 * max(map(len, subject.rows)))
    together = packed.collate(range(len(packed)), 0, []).to(subject.device)
    ours = model.log_probs(together.ids, together.mask, attend=together.documents).log_probs[together.mask]
    alone = []
    for number in (number for contents in packed.bins for number in contents):
        single = packed.answers.collate([number], 0, []).to(subject.device)
        alone.append(model.log_probs(single.ids, single.mask).log_probs[single.mask])
    what = f"log-probabilities of {len(rows)} texts in {len(packed)} packed rows, and in rows of their own"
    return [Compared(what, furthest(ours, torch.cat(alone)), subject.nats, "nats")]


# --- LoRA ------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def adapter(subject: Subject) -> list[Compared]:
    """Base and adapter, against merged weights; switched off, against the base; fresh, against none."""
    if subject.folder is not None:
        return _own_adapter(subject)
    base = log_probs(subject.writer, subject)
    found = {"merged": 0.0, "off": 0.0, "fresh": 0.0}
    kinds = {"LoRA": LoRAConfig(r=4), "rsLoRA": LoRAConfig(r=4, rslora=True), "DoRA": LoRAConfig(r=4, dora=True)}
    for config in kinds.values():
        model = copy.deepcopy(subject.writer)
        lora.attach(model, config)
        found["fresh"] = max(found["fresh"], furthest(base, log_probs(model, subject)))
        _train_a_little(model)
        with lora.disabled(model):
            found["off"] = max(found["off"], furthest(base, log_probs(model, subject)))
        adapted = log_probs(model, subject)
        lora.merge(model)
        found["merged"] = max(found["merged"], furthest(adapted, log_probs(model, subject)))
    what = f"log-probabilities, {', '.join(kinds)}"
    return [
        Compared(f"{what}: base with adapter, and merged weights", found["merged"], subject.nats, "nats"),
        Compared(f"{what}: adapter switched off, and base", found["off"], 0.0, "nats"),
        Compared(f"{what}: fresh adapter, and base", found["fresh"], 0.0, "nats"),
    ]


def _own_adapter(subject: Subject) -> list[Compared]:
    if not is_adapter(subject.checkpoint):
        raise Skipped("this checkpoint is no adapter")
    model = hub.load_causal_lm(subject.checkpoint, subject.device, merged=False).eval()
    adapted = log_probs(model, subject)
    with lora.disabled(model):
        moved = furthest(adapted, log_probs(model, subject))
    what = f"log-probabilities: base with adapter, and merged weights (the adapter moves them by up to {moved:.3g})"
    return [Compared(what, furthest(adapted, log_probs(subject.writer, subject)), subject.nats, "nats")]


def _train_a_little(model: nn.Module) -> None:
    """Give every branch an effect."""
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if lora.is_branch(name):
            p.add_((torch.randn(p.shape, generator=generator) * 0.1).to(p.device))


@torch.no_grad()
def log_probs(model: CausalLM, subject: Subject) -> Tensor:
    """(N, V) in nats, at every token of the subject's rows."""
    ids = right_padded(subject.rows, 0).to(subject.device)
    real = right_padded([[True] * len(row) for row in subject.rows], False)
    return model.logits(model(ids)[real.to(subject.device)]).float().log_softmax(-1)


@torch.no_grad()
def scores(model: SequenceScorer, subject: Subject) -> Tensor:
    """(B,), the score of each of the subject's rows."""
    ids = right_padded(subject.rows, 0).to(subject.device)
    real = right_padded([[True] * len(row) for row in subject.rows], False)
    return model.rewards(ids, real.to(subject.device))
