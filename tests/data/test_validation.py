"""Checks of a stage's data before training: one bad data set for every rule, and no warning for valid data.

Several of these faults are known from other tools: masks left empty by truncation (TRL #3927, #6668), end tokens that are cut off or never
in the mask (TRL #1623, torchtune #2792, axolotl #3754), pairs truncated by the longer answer (TRL #6548), a second BOS (TRL #1400,
OpenRLHF #393), prompts too long to be answered (TRL #3569), too long records that could not be dropped (LLaMA-Factory #1136, #3995),
validation on training data (OpenRLHF #1089).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import small
from tinyllm import cli
from tinyllm.data import splits, tokenization, validation
from tinyllm.data.config import DataConfig
from tinyllm.data.records.types import Conversation, Pair, Prompt, UnpairedPreference, opening_of, prompt_of
from tinyllm.data.tokenization import LengthLimit, TokenizationReport
from tinyllm.errors import OK, USAGE
from tinyllm.text.tokenizer import Tokenizer

LENGTH = 64
LONG = "zq" * 60  # 120 tokens: the vocabulary has no merge for it
TRAINED = ("sft", "rm", "align-offline", "align-online")
Run = Callable[..., tuple[int, list[str]]]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [user(question), assistant(answer)]}


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


def unpaired(question: str, answer: str, label: bool) -> dict[str, Any]:
    return {"prompt": question, "completion": answer, "label": label}


def prompt(question: str, **more: Any) -> dict[str, Any]:
    return {"prompt": question, "answer": "7", **more}


VALID = {
    "sft": [conversation(f"What is {i}?", "It is a number.") for i in range(40)],
    "rm": [pair(f"What is {i}?", "It is a number.", "red, blue") for i in range(40)],
    "align-offline": [pair(f"What is {i}?", "It is a number.", "red, blue") for i in range(40)],
    "kto": [unpaired(f"What is {i}?", "It is a number." if i % 2 else "red", bool(i % 2)) for i in range(40)],
    "align-online": [prompt(f"What is {i}?") for i in range(40)],
    "pretrain": [{"text": f"What is {i}? It is a number. red, blue " * 4} for i in range(40)],
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint to start from."""
    return small.saved(small.rough(), tmp_path_factory.mktemp("checkpoints") / "parent")


@pytest.fixture
def run(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Run:
    """Return `run("sft", rows, "data.max_length=32") -> (exit code, lines of stderr)`: the command itself, for one step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def command(stage: str, data: list[dict[str, Any]], *sets: str, val: list[dict[str, Any]] | None = None):
        verb = {"kto": ["align-offline", "--algorithm", "kto"]}.get(stage, [stage])
        settings = [
            f"data.train=[{small.written(tmp_path / 'rows.jsonl', data)}]",
            *([] if val is None else [f"data.val=[{small.written(tmp_path / 'val.jsonl', val)}]"]),
            f"data.max_length={LENGTH}",
            "data.val_fraction=0.2",
            "train.steps=1",
            "train.eval_rows=4",
            "optim.warmup_steps=0",
            "train.batch_size=4",
            "train.micro_batch_size=4",
            "train.precision=fp32",
            "train.compile=off",
            *(["model.vocab_size=300", "model.hidden_size=16", "model.num_hidden_layers=1"] * (stage == "pretrain")),
            *(["rewards={exact_answer: 1.0}", "task=[]", "rollout.max_new_tokens=4"] * (stage == "align-online")),
            *(["rollout.group_size=2", "rollout.minibatches=1"] * (stage == "align-online")),
            *sets,
        ]
        start = [] if stage == "pretrain" else ["--checkpoint", str(parent)]
        capfd.readouterr()
        code = cli.run([*verb, *start, "--no-resume", *(part for s in settings for part in ("--set", s))])
        return code, capfd.readouterr().err.splitlines()

    return command


def warnings(lines: list[str]) -> list[str]:
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


def only_line(lines: list[str], start: str) -> str:
    found = [line for line in lines if line.startswith(start)]
    assert len(found) == 1, lines
    return found[0]


def setting(text: str, name: str) -> str:
    """Return the `name=value` that a fix suggests: "set name to 12 or more"."""
    return f"{name}={text.partition(f'set {name} to ')[2].split()[0]}"


@pytest.mark.parametrize("stage", VALID)
def test_valid_data_give_no_warning(run: Run, stage: str) -> None:
    code, lines = run(stage, VALID[stage])
    assert code == OK, lines
    assert warnings(lines) == []
    assert not [line for line in lines if "dropped" in line or "cut" in line]


# --- nothing to train on --------------------------------------------------------------------------------------------------------


def test_answers_beyond_the_row_are_dropped_and_refused_if_all_are(run: Run) -> None:
    bad = [conversation(f"{i} {LONG}", "red") for i in range(10)]
    code, lines = run("sft", bad)
    assert code == USAGE
    error = only_line(lines, "error: ")
    assert re.match(r"error: none of \d+ train records can be trained on at 64 tokens \(data.max_length\)", error)
    code, lines = run("sft", bad[:3] + VALID["sft"], val=VALID["sft"][:5])
    assert code == OK
    assert "train: 40 records (3 dropped with no token to train on)" in lines
    assert any(
        w.startswith("3 of 43 train records have no answer left to train on and are dropped (7.0%)")
        for w in warnings(lines)
    )


@pytest.mark.parametrize("stage", ["sft", "rm", "align-offline", "kto"])
def test_data_without_any_end_token_are_refused(run: Run, stage: str) -> None:
    """With the length that the fix names, all of them fit."""
    long = "red, blue, " * 8
    data = {
        "sft": [conversation(f"What is {i}?", f"{long} {i}") for i in range(30)],
        "kto": [unpaired(f"What is {i}?", f"{long} {i}", bool(i % 2)) for i in range(30)],
    }.get(stage, [pair(f"What is {i}?", f"{i} {long}", f"It is {long}") for i in range(30)])
    code, lines = run(stage, data, "data.max_length=40")
    assert code == USAGE
    assert "the model would never learn to stop (<|im_end|>) (data.max_length)" in only_line(lines, "error: all ")
    code, lines = run(stage, data, setting(only_line(lines, "fix: "), "data.max_length"))
    assert code == OK
    assert warnings(lines) == []


def test_truncated_answers_are_counted_with_their_share(run: Run) -> None:
    train = [conversation(f"What is {i}?", "red, blue, " * (12 if i < 4 else 1)) for i in range(40)]
    code, lines = run("sft", train, "data.max_length=48", val=[conversation(f"Who is {i}?", "red") for i in range(5)])
    assert code == OK
    assert "train: 40 records (4 truncated to 48 tokens)" in lines
    (warning,) = warnings(lines)
    assert warning.startswith("4 of 40 train records lose the end of an answer (10.0%); set data.max_length to ")
    assert "only" not in warning


def test_truncation_between_answers_loses_no_end_token(run: Run) -> None:
    """The truncated question, and everything after it, has no end token in the mask."""
    more = [user(LONG), assistant("red")]
    train = [{"messages": [user(f"What is {i}?"), assistant("It is a number."), *more]} for i in range(40)]
    code, lines = run("sft", train, val=[conversation(f"Who is {i}?", "red") for i in range(5)])
    assert code == OK
    assert "train: 40 records (40 truncated to 64 tokens)" in lines
    assert warnings(lines) == []


def test_suggested_length_fits_99_percent() -> None:
    lengths = [*range(1, 991), *range(5000, 5010)]
    assert validation.length_quantile(lengths) == 990
    assert validation.length_quantile([7]) == validation.length_quantile([7] * 9) == 7


def test_few_end_tokens_are_warned_about(run: Run) -> None:
    train = [conversation(f"What is {i}?", "red, blue, " * (12 if i < 30 else 1)) for i in range(40)]
    code, lines = run("sft", train, "data.max_length=48", val=VALID["sft"][:5])
    assert code == OK
    assert any("(75.0%), and only 25% train <|im_end|>" in warning for warning in warnings(lines))


@pytest.mark.parametrize(("ends", "level"), [(0, "refused"), (3, "warning"), (5, None), (10, None)])
def test_missing_end_tokens_are_found_without_truncation(ends: int, level: str | None) -> None:
    report = TokenizationReport("train", LengthLimit(LENGTH), 10)
    report.lengths[:], report.trained[:], report.kept[:] = 20, 5, True
    report.trains_end[:ends] = True
    found = validation.check_tokenization(report)
    assert [(f.level, f.rule) for f in found] == ([(level, "few_ends" if ends else "no_end")] if level else [])
    assert all("<|im_end|>" in f.what for f in found)


# --- tokens ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return an imported tokenizer that begins every text with <s>."""
    folder = tmp_path_factory.mktemp("bos")
    small.tokenizer().save(folder, model_max_length=96)
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole.add_special_tokens([tokenizers.AddedToken("<s>", special=True, normalized=False)])
    number = whole.token_to_id("<s>")
    whole.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", number)])
    whole.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<s>", "add_bos_token": True}))
    found = Tokenizer.load(folder)
    assert found.bos == number
    return found


@pytest.mark.parametrize("text", ["What is red?", "<s> What is red?", "<s><s>[INST] What is red? [/INST]"])
def test_no_row_has_a_bos_token_inside(with_bos: Tokenizer, text: str) -> None:
    turns = (user(text), assistant("It is a colour."))
    found, report = tokenization.conversations([Conversation(turns)], with_bos, LengthLimit(200), "train")
    assert np.isin(found[0][0], with_bos.bos).sum() == 0
    assert report.trains_end.all()
    (prompt, *_), *_ = tokenization.prompts([Prompt(turns[:1], {})], with_bos, LengthLimit(200), "train")[0]
    assert with_bos.bos not in prompt
    assert [f.rule for f in validation.check_tokenization(report)] == ["spelled_tokens"] * ("<s>" in text)


def test_text_with_an_applied_template_is_warned_about(run: Run) -> None:
    bad = [conversation(f"<|im_start|>user\nWhat is {i}?<|im_end|>", "red") for i in range(3)]
    code, lines = run("sft", bad + VALID["sft"], val=VALID["sft"][:5])
    assert code == OK
    found = [w for w in warnings(lines) if "control tokens in their text" in w]
    assert found[0].startswith("3 of 43 train records have control tokens in their text (<|im_start|>)")


@pytest.mark.parametrize(("chosen", "rejected"), [(60, 1), (1, 60), (60, 60)])
def test_answers_of_a_pair_are_truncated_separately(chosen: int, rejected: int) -> None:
    """A short answer keeps its end token although the other is truncated, and neither is ever empty."""
    made = Pair((user("What is red?"),), (assistant("zq" * chosen),), (assistant("xv" * rejected),))
    (found,), report = tokenization.pairs([made], small.tokenizer(), LengthLimit(LENGTH), "train")
    end = small.tokenizer().im_end
    assert [answer[-1] == end for answer in found[1:3]] == [chosen == 1, rejected == 1]
    assert [len(found[0]) + len(answer) == LENGTH for answer in found[1:3]] == [chosen > 1, rejected > 1]
    assert report.truncated.all()
    assert report.trains_end[0] == (chosen == 1)


# --- pairs and unpaired preferences ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["rm", "align-offline"])
def test_equal_answers_are_dropped_and_refused_if_all_are_equal(run: Run, stage: str) -> None:
    equal = [pair(f"Why {i}?", "red", "red ") for i in range(5)]
    code, lines = run(stage, equal)
    assert code == USAGE
    assert only_line(lines, "error: 0 pairs in ")
    code, lines = run(stage, equal + VALID[stage])
    assert code == OK
    assert "dropped 5: chosen equals rejected" in only_line(lines, "dropped 5")


def test_answers_equal_after_truncation_are_dropped_and_refused_if_all_are(run: Run) -> None:
    equal = [pair(f"Why {i}?", "red " * 80 + "x", "red " * 80 + "y") for i in range(10)]
    code, lines = run("rm", equal)
    assert code == USAGE
    assert ": all have equal answers after truncation (data.max_length)" in only_line(lines, "error: none of")
    code, lines = run("rm", equal + VALID["rm"], val=VALID["rm"][:5])
    assert code == OK
    assert "train: 40 records (10 dropped with equal answers)" in lines
    assert any(
        w.startswith("10 of 50 train records have equal answers after truncation and are dropped")
        for w in warnings(lines)
    )


def test_a_single_label_is_refused(run: Run) -> None:
    code, lines = run("kto", [unpaired(f"What is {i}?", "red", True) for i in range(30)])
    assert code == USAGE
    assert "answers have the same label: there is nothing to learn from" in only_line(lines, "error: all ")


# --- prompts --------------------------------------------------------------------------------------------------------------------


def test_prompts_without_room_for_an_answer_are_dropped_and_refused_if_all_are(run: Run) -> None:
    long = [prompt(f"{i} {LONG}") for i in range(6)]
    code, lines = run("align-online", long)
    assert code == USAGE
    assert only_line(lines, "error: none of ")
    code, lines = run("align-online", long + VALID["align-online"], val=VALID["align-online"][:5])
    assert code == OK
    assert "train: 40 records (6 dropped as longer than 64 tokens)" in lines
    assert any(
        w.startswith("6 of 46 train records leave no room for an answer and are dropped (13.0%)")
        for w in warnings(lines)
    )


def test_fix_names_max_new_tokens_if_it_leaves_no_room_for_prompts(run: Run) -> None:
    code, lines = run("align-online", VALID["align-online"], "rollout.max_new_tokens=90")
    assert code == USAGE
    assert "(rollout.max_new_tokens)" in only_line(lines, "error: none of ")
    code, lines = run(
        "align-online", VALID["align-online"], setting(only_line(lines, "fix: "), "rollout.max_new_tokens")
    )
    assert code == OK
    assert not [w for w in warnings(lines) if "dropped" in w]


def test_prompts_without_reward_columns_are_dropped_and_refused_if_all_are(run: Run) -> None:
    bare = [{"prompt": f"Who is {i}?"} for i in range(4)]
    code, lines = run("align-online", bare)
    assert code == USAGE
    assert "needs a column 'answer'" in only_line(lines, "error: ")
    code, lines = run("align-online", bare + VALID["align-online"], val=[*bare[:1], prompt("What is red?")])
    assert code == OK
    assert "4 of 44 train prompts have no column 'answer', which the rewards read: dropped" in warnings(lines)
    assert "1 of 2 val prompts have no column 'answer', which the rewards read: dropped" in warnings(lines)


@pytest.mark.parametrize(
    ("stage", "bad"),
    [
        ("align-online", prompt(" ")),
        ("rm", pair(" ", "red", "blue")),
        ("kto", unpaired("", "red", True)),
        ("sft", conversation("", "red")),
    ],
)
def test_empty_prompts_are_dropped_and_refused_if_all_are_empty(run: Run, stage: str, bad: dict) -> None:
    code, lines = run(stage, [bad] * 3)
    assert code == USAGE
    assert only_line(lines, "error: 0 ")
    code, lines = run(stage, [bad] * 3 + VALID[stage])
    assert code == OK
    assert "rows.jsonl:1, " in only_line(lines, "dropped 3: ")


@pytest.mark.parametrize(
    ("stage", "bad", "word"),
    [
        (
            "align-online",
            {"prompt": [user("a"), assistant("b")]},
            "dropped 2: the prompt does not end with a user turn",
        ),
        (
            "rm",
            {"prompt": [user("a"), assistant("b")], "chosen": "c", "rejected": "d"},
            "dropped 2: the prompt does not end with",
        ),
        ("sft", {"messages": [assistant("b"), assistant("c")]}, "dropped 2: no user turn"),
        ("sft", {"messages": [user("a"), user("b")]}, "dropped 2: no assistant turn"),
        (
            "sft",
            {"messages": [assistant("b"), user("a"), assistant("c")]},
            "repaired 2: assistant turns before the first user turn left out",
        ),
        (
            "sft",
            {"messages": [user("a"), user("b"), assistant("c")]},
            "repaired 2: consecutive turns of one role joined",
        ),
    ],
)
def test_turns_in_the_wrong_order_are_counted(run: Run, stage: str, bad: dict, word: str) -> None:
    code, lines = run(stage, [bad] * 2 + VALID[stage])
    assert code == OK
    assert any(line.startswith(word) for line in lines)
    if word.startswith("dropped"):
        code, lines = run(stage, [bad] * 2)
        assert code == USAGE
        assert only_line(lines, "error: 0 ")


# --- splits ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [*TRAINED, "kto"])
def test_val_prompts_that_are_trained_on_are_counted(run: Run, stage: str) -> None:
    code, lines = run(stage, VALID[stage], val=VALID[stage][:3] + VALID[stage][10:16])
    assert code == OK
    warning = "9 of 9 val records have a prompt that is trained on: validation looks better than it is"
    assert any(w.startswith(warning) for w in warnings(lines))
    code, lines = run(stage, VALID[stage][:30], val=VALID[stage][30:])
    assert code == OK
    assert warnings(lines) == []


@pytest.mark.parametrize("stage", [*TRAINED, "pretrain"])
def test_a_single_record_is_refused(run: Run, stage: str) -> None:
    bad = [{"text": "What is red? It is a colour. " * 40}] if stage == "pretrain" else VALID[stage][:1]
    code, lines = run(stage, bad, "data.max_length=32")
    assert code == USAGE
    assert re.match(r"error: 1 \w+ to train on and 0 to validate on \(data\)", only_line(lines, "error: "))


@pytest.mark.parametrize("stage", [*TRAINED, "kto"])
def test_fewer_records_than_a_batch_are_warned_about(run: Run, stage: str) -> None:
    data = VALID[stage][:12]
    code, lines = run(stage, data, "train.batch_size=32", "train.micro_batch_size=8", val=VALID[stage][20:24])
    assert code == OK
    (warning,) = warnings(lines)
    assert re.match(
        r"train: 12 (records|pairs|unpaired preferences|prompts) for (a batch of 32|rollouts of 16): every ", warning
    )


def test_fewer_rows_than_a_batch_are_warned_about_in_pretraining(run: Run) -> None:
    code, lines = run("pretrain", VALID["pretrain"], "train.batch_size=256", "train.micro_batch_size=256")
    assert code == OK
    (warning,) = warnings(lines)
    assert re.match(
        r"train: \d+ rows of 64 tokens for a batch of 256: every step uses some of them more than once", warning
    )


KINDS = {
    "pairs": lambda prompt, i: Pair(prompt, (assistant(f"a {i}"),), (assistant("b"),)),
    "unpaired": lambda prompt, i: UnpairedPreference(prompt, (assistant(f"a {i}"),), True),
    "prompts": lambda prompt, i: Prompt(prompt, {"answer": i}),
    "conversations": lambda prompt, i: Conversation((*prompt, assistant(f"a {i}"), user("and?"), assistant("b"))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_answers_to_a_prompt_are_in_one_split(kind: str) -> None:
    found = [KINDS[kind]((user(f"What is {i % 50}?"),), i) for i in range(500)]
    keys = splits.text_hashes(found, opening_of)
    assert len(set(keys.tolist())) == 50
    held = splits.held_out(keys, 0.2)
    assert 0.05 < held.mean() < 0.4
    assert not set(keys[held].tolist()) & set(keys[~held].tolist())
    more = [KINDS[kind]((user(f"Who is {i}?"),), i) for i in range(500)] + found
    assert (
        splits.held_out(splits.text_hashes(more, opening_of), 0.2)[500:] == held
    ).all()  # adding records does not move others


def test_conversations_with_the_same_opening_are_in_one_split_ignoring_white_space() -> None:
    opening = (user("What is red?"),)
    one = Conversation((*opening, assistant("a")))
    two = Conversation((user(" What is red?\n"), assistant("b"), user("And blue?"), assistant("c")))
    other = Conversation((user("And blue?"), assistant("c")))
    keys = splits.text_hashes([one, two, other], opening_of)
    assert keys[0] == keys[1] != keys[2]
    assert splits.text_hashes([one], prompt_of) != splits.text_hashes([two], prompt_of)


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize(
    "keys", [[1, 2**64 - 1], [5, 5, 5, 9], [2**63] * 9 + [2**63 + 1], [2**64 - 1] * 2 + [2**64 - 2]]
)
def test_two_prompts_are_enough_for_two_splits(keys: list[int], fraction: float) -> None:
    held = splits.held_out(np.array(keys, np.uint64), fraction)
    assert held.any()
    assert not held.all()


# --- labeled answers ------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 3), st.booleans()), min_size=2, max_size=12),
    fraction=st.sampled_from([0.05, 0.5, 0.95]),
)
def test_both_splits_have_both_labels_where_that_is_possible(rows: list[tuple[int, bool]], fraction: float) -> None:
    keys, labels = np.array([key for key, _ in rows], np.uint64), np.array([good for _, good in rows])
    held = splits.split_by_hash(keys, lambda: keys, fraction, labels)[0]
    for key in set(keys.tolist()):  # a prompt is in one split
        assert len(set(held[keys == key].tolist())) == 1
    groups = [set(keys[labels == good].tolist()) for good in (True, False)]
    if len(set(keys.tolist())) == 1:
        return
    plain = splits.held_out(keys, fraction)
    both = [set(labels[plain == side].tolist()) == {True, False} for side in (True, False)]
    if all(both):
        assert (held == plain).all()  # nothing is moved without need
    if min(map(len, groups)) > 1 and not groups[0] & groups[1]:
        assert set(labels[held].tolist()) == set(labels[~held].tolist()) == {True, False}
        assert not validation.check_split_labels(labels, held)
    assert (splits.split_by_hash(keys[::-1], lambda: keys[::-1], fraction, labels[::-1])[0][::-1] == held).all()


@pytest.mark.parametrize("rows", [10, 40, 200])
def test_the_automatic_split_of_kto_keeps_both_labels(run: Run, rows: int) -> None:
    found = [unpaired(f"What is {i} + 1?", f"It is {i + 1 + i % 2}.", i % 2 == 0) for i in range(rows)]
    code, lines = run("kto", found, "data.val_fraction=0.05")
    assert code == OK, lines


@pytest.mark.parametrize("lone", range(6))
def test_one_answer_with_a_label_is_refused_with_a_fix(run: Run, lone: int) -> None:
    found = [unpaired(f"What is {i} + 1?", f"It is {i}.", i != lone) for i in range(6)]
    code, lines = run("kto", found)
    assert code == USAGE
    assert "1 of 6 answers are bad, all to one prompt: none is left for" in only_line(lines, "error: ")
    assert "data.val" in only_line(lines, "fix: ")


def test_records_with_the_same_prompt_are_split_by_record_with_a_warning(run: Run) -> None:
    code, lines = run("sft", [conversation("Tell me a number.", f"It is {i}") for i in range(30)])
    assert code == OK
    (warning,) = warnings(lines)
    assert warning == "all 30 records have the same prompt: they are split by their answers"
    code, lines = run("sft", [conversation("Tell me a number.", "7")] * 30)
    assert code == USAGE
    assert only_line(lines, "error: 30 records to train on and 0 to validate on")


@pytest.mark.parametrize(("val", "warns"), [(70, True), (30, False)])
def test_more_records_held_out_than_trained_on_are_warned_about(val: int, warns: bool) -> None:
    found = validation.check_splits(100 - val, val, 0, data=DataConfig(train=("x",)), split=(val, 100))
    assert [f.rule for f in found] == ["much_held_out"] * warns
    half = DataConfig(train=("x",), val_fraction=0.6)
    assert validation.check_splits(100 - val, val, 0, data=half, split=(val, 100)) == []


def test_few_validation_records_that_were_split_off_are_said() -> None:
    (found,) = validation.check_splits(28, 1, 0, data=DataConfig(train=("x",)))
    assert (found.level, found.rule) == ("note", "few_held_out")
    assert found.what.startswith("1 of 29 records validate")
    assert validation.check_splits(95, 5, 0, data=DataConfig(train=("x",))) == []
    assert validation.check_splits(28, 1, 0, data=DataConfig(train=("x",), val=("y",))) == []


# --- too long -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["sft", "rm", "align-offline", "kto", "align-online"])
@pytest.mark.parametrize("policy", ["truncate", "drop", "error"])
def test_record_of_ten_contexts_is_truncated_dropped_or_refused(run: Run, stage: str, policy: str) -> None:
    monster = "zq" * 480
    bad = {
        "sft": conversation("What is red?", monster),
        "kto": unpaired("What is red?", monster, True),
        "align-online": prompt(monster),
    }.get(stage, pair("What is red?", monster, "red"))
    code, lines = run(stage, [bad, *VALID[stage]], f"data.too_long={policy}", val=VALID[stage][:5])
    if policy == "error":
        assert code == USAGE
        assert re.match(
            r"error: 1 of 41 train records are longer than 64 tokens; the longest has \d{3,4}",
            only_line(lines, "error: "),
        )
        return
    assert code == OK
    dropped = policy == "drop" or stage == "align-online"
    outcome = (
        "train: 40 records (1 dropped as longer than 64 tokens)"
        if dropped
        else "train: 41 records (1 truncated to 64 tokens)"
    )
    assert outcome in lines


def test_dropping_all_records_is_refused(run: Run) -> None:
    code, lines = run("sft", [conversation("What is red?" + str(i), LONG) for i in range(9)], "data.too_long=drop")
    assert code == USAGE
    assert only_line(lines, "error: none of ")


def test_a_single_source_needs_no_list():
    assert DataConfig(train="pairs.jsonl", val=["held_out.jsonl"]).train == ("pairs.jsonl",)
    assert DataConfig(train="pairs.jsonl") == DataConfig(train=["pairs.jsonl"])
