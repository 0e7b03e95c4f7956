"""The command line from outside: what is printed where, exit codes, no torch where none is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm.cli import modern


def tinyllm(*arguments: str, cwd: Path, timeout: int = 120, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "NO_COLOR": "1", **environment}
    command = [sys.executable, "-m", "tinyllm", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def imported(*arguments: str, cwd: Path) -> set[str]:
    """Run a command in a fresh interpreter; the modules it had imported when it was done."""
    call = f"from tinyllm.cli import run, modern\nrun(modern({list(arguments)!r}))"
    code = f"import sys, json\n{call}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("pretrain", "--help"),
        ("pretrain", "--dry-run"),
        ("pretrian",),
        ("pretrain", "--set", "optim.learnig_rate=1"),
        ("sft",),
        ("align-online", "--algorithm", "grop"),
    ],
)
def test_help_plans_and_config_errors_import_no_torch(arguments: tuple[str, ...], tmp_path: Path) -> None:
    modules = imported(*arguments, cwd=tmp_path)
    # a missing parent is found by the stage itself, which needs torch; everything before that does not
    assert ("torch" in modules) == (arguments == ("sft",))


BAD = [
    (("pretrain", "--set", "optim.learnig_rate=1"), 2, "optim.learning_rate"),
    (("pretrain", "--set", "train.steps=many"), 2, "train.steps"),
    (("pretrain", "--set", "train.steps"), 2, "="),
    (("pretrain", "--config", "nowhere.yaml"), 2, "nowhere.yaml"),
    (("pretrain", "--set", "data.train=[nowhere.txt]"), 2, "nowhere.txt"),
    (("pretrain", "--set", "data.train=[empty.txt]"), 2, "empty.txt"),
    (("pretrain", "--set", "data.train=[broken.jsonl]"), 2, "broken.jsonl:2"),
    (("pretrain", "--set", "data.train=[columns.jsonl]"), 2, "text"),
    (("pretrain", "--device", "cuda"), 4, "CUDA was requested"),
    (("pretrain", "--set", "model.num_attention_heads=3"), 2, "num_key_value_heads"),
    (("sft",), 2, "tinyllm pretrain"),
    (("rm", "--fast-dev-run"), 2, "tinyllm sft --fast-dev-run"),
    (("sft", "--name", "fast-dev-run"), 2, "fast-dev-run is the name of runs with --fast-dev-run"),
    (("align-offline", "--algorithm", "dop"), 2, "dpo"),
    (("align-online", "--algorithm", "nothing"), 2, "grpo, gspo, ppo"),
    (("chat", "--checkpoint", "nowhere"), 2, "nowhere"),
    (("eval", "--json"), 2, "tinyllm pretrain"),
    (("pretrian",), 2, "pretrain"),
    (("pretrain", "--lerning-rate", "1"), 2, "--lerning-rate"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "word"), BAD, ids=lambda x: " ".join(x) if isinstance(x, tuple) else None
)
def test_a_mistake_is_one_error_one_fix_and_its_exit_code(
    arguments: tuple, code: int, word: str, tmp_path: Path
) -> None:
    if arguments[-1] == "cuda" and _has_cuda():
        pytest.skip("this machine has one")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"text": "a b c"}\n{"text": \n')
    (tmp_path / "columns.jsonl").write_text('{"body": "a b c"}\n')
    done = tinyllm(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    fixes = [line for line in done.stderr.splitlines() if line.startswith("fix: ")]
    assert len(errors) == 1, done.stderr
    assert len(fixes) == 1, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def test_the_bare_command_says_where_to_start(tmp_path: Path) -> None:
    done = tinyllm(cwd=tmp_path)
    assert done.returncode == 0
    assert "tinyllm lifecycle --smoke" in done.stdout


def test_old_and_underscored_spellings() -> None:
    given = [
        "sft",
        "--config_path",
        "a_b.yaml",
        "--checkpoint_path=x_y",
        "--fast_dev_run",
        "--set",
        "train.batch_size=4",
    ]
    want = ["sft", "--config", "a_b.yaml", "--checkpoint=x_y", "--fast-dev-run", "--set", "train.batch_size=4"]
    assert modern(given) == want


def test_what_a_users_code_prints_is_not_in_the_json(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "print('imported')\ndef loud(columns, text, finished):\n    print('called')\n    return 1.0\n"
    )
    options = ("--set", "rewards={'mine.py:loud': 1.0}", "--set", "data.train=[world:20]", "--json")
    done = tinyllm("align-online", "--dry-run", *options, cwd=tmp_path)
    assert json.loads(done.stdout)
    assert {"imported", "called"} <= set(done.stderr.split())


def test_dry_run_names_every_value_with_its_origin_and_writes_nothing(tmp_path: Path) -> None:
    done = tinyllm("pretrain", "--dry-run", "--json", "--set", "train.steps=7", cwd=tmp_path, TINYLLM_SEED="5")
    plan = json.loads(done.stdout)
    assert plan["values"]["train.steps"] == {"value": 7, "origin": "--set"}
    assert plan["values"]["seed"]["value"] == 5
    assert "TINYLLM_SEED" in plan["values"]["seed"]["origin"]
    assert plan["cost"]["parameters"] == 1_377_920
    assert list(tmp_path.iterdir()) == []
