"""Damage to the runs of `run_tree`, and what `tinyllm runs verify` must say of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.support import run_tree, small
from tinyllm.train import checkpoint

STEP = run_tree.LAST
HALF = "checkpoints/step-00000002"
SHARDS = Path("runs/data/base/shards")
CHECKPOINTS, MIDDLE = run_tree.DPO / "checkpoints", run_tree.DPO / HALF
NO_TENSORS = (2).to_bytes(8, "little") + b"{}"  # a valid safetensors file


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def replace_tokenizer(folder: Path) -> None:
    """Replace the tokenizer of a checkpoint, and write a new manifest."""
    small.tokenizer(("quite another text, and more of quite another text",)).save(folder, model_max_length=96)
    (folder / checkpoint.MANIFEST).unlink()
    checkpoint._write_manifest(folder)


def edit_line(path: Path, number: int, change: Callable[[str], str]) -> None:
    lines = path.read_text().splitlines()
    lines[number] = change(lines[number])
    path.write_text("\n".join(lines) + "\n")


def file_in(run: Path, name: str) -> Path:
    return run / STEP / name


# damage -> the files that are reported, and a part of each message
DAMAGE: dict[str, tuple[Callable[[], object], list[tuple[Path, str]]]] = {
    "weights with a flipped bit": (
        lambda: run_tree.flip_last_byte(file_in(run_tree.TALK, "model.safetensors")),
        [(file_in(run_tree.TALK, "model.safetensors"), "sha256 differs")],
    ),
    "truncated weights": (
        lambda: truncate(file_in(run_tree.JUDGE, "model.safetensors")),
        [(file_in(run_tree.JUDGE, "model.safetensors"), "bytes, the manifest says")],
    ),
    "two files of a checkpoint": (
        lambda: (truncate(file_in(run_tree.DPO, "config.json")), file_in(run_tree.DPO, "trainer/state.json").unlink()),
        [
            (file_in(run_tree.DPO, "trainer/state.json"), "a file is missing"),
            (file_in(run_tree.DPO, "config.json"), "bytes"),
        ],
    ),
    "an extra file": (
        lambda: file_in(run_tree.DPO, "pytorch_model.bin").write_text("x"),
        [(file_in(run_tree.DPO, "pytorch_model.bin"), "not in the manifest")],
    ),
    "no manifest": (
        lambda: file_in(run_tree.DPO, "manifest.json").unlink(),
        [(file_in(run_tree.DPO, "manifest.json"), "no readable manifest")],
    ),
    "an invalid manifest": (
        lambda: file_in(run_tree.DPO, "manifest.json").write_text('{"files": {"config.json": [1]}}'),
        [(file_in(run_tree.DPO, "manifest.json"), "no readable manifest")],
    ),
    "a link out of the checkpoint": (
        lambda: (
            shutil.move(file_in(run_tree.DPO, "model.safetensors"), "outside"),
            file_in(run_tree.DPO, "model.safetensors").symlink_to(Path("outside").absolute()),
        ),
        [(file_in(run_tree.DPO, "model.safetensors"), "leads out of its folder")],
    ),
    "another tokenizer": (
        lambda: replace_tokenizer(run_tree.DPO / STEP),
        [(file_in(run_tree.DPO, "tokenizer.json"), "not the tokenizer of this run")],
    ),
    "another tokenizer in run.json": (
        lambda: run_tree.edit_json(run_tree.DPO / "run.json", tokenizer_sha256="0" * 64),
        [
            (run_tree.DPO / f"checkpoints/step-{n:08d}/tokenizer.json", "run.json says 000000000000")
            for n in run_tree.STEPS
        ],
    ),
    "incomplete run.json": (
        lambda: (run_tree.PPO / "run.json").write_text('{"status": "compl'),
        [(run_tree.PPO / "run.json", "not JSON")],
    ),
    "no config.yaml": (
        lambda: (run_tree.PPO / "config.yaml").unlink(),
        [(run_tree.PPO / "config.yaml", "is missing")],
    ),
    "edited config.yaml": (
        lambda: (run_tree.PPO / "config.yaml").write_text((run_tree.PPO / "config.yaml").read_text() + "\n# later\n"),
        [(run_tree.PPO / "config.yaml", "not the configuration that the run started with")],
    ),
    "another parent in run.json": (
        lambda: run_tree.edit_json(
            run_tree.JUDGE / "run.json", parent={"checkpoint": str(run_tree.TALK / STEP), "manifest_sha256": "0" * 64}
        ),
        [(run_tree.TALK / STEP, "not the checkpoint that rlhf/rm/judge was trained from")],
    ),
    "another reward model in run.json": (
        lambda: run_tree.edit_json(
            run_tree.PPO / "run.json",
            reward_model={"checkpoint": str(run_tree.JUDGE / STEP), "manifest_sha256": "0" * 64},
        ),
        [(run_tree.JUDGE / STEP, "not the checkpoint that rlhf/online/ppo-both was trained from")],
    ),
    "shards with a flipped bit": (
        lambda: run_tree.flip_last_byte(SHARDS / "train.bin"),
        [(SHARDS / "train.bin", "does not match its sha256")],
    ),
    "other shards in run.json": (
        lambda: run_tree.edit_json(
            run_tree.BASE / "run.json", data=[{"shards": SHARDS.as_posix(), "fingerprint": "0" * 64}]
        ),
        [(SHARDS, "not the data that pretrain/base was trained on")],
    ),
    "a link to a missing checkpoint": (
        lambda: relink("ckpt_latest", "step-00000099"),
        [(run_tree.TALK / "checkpoints/ckpt_latest", "points to step-00000099, which is not a checkpoint of this run")],
    ),
    "a link out of the run": (
        lambda: relink("ckpt_best", str(Path(run_tree.BASE / STEP).absolute())),
        [(run_tree.TALK / "checkpoints/ckpt_best", "which is not a checkpoint of this run")],
    ),
    "no link": (
        lambda: (run_tree.TALK / "checkpoints/ckpt_best").unlink(),
        [(run_tree.TALK / "checkpoints/ckpt_best", "missing")],
    ),
    "steps that decrease": (
        lambda: (run_tree.TALK / "metrics.jsonl").write_text(
            "".join(line.replace('"step": 3', '"step": 2') for line in metrics_lines())
        ),
        [(run_tree.TALK / "metrics.jsonl", "step 2 of train follows step 2")],
    ),
    "an incomplete line": (
        lambda: edit_line(run_tree.TALK / "metrics.jsonl", 2, lambda line: line[:20]),
        [(run_tree.TALK / "metrics.jsonl", "line 3 is not a JSON object with a step")],
    ),
    "an incomplete last line of a completed run": (
        lambda: edit_line(run_tree.TALK / "metrics.jsonl", -1, lambda line: line[:20]),
        [(run_tree.TALK / "metrics.jsonl", "is not a JSON object with a step")],
    ),
    "no checkpoints": (
        lambda: shutil.rmtree(CHECKPOINTS),
        [(CHECKPOINTS, "has no checkpoint, although the run completed after step 4")],
    ),
    "an empty folder of checkpoints": (
        lambda: (shutil.rmtree(CHECKPOINTS), CHECKPOINTS.mkdir()),
        [(CHECKPOINTS, "has no checkpoint, although the run completed after step 4")],
    ),
    "no checkpoints of a killed run": (
        lambda: (shutil.rmtree(CHECKPOINTS), run_tree.edit_json(run_tree.DPO / "run.json", status="running")),
        [(CHECKPOINTS, "has no checkpoint, although the run trained to step 4")],
    ),
    "no last checkpoint": (
        lambda: (shutil.rmtree(run_tree.DPO / STEP), relink("ckpt_best", "step-00000002", CHECKPOINTS)),
        [
            (CHECKPOINTS, "the newest checkpoint is of step 2, although the run completed after step 4"),
            (CHECKPOINTS / "ckpt_latest", "points to step-00000004, which is not a checkpoint"),
        ],
    ),
    "no last checkpoint of a run without sessions": (
        lambda: (
            shutil.rmtree(run_tree.DPO / STEP),
            run_tree.edit_json(run_tree.DPO / "run.json", sessions=None),
            relink("ckpt_best", "step-00000002", CHECKPOINTS),
            relink("ckpt_latest", "step-00000002", CHECKPOINTS),
        ),
        [(CHECKPOINTS, "the newest checkpoint is of step 2, although the run completed after step 4")],
    ),
    "no file at all in a checkpoint": (
        lambda: (shutil.rmtree(MIDDLE), MIDDLE.mkdir(), checkpoint._write_manifest(MIDDLE)),
        [(MIDDLE, "it has no weights")],
    ),
    "no weights, and a manifest without them": (
        lambda: rewrite(MIDDLE, lambda: (MIDDLE / "model.safetensors").unlink()),
        [(MIDDLE, "it has no weights")],
    ),
    "a reward model without weights, and a manifest without them": (
        lambda: rewrite(run_tree.JUDGE / HALF, lambda: (run_tree.JUDGE / HALF / "model.safetensors").unlink()),
        [(run_tree.JUDGE / HALF, "it has no weights")],
    ),
    "an adapter without weights, and a manifest without them": (
        lambda: rewrite(
            run_tree.ADAPTER / HALF, lambda: (run_tree.ADAPTER / HALF / "adapter_model.safetensors").unlink()
        ),
        [(run_tree.ADAPTER / HALF, "it has no weights")],
    ),
    "weights without tensors, and a manifest of them": (
        lambda: rewrite(MIDDLE, lambda: (MIDDLE / "model.safetensors").write_bytes(NO_TENSORS)),
        [(MIDDLE / "model.safetensors", "it has no tensors")],
    ),
    "weights of no bytes": (
        lambda: (MIDDLE / "model.safetensors").write_bytes(b""),
        [(MIDDLE / "model.safetensors", "0 bytes, the manifest says")],
    ),
    "an adapter without its weights": (
        lambda: (run_tree.ADAPTER / HALF / "adapter_model.safetensors").unlink(),
        [(run_tree.ADAPTER / HALF / "adapter_model.safetensors", "a file is missing")],
    ),
    "no shards": (
        lambda: (shutil.rmtree(SHARDS), SHARDS.mkdir()),
        [(SHARDS / "manifest.json", "no manifest")],
    ),
    "shards of no bytes": (
        lambda: (SHARDS / "train.bin").write_bytes(b""),
        [(SHARDS / "train.bin", "0 bytes")],
    ),
    "metrics that end early": (
        lambda: (run_tree.TALK / "metrics.jsonl").write_text(
            "".join(line for line in metrics_lines() if '"step": 4' not in line)
        ),
        [(run_tree.TALK / "metrics.jsonl", "ends at step 3 of train, the run completed after step 4")],
    ),
    "metrics of evaluations alone": (
        lambda: (run_tree.TALK / "metrics.jsonl").write_text(
            "".join(line for line in metrics_lines() if '"eval"' in line)
        ),
        [(run_tree.TALK / "metrics.jsonl", "ends at step 0 of train, the run completed after step 4")],
    ),
    "no metrics": (
        lambda: (run_tree.TALK / "metrics.jsonl").unlink(),
        [(run_tree.TALK / "metrics.jsonl", "missing or empty")],
    ),
}


def rewrite(folder: Path, change: Callable[[], object]) -> None:
    """Change a checkpoint, and write a manifest of what is left."""
    change()
    (folder / checkpoint.MANIFEST).unlink()
    checkpoint._write_manifest(folder)


def metrics_lines() -> list[str]:
    return (run_tree.TALK / "metrics.jsonl").read_text().splitlines(keepends=True)


def relink(name: str, target: str, folder: Path = run_tree.TALK / "checkpoints") -> None:
    link = folder / name
    link.unlink()
    link.symlink_to(target)


# the rows of the table in docs/reliability.md -> the damage with which each is seen red
ROWS: dict[str, tuple[str, ...]] = {
    "checkpoints": (
        "weights with a flipped bit",
        "truncated weights",
        "two files of a checkpoint",
        "an extra file",
        "no manifest",
        "an invalid manifest",
        "a link out of the checkpoint",
        "no checkpoints",
        "an empty folder of checkpoints",
        "no checkpoints of a killed run",
        "no last checkpoint",
        "no last checkpoint of a run without sessions",
        "no file at all in a checkpoint",
        "no weights, and a manifest without them",
        "a reward model without weights, and a manifest without them",
        "an adapter without weights, and a manifest without them",
        "weights without tensors, and a manifest of them",
        "weights of no bytes",
        "an adapter without its weights",
    ),
    "tokenizer": ("another tokenizer", "another tokenizer in run.json"),
    "adapters": (),  # test_retrained_parent_is_a_problem_and_moved_parent_a_note and those after it
    "parent, reward model": ("another parent in run.json", "another reward model in run.json"),
    "shards": ("shards with a flipped bit", "other shards in run.json", "no shards", "shards of no bytes"),
    "`config.yaml`, `run.json`": ("incomplete run.json", "no config.yaml", "edited config.yaml"),
    "`metrics.jsonl`": (
        "steps that decrease",
        "an incomplete line",
        "an incomplete last line of a completed run",
        "metrics that end early",
        "metrics of evaluations alone",
        "no metrics",
    ),
    "`ckpt_latest`, `ckpt_best`": ("a link to a missing checkpoint", "a link out of the run", "no link"),
}
