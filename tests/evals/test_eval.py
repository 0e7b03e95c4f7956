"""`tinyllm eval`: every task on a tiny checkpoint, in process and as a command."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import small
from tinyllm import console
from tinyllm.cli.printing import results
from tinyllm.cli.resolve import STAGES, resolve
from tinyllm.data import world
from tinyllm.errors import UserError
from tinyllm.evals import run, tasks
from tinyllm.mean import values
from tinyllm.model import hub
from tinyllm.model.config import ModelConfig
from tinyllm.model.decoding import Sampling, generate
from tinyllm.model.transformer import CausalLM
from tinyllm.rollout.judging import evaluate_policy, gold_judge
from tinyllm.rollout.source import TokenPrompt
from tinyllm.text import chat
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.run import Invocation

DEFAULT_KEYS = {
    *("schema_version", "stage", "checkpoint", "manifest_sha256", "seconds", "documents", "split", "context"),
    *("start", "score_end"),
    *("loss", "perplexity", "bits_per_byte", "tokens", "bytes", "uniform", "moved"),
}


def tinyllm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "tinyllm", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat vocabulary and random weights, so large that its answers differ between questions."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer.train([row["text"] for row in world.documents(60)], 400)
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        head_dim=16,
        max_position_embeddings=256,
    )
    model = CausalLM(shape)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 1))
    hub.save(model, folder, bos=None, stop=tokenizer.stop_ids, pad=tokenizer.pad)
    tokenizer.save(folder, model_max_length=256)
    return folder


def measured(checkpoint: Path, task: str, *sets: str) -> dict[str, Any]:
    settings = [f"task=[{task}]", f"parent={checkpoint}", "max_new_tokens=12", *sets]
    config = resolve(STAGES["eval"], None, settings, {}, {}, fast=False).config
    return run.run(config, Invocation(""))


def rows_in(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.val=[{path}]"


def test_help_lists_the_tasks_without_torch(tmp_path: Path) -> None:
    code = "import sys\nfrom tinyllm.cli import run\nrun(['eval', '--help'])\n"
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in tasks.names():
        assert f"{name}: {tasks.title_of(name)[:40]}" in " ".join(done.stdout.split())


def test_the_text_of_the_bundled_world_is_named_and_progress_shown(
    checkpoint: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0)
    config = resolve(STAGES["eval"], None, ["data.val=[world:6]"], {"parent": checkpoint}, {}, fast=False).config
    run.run(config, Invocation("written: down\n"))
    said = capfd.readouterr().err
    assert "world:6: texts of the bundled world; for a text of your own --set 'data.val=[FILE]'" in said
    assert "eval 1/1 batches eta 0m00s" in said


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "add --task choice"),
        ({"question": "a", "answer": "b"}, "add --task exact_match"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "data.test of `tinyllm sft`",
        ),
    ],
)
def test_records_that_are_no_text_name_the_task_that_reads_them(
    checkpoint: Path, tmp_path: Path, row: dict[str, Any], fix: str
) -> None:
    file = small.written(tmp_path / "x.jsonl", [row, row])
    config = resolve(STAGES["eval"], None, [f"data.val=[{file}]"], {"parent": checkpoint}, {}, fast=False).config
    with pytest.raises(UserError) as caught:
        run.load_texts(config, Tokenizer.load(checkpoint))
    assert fix in caught.value.fix
    assert caught.value.where.endswith("x.jsonl:1")


def test_the_keys_of_the_result_without_a_task(checkpoint: Path) -> None:
    config = resolve(STAGES["eval"], None, [f"parent={checkpoint}", "data.val=[world:9]"], {}, {}, fast=False).config
    found = run.run(config, Invocation(""))
    assert set(found) == DEFAULT_KEYS
    same = measured(checkpoint, "bits_per_byte", "data.val=[world:9]")
    assert same["results"]["bits_per_byte"]["bits_per_byte,none"] == found["bits_per_byte"]
    assert same["baseline"]["bits_per_byte"] == found["uniform"]
    assert (found["split"], found["moved"]["from"], found["moved"]["to"]) == ("test", None, found["bits_per_byte"])


def test_documents_that_pretraining_holds_out_are_evaluated(checkpoint: Path, tmp_path: Path) -> None:
    """Those of the test split, as with the option that names them; a document is not a letter."""
    texts = [row["text"] for row in world.documents(60)]
    path, kept = tmp_path / "all.jsonl", tmp_path / "kept.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sets = [f"parent={checkpoint}", f"data.train=[{path}]", "data.val=[]", "data.val_fraction=0.4"]
    config = resolve(STAGES["eval"], None, sets, {}, {}, fast=False).config
    found = run.run(config, Invocation(""))
    split, chosen = run.load_texts(config, Tokenizer.load(checkpoint))
    assert (found["split"], found["documents"]) == (split, len(chosen))
    assert 5 < len(chosen) < 30
    assert set(chosen) < set(texts)
    kept.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
    named = resolve(STAGES["eval"], None, [sets[0], f"data.test=[{kept}]"], {}, {}, fast=False).config
    assert run.run(named, Invocation(""))["bits_per_byte"] == pytest.approx(found["bits_per_byte"], rel=1e-6)


@torch.no_grad()
def chain_rule(model: CausalLM, before: list[int], ids: list[int]) -> float:
    """Return log p(ids | before), with one forward pass per token."""
    total = 0.0
    for t in range(len(ids)):
        logits = model.logits(model(torch.tensor([[*before, *ids[:t]]]))[0, -1]).double()
        total += float(logits.log_softmax(-1)[ids[t]])
    return total


def test_choice_equals_brute_force(checkpoint: Path, tmp_path: Path) -> None:
    """By construction the correct choice has the highest log-likelihood per byte, but not per character or in total."""
    model, tokenizer = hub.load_causal_lm(checkpoint).eval(), Tokenizer.load(checkpoint)
    words = [
        "XJ9",
        "中文树上是",
        "Q",
        "小猫",
        "Z3#kk#3Z",
        "猫在",
    ]  # bytes without merges, so no choice wins by every measure
    rows, bits, right = [], 0.0, {"acc": 0, "acc_norm": 0, "acc_bytes": 0}
    for i in range(24):
        choices, question = words[i % 4 :][:3], f"Which is number {i}?"
        context = tokenizer.encode(f"Question: {question}\nAnswer:")
        wholes = [tokenizer.encode(f"Question: {question}\nAnswer: {c}") for c in choices]
        scores = [chain_rule(model, context, whole[len(context) :]) for whole in wholes]
        picks = {}
        for name, length in {"acc": lambda c: 1, "acc_norm": len, "acc_bytes": lambda c: len(c.encode())}.items():
            normed = [s / length(c) for s, c in zip(scores, choices, strict=True)]
            picks[name] = normed.index(max(normed))
        rows.append({"question": question, "choices": choices, "answer": picks["acc_bytes"]})
        bits -= normed[picks["acc_bytes"]] / math.log(2)
        right = {name: right[name] + (pick == picks["acc_bytes"]) for name, pick in picks.items()}
    assert len(set(right.values())) == 3  # the three must differ, or swapping them would not show
    found = measured(checkpoint, "choice", rows_in(tmp_path / "q.jsonl", rows))["results"]["choice"]
    assert {name: round(found[f"{name},none"] * 24) for name in right} == right
    assert found["bpb,none"] == pytest.approx(bits / 24, abs=1e-5)


def test_choice_with_the_chat_template_equals_brute_force(checkpoint: Path) -> None:
    model, tokenizer = hub.load_causal_lm(checkpoint).eval(), Tokenizer.load(checkpoint)
    right, bits = 0, 0.0
    for row in world.pairs(10, seed=0, split="test"):
        before = chat.render(tokenizer, row["prompt"], generation_prompt=True).ids
        said = [tokenizer.encode(f"\n{row[side][0]['content']}")[1:] for side in ("chosen", "rejected")]
        scores = [chain_rule(model, before, ids) for ids in said]
        right += scores[0] > scores[1]
        bits -= scores[0] / len(row["chosen"][0]["content"].encode()) / math.log(2)
    found = measured(checkpoint, "choice", "data.val=[world:10]")
    assert found["results"]["choice"]["bpb,none"] == pytest.approx(bits / 10, abs=1e-5)
    assert found["configs"]["choice"]["chat_template"]
    assert found["results"]["choice"]["acc,none"] == pytest.approx(right / 10)


def test_exact_match_counts_known_answers(checkpoint: Path, tmp_path: Path) -> None:
    """The reference answer of every second question is the model's greedy answer."""
    model, tokenizer = hub.load_causal_lm(checkpoint), Tokenizer.load(checkpoint)
    asked = [f"Where does {name} live?" for name in ("Ada", "Sam", "Cleo", "Alma", "Ben", "Dora")]
    sampling = Sampling(12, temperature=0, stop=tokenizer.stop_ids)

    def said(question: str, template: str) -> str:
        turns = [{"role": "user", "content": question}]
        talk = chat.render(tokenizer, turns, generation_prompt=True).ids
        plain = [tokenizer.endoftext, *tokenizer.encode(question)]
        (answer,) = generate(model, [talk if template == "chat" else plain], sampling)
        return tokenizer.decode(answer.ids).split("\n\n")[0]

    for template in ("chat", "plain"):
        truth = [said(q, template) if i % 2 else "elsewhere" for i, q in enumerate(asked)]
        rows = [{"prompt": q, "answer": a} for q, a in zip(asked, truth, strict=True)]
        data = rows_in(tmp_path / "p.jsonl", rows)
        found = measured(checkpoint, "exact_match", data, f"template={template}")
        assert found["results"]["exact_match"]["exact_match,none"] == 0.5
        assert found["configs"]["exact_match"]["chat_template"] == (template == "chat")
        assert (
            found["configs"]["exact_match"]["sha256"] == hashlib.sha256((tmp_path / "p.jsonl").read_bytes()).hexdigest()
        )


def test_gold_equals_the_evaluation_of_the_training_stages(checkpoint: Path) -> None:
    model, tokenizer = hub.load_causal_lm(checkpoint), Tokenizer.load(checkpoint)
    asked = list(world.prompts(30, seed=0, split="test"))
    rendered = chat.render_many(tokenizer, [row["prompt"] for row in asked], generation_prompt=True)
    prompts = [TokenPrompt(r.ids, row) for r, row in zip(rendered, asked, strict=True)]
    judge = gold_judge(tokenizer)
    want = values(evaluate_policy(model, prompts, judge, tokenizer, temperature=0, max_new_tokens=12))
    found = measured(checkpoint, "gold", "data.val=[world:30]")["results"]["gold"]
    assert found["gold,none"] == pytest.approx(want["reward"], abs=1e-6)
    assert found["finished,none"] == pytest.approx(want["finished"])


def test_pass_at_k_with_a_rule_of_the_user_s_file(checkpoint: Path, tmp_path: Path) -> None:
    """Against all draws of k of the samples that the rule received. Prompts are equal, so samples come in the order of the questions."""
    rule = tmp_path / "rule.py"
    rule.write_text(
        "def even(columns, text, finished):\n"
        f"    print(repr(text), file=open({str(tmp_path / 'said')!r}, 'a'))\n"
        "    return float(len(text) % 2 == 0)\n"
    )
    data = rows_in(tmp_path / "p.jsonl", [{"prompt": "Where does Ada live?", "answer": "x"}] * 5)
    settings = (data, f"rule={rule}:even", "samples=6", "k=[1, 2, 6]", "temperature=1.0")
    found = measured(checkpoint, "pass@k", *settings)["results"]["pass@k"]
    # the empty answer comes last
    said = [line for line in (tmp_path / "said").read_text().splitlines()][:30]
    assert len(set(said)) > 20  # samples of a question differ
    right = [len(ast.literal_eval(text)) % 2 == 0 for text in said]
    questions = [right[i : i + 6] for i in range(0, 30, 6)]
    for k in (1, 2, 6):
        draws = [any(draw) for question in questions for draw in combinations(question, k)]
        assert found[f"pass@{k},none"] == pytest.approx(sum(draws) / len(draws))
    assert 0 < found["pass@1,none"] < found["pass@2,none"]
    assert measured(checkpoint, "pass@k", *settings)["results"]["pass@k"] == found  # deterministic
    assert measured(checkpoint, "pass@k", *settings, "seed=1")["results"]["pass@k"] != found


LM_EVAL_KEYS = {"results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, as each of two ranks does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.two_cores
def test_the_command_with_two_ranks_gives_the_results_of_one(
    checkpoint: Path, tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [{"sentence_good": f"{name} sings.", "sentence_bad": f"{name} sing sing."} for name in "ABCDEFG"]
    (tmp_path / "b").mkdir()
    for number in (1, 2):
        rows_in(tmp_path / "b" / f"pairs_{number}.jsonl", pairs[: 3 * number])
    rows_in(tmp_path / "maths.jsonl", [{"question": f"{i} + {i}?", "answer": str(2 * i)} for i in range(9)])
    sets = ("data.val=[b/*.jsonl, maths.jsonl]", "max_new_tokens=8", "data.max_length=32")
    command = ["eval", "--checkpoint", str(checkpoint), "--task", "choice", "--task", "exact_match", "--task", "pass@k"]
    command += ["--json", "--nproc", "2", *(part for s in sets for part in ("--set", s))]
    done = tinyllm(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-1500:]
    by_two = json.loads(done.stdout)
    monkeypatch.chdir(tmp_path)
    found = measured(checkpoint, "choice, exact_match, pass@k", *sets)
    assert set(found) >= LM_EVAL_KEYS | {"schema_version", "stage", "checkpoint", "seconds", "intervals", "baseline"}
    names = ["choice", "choice/pairs_1", "choice/pairs_2", "exact_match", "pass@k"]
    for part in LM_EVAL_KEYS - {"config", "group_subtasks", "configs"}:
        assert set(found[part]) == set(names), part
    assert found["group_subtasks"]["choice"] == names[1:3]
    assert found["n-samples"]["choice/pairs_2"] == {"original": 6, "effective": 6}
    one, two, mean = (found["results"][name] for name in (names[1], names[2], names[0]))
    assert mean["acc,none"] == pytest.approx((one["acc,none"] + two["acc,none"]) / 2)
    assert (mean["alias"], one["alias"]) == ("choice", "pairs_1")
    assert {"acc,none", "acc_stderr,none", "acc_norm,none", "acc_norm_stderr,none"} <= set(mean)
    assert by_two["results"] == found["results"]
    results.result(found, as_json=False)
    plain = capsys.readouterr().out
    low, high = found["intervals"]["choice/pairs_2"]["acc"]
    assert f"({low:.3f} to {high:.3f})" in plain
    assert "mean of 2 files" in plain
    assert "pass@8" in plain
    assert "b/pairs_1.jsonl: 3 choices, format blimp" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--task", "chioce"), "did you mean choice?"),
        (("--task", "pass@k", "--set", "k=[1, 9]"), "samples 8"),
        (("--task", "exact_match", "--set", "rule=exact"), "exact_answer"),
    ],
)
def test_invalid_settings_are_reported_without_torch(arguments: tuple, word: str, tmp_path: Path) -> None:
    call = f"code = run({['eval', *arguments]!r})"
    code = f"import sys\nfrom tinyllm.cli import run\n{call}\nprint(code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["2", "False"]
    assert word in done.stderr
    assert "fix: " in done.stderr
