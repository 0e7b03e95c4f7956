"""More rows for tokens that are added to a vocabulary.

A new row is the mean of the rows that are there, so the new token is as likely as an average one and the other probabilities hardly
move, plus noise of a hundredth of their spread, so that new tokens differ. (transformers draws around the same mean.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyllm.model.heads import AdaptedHead
from tinyllm.model.transformer import CausalLM

_NOISE = 0.01  # of the standard deviation of each column


@torch.no_grad()
def grow_vocabulary(model: CausalLM, tokens: int, seed: int = 0, spare: Sequence[int] = ()) -> range:
    """Give embedding and head of a model `tokens` rows, in place, and return the ids of the new ones. Old rows stay as they are.

    Call it before an adapter is attached. A tied head stays tied. A model that has as many rows already keeps them.

    Args:
        seed: for the noise.
        spare: ids of added tokens, of which the first may be rows that the model has without a token so far: those are drawn anew.
    """
    there = model.config.vocab_size
    new = range(there, max(there, tokens))
    embedding, head = model.model.embed_tokens, model.lm_head
    assert not isinstance(head, AdaptedHead), "a vocabulary grows before an adapter is attached"
    tied = head.weight is embedding.weight
    used = min((there, *spare))
    if unused := [i for i in spare if i < there]:
        for weight in (embedding.weight,) if tied else (embedding.weight, head.weight):
            rows = _drawn(weight[:used], len(unused), torch.Generator().manual_seed(seed))
            weight[unused] = rows.to(weight.dtype)
    if not new:
        return new
    generator = torch.Generator().manual_seed(seed)
    embedding.weight = _grown(embedding.weight, used, len(new), generator)
    head.weight = embedding.weight if tied else _grown(head.weight, used, len(new), generator)
    embedding.num_embeddings = head.out_features = tokens
    if head.bias is not None:
        head.bias = nn.Parameter(torch.cat((head.bias, head.bias.mean().expand(len(new)))))
    model.config = model.model.config = model.config.model_copy(update={"vocab_size": tokens})
    return new


def _grown(weight: Tensor, used: int, count: int, generator: torch.Generator) -> nn.Parameter:
    """Return a matrix (V, D) with `count` rows more, drawn around the first `used` rows."""
    rows = _drawn(weight[:used], count, generator)
    return nn.Parameter(torch.cat((weight.detach(), rows.to(weight.dtype))), requires_grad=weight.requires_grad)


def _drawn(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` rows around the mean of a matrix (V, D), in float32."""
    wide = weight.detach().float()
    noise = torch.randn(count, weight.shape[1], generator=generator).to(weight.device)
    return wide.mean(0) + _NOISE * wide.std(0) * noise
