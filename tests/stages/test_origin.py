"""A copied checkpoint keeps its kind: base models continue text, chat models use their template, reward models are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import small
from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.evals import run as evals
from tinyllm.evals.config import EvalConfig
from tinyllm.evals.evaluator import Evaluator
from tinyllm.model import lora
from tinyllm.model.config import LoRAConfig
from tinyllm.model.transformer import SequenceScorer
from tinyllm.stages import align_online, chat
from tinyllm.stages.checkpoint_files import CheckpointFiles, adapter_base
from tinyllm.stages.config import AlignOnlineConfig, ChatConfig
from tinyllm.stages.origin import FILE, Origin, read_origin, write_origin
from tinyllm.stages.parents import find_checkpoint
from tinyllm.train import checkpoint
from tinyllm.train.run import Invocation

WRITTEN = Invocation("written: down\n")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(run: str, stage: str, model=None, **files) -> Path:
    """A verified checkpoint below runs/, as `stage` writes it; "" writes no tinyllm.json, as older versions."""
    written = CheckpointFiles(model or small.rough(), small.tokenizer(), stage=stage, **files)
    return checkpoint.save(Path("runs") / run / "checkpoints", 5, written.write)


def treated_as(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Return what chat and eval treat a checkpoint as."""
    config = ChatConfig(parent=folder, max_new_tokens=1, device="cpu")
    chat.run(config, WRITTEN, ["red"], stream=False)
    output = capsys.readouterr().err
    seen: list[Evaluator] = []
    monkeypatch.setattr(evals, "_score_text", lambda evaluator: seen.append(evaluator) or {})
    evals.run(EvalConfig(parent=folder, device="cpu"), WRITTEN)
    return "base" if "a base model" in output else "chat", "chat" if seen[0].is_chat_model else "base"


@pytest.mark.parametrize(("stage", "kind"), [("pretrain", "base"), ("sft", "chat"), ("dpo", "chat"), ("grpo", "chat")])
@pytest.mark.parametrize("place", ["copy", "old/pretrain/copy", "old/sft/full/copy"])
def test_a_copied_checkpoint_keeps_its_kind(
    stage: str, kind: str, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    copy = Path(shutil.copytree(saved("x", stage), place))
    assert read_origin(copy) == Origin(stage, kind)
    assert treated_as(copy, monkeypatch, capsys) == (kind, kind)


@pytest.mark.parametrize(("run", "kind"), [("pretrain/x", "base"), ("sft/full/x", "chat")])
def test_without_the_file_the_kind_is_inferred_from_the_path(
    run: str, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(run, "")
    assert not (folder / FILE).exists()
    assert treated_as(folder, monkeypatch, capsys) == (kind, kind)


@pytest.mark.parametrize("stage", ["rm", ""])
def test_chat_eval_and_alignment_refuse_a_reward_model(stage: str) -> None:
    folder = saved("rlhf/rm/x", stage, small.rough(SequenceScorer))
    assert read_origin(folder).kind == "reward_model"
    for start in (
        lambda: chat.run(ChatConfig(parent=folder, device="cpu"), WRITTEN, ["red"]),
        lambda: evals.run(EvalConfig(parent=folder, device="cpu"), WRITTEN),
        lambda: align_online.run(AlignOnlineConfig(parent=folder, device="cpu"), WRITTEN),
    ):
        with pytest.raises(UserError, match="this is a reward model") as caught:
            start()
        assert (caught.value.code, caught.value.where) == (USAGE, folder.as_posix())


def test_adapter_and_base_have_their_own_files_in_the_manifest() -> None:
    base, model = saved("pretrain/x", "pretrain"), small.rough()
    lora.attach(model, config := LoRAConfig(r=2))
    adapter = saved("sft/peft/lora/x", "sft", model, adapter=config, base=base.as_posix())
    assert FILE in json.loads((adapter / checkpoint.MANIFEST).read_text())["files"]
    assert (read_origin(adapter).kind, read_origin(base).kind) == ("chat", "base")
    merged = adapter_base(small.rough(), small.tokenizer(), find_checkpoint("rm", adapter, fast=False), Path("again"))
    assert read_origin(Path(merged)) == Origin("sft", "chat")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"format": 2, "stage": "sft", "kind": "agent"}, "written by a newer tinyllm: format 2, this one reads 1"),
        ({"format": 1, "stage": "sft", "kind": "agent"}, "no known kind of model: 'agent'"),
        ({"format": 1, "stage": 3, "kind": "chat"}, "no known kind of model"),
        ([], "not a JSON object"),
    ],
)
def test_an_invalid_file_is_an_error(content: object, what: str) -> None:
    Path("x").mkdir()
    write_origin(Path("x"), "sft")
    Path("x", FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=what) as caught:
        read_origin(Path("x"))
    assert (caught.value.code, caught.value.where) == (INTEGRITY, f"x/{FILE}")
