"""Where the tokens of a batch are in their texts: what each may attend to, its position, and its rotation."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyllm.model.kernels import DocumentsKernel


class Place(NamedTuple):
    """Where the tokens of a batch are in their texts: how they are rotated, and what they may attend to."""

    cos: Tensor | None  # (B or 1, 1, T, rotated dimensions / 2); None without rotary embeddings
    sin: Tensor | None
    mask: Tensor | None  # (B or 1, 1, T, S) bool; None: causal
    branches: Branches | None = None
    documents: Documents | None = None  # instead of a mask


class Documents(NamedTuple):
    """The documents of packed rows, for attention that needs no mask."""

    kernel: DocumentsKernel
    bounds: Tensor  # see `document_bounds`
    window: int | None


class Branches(NamedTuple):
    """Answers behind prompts that they share: the sequence holds U prompts of T tokens, then R answers of A. See `model.prefixes`."""

    prompts: tuple[int, int]  # U, T
    which: Tensor  # (R,) int64, the prompt of each answer
    place: Place  # of the answers; mask (R, 1, A, T + A)


def attention_mask(
    device: torch.device, attend: Tensor | None, start: int, length: int, window: int | None
) -> Tensor | None:
    """Return (B or 1, 1, T, S) bool: query i sees the keys of its document up to itself, and within the window.

    Padding sees itself, since a softmax over no keys is NaN. None where plain causal attention is the same.
    """
    if attend is None and (window is None or start + length <= window):
        return None
    queries = torch.arange(start, start + length, device=device)[:, None]
    keys = torch.arange(start + length, device=device)[None, :]
    seen = keys <= queries
    if window is not None:
        seen &= keys > queries - window
    if attend is None:
        return seen[None, None]
    same = attend[:, start:, None] == attend[:, None, :]  # (B, T, S)
    return ((seen & same & attend.bool()[:, None, :]) | (keys == queries))[:, None]


def positions_in_documents(attend: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's position in its document, counted from the document's first token in the row, and the document's length.

    Both are (B, S) int64.
    """
    place = torch.arange(attend.shape[1], device=attend.device).expand(attend.shape)
    changes = attend[:, 1:] != attend[:, :-1]
    first = place.where(F.pad(changes, (1, 0), value=True), 0).cummax(1).values
    last = place.where(F.pad(changes, (0, 1), value=True), attend.shape[1]).flip(1).cummin(1).values.flip(1)
    return place - first, last - first + 1


def document_bounds(attend: Tensor) -> Tensor:
    """Return where the documents of a batch (B, S) begin in its flattened tokens, and where the last one ends, (documents + 1,) int32.

    The padding of a row counts as a document. Waits for the device, since the number of documents is read from it.
    """
    begins = F.pad(attend[:, 1:] != attend[:, :-1], (1, 0), value=True)
    return F.pad(begins.flatten().nonzero()[:, 0], (0, 1), value=attend.numel()).int()
