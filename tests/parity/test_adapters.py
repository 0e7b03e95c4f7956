"""Files exchanged in both directions: adapters with PEFT, reward models with transformers. Logits and scores are equal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

for package in ("transformers", "trl", "peft"):
    pytest.importorskip(package)
import peft  # noqa: E402

from tests.parity import oracles, tiny  # noqa: E402
from tinyllm.model import hub, lora  # noqa: E402
from tinyllm.model.config import LoRAConfig  # noqa: E402
from tinyllm.model.transformer import CausalLM, set_dropout  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
IDS = torch.tensor([[*pair.prompt, *pair.chosen][:6] for pair in tiny.PAIRS if len([*pair.prompt, *pair.chosen]) > 5])
NARROW, WIDE = ("q_proj", "v_proj", "down_proj"), LoRAConfig().targets
KINDS = {
    "plain": {"targets": WIDE},
    "some layers": {"targets": NARROW},
    "rslora": {"targets": WIDE, "rslora": True},
    "dora": {"targets": NARROW, "dora": True},
    "both": {"targets": WIDE, "rslora": True, "dora": True},
}


def logits(model: CausalLM) -> torch.Tensor:
    return model.eval().logits(model(IDS))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("merged", [False, True])
def test_peft_opens_what_we_wrote(kind: str, merged: bool) -> None:
    adapter = tiny.adapter(LoRAConfig(r=3, alpha=7, **KINDS[kind]))
    theirs = oracles.adapted(adapter).eval()
    if merged:
        theirs = theirs.merge_and_unload()
    ours = hub.load_causal_lm(adapter, merged=merged).double()
    torch.testing.assert_close(logits(ours), theirs(IDS).logits, atol=2e-5, rtol=0)
    assert (logits(tiny.policy()) - logits(ours)).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_we_open_what_peft_wrote(kind: str, tmp_path: Path) -> None:
    given = KINDS[kind]
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=list(given["targets"]),
        use_rslora=given.get("rslora", False),
        use_dora=given.get("dora", False),
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(oracles.policy(), config).eval()
    for number, (name, parameter) in enumerate(theirs.named_parameters()):
        if "lora_" in name:
            generator = torch.Generator().manual_seed(number)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    theirs.float().save_pretrained(tmp_path)
    theirs.double()
    for merged in (False, True):
        ours = hub.load_causal_lm(tmp_path, merged=merged).double()
        torch.testing.assert_close(logits(ours), theirs(IDS).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_in_training_the_adapter_drops_what_peft_drops(kind: str, dropout: float) -> None:
    """The same masks: logits and gradients of the branches are equal, and differ from those without dropout if there is any."""
    adapter = tiny.adapter(LoRAConfig(r=3, alpha=7, dropout=dropout, **KINDS[kind]))
    theirs, ours = oracles.adapted(adapter).train(), hub.load_causal_lm(adapter, merged=False).double()
    set_dropout(ours, 0.0)  # as the trainer does; it is the blocks' and not the adapter's
    still = logits(ours)
    torch.manual_seed(3)
    want = theirs(IDS).logits
    torch.manual_seed(3)
    got = ours.train().logits(ours(IDS))
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)
    assert ((got - still).abs().max() > 0.1) == (dropout > 0)
    want.square().sum().backward()
    got.square().sum().backward()
    expected = {re.sub(r"\.weight$|\.default", "", n): p.grad for n, p in theirs.named_parameters() if "lora_" in n}
    branches = {n: p.grad for n, p in ours.named_parameters() if lora.is_branch(n)}
    assert len(branches) == len(expected)
    for name, gradient in branches.items():
        wanted = expected[f"base_model.model.{name.removesuffix('.weight')}"]
        torch.testing.assert_close(gradient, wanted, atol=1e-3, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_transformers_scores_as_our_reward_model(side: str) -> None:
    rows = [[*pair.prompt, *pair.chosen] for pair in tiny.PAIRS]
    width = max(map(len, rows))
    padding = [[tiny.PAD] * (width - len(row)) for row in rows]
    pairs = list(zip(padding, rows, strict=True))
    ids = torch.tensor([p + row if side == "left" else row + p for p, row in pairs])
    real = torch.tensor(
        [[False] * len(p) + [True] * len(r) if side == "left" else [True] * len(r) + [False] * len(p) for p, r in pairs]
    )
    theirs = oracles.scorer().eval()(input_ids=ids, attention_mask=real.long()).logits.squeeze(-1)
    ours = tiny.scorer().eval().rewards(ids, real, attend=real)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=0)
    alone = [oracles.scorer().eval()(input_ids=torch.tensor([row])).logits.item() for row in rows]
    torch.testing.assert_close(ours.double(), torch.tensor(alone, dtype=torch.float64), atol=1e-5, rtol=0)
