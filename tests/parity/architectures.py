"""`python -m tests.parity.architectures`: every architecture and chat template against transformers and PEFT, as two tables. Exit code 1 if
anything differs.

Differences are the largest absolute ones relative to the largest absolute value of transformers, in float32. A column says what was
compared; the last one, how far the nearest of the planted breaks was: a reader that ignores a feature must be seen.
`--keys` changes every key of config.json instead (`keys`). `--device cuda` computes both sides there. Names of rows may follow.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script, Python finds what lies beside this file only
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    warnings.simplefilter("ignore")

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from tests.parity import templates
from tests.parity.checkpoints import BOS, EOS, MODELS, PAD, VOCABULARY, edited, folder, new_folder, theirs
from tests.parity.tiny import moved
from tinyllm.algorithms import next_token
from tinyllm.data.datasets.batches import TokenBatch, right_padded
from tinyllm.errors import UserError
from tinyllm.model import hub, lora
from tinyllm.model.decoding import Sampling, generate
from tinyllm.model.transformer import CausalLM, KVCache

TOLERANCE = 1e-5
FAR = 1e-3
LENGTHS = (4, 40, 100)  # below and beyond windows of 6 and original contexts of 32 and 64
DEVICE = torch.device("cpu")  # of both sides
NOT_COMPARED = {"transformers_version", "_name_or_path", "dtype", "architectures", "initializer_range", "use_cache"}


def apart(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value expected."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def tokens(length: int, seed: int = 0) -> list[int]:
    """Random ids without the special ones: transformers' embedding has no gradient for padding."""
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def opened_here(where: Path) -> CausalLM:
    return hub.load_causal_lm(where).to(DEVICE)


@torch.no_grad()
def our_logits(model: CausalLM, rows: Sequence[Sequence[int]], attend: Tensor | None = None) -> Tensor:
    return model.logits(model(torch.tensor(rows, device=DEVICE), attend)).cpu()


@torch.no_grad()
def their_logits(model: nn.Module, row: Sequence[int]) -> Tensor:
    return model(input_ids=torch.tensor([row], device=DEVICE)).logits[0].cpu()


def logits(where: Path, oracle: nn.Module, lengths: Sequence[int] = LENGTHS) -> float:
    """Compare logits of single rows."""
    ours = opened_here(where).eval()
    rows = [tokens(length) for length in lengths]
    return max(apart(our_logits(ours, [row])[0], their_logits(oracle, row)) for row in rows)


def padding(where: Path, oracle: nn.Module) -> float:
    """Compare rows padded on the left, and rows packed into one, with each of them alone."""
    ours = opened_here(where).eval()
    rows = [tokens(length, length) for length in (3, 17, 40)]
    expected = [their_logits(oracle, row) for row in rows]
    ids, attend = left_padded(rows)
    padded = our_logits(ours, ids.tolist(), attend)
    joined = [token for row in rows for token in row]
    documents = torch.tensor([[number for number, row in enumerate(rows, start=1) for _ in row]], device=DEVICE)
    pieces = our_logits(ours, [joined], documents)[0].split([len(row) for row in rows])
    gaps = [apart(found[-len(row) :], want) for found, row, want in zip(padded, rows, expected, strict=True)]
    return max(*gaps, *(apart(found, want) for found, want in zip(pieces, expected, strict=True)))


def left_padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) and attend (B, T) bool, padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows], device=DEVICE)
    attend = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows], device=DEVICE)
    return ids, attend


@torch.no_grad()
def cached(where: Path) -> float:
    """Compare a prefill and then one token at a time with the forward pass over the whole row, alone and padded on the left."""
    ours = opened_here(where).eval()
    worst = 0.0
    for lengths in ((40,), (25, 40, 31)):
        ids, attend = left_padded([tokens(length, length) for length in lengths])
        whole = our_logits(ours, ids.tolist(), attend)
        real = attend[..., None].cpu()
        even = bool(attend.all())
        cache = KVCache(ours.config, len(ids), ids.shape[1], ids.device, torch.float32)
        steps = [slice(0, 20), *(slice(t, t + 1) for t in range(20, 40))]
        parts = [ours.logits(ours(ids[:, at], None if even else attend[:, : at.stop], cache)) for at in steps]
        worst = max(worst, apart(torch.cat(parts, 1).cpu() * real, whole * real))
    return worst


def generation(where: Path, oracle: nn.Module) -> bool:
    """Compare 24 greedy tokens of rows of several lengths with transformers' own.

    Where the rotation depends on the length of the text, transformers computes a batch as its longest row, so there it gets single rows.
    """
    ours = opened_here(where)
    rows = [tokens(length, length) for length in (3, 9, 21)]
    settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    want = []
    for batch in [[row] for row in rows] if by_length(where) else [rows]:
        ids, attend = left_padded(batch)
        want += oracle.generate(input_ids=ids, attention_mask=attend.long(), **settings)[:, ids.shape[1] :].tolist()
    return [done.ids for done in generate(ours, rows, Sampling(max_new_tokens=24, temperature=0.0))] == want


def by_length(where: Path) -> bool:
    """Return whether keys that are cached have to be computed again when the text becomes longer than the original context."""
    return (json.loads((where / "config.json").read_text()).get("rope_parameters") or {}).get("rope_type") == "longrope"


def gradient(where: Path, oracle: nn.Module) -> float:
    """Compare the gradient of the mean loss of two rows, by the names and in the layout of the file, and the loss.

    A file's layout is a permutation of ours, so the gradient is written as a model whose weights are the gradient.
    """
    ours = opened_here(where).train()
    rows = [tokens(length, length) for length in (40, 23)]
    ids = right_padded(rows, PAD).to(DEVICE)
    mask = right_padded([[False] + [True] * (len(row) - 1) for row in rows], False).to(DEVICE)
    loss, _ = next_token.loss(next_token.Settings(), ours, TokenBatch(ids, mask))
    (loss.total / loss.count).backward()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            assert parameter.grad is not None, name
            parameter.copy_(parameter.grad)
    place = new_folder()
    hub.save(ours, place, bos=BOS, stop=(EOS,), pad=PAD)
    found = load_file(place / "model.safetensors")

    oracle.zero_grad()
    real = right_padded([[1] * len(row) for row in rows], 0).to(DEVICE)
    want = oracle(input_ids=ids, attention_mask=real, labels=ids.where(mask, -100)).loss
    want.backward()
    expected = {name: None if p.grad is None else p.grad.cpu() for name, p in oracle.named_parameters()}
    written = load_file(where / "model.safetensors")
    if written.keys() != expected.keys():  # experts that transformers stacks in memory
        expected = in_file_layout(oracle, expected)
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    scale = max(float(g.abs().max()) for g in expected.values())
    gaps = [float((found[name] - g).abs().max()) / scale for name, g in expected.items()]
    return max(*gaps, abs(float(loss.total.detach() / loss.count) - float(want.detach())) / float(want.detach()))


def in_file_layout(model: nn.Module, values: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Return values of transformers' parameters as its own writer lays them out."""
    place = new_folder()
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            value = values[name]
            p.copy_(torch.zeros_like(p) if value is None else value)
        model.save_pretrained(place)
        for name, p in model.named_parameters():
            p.copy_(kept[name])
    return load_file(place / "model.safetensors")


def export(where: Path, oracle: nn.Module) -> float:
    """Write what we loaded: transformers must open it as the same class with every key in place, and compute the same."""
    ours = opened_here(where).eval()
    place = new_folder()
    hub.save(ours, place, bos=BOS, stop=(EOS,), pad=PAD)
    again, report = AutoModelForCausalLM.from_pretrained(
        place, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {key: sorted(map(str, value)) for key, value in report.items() if value}
    assert not problems, problems
    assert type(again) is type(oracle), type(again)
    before, after = (AutoConfig.from_pretrained(folder).to_dict() for folder in (where, place))
    changed = {key: (value, after.get(key)) for key, value in before.items() if value != after.get(key)}
    changed = {key: pair for key, pair in changed.items() if key not in NOT_COMPARED}
    assert not changed, changed
    classes = json.loads((place / "config.json").read_text())["architectures"]
    assert classes == [type(oracle).__name__], classes
    row = tokens(40)
    assert torch.equal(our_logits(ours, [row]), our_logits(opened_here(place).eval(), [row]))
    return apart(their_logits(again.to(DEVICE).eval(), row), their_logits(oracle, row))


@torch.no_grad()
def reward(where: Path) -> float | None:
    """Compare the scores of a reward model made from the checkpoint. None where transformers has no such class."""
    ours = opened_here(where)
    if ours.config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return None
    scorer = hub.scorer_from(ours, seed=3).to(DEVICE).eval()
    place = new_folder()
    hub.save(scorer, place, bos=BOS, stop=(EOS,), pad=PAD)
    oracle, report = AutoModelForSequenceClassification.from_pretrained(
        place, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {key: sorted(map(str, value)) for key, value in report.items() if value}
    assert not problems, problems
    rows = [tokens(length, length) for length in (5, 40, 23)]
    ids, real = right_padded(rows, PAD).to(DEVICE), right_padded([[True] * len(row) for row in rows], False).to(DEVICE)
    want = oracle.to(DEVICE).eval()(input_ids=ids, attention_mask=real.long()).logits[:, 0]
    again = hub.load_scorer(place).to(DEVICE).eval().rewards(ids, real)
    return max(apart(scorer.rewards(ids, real), want), apart(again, want))


def adapter(where: Path, oracle: nn.Module) -> float:
    """Compare the logits of an adapter of all linear layers that PEFT wrote, and of one that we wrote, which PEFT opens. In float64."""
    place, row, ours = new_folder(), tokens(40), opened_here(where).double().eval()
    plain = their_logits(oracle.double().eval(), row)
    try:
        settings = peft.LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", task_type="CAUSAL_LM")
        made = peft.get_peft_model(copy.deepcopy(oracle), settings)
        moved(made, lambda name: "lora_" in name)
        made.save_pretrained(place / "theirs")
        want = their_logits(
            peft.PeftModel.from_pretrained(copy.deepcopy(oracle), place / "theirs").double().eval(), row
        )
        assert apart(want, plain) > FAR, "the adapter changes nothing"
        config = lora.load(ours, place / "theirs")
        gaps = [apart(our_logits(ours.to(DEVICE).double(), [row])[0], want)]
        (place / "ours").mkdir()
        moved(ours, lora.branches(ours).keys().__contains__)
        lora.save(ours, config, place / "ours", str(where))
        again = peft.PeftModel.from_pretrained(copy.deepcopy(oracle), place / "ours").double().eval()
        gaps.append(apart(our_logits(ours, [row])[0], their_logits(again, row)))
    finally:
        oracle.float()
    return max(gaps)


def breaks(name: str, oracle: nn.Module) -> dict[str, float]:
    """Return how far each broken copy is from transformers on the whole one; a copy that is refused is infinitely far."""
    found = {}
    for what, edit in MODELS[name].breaks.items():
        try:
            found[what] = logits(edited(folder(name), edit), oracle, LENGTHS[-1:])
        except UserError:
            found[what] = float("inf")
    return found


CHECKS: Mapping[str, Callable[..., Any]] = {
    "logits": logits,
    "padding": padding,
    "cache": lambda where, oracle: None if by_length(where) else cached(where),  # then `greedy` must see it
    "greedy": generation,
    "gradient": gradient,
    "export": export,
    "adapter": adapter,
    "reward": lambda where, oracle: reward(where),
}


def measure(check: Callable[..., Any], *arguments: Any) -> tuple[str, bool]:
    """Return a cell of the table, and whether it is as it must be."""
    try:
        found = check(*arguments)
    except (UserError, AssertionError) as problem:
        return f"FAILED: {problem}", False
    if isinstance(found, bool):
        return ("equal" if found else "DIFFERENT"), found
    return ("no case" if found is None else f"{found:.1e}"), found is None or found <= TOLERANCE


def main(names: Sequence[str], device: str) -> int:
    global DEVICE
    DEVICE = torch.device(device)
    torch.set_num_threads(1)
    line = f"{{:<32}} {'{:>9} ' * len(CHECKS)} {{}}".format
    print(line("architecture", *CHECKS, "nearest of the planted breaks"))
    failures = []
    for name in names or MODELS:
        where, oracle, cells = folder(name), theirs(name).to(DEVICE), []
        try:
            hub.load_causal_lm(where)
        except UserError as refusal:
            print(f"{name:<32} refused: {refusal.what}", flush=True)
            failures.append(f"{name}: refused: {refusal.what}")
            continue
        for what, check in CHECKS.items():
            cell, right = measure(check, where, oracle)
            cells.append(cell if len(cell) < 10 else "FAILED")
            failures += [] if right else [f"{name}: {what}: {cell}"]
        far = breaks(name, oracle) if "FAILED" not in cells[0] else {}
        failures += [f"{name}: {what} is not noticed ({gap:.1e})" for what, gap in far.items() if not gap > FAR]
        nearest = min(far, key=lambda what: far[what]) if far else ""
        print(line(name, *cells, f"{far[nearest]:.1e} {nearest}, of {len(far)}" if far else ""), flush=True)
    if not names:
        differing = templates.table()
        failures += [f"{differing} conversations are rendered differently"] if differing else []
    print(f"\nallowed {TOLERANCE:.0e}, a break must be {FAR:.0e} away; {len(failures)} failures")
    print("\n".join(failures))
    return int(bool(failures))


def main_keys(names: Sequence[str]) -> int:
    """Print what became of every changed key."""
    from tests.parity import keys

    torch.set_num_threads(1)
    failures = []
    for name in names or MODELS:
        counts, wrong = keys.sweep(name)
        failures += wrong
        print(f"{name:<32} {', '.join(f'{count} {what}' for what, count in sorted(counts.items()))}", flush=True)
    print(f"\n{len(failures)} keys are read differently")
    print("\n".join(failures))
    return int(bool(failures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--keys", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    sys.exit(main_keys(options.names) if options.keys else main(options.names, options.device))
