"""Perplexity and bits per byte: pooled over tokens, whatever the documents' lengths; and pretraining that uses them."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import small
from tinyllm.algorithms import next_token
from tinyllm.data.datasets.packing import PackedPretrainDataset
from tinyllm.data.tokens.shards import open_shards
from tinyllm.mean import values
from tinyllm.stages import pretrain
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.held_out import score_documents
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine
from tinyllm.train.run import Invocation

TEXTS = ["red", "It is a colour. " * 3, "What is 7? It is a number. What is blue?"]


@torch.no_grad()
def nats(model: torch.nn.Module, document: list[int], begin: int) -> torch.Tensor:
    """-log p of each token of one document behind `begin`, by full softmax."""
    ids = torch.tensor([[begin, *document]])
    return -model.logits(model(ids)).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_perplexity_is_pooled_over_all_tokens(rows: int) -> None:
    model, texts = small.rough(), small.tokenizer()
    documents = [[*ids, texts.endoftext] for ids in texts.encode_batch(TEXTS)]
    assert len({len(d) for d in documents}) == 3
    engine = Engine(model, partial(next_token.loss, next_token.Settings()), OptimConfig(), 1, precision="fp32", seed=0)
    found = values(score_documents(engine, documents, texts, 96, rows))
    each = [nats(model, document, texts.endoftext) for document in documents]
    together = torch.cat(each)
    assert found["tokens"] == len(together) == sum(map(len, documents))
    assert found["loss"] == pytest.approx(together.mean().item(), abs=1e-4)
    assert found["perplexity"] == pytest.approx(together.mean().exp().item(), rel=1e-4)
    assert found["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert found["bits_per_byte"] == pytest.approx(together.sum().item() / math.log(2) / found["bytes"], rel=1e-4)
    of_means = torch.stack([x.mean() for x in each]).mean().item()
    assert abs(of_means - found["loss"]) > 1e-2  # the mean of means is another number


def test_a_short_pretraining_learns_and_its_best_checkpoint_is_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"{word} is a colour. " * 3 + f"What is {i}? It is a number."} for i, word in enumerate(TEXTS * 9)]
    config = PretrainConfig(
        model=small.SHAPE.model_copy(update={"vocab_size": 300}),
        **small.common(small.written(tmp_path / "text.jsonl", rows), steps=12),
    )
    found = pretrain.run(config, Invocation("written: down\n"))
    assert found["before"]["loss"] == pytest.approx(math.log(300), abs=0.3)
    shards = open_shards(tmp_path / "runs" / "data" / "default" / "shards")
    val, test = (shards.documents(split, for_test=0.5) for split in ("val", "test"))
    assert found["best"]["tokens"] == sum(map(len, val))  # ends included
    assert sum(map(len, [*val, *test])) == shards.manifest.val.tokens - 1  # each but the one that opens the file
    assert min(len(val), len(test)) == 1
    assert found["best"]["bits_per_byte"] < 0.9 * found["before"]["bits_per_byte"]
    evaluated = small.metrics(Path(found["run"]), "eval")
    best = min(evaluated, key=lambda row: row["loss"])
    assert found["best"]["loss"] == best["loss"]
    assert (Path(found["run"]) / "checkpoints" / "ckpt_best").resolve().name == f"step-{best['step']:08d}"


def test_control_tokens_keep_embeddings_of_unit_length() -> None:
    """Raw text never holds them; what the softmax would do to them, no adapter undoes. Other rows are trained as ever."""
    from tinyllm.model.transformer import CausalLM, initialise
    from tinyllm.stages.pretrain import freeze_unseen_tokens

    model = CausalLM(small.SHAPE.model_copy(update={"vocab_size": small.tokenizer().vocab_size}))
    initialise(model, 0)
    ids = [small.tokenizer().im_start, small.tokenizer().im_end]
    freeze_unseen_tokens(model, ids)
    row = torch.tensor([[9, 8, 7, 6]])
    (-model.log_probs(row, torch.tensor([[False, True, True, True]])).sum()).backward()
    gradient = model.model.embed_tokens.weight.grad
    assert not gradient[ids].any()
    assert gradient.abs().sum(1).gt(0).sum() > len(gradient) / 2
    lengths = model.model.embed_tokens.weight.detach()[ids].norm(dim=1)
    assert ((lengths > 0.4) & (lengths < 1.8)).all()


@torch.no_grad()
def test_packed_documents_are_scored_as_if_alone() -> None:
    """No token's log-probability depends on the other documents of its row; without the document numbers it does."""
    model, texts = small.rough(), small.tokenizer()
    documents = [[*ids, texts.endoftext] for ids in texts.encode_batch(TEXTS * 3)]
    tokens = np.array([texts.endoftext, *(i for d in documents for i in d)])
    rows = PackedPretrainDataset(tokens, 90, end=texts.endoftext, pad=texts.pad)
    assert len(rows) < len(documents)
    batch = rows.collate(range(len(rows)), 0, [])
    scores = model.log_probs(batch.ids, batch.mask, attend=batch.documents)
    want = torch.cat([-nats(model, document, texts.endoftext) for document in documents])
    got = scores[batch.mask]
    assert len(got) == len(want)
    torch.testing.assert_close(got.sort().values, want.sort().values, atol=1e-4, rtol=0)
    leaking = model.log_probs(batch.ids, batch.mask)[batch.mask]
    assert (leaking - got).abs().max() > 0.1


def test_packed_pretraining_learns_and_reports_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"{word} is {'very ' * (i % 4)}{i}."} for i, word in enumerate(TEXTS * 12)]
    sections = small.common(small.written(tmp_path / "text.jsonl", rows), steps=12, batch_size=4, micro_batch_size=2)
    shape = small.SHAPE.model_copy(update={"vocab_size": 300})
    found = pretrain.run(PretrainConfig(model=shape, packing=True, **sections), Invocation("written: down\n"))
    assert found["best"]["bits_per_byte"] < 0.9 * found["before"]["bits_per_byte"]
    assert re.search(
        r"packed \d+ documents into \d+ rows: \d+\.\d% padding, .* it would be \d+\.\d%",
        capsys.readouterr().err,
    )


def test_packing_and_weights_together_are_refused() -> None:
    data = {"train": ("a.txt", "b.txt"), "weights": (1.0, 2.0)}
    with pytest.raises(ValueError, match="sources are mixed in a stream only"):
        PretrainConfig(packing=True, data=data)
