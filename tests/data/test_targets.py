"""The end token of every document is a target: in shards, in training rows and in evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from tinyllm.data.datasets.batches import Source
from tinyllm.data.datasets.datasets import PretrainDataset, scored_documents
from tinyllm.data.tokens.shards import Shards, open_shards, prepare
from tinyllm.text.tokenizer import Tokenizer

TEXTS = [f"Document {i} says {'very ' * (i % 4)}little." for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture(scope="module")
def shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("data") / "shards"
    prepare(TEXTS, tokenizer, folder, val_fraction=0.2)
    return open_shards(folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_document_of_a_shard_is_followed_by_the_end_token(
    shards: Shards, tokenizer: Tokenizer, split: str
) -> None:
    tokens = {"train": shards.train, "val": shards.val}[split][:]
    pieces = np.split(tokens, np.flatnonzero(tokens == tokenizer.endoftext) + 1)
    assert pieces[0].tolist() == [tokenizer.endoftext]  # the first document has a token before it as well
    assert len(pieces[-1]) == 0  # the last one has its end token
    texts = [tokenizer.decode(piece[:-1].tolist()) for piece in pieces[1:-1]]
    assert len(texts) == getattr(shards.manifest, split).documents
    assert set(texts) <= set(TEXTS)


def test_one_epoch_trains_every_end_token_once(shards: Shards, tokenizer: Tokenizer) -> None:
    windows = PretrainDataset(shards.train, 16, seed=0, shifted=False)
    source = Source(windows, len(windows), 8, seed=0)
    targets = [int(t) for batch in source(0) for t in batch.ids[batch.mask]]
    covered = shards.train[1 : 1 + 16 * len(windows)]
    assert sorted(targets) == sorted(int(t) for t in covered)  # each token exactly once
    ends = int((covered == tokenizer.endoftext).sum())
    assert targets.count(tokenizer.endoftext) == ends > 30


@pytest.mark.parametrize("epoch", range(3))
def test_shifted_rows_leave_out_less_than_a_row(shards: Shards, epoch: int) -> None:
    windows = PretrainDataset(shards.train, 16, seed=1)
    batch = windows.collate(range(len(windows)), epoch, [])
    assert batch.mask[:, 1:].all()
    assert not batch.mask[:, 0].any()
    assert int(batch.mask.sum()) > len(shards.train) - 2 * 16


def test_evaluation_scores_the_end_token_of_every_document(shards: Shards, tokenizer: Tokenizer) -> None:
    documents = shards.documents("val")
    assert sum(map(len, documents)) == len(shards.val) - 1
    rows = scored_documents(documents, 8, tokenizer.endoftext)
    scored = [i for ids, mask in rows for i, m in zip(ids, mask, strict=True) if m]
    assert scored.count(tokenizer.endoftext) == len(documents)
    assert all(d[-1] == tokenizer.endoftext for d in documents)
