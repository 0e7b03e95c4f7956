"""Adapters of every kind that PEFT writes, and ours that PEFT reads: logits are equal, merged or not, with tied and untied heads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("transformers", "peft"):
    pytest.importorskip(package)
import peft  # noqa: E402
import transformers  # noqa: E402

from tests.parity import tiny  # noqa: E402 - sets the libraries' environment
from tests.parity.tiny import moved  # noqa: E402
from tinyllm.model import hub, lora  # noqa: E402
from tinyllm.model.transformer import CausalLM  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
IDS = torch.tensor([[5, 9, 33, 14, 15, 3, 60, 1], [50, 11, 1, 3, 7, 7, 2, 40]])
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CLOSE = 3e-6  # transformers normalizes and rotates in float32, whatever the weights are
FULL = ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.up_proj"]
NARROW = ["q_proj", "v_proj", "down_proj"]
BOTH, TIED, UNTIED = (False, True), (True,), (False,)
KINDS: Mapping[str, tuple[tuple[bool, ...], dict[str, Any]]] = {  # name -> tied heads, PEFT's settings
    "names": (UNTIED, {"target_modules": NARROW}),
    "full names": (UNTIED, {"target_modules": FULL}),
    "full names and names": (UNTIED, {"target_modules": [FULL[0], "gate_proj"], "layers_to_transform": [1]}),
    "regular expression": (UNTIED, {"target_modules": r".*\.(0|2)\..*(q_proj|up_proj)"}),
    "all-linear": (TIED, {"target_modules": "all-linear"}),
    "rank and alpha patterns": (
        UNTIED,
        {
            "target_modules": NARROW,
            "rank_pattern": {"model.layers.0.self_attn.q_proj": 5, "down_proj": 2, "q_proj": 4},
            "alpha_pattern": {r"layers\.[01]\.self_attn\.v_proj": 20, "^model.layers.1.mlp.down_proj": 1},
        },
    ),
    "layers": (UNTIED, {"target_modules": NARROW, "layers_to_transform": [0, 2], "layers_pattern": "layers"}),
    "one layer": (UNTIED, {"target_modules": NARROW, "layers_to_transform": 1}),
    "excluded names": (UNTIED, {"target_modules": "all-linear", "exclude_modules": ["q_proj", FULL[1]]}),
    "excluded by pattern": (UNTIED, {"target_modules": NARROW, "exclude_modules": r".*layers\.1\..*"}),
    "whole norms": (UNTIED, {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    "whole MLP": (UNTIED, {"target_modules": NARROW, "modules_to_save": ["mlp"]}),
    "whole embedding": (BOTH, {"target_modules": NARROW, "modules_to_save": ["embed_tokens"]}),
    "whole head": (BOTH, {"target_modules": NARROW, "modules_to_save": ["lm_head"]}),
    "whole embedding and head": (BOTH, {"target_modules": NARROW, "modules_to_save": ["lm_head", "embed_tokens"]}),
    "whole tied embedding": (
        TIED,
        {"target_modules": NARROW, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "embedding": (BOTH, {"target_modules": ["q_proj", "embed_tokens"]}),
    "head": (BOTH, {"target_modules": ["q_proj", "lm_head"]}),
    "embedding and head": (BOTH, {"target_modules": ["embed_tokens", "lm_head"], "rank_pattern": {"lm_head": 5}}),
    "tied embedding": (TIED, {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
    "token rows": (BOTH, {"target_modules": NARROW, "trainable_token_indices": [7, 3, 60]}),
    "token rows by module": (
        BOTH,
        {"target_modules": NARROW, "trainable_token_indices": {"embed_tokens": [7, 3], "lm_head": [7, 3]}},
    ),
    "different token rows": (
        BOTH,
        {"target_modules": NARROW, "trainable_token_indices": {"embed_tokens": [7, 3], "lm_head": [3, 40, 1]}},
    ),
    "rslora": (UNTIED, {"target_modules": NARROW, "use_rslora": True, "rank_pattern": {"q_proj": 6}}),
    "dora": (UNTIED, {"target_modules": NARROW, "use_dora": True}),
    "dora on embedding and head": (BOTH, {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}),
    "pissa": (UNTIED, {"target_modules": NARROW, "init_lora_weights": "pissa"}),
    "pissa, rslora": (UNTIED, {"target_modules": NARROW, "init_lora_weights": "pissa", "use_rslora": True}),
    "pissa, dora": (UNTIED, {"target_modules": NARROW, "init_lora_weights": "pissa", "use_dora": True}),
    "olora": (UNTIED, {"target_modules": NARROW, "init_lora_weights": "olora"}),
    "olora, patterns": (
        UNTIED,
        {"target_modules": NARROW, "init_lora_weights": "olora", "rank_pattern": {"q_proj": 6}},
    ),
    "gaussian": (UNTIED, {"target_modules": NARROW, "init_lora_weights": "gaussian"}),
    "orthogonal": (UNTIED, {"target_modules": NARROW, "init_lora_weights": "orthogonal", "r": 4}),
}
CASES = [(kind, tied) for kind, (tieds, _) in KINDS.items() for tied in tieds]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[bool, Path]:
    """A Qwen2 with a tied head and one without, with weights of order one."""
    found = {}
    for tied in (False, True):
        torch.manual_seed(1)
        config = transformers.Qwen2Config(**SHAPE, tie_word_embeddings=tied)
        model = transformers.Qwen2ForCausalLM(config)
        tiny.draw(model, 4, 0.15)
        found[tied] = tmp_path_factory.mktemp(f"base-{tied}")
        model.save_pretrained(found[tied])
    return found


@cache
def opened(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def fresh(folder: Path) -> Any:
    """A copy of the base in float32: PiSSA and OLoRA take no other."""
    return copy.deepcopy(opened(folder))


def written_by_peft(kind: Mapping[str, Any], base: Path, folder: Path) -> torch.Tensor:
    """Save an adapter of a kind, and return PEFT's logits with it as loaded again."""
    settings = {"r": 3, "lora_alpha": 7, "task_type": "CAUSAL_LM", **kind}
    model = peft.get_peft_model(fresh(base), peft.LoraConfig(**settings))
    parts = ("lora_", "modules_to_save", "token_adapter.trainable")
    moved(model, lambda name: any(part in name for part in parts))
    model.save_pretrained(folder)
    return logits_of_peft(base, folder)


@torch.no_grad()
def logits_of_peft(base: Path, folder: Path) -> torch.Tensor:
    model = peft.PeftModel.from_pretrained(fresh(base), folder).double().eval()
    return model(IDS).logits


@torch.no_grad()
def logits(model: CausalLM) -> torch.Tensor:
    model = model.double().eval()
    return model.logits(model(IDS))


@torch.no_grad()
def log_probs(model: CausalLM) -> torch.Tensor:
    mask = torch.ones_like(IDS, dtype=torch.bool)
    mask[:, 0] = False
    return model.double().eval().log_probs(IDS, mask)[:, 1:]


@pytest.mark.parametrize(("kind", "tied"), CASES, ids=[f"{kind}, {'tied' if t else 'untied'}" for kind, t in CASES])
def test_we_open_what_peft_wrote_and_peft_what_we_wrote(
    kind: str, tied: bool, bases: Mapping[bool, Path], tmp_path: Path
) -> None:
    exchange(KINDS[kind][1], bases[tied], tmp_path)


SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 64}
OTHERS: Mapping[str, tuple[Any, Mapping[str, Any], Mapping[str, Any]]] = {  # class, shape, PEFT's settings
    "gpt2": (transformers.GPT2Config, SMALL, {"target_modules": "all-linear"}),
    "gpt2, dora": (transformers.GPT2Config, SMALL, {"target_modules": ["c_attn", "c_fc"], "use_dora": True}),
    "gpt2, pissa": (transformers.GPT2Config, SMALL, {"target_modules": ["c_attn"], "init_lora_weights": "pissa"}),
    "gpt2, whole": (
        transformers.GPT2Config,
        SMALL,
        {"target_modules": ["c_attn"], "modules_to_save": ["c_fc", "ln_f"], "trainable_token_indices": [7, 3]},
    ),
    "gpt2, embedding": (
        transformers.GPT2Config,
        SMALL,
        {"target_modules": ["wte", "lm_head"], "rank_pattern": {"transformer.wte": 2}},
    ),
    "phi3": (transformers.Phi3Config, {**SHAPE, "pad_token_id": 0}, {"target_modules": "all-linear"}),
    "gemma3": (
        transformers.Gemma3TextConfig,
        {**SHAPE, "head_dim": 8, "sliding_window": 4},
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    ),
    "gemma2": (
        transformers.Gemma2Config,
        {**SHAPE, "head_dim": 8, "sliding_window": 4},
        {"target_modules": ["gate_proj"], "trainable_token_indices": [7, 3]},
    ),
    "granite": (
        transformers.GraniteConfig,
        {**SHAPE, "logits_scaling": 2.0},
        {"target_modules": ["lm_head", "q_proj"]},
    ),
    "olmo2": (transformers.Olmo2Config, SHAPE, {"target_modules": "all-linear", "use_rslora": True}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_adapters_of_other_architectures(name: str, tmp_path: Path) -> None:
    kind, shape, settings = OTHERS[name]
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(kind(**shape), attn_implementation="eager")
    tiny.draw(model, 4, 0.15)
    model.save_pretrained(tmp_path / "base")
    exchange(settings, tmp_path / "base", tmp_path)


def exchange(kind: Mapping[str, Any], base: Path, folder: Path) -> None:
    """Open an adapter that PEFT wrote, switch it off and on, write another for PEFT, and merge."""
    theirs = folder / "theirs"
    want = written_by_peft(kind, base, theirs)
    plain = hub.load_causal_lm(base)
    assert (want - logits(plain)).abs().max() > 0.05
    model = hub.load_causal_lm(base)
    config = lora.load(model, theirs)
    torch.testing.assert_close(logits(model), want, atol=CLOSE, rtol=0)
    chosen = want.log_softmax(-1)[:, :-1].gather(-1, IDS[:, 1:, None])[..., 0]
    torch.testing.assert_close(log_probs(model), chosen, atol=CLOSE, rtol=0)
    with lora.disabled(model):
        torch.testing.assert_close(logits(model), logits(hub.load_causal_lm(base)), atol=CLOSE, rtol=0)
    torch.testing.assert_close(logits(model), want, atol=CLOSE, rtol=0)

    ours = folder / "ours"
    ours.mkdir()
    trained = lora.branches(model).keys()
    moved(model, trained.__contains__)
    model.float()
    lora.save(model, config, ours, str(base))
    got = logits(model)
    assert (got - want).abs().max() > 0.02
    torch.testing.assert_close(got, logits_of_peft(base, ours), atol=CLOSE, rtol=0)
    lora.restore(model, config, theirs)
    torch.testing.assert_close(logits(model), want, atol=CLOSE, rtol=0)

    merged = lora.merge(model.float())
    assert not lora.branches(merged)
    torch.testing.assert_close(logits(merged), want, atol=2e-5, rtol=0)
    whole = folder / "whole"
    whole.mkdir()
    hub.save(merged.float(), whole, bos=None, stop=(1,), pad=0)
    with torch.no_grad():
        torch.testing.assert_close(opened(whole).double()(IDS).logits, want, atol=2e-5, rtol=0)
