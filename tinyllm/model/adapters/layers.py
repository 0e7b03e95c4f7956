"""The layers that an adapter puts in place of a model's own, with which they share weight and bias.

Names of parameters are PEFT's without its prefix, so an adapter's file is a selection from the state dict. Master weights are float32;
branches are computed in the dtype of their input, so the frozen base may be in another one. `matrix()` is the weight that a layer
applies: heads are read by it, because losses never form all logits (`heads.head_matrix`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.model.config import LoRAConfig
from tinyllm.model.heads import AdaptedHead


class _Factor(nn.Linear):
    """A or B: computed in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class LoRALinear(AdaptedHead):
    """A linear layer with a low-rank branch, made by `lora.attach` from an `nn.Linear`."""

    lora_magnitude_vector: nn.Parameter  # (out,), with DoRA only
    start_a: Tensor | None  # (r, in), with PiSSA and OLoRA only: the factors that the branch has taken from the weight
    start_b: Tensor | None  # (out, r)

    def __init__(self, base: nn.Linear, config: LoRAConfig, generator: torch.Generator):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = _Factor(base.in_features, config.r, bias=False, device=base.weight.device)
        self.lora_B = _Factor(config.r, base.out_features, bias=False, device=base.weight.device)
        self.scaling, self.dora = config.scaling, config.dora
        self.enabled = True
        bound = 1 / math.sqrt(base.in_features)  # kaiming_uniform with a = sqrt(5), as PEFT
        if config.init == "gaussian":
            initial = torch.randn(config.r, base.in_features, generator=generator) / config.r
        else:
            initial = torch.rand(config.r, base.in_features, generator=generator) * 2 * bound - bound
        with torch.no_grad():
            self.lora_A.weight.copy_(initial)
            self.lora_B.weight.zero_()
            a, b = self._decomposed(config.init) if config.init in ("pissa", "olora") else (None, None)
        self.register_buffer("start_a", a, persistent=False)
        self.register_buffer("start_b", b, persistent=False)
        if config.dora:
            self.lora_magnitude_vector = nn.Parameter(base.weight.detach().float().norm(dim=1))
        self.lora_dropout = nn.Dropout(config.dropout)

    def _decomposed(self, init: str) -> tuple[Tensor, Tensor]:
        """Start from the weight's own factors, and return copies of them, (r, in) and (out, r), which `forward` takes off again."""
        weight, r = self.weight.detach().float(), self.lora_A.out_features
        if init == "olora":
            q, upper = torch.linalg.qr(weight)
            a, b = upper[:r], q[:, :r]
        else:
            u, values, v = torch.linalg.svd(weight, full_matrices=False)
            root = (values[:r] / self.scaling).sqrt()
            a, b = root[:, None] * v[:r], u[:, :r] * root
        self.lora_A.weight.copy_(a)
        self.lora_B.weight.copy_(b)
        return a.clone(), b.clone()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), without the branch while it is disabled."""
        rows = x.reshape(-1, x.shape[-1])
        y = super().forward(rows)
        if self.enabled:
            y = self._with_branch(rows, y)
        return y.view(*x.shape[:-1], self.out_features)

    def _with_branch(self, x: Tensor, y: Tensor) -> Tensor:
        """Return `y`, which is W x of the rows `x` (N, in), with the branch added; (N, out)."""
        if self.start_a is not None and self.start_b is not None:
            y = y - self.scaling * F.linear(F.linear(x, self.start_a.to(x.dtype)), self.start_b.to(x.dtype))
        dropped = self.lora_dropout(x)
        inner = self.lora_A(dropped)
        if not self.dora:  # in place: the branch and the sum would be as large as y
            return y.addmm_(inner, self.lora_B.weight.to(inner.dtype).T, alpha=self.scaling)
        branch = self.scaling * self.lora_B(inner)
        ratio = self.lora_magnitude_vector / self.adapted().detach().norm(dim=1)
        # PEFT's form: without dropout this is ratio * (W x + branch); with it, dropped inputs keep their unscaled W x.
        scaled = y + (ratio - 1) * nn.functional.linear(dropped, self.remaining().to(x.dtype)) + ratio * branch
        return scaled if torch.is_autocast_enabled(x.device.type) else scaled.to(y.dtype)

    def remaining(self) -> Tensor:
        """Return the weight without the factors that it has lost to the branch: W, or W - scaling B_0 A_0 with PiSSA and OLoRA."""
        if self.start_a is None or self.start_b is None:
            return self.weight
        return self.weight - (self.scaling * (self.start_b @ self.start_a)).to(self.weight.dtype)

    def adapted(self) -> Tensor:
        """Return W + scaling B A, (out, in), in float32 at least: in bf16 the norm of a row would be another one."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        product = self.lora_B.weight.to(wide) @ self.lora_A.weight.to(wide)
        return self.remaining().to(wide) + self.scaling * product

    def matrix(self) -> Tensor:
        """Return the weight that the layer applies, (out, in), with DoRA's magnitudes."""
        if not self.enabled:
            return self.weight
        weight = self.adapted()
        if self.dora:
            weight = weight * (self.lora_magnitude_vector / weight.detach().norm(dim=1))[:, None].to(weight.dtype)
        return weight


class LoRAEmbedding(nn.Embedding):
    """An embedding with a low-rank branch: rows of W + scaling (B A)^T. A is zero at the start and B normal, as in PEFT."""

    lora_magnitude_vector: nn.Parameter  # (D,), with DoRA only

    def __init__(self, base: nn.Embedding, config: LoRAConfig, generator: torch.Generator):
        super().__init__(base.num_embeddings, base.embedding_dim, _weight=base.weight, _freeze=False)
        self.weight = base.weight
        device, width = base.weight.device, base.embedding_dim
        self.lora_embedding_A = nn.Parameter(torch.zeros(config.r, base.num_embeddings, device=device))
        self.lora_embedding_B = nn.Parameter(torch.randn(width, config.r, generator=generator).to(device))
        if config.dora:
            self.lora_magnitude_vector = nn.Parameter(base.weight.detach().float().norm(dim=0))
        self.scaling, self.dora, self.enabled = config.scaling, config.dora, True

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of `ids`, (..., D)."""
        y = super().forward(ids)
        if not self.enabled:
            return y
        branch = self.scaling * F.embedding(ids, self.lora_embedding_A.T) @ self.lora_embedding_B.T
        y = y + branch.to(y.dtype)
        return y * self._ratio(self._adapted()).to(y.dtype) if self.dora else y

    def _adapted(self) -> Tensor:
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        product = (self.lora_embedding_B.to(wide) @ self.lora_embedding_A.to(wide)).T
        return self.weight.to(wide) + self.scaling * product

    def _ratio(self, adapted: Tensor) -> Tensor:
        return self.lora_magnitude_vector / adapted.detach().norm(dim=0)

    def matrix(self) -> Tensor:
        """Return the matrix whose rows are read, (V, D)."""
        if not self.enabled:
            return self.weight
        weight = self._adapted()
        return weight * self._ratio(weight).to(weight.dtype) if self.dora else weight

    def project(self, x: Tensor) -> Tensor:
        """Return x times the matrix, (..., V), for a head that is tied to this embedding."""
        y = F.linear(x, self.weight)
        if not self.enabled:
            return y
        low = F.linear(x, self.lora_embedding_B.T.to(x.dtype))
        return y + self.scaling * F.linear(low, self.lora_embedding_A.T.to(x.dtype))


class TokenRows(nn.Module):
    """Trained rows of a matrix, which replace its own. PEFT calls them a delta."""

    def __init__(self, weight: Tensor, rows: tuple[int, ...]):
        super().__init__()
        self.trainable_tokens_delta = nn.Parameter(weight.detach()[list(rows)].float())  # (rows, D)


class EmbeddingWithRows(nn.Embedding):
    """An embedding of which some rows are trained; the others are frozen."""

    rows: Tensor  # (rows,) ids
    places: Tensor  # (V,) place of an id among the trained rows, -1 for all others

    def __init__(self, base: nn.Embedding, rows: tuple[int, ...]):
        super().__init__(base.num_embeddings, base.embedding_dim, _weight=base.weight, _freeze=False)
        self.weight = base.weight
        self.token_adapter = TokenRows(base.weight, rows)
        ids = torch.tensor(rows, device=base.weight.device)
        places = torch.full((base.num_embeddings,), -1, device=base.weight.device)
        places[ids] = torch.arange(len(rows), device=base.weight.device)
        self.register_buffer("rows", ids, persistent=False)
        self.register_buffer("places", places, persistent=False)
        self.enabled = True

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of `ids`, (..., D)."""
        y = super().forward(ids)
        if not self.enabled:
            return y
        places = self.places[ids]
        trained = F.embedding(places.clamp(min=0), self.token_adapter.trainable_tokens_delta).to(y.dtype)
        return torch.where((places >= 0)[..., None], trained, y)

    def matrix(self) -> Tensor:
        """Return the matrix whose rows are read, (V, D)."""
        return _with_rows(self, self.weight)

    def project(self, x: Tensor) -> Tensor:
        """Return x times the matrix, (..., V), for a head that is tied to this embedding."""
        return _project_with_rows(self, x, F.linear(x, self.weight))


class HeadWithRows(AdaptedHead):
    """An output layer of which some rows are trained; the others are frozen."""

    rows: Tensor

    def __init__(self, base: nn.Linear, rows: tuple[int, ...]):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.token_adapter = TokenRows(base.weight, rows)
        self.register_buffer("rows", torch.tensor(rows, device=base.weight.device), persistent=False)
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., V)."""
        return _project_with_rows(self, x, super().forward(x))

    def matrix(self) -> Tensor:
        """Return the weight that the layer applies, (V, D)."""
        return _with_rows(self, self.weight)


class TiedHead(AdaptedHead):
    """An output layer that applies the matrix of an adapted embedding, and has no parameters of its own."""

    def __init__(self, base: nn.Linear, embedding: LoRAEmbedding | EmbeddingWithRows):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self._embedding = (embedding,)  # in a tuple, or it would be a part of the head as well

    @property
    def embedding(self) -> LoRAEmbedding | EmbeddingWithRows:
        """The embedding that the head shares its matrix with."""
        return self._embedding[0]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., V)."""
        y = self.embedding.project(x)
        return y if self.bias is None else y + self.bias

    def matrix(self) -> Tensor:
        """Return the weight that the layer applies, (V, D)."""
        return self.embedding.matrix()


def _with_rows(layer: EmbeddingWithRows | HeadWithRows, weight: Tensor) -> Tensor:
    if not layer.enabled:
        return weight
    return weight.index_copy(0, layer.rows, layer.token_adapter.trainable_tokens_delta.to(weight.dtype))


def _project_with_rows(layer: EmbeddingWithRows | HeadWithRows, x: Tensor, y: Tensor) -> Tensor:
    """Return y (..., V) with the columns of the trained rows computed anew: cheaper than a copy of the whole matrix."""
    if not layer.enabled:
        return y
    columns = F.linear(x, layer.token_adapter.trainable_tokens_delta.to(x.dtype))
    bias = layer.bias if isinstance(layer, HeadWithRows) else None
    return y.index_copy(-1, layer.rows, (columns if bias is None else columns + bias[layer.rows]).to(y.dtype))


Adapted = LoRALinear | LoRAEmbedding | EmbeddingWithRows | HeadWithRows
ADAPTED = (LoRALinear, LoRAEmbedding, EmbeddingWithRows, HeadWithRows)
