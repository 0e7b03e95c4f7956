"""Checks of the forward pass: generation with the KV cache, packed rows, and LoRA."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyllm.data.datasets.batches import right_padded
from tinyllm.data.datasets.packing import PackedSFTDataset
from tinyllm.diagnostics.checks.result import CheckSkipped, Comparison, Effect, largest, max_difference
from tinyllm.diagnostics.checks.target import Target, is_adapter
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig
from tinyllm.model.decoding import Completion, Sampling, generate
from tinyllm.model.transformer import CausalLM, SequenceScorer

_NEW_TOKENS = 24
_DISTINCT_TOKENS = 16  # in the completions of the tiny model; one that repeats a token would need no cache
_VISIBLE = 10  # an effect is this many times the allowed difference, or an error of its size would be allowed
_ANY = 1e-6  # nats; an adapter that was trained for some steps may change little, one with scaling 0 changes nothing
_STOP_ID_STRIDE = 7  # every seventh id is a stop token, so that rows leave the batch at different times

# --- generation ------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def generation(target: Target) -> list[Comparison]:
    """Compare generation with the KV cache with a forward pass over the whole text, as in training."""
    model, prompts = target.causal_lm, target.rows
    greedy = generate(model, prompts, Sampling(_NEW_TOKENS, temperature=0.0))
    ids, mask = _completed_texts(prompts, greedy, target.device)
    log_probs = model.logits(model(ids)[:, :-1][mask[:, 1:]]).float().log_softmax(-1)  # (N, V)
    best, chosen = log_probs.max(-1), ids[mask]
    gap = best.values - log_probs.gather(1, chosen[:, None]).squeeze(1)  # 0 where the best token was chosen
    equal = int((best.indices == chosen).sum())
    effects = (
        Effect("prompt lengths", len(set(map(len, prompts))), 2),
        Effect("distinct tokens", len(set(chosen.tolist())), _DISTINCT_TOKENS if target.folder is None else 2),
    )
    lengths = f"{len(prompts)} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens"
    stopping = Sampling(_NEW_TOKENS, temperature=0.7, stop=tuple(range(0, model.config.vocab_size, _STOP_ID_STRIDE)))
    sampled = generate(model, prompts, stopping)
    stopped = len({len(completion.ids) for completion in sampled})
    return [
        Comparison(
            "tokens",
            f"greedy tokens with the KV cache vs a full forward pass, {lengths} ({equal} of {len(chosen)} equal)",
            float(gap.max()),
            target.tolerance,
            "nats",
            n=len(chosen),
            effects=effects,
        ),
        _compare_log_probs("greedy", model, prompts, greedy, 1.0, target),
        _compare_log_probs(
            "sampled",
            model,
            prompts,
            sampled,
            stopping.temperature,
            target,
            # a trained model may meet none of the stop tokens
            (Effect("completion lengths", stopped, 3),) if target.folder is None else (),
        ),
    ]


def _completed_texts(
    prompts: Sequence[list[int]], completions: Sequence[Completion], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return prompts followed by their completions, right-padded, and the mask of completion tokens, both (B, T)."""
    texts = list(zip(prompts, completions, strict=True))
    ids = right_padded([[*p, *c.ids] for p, c in texts], 0)
    mask = right_padded([[False] * len(p) + [True] * len(c.ids) for p, c in texts], False)
    return ids.to(device), mask.to(device)


def _compare_log_probs(
    name: str,
    model: CausalLM,
    prompts: Sequence[list[int]],
    completions: Sequence[Completion],
    temperature: float,
    target: Target,
    effects: Sequence[Effect] = (),
) -> Comparison:
    ids, mask = _completed_texts(prompts, completions, target.device)
    trained_on = model.log_probs(ids, mask, temperature=temperature)[mask].cpu()
    reported = torch.tensor([value for c in completions for value in c.log_probs])
    how = f"{name}, {len(reported)} tokens"
    what = f"log-probabilities from the sampler vs the training forward pass ({how})"
    difference = max_difference(reported, trained_on)
    return Comparison(
        f"{name} log-probabilities", what, difference, target.tolerance, "nats", n=len(reported), effects=effects
    )


# --- packing ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def packing(target: Target) -> list[Comparison]:
    """Compare texts packed into shared rows with each text in a row of its own."""
    model = target.causal_lm
    rows = [(ids, [True] * len(ids)) for ids in target.rows]
    packed = PackedSFTDataset(rows, pad=0, length=2 * max(map(len, target.rows)))
    together = packed.collate(range(len(packed)), 0, []).to(target.device)
    ours = model.log_probs(together.ids, together.mask, attend=together.documents)[together.mask]
    unmasked = model.log_probs(together.ids, together.mask)[together.mask]
    effect = Effect("document mask", max_difference(ours, unmasked), _VISIBLE * target.tolerance)
    alone = []
    for number in (number for contents in packed.bins for number in contents):
        single = packed.conversations.collate([number], 0, []).to(target.device)
        alone.append(model.log_probs(single.ids, single.mask)[single.mask])
    what = f"log-probabilities of {len(rows)} texts in {len(packed)} packed rows vs one text per row"
    difference = max_difference(ours, torch.cat(alone))
    return [Comparison("log-probabilities", what, difference, target.tolerance, "nats", n=len(ours), effects=(effect,))]


# --- LoRA ------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def adapter(target: Target) -> list[Comparison]:
    """Compare an adapter on its base with merged weights, and a disabled and an untrained adapter with the base alone."""
    if target.folder is not None:
        return _checkpoint_adapter(target)
    base = token_log_probs(target.causal_lm, target)
    merged, disabled, untrained, effects = [], [], [], []
    kinds = {"LoRA": LoRAConfig(r=4), "rsLoRA": LoRAConfig(r=4, rslora=True), "DoRA": LoRAConfig(r=4, dora=True)}
    for config in kinds.values():
        model = copy.deepcopy(target.causal_lm)
        lora.attach(model, config)
        untrained.append(max_difference(base, token_log_probs(model, target)))
        _randomize_adapter(model)
        with lora.disabled(model):
            disabled.append(max_difference(base, token_log_probs(model, target)))
        adapted = token_log_probs(model, target)
        effects.append(max_difference(base, adapted))
        lora.merge(model)
        merged.append(max_difference(adapted, token_log_probs(model, target)))
    what, n = f"log-probabilities with {', '.join(kinds)}", len(kinds) * base.numel()
    effect = Effect("adapter", min(effects), _VISIBLE * target.tolerance)
    return [
        Comparison(
            "merged",
            f"{what}: adapter on its base vs merged weights",
            largest(merged),
            target.tolerance,
            "nats",
            n=n,
            effects=(effect,),
        ),
        Comparison("disabled", f"{what}: disabled adapter vs base", largest(disabled), 0.0, "nats", n=n),
        Comparison("untrained", f"{what}: untrained adapter vs base", largest(untrained), 0.0, "nats", n=n),
    ]


def _checkpoint_adapter(target: Target) -> list[Comparison]:
    if not is_adapter(target.checkpoint_folder):
        raise CheckSkipped("this checkpoint is not an adapter")
    if hub.is_scorer(target.checkpoint_folder):
        raise CheckSkipped("a reward model does not generate text")
    model = hub.load_causal_lm(target.checkpoint_folder, target.device, merged=False, base=target.base).eval()
    if lora.is_untrained(model):
        raise CheckSkipped("the adapter is untrained: lora_B is zero in every layer")
    adapted = token_log_probs(model, target)
    with lora.disabled(model):
        effect = Effect("adapter", max_difference(adapted, token_log_probs(model, target)), _ANY)
    difference = max_difference(adapted, token_log_probs(target.causal_lm, target))
    what = "log-probabilities: adapter on its base vs merged weights"
    n = adapted.numel()
    return [Comparison("merged", what, difference, target.tolerance, "nats", n=n, effects=(effect,))]


def _randomize_adapter(model: nn.Module) -> None:
    """Add noise to the adapter weights, which do not change the model as initialized."""
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if lora.is_branch(name):
            p.add_((torch.randn(p.shape, generator=generator) * 0.1).to(p.device))


@torch.no_grad()
def token_log_probs(model: CausalLM, target: Target) -> Tensor:
    """Return log-probabilities of the whole vocabulary after every token of the target's rows, (N, V)."""
    ids = right_padded(target.rows, 0).to(target.device)
    real = right_padded([[True] * len(row) for row in target.rows], False)
    return model.logits(model(ids)[real.to(target.device)]).float().log_softmax(-1)


@torch.no_grad()
def reward_scores(model: SequenceScorer, target: Target) -> Tensor:
    """Return the reward of each of the target's rows, (B,)."""
    ids = right_padded(target.rows, 0).to(target.device)
    real = right_padded([[True] * len(row) for row in target.rows], False)
    return model.rewards(ids, real.to(target.device))
