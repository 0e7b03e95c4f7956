"""A decoding step with fixed addresses and shapes, as a CUDA graph records it. What is recorded on a GPU runs here as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.model.test_decoding import FEATURES, PROMPTS, STOP, assert_scored, made
from tinyllm.model import lora, sampling_memory
from tinyllm.model.config import LoRAConfig
from tinyllm.model.decoding import Sampling, generate, graphs, native
from tinyllm.model.decoding.one_token import OneToken
from tinyllm.model.decoding.ring import Ring


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """The functions that were recorded."""
    found: list[Callable[[], None]] = []

    def recorded(function: Callable[[], None]) -> Callable[[], None]:
        found.append(function)
        return function

    monkeypatch.setattr(graphs, "recorded", recorded)
    monkeypatch.setattr(graphs, "wanted", lambda *_: True)
    monkeypatch.setattr(graphs, "AFTER", 3)
    monkeypatch.setattr(native, "library", lambda: None)
    return found


@pytest.mark.parametrize("rows", [1, 15])
@pytest.mark.parametrize("name", sorted(FEATURES))
def test_completions_are_scored_alike(name: str, rows: int, recordings: list) -> None:
    more: dict[str, object] = {"num_key_value_heads": 4} if name == "gpt2" else {}
    if name in ("mistral", "gemma2", "gemma3_text"):
        more["sliding_window"] = 5
    model = made(0.2, **(FEATURES[name] | more))
    found = generate(model, PROMPTS, Sampling(24, stop=STOP, seed=2), rows=rows)
    assert recordings
    assert_scored(model, PROMPTS, found, 2e-5)


def test_addresses_stay_and_rows_that_enter_need_no_new_recording(recordings: list) -> None:
    model = made(0.3)
    addresses: dict[graphs.GraphStep, set[tuple[int, ...]]] = {}
    texts: dict[graphs.GraphStep, int] = {}
    before, enter = graphs.GraphStep.__call__, Ring.enter

    def called(step: graphs.GraphStep, ids: torch.Tensor) -> torch.Tensor:
        columns, ring = step.columns, step.ring
        fixed = (step.ids, step.positions, step.place, *columns.keys, *columns.values, *columns.masks.values())
        assert columns.keys[0].data_ptr() == ring.keys.data_ptr()
        assert {m.data_ptr() for m in columns.masks.values()} == {m.data_ptr() for m in ring.masks.values()}
        addresses.setdefault(step, set()).add(tuple(x.data_ptr() for x in fixed))
        texts[step] = entered[0]
        return before(step, ids)

    def counted(*given: object) -> None:
        entered[0] += 1
        enter(*given)

    entered = [0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs.GraphStep, "__call__", called)
        patch.setattr(Ring, "enter", counted)
        found = generate(model, PROMPTS, Sampling(30, stop=STOP[:2], seed=2), rows=4)
    assert all(len(fixed) == 1 for fixed in addresses.values())
    assert len(recordings) == len(addresses)
    assert texts[next(iter(addresses))] > 4, "rows have entered since the first recording"
    assert_scored(model, PROMPTS, found, 1e-5)


def test_a_penalty_and_greedy_choices(recordings: list) -> None:
    model = made(0.3)
    for sampling in (Sampling(20, temperature=0.0), Sampling(20, repetition_penalty=1.3, seed=1, top_k=20)):
        found = generate(model, PROMPTS, sampling, rows=15)
        assert recordings
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graphs, "wanted", lambda *_: False)
            plain = generate(model, PROMPTS, sampling, rows=15)
        assert [c.ids for c in found] == [c.ids for c in plain]


def test_where_steps_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(0.3)
    ring = Ring(model.config, 2, 16, 4, uneven=False, penalized=False, dtype=torch.float32, device=torch.device("cpu"))
    weights = OneToken(model, torch.float32, 16)
    monkeypatch.setenv("TINYLLM_CUDA_GRAPHS", "1")
    assert not graphs.wanted(weights, ring)
    ring.device = torch.device("cuda")
    assert graphs.wanted(weights, ring)
    monkeypatch.setattr(graphs, "_BYTES", 16)
    assert not graphs.wanted(weights, ring)
    monkeypatch.undo()
    monkeypatch.delenv("TINYLLM_CUDA_GRAPHS", raising=False)
    assert not graphs.wanted(weights, ring)


def test_an_adapter_whose_products_are_float32_in_autocast(recordings: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """DoRA beside weights in bf16: keys are float32, and those of the ring are not."""
    monkeypatch.setattr(sampling_memory, "COPIED_BYTES", 0)
    model = lora.attach(made(0.2), LoRAConfig(r=2, dora=True, token_rows=()))
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(model, PROMPTS[:3], Sampling(12, seed=1), rows=3)
    assert recordings
    assert all(len(completion.ids) == 12 for completion in found)
