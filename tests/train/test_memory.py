"""Activation checkpointing, a frozen base in bfloat16, the dtype of written weights, and estimates of memory."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support import run_tree, small, trained
from tinyllm.algorithms import next_token
from tinyllm.data.datasets.batches import TokenBatch
from tinyllm.errors import UserError
from tinyllm.model import heads, hub, lora, tensors
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.model.decoding import Sampling, generate
from tinyllm.model.heads import token_log_probs
from tinyllm.model.transformer import CausalLM, initialise, set_activation_checkpointing, set_dropout
from tinyllm.stages import sft
from tinyllm.stages.config import SftConfig
from tinyllm.stages.planning import memory as memory_plan
from tinyllm.train import estimate, memory
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine, autocast

SHAPE = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
LOSS = partial(next_token.loss, next_token.Settings())


def batch(packed: bool) -> TokenBatch:
    ids = torch.randint(0, 300, (3, 33), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 33, dtype=torch.bool)
    mask[:, 0] = False
    documents = torch.tensor([[1] * 20 + [2] * 13]).expand(3, 33) if packed else None
    return TokenBatch(ids, mask, documents) if packed else TokenBatch(ids, mask)


def gradients(checkpointing: bool, *, precision: str, adapted: bool, packed: bool) -> dict[str, torch.Tensor]:
    """Gradients of two micro-batches with dropout."""
    model = CausalLM(SHAPE)
    initialise(model, 0)
    set_dropout(model, 0.2)
    if adapted:
        lora.attach(model, LoRAConfig(r=2, dropout=0.3))
    engine = Engine(model, LOSS, OptimConfig(), 10, precision=precision, seed=3)
    engine.set_checkpointing(checkpointing)
    kept: dict[str, torch.Tensor] = {}
    engine._update = lambda rate: kept.update({k: p.grad.clone() for k, p in engine.trainable.items()})
    engine.step([batch(packed), batch(packed)])
    return kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_checkpointing_changes_no_bit_of_a_gradient(precision: str, adapted: bool, packed: bool) -> None:
    plain, recomputed = (gradients(on, precision=precision, adapted=adapted, packed=packed) for on in (False, True))
    assert plain
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_checkpointing_keeps_one_tensor_of_a_block_and_only_while_training() -> None:
    model = CausalLM(SHAPE)
    initialise(model, 0)
    ids = torch.zeros(2, 16, dtype=torch.long)

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(ids)
        own = {p.numel() for p in model.parameters()}
        return sum(size for size in sizes if size not in own)

    usual = kept()
    set_activation_checkpointing(model, True)
    assert kept() < usual / 3
    model.eval()
    assert kept() == usual


# --- what is kept narrow ---------------------------------------------------------------------------------------------------------------


def half_checkpoint(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A checkpoint as it would come from elsewhere, in half precision."""
    model = small.rough(scale=0.1)
    folder.mkdir(parents=True)
    hub.save(model, folder, bos=None, stop=small.tokenizer().stop_ids, pad=small.tokenizer().pad, dtype=dtype)
    small.tokenizer().save(folder, model_max_length=96)
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = half_checkpoint(tmp_path / "half", dtype)
    there = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in there.values()} == {dtype}
    found = hub.load_causal_lm(folder).state_dict()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in there.items())


def test_a_frozen_base_in_bf16_computes_what_its_float32_copy_does(tmp_path: Path) -> None:
    folder = half_checkpoint(tmp_path / "half")
    wide, narrow = (hub.load_causal_lm(folder, narrow=keep) for keep in (False, True))
    kinds = {p.ndim: p.dtype for p in narrow.parameters()}
    assert kinds == {2: torch.bfloat16, 1: torch.float32}
    x = batch(packed=False)
    results = []
    for model in (wide, narrow):
        lora.attach(model, LoRAConfig(r=2), seed=1)
        for layer in lora.layers(model).values():
            nn.init.constant_(layer.lora_B.weight, 0.01)
        engine = Engine(model, LOSS, OptimConfig(), 10, precision="bf16", seed=0)
        losses = [engine.step([x])["loss"] for _ in range(3)]
        results.append((losses, lora.branches(model)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], tensor) for name, tensor in results[1][1].items())


def test_a_bf16_base_generates_by_itself_what_it_does_under_autocast(tmp_path: Path) -> None:
    model = hub.load_causal_lm(half_checkpoint(tmp_path / "half"), narrow=True)
    sampling = Sampling(max_new_tokens=6, temperature=0)
    alone = generate(model, [[5, 6, 7], [8]], sampling)
    with torch.autocast("cpu", torch.bfloat16):
        assert [c.ids for c in generate(model, [[5, 6, 7], [8]], sampling)] == [c.ids for c in alone]


def test_weights_of_a_float32_file_are_never_rounded(tmp_path: Path) -> None:
    model = hub.load_causal_lm(half_checkpoint(tmp_path / "wide", torch.float32), narrow=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("whole", ["lm_head", "embed_tokens", "o_proj"])
def test_a_bf16_base_generates_by_itself_where_an_adapter_trains_a_part_of_it_whole(tmp_path: Path, whole: str) -> None:
    folder, sampling = half_checkpoint(tmp_path / "half"), Sampling(max_new_tokens=6, temperature=0)
    base = hub.load_causal_lm(folder, narrow=True)
    model = lora.attach(hub.load_causal_lm(folder, narrow=True), LoRAConfig(r=2, modules_to_save=(whole,)))
    found = [generate(m, [[5, 6, 7], [8]], sampling) for m in (base, model)]
    assert [c.ids for c in found[0]] == [c.ids for c in found[1]]


def test_a_reference_keeps_in_bf16_only_what_loses_nothing(tmp_path: Path) -> None:
    policy = hub.load_causal_lm(half_checkpoint(tmp_path / "half"))
    with torch.no_grad():
        policy.model.layers[0].mlp.up_proj.weight += 1e-6
    copy = hub.frozen_copy(policy, narrow=True)
    kept = {name: p.dtype for name, p in copy.named_parameters()}
    assert kept["model.layers.0.mlp.up_proj.weight"] == kept["model.norm.weight"] == torch.float32
    assert kept["model.layers.0.mlp.down_proj.weight"] == kept["model.embed_tokens.weight"] == torch.bfloat16
    assert copy.lm_head.weight is copy.model.embed_tokens.weight
    x = batch(packed=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(copy.log_probs(x.ids, x.mask), policy.log_probs(x.ids, x.mask))
        policy.lm_head.weight.zero_()
        assert not torch.equal(copy.log_probs(x.ids, x.mask), policy.log_probs(x.ids, x.mask)), "it shares nothing"


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_gradient_of_a_frozen_head_is_not_computed(softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def states_gradient(learned: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(1, 9, 8, generator=generator, requires_grad=True)
        head = torch.randn(30, 8, generator=generator).requires_grad_(learned)
        ids, mask = torch.arange(9)[None], torch.arange(9)[None] > 0
        token_log_probs(hidden, head, ids, mask, softcap=softcap).sum().backward()
        assert hidden.grad is not None
        return hidden.grad

    want, computed = states_gradient(True), []
    monkeypatch.setattr(heads, "_add_product", lambda *_: computed.append(1))
    assert torch.equal(states_gradient(False), want)
    assert not computed
    states_gradient(True)
    assert computed


# --- the dtype that is written ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_written_in_the_dtype_that_its_parent_came_in(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run_tree.write_records(tmp_path)
    for dtype, saved in (("auto", "bfloat16"), ("fp32", "float32"), ("fp16", "float16")):
        parent = Path("half") if Path("half").is_dir() else half_checkpoint(Path("half"))
        config = run_tree.make_config(SftConfig, "talk.jsonl", dtype, parent=parent, train={"save_dtype": dtype})
        last = run_tree.run_stage(sft, config) / "checkpoints" / "ckpt_latest"
        there = load_file(last / "model.safetensors")
        described = json.loads((last / "config.json").read_text())
        assert {str(tensor.dtype) for tensor in there.values()} == {f"torch.{saved}"}
        assert described["dtype"] == described["torch_dtype"] == saved
        exact = last / "trainer" / "weights.safetensors"
        assert exact.exists() == (saved != "float32")
        if exact.exists():
            weights = load_file(exact)
            assert all(torch.equal(tensor, weights[name].to(tensor.dtype)) for name, tensor in there.items())
            assert any(not torch.equal(tensor.float(), weights[name]) for name, tensor in there.items())


def test_a_run_that_is_written_in_bf16_resumes_from_float32_bit_by_bit(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run_tree.write_records(tmp_path)
    half_checkpoint(Path("half"))
    whole = run_tree.make_config(SftConfig, "talk.jsonl", "whole", parent=Path("half"))
    parts = run_tree.make_config(SftConfig, "talk.jsonl", "parts", parent=Path("half"))
    want = run_tree.run_stage(sft, whole) / run_tree.LAST
    got = run_tree.run_stage(sft, parts) / run_tree.LAST
    shutil.rmtree(got)
    assert run_tree.run_stage(sft, parts) / run_tree.LAST == got
    for name in ("model.safetensors", "trainer/weights.safetensors", "trainer/optimizer.safetensors"):
        assert (got / name).read_bytes() == (want / name).read_bytes(), name


def test_a_weight_too_large_for_float16_is_refused(tmp_path: Path) -> None:
    model = small.rough()
    with torch.no_grad():
        model.model.norm.weight[3] = 70_000
    with pytest.raises(UserError, match=r"model\.norm\.weight holds 7e\+04, and float16 ends at 65504") as caught:
        hub.save(model, tmp_path, bos=None, stop=(2,), pad=3, dtype=torch.float16)
    assert caught.value.where == "train.save_dtype"


def test_the_dtype_of_a_file_is_that_of_most_of_its_numbers(tmp_path: Path) -> None:
    kinds = {"a": torch.zeros(5, dtype=torch.bfloat16), "b": torch.zeros(4), "c": torch.zeros(2)}
    save_file(kinds, tmp_path / "model.safetensors")
    assert hub.file_dtype(tmp_path) == torch.float32
    index = {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": kinds["a"]}, tmp_path / "x.safetensors")
    save_file({"b": kinds["b"]}, tmp_path / "y.safetensors")
    assert hub.file_dtype(tmp_path) == torch.bfloat16


def test_loading_never_holds_the_weights_twice(tmp_path: Path) -> None:
    """The tensors of a file are read one at a time: there is no second copy while the last is read."""
    save_file({str(i): torch.full((1000,), float(i)) for i in range(5)}, tmp_path / "model.safetensors")
    alive: list[weakref.ref] = []
    for _, tensor in tensors.stream([tmp_path / "model.safetensors"]):
        assert not [ref for ref in alive if ref() is not None]
        alive.append(weakref.ref(tensor))
        del tensor
    assert len(alive) == 5


# --- estimates -------------------------------------------------------------------------------------------------------------------------


def run_of(shape: ModelConfig, **changes: Any) -> estimate.Training:
    count = shape.parameters()
    return replace(estimate.Training(shape, 2, 64, weights=4 * count, trained=count, bf16=False), **changes)


def test_an_estimate_counts_gradients_and_moments_of_trained_weights_only() -> None:
    count = SHAPE.parameters()
    full = estimate.needs(run_of(SHAPE))
    assert full["weights"] == 4 * count
    assert full["optimizer state"] == 8 * count
    assert full["gradients"] >= 4 * count
    adapter = estimate.adapter_parameters(SHAPE, LoRAConfig(r=2))
    tuned = estimate.needs(run_of(SHAPE, weights=2 * count + 4 * adapter, trained=adapter, head="frozen"))
    assert tuned["weights"] == 2 * count + 4 * adapter
    assert tuned["optimizer state"] == 8 * adapter
    assert tuned["gradients"] == 4 * adapter


def test_an_estimate_counts_what_bf16_keeps_and_copies() -> None:
    """Probabilities up to 512 tokens, also of rows whose last token is left out; copies of weights too large to be packed."""
    kept = [estimate.kept(run_of(SHAPE, length=length, bf16=True)) / length for length in (512, 513, 514)]
    assert kept[1] > kept[0] > 1.2 * kept[2]
    large = SHAPE.model_copy(update={"vocab_size": 1 << 22, "hidden_size": 128})
    sampling = [
        estimate._sampling_bytes(run_of(large, bf16=bf16, sampled=1, context=2, trained=0)) for bf16 in (False, True)
    ]
    assert sampling[1] - sampling[0] == pytest.approx(2 * large.parameters(), rel=0.01)


@pytest.mark.parametrize("dora", [False, True])
def test_the_size_of_an_adapter_is_that_of_its_tensors(dora: bool) -> None:
    for targets in (("q_proj", "down_proj"), ("all-linear",)):
        config = LoRAConfig(r=3, dora=dora, targets=targets)
        model = lora.attach(CausalLM(SHAPE), config)
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert estimate.adapter_parameters(SHAPE, config) == count


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("length", [640, 512])
def test_estimated_activations_are_what_autograd_keeps(
    length: int, precision: str, adapted: bool, checkpointing: bool
) -> None:
    """Bytes of all distinct storages that are saved for the backward pass, weights excepted; within 15 %."""
    shape = SHAPE.model_copy(update={"vocab_size": 64, "hidden_size": 128, "intermediate_size": 384, "head_dim": 32})
    model = CausalLM(shape)
    initialise(model, 0)
    if adapted:
        lora.attach(model, LoRAConfig(r=2))
    model.train()
    set_activation_checkpointing(model, checkpointing)
    ids = torch.zeros(2, length, dtype=torch.long)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    device = torch.device("cpu")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), autocast(precision, device):
        states = model(ids)
    for p in model.parameters():
        kept.pop(p.untyped_storage().data_ptr(), None)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = "frozen" if adapted else "trained"
    run = run_of(shape, rows=2, length=length, trained=count, bf16=precision == "bf16", head=head)
    run = replace(run, checkpointing=checkpointing)
    assert states.requires_grad
    assert sum(kept.values()) == pytest.approx(estimate.kept(run), rel=0.15)


def test_checkpointing_is_chosen_where_the_peak_would_not_fit_comfortably() -> None:
    run = run_of(SHAPE)
    peak = estimate.peak(run)
    assert estimate.wants_checkpointing(run, int(peak / estimate.COMFORTABLE) - 1000)
    assert not estimate.wants_checkpointing(run, int(peak / estimate.COMFORTABLE) + 1000)


def test_a_small_model_of_ours_is_trained_without_checkpointing_and_a_short_memory_is_said(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    trained.train_small(tmp_path / "a", steps=2)
    assert "activation checkpointing" not in capsys.readouterr().err
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000_000)
    trained.train_small(tmp_path / "b", steps=2)
    assert "activation checkpointing is on: with all activations of 3 x " in capsys.readouterr().err
    one, two = (load_file(tmp_path / run / "checkpoints/ckpt_latest/model.safetensors") for run in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/job\n", {"job/memory.max": "3000", "job/memory.current": "1000", "memory.max": "max"}, 2000),
        ("0::/job\n", {"job/memory.max": "max", "memory.max": "5000", "memory.current": "1000"}, 4000),
        ("0::/\n", {"memory.max": "max", "memory.current": "7"}, None),
        (
            "4:memory:/a/b\n0::/\n",
            {"memory/a/memory.limit_in_bytes": "900", "memory/a/memory.usage_in_bytes": "500"},
            400,
        ),
        (
            "4:cpu,memory:/\n",
            {"memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": "5"},
            None,
        ),
        (
            "0::/job\n",
            {"job/memory.max": "3000", "job/memory.current": "2500", "job/memory.stat": "inactive_file 300"},
            800,
        ),
    ],
)
def test_the_memory_there_is_respects_control_groups(
    tmp_path: Path, monkeypatch: Any, groups: str, files: dict[str, str], left: int | None
) -> None:
    for name, content in {"meminfo": "MemAvailable:  9 kB\n", "own": groups, "status": "VmRSS: 2 kB\n"}.items():
        (tmp_path / name).write_text(content)
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content + "\n")
    for name, path in {"_MEMINFO": "meminfo", "_OWN_GROUPS": "own", "_STATUS": "status", "_GROUPS": "groups"}.items():
        monkeypatch.setattr(memory, name, tmp_path / path)
    assert memory.available_memory() == min(9 * 1024, left if left is not None else 9 * 1024) + 2 * 1024


def test_a_model_too_large_for_the_memory_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run_tree.write_records(tmp_path)
    half_checkpoint(Path("half"))
    (Path("half") / "model.safetensors").write_bytes(b"never read")
    monkeypatch.setattr(memory_plan, "available_memory", lambda: estimate.PROCESS + 100_000)
    config = run_tree.make_config(SftConfig, "talk.jsonl", "large", parent=Path("half"))
    with pytest.raises(UserError, match=r"parameters need 0\.4 GB .* and there are 0\.4 GB") as caught:
        run_tree.run_stage(sft, config)
    assert caught.value.code == 4
    assert caught.value.fix == "train an adapter instead: --set lora.r=8"
