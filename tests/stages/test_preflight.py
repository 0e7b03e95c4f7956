"""What a stage finds wrong with its data before it trains: a bad data set of its own for every rule, and silence where all is well.

Several of these have bitten users of other tools: masks left empty by truncation (TRL #3927, #6668), end tokens that are cut off or never
in the mask (TRL #1623, torchtune #2792, axolotl #3754), pairs cut by the longer answer (TRL #6548), a second BOS (TRL #1400, OpenRLHF
#393), prompts too long to be answered (TRL #3569), too long records that could not be left out (LLaMA-Factory #1136, #3995), validation
on what was trained on (OpenRLHF #1089).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

sys.path.insert(0, str(Path(__file__).parent))
import small

from tinyllm import cli
from tinyllm.data.records import Conversation, Judgement, Pair, Prompt
from tinyllm.errors import OK, USAGE
from tinyllm.stages import preflight, rows, sides
from tinyllm.stages.config import DataConfig
from tinyllm.stages.rows import Facts, Room
from tinyllm.text.tokenizer import Tokenizer

LENGTH = 64
LONG = "zq" * 60  # 120 tokens: pairs that the vocabulary has not met
TRAINED = ("sft", "rm", "align-offline", "align-online")
Run = Callable[..., tuple[int, list[str]]]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [user(question), said(answer)]}


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


def judged(question: str, answer: str, label: bool) -> dict[str, Any]:
    return {"prompt": question, "completion": answer, "label": label}


def asked(question: str, **more: Any) -> dict[str, Any]:
    return {"prompt": question, "answer": "7", **more}


HEALTHY = {
    "sft": [talk(f"What is {i}?", "It is a number.") for i in range(40)],
    "rm": [pair(f"What is {i}?", "It is a number.", "red, blue") for i in range(40)],
    "align-offline": [pair(f"What is {i}?", "It is a number.", "red, blue") for i in range(40)],
    "kto": [judged(f"What is {i}?", "It is a number." if i % 2 else "red", bool(i % 2)) for i in range(40)],
    "align-online": [asked(f"What is {i}?") for i in range(40)],
    "pretrain": [{"text": f"What is {i}? It is a number. red, blue " * 4} for i in range(40)],
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Run:
    """`run("sft", rows, "data.max_length=32")` -> exit code and what was said, line by line: one step of the command itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    small.saved(small.rough(), tmp_path / "parent")

    def command(stage: str, data: list[dict[str, Any]], *sets: str, val: list[dict[str, Any]] | None = None):
        verb = {"kto": ["align-offline", "--algorithm", "kto"]}.get(stage, [stage])
        settings = [
            f"data.train=[{small.written(tmp_path / 'rows.jsonl', data)}]",
            *([] if val is None else [f"data.val=[{small.written(tmp_path / 'val.jsonl', val)}]"]),
            f"data.max_length={LENGTH}",
            "data.val_fraction=0.2",
            "train.steps=1",
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
        parent = [] if stage == "pretrain" else ["--checkpoint", "parent"]
        capfd.readouterr()
        code = cli.run([*verb, *parent, "--no-resume", *(part for s in settings for part in ("--set", s))])
        return code, capfd.readouterr().err.splitlines()

    return command


def warnings(lines: list[str]) -> list[str]:
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


def the(lines: list[str], start: str) -> str:
    found = [line for line in lines if line.startswith(start)]
    assert len(found) == 1, lines
    return found[0]


def setting(text: str, name: str) -> str:
    """The `name=value` that a fix proposes: "set name to 12 or more"."""
    return f"{name}={text.partition(f'set {name} to ')[2].split()[0]}"


@pytest.mark.parametrize("stage", HEALTHY)
def test_sound_data_are_trained_on_without_a_word_of_warning(run: Run, stage: str) -> None:
    code, lines = run(stage, HEALTHY[stage])
    assert code == OK, lines
    assert warnings(lines) == []
    assert not [line for line in lines if "dropped" in line or "cut" in line]


# --- nothing to learn ------------------------------------------------------------------------------------------------------------


def test_answers_beyond_the_row_are_dropped_with_a_count_and_refused_where_all_are(run: Run) -> None:
    bad = [talk(f"{i} {LONG}", "red") for i in range(10)]
    code, lines = run("sft", bad)
    assert code == USAGE
    told = the(lines, "error: ")
    assert re.match(r"error: none of \d+ train records can be learned from at 64 tokens \(data.max_length\)", told)
    code, lines = run("sft", bad[:3] + HEALTHY["sft"], val=HEALTHY["sft"][:5])
    assert code == OK
    assert "train: 40 records (3 dropped with nothing left to learn)" in lines
    assert any(
        w.startswith("3 of 43 train records have no answer left to learn and are dropped (7.0%)")
        for w in warnings(lines)
    )


@pytest.mark.parametrize("stage", ["sft", "rm", "align-offline", "kto"])
def test_where_every_answer_is_cut_off_nobody_would_learn_to_stop(run: Run, stage: str) -> None:
    """And what the fix says is the length at which they fit."""
    long = "red, blue, " * 8
    data = {
        "sft": [talk(f"What is {i}?", f"{long} {i}") for i in range(30)],
        "kto": [judged(f"What is {i}?", f"{long} {i}", bool(i % 2)) for i in range(30)],
    }.get(stage, [pair(f"What is {i}?", f"{i} {long}", f"It is {long}") for i in range(30)])
    code, lines = run(stage, data, "data.max_length=40")
    assert code == USAGE
    assert "the model would never learn to stop (<|im_end|>) (data.max_length)" in the(lines, "error: all ")
    code, lines = run(stage, data, setting(the(lines, "fix: "), "data.max_length"))
    assert code == OK
    assert warnings(lines) == []


def test_answers_that_are_cut_off_are_counted_with_their_share(run: Run) -> None:
    train = [talk(f"What is {i}?", "red, blue, " * (12 if i < 4 else 1)) for i in range(40)]
    code, lines = run("sft", train, "data.max_length=48", val=[talk(f"Who is {i}?", "red") for i in range(5)])
    assert code == OK
    assert "train: 40 records (4 cut to 48 tokens)" in lines
    (told,) = warnings(lines)
    assert told.startswith("4 of 40 train records lose the end of an answer (10.0%); set data.max_length to ")
    assert "only" not in told


def test_a_conversation_cut_between_answers_loses_the_end_of_none(run: Run) -> None:
    """The question that is cut, and all behind it, was not to be learned or is not seen at all."""
    more = [user(LONG), said("red")]
    train = [{"messages": [user(f"What is {i}?"), said("It is a number."), *more]} for i in range(40)]
    code, lines = run("sft", train, val=[talk(f"Who is {i}?", "red") for i in range(5)])
    assert code == OK
    assert "train: 40 records (40 cut to 64 tokens)" in lines
    assert warnings(lines) == []


def test_the_length_that_a_fix_names_is_one_that_99_in_100_do_not_exceed() -> None:
    lengths = [*range(1, 991), *range(5000, 5010)]
    assert preflight.fits(lengths) == 990
    assert preflight.fits([7]) == preflight.fits([7] * 9) == 7


def test_few_end_tokens_are_named(run: Run) -> None:
    train = [talk(f"What is {i}?", "red, blue, " * (12 if i < 30 else 1)) for i in range(40)]
    code, lines = run("sft", train, "data.max_length=48", val=HEALTHY["sft"][:5])
    assert code == OK
    assert any("(75.0%), and only 25% train <|im_end|>" in told for told in warnings(lines))


@pytest.mark.parametrize(("ends", "level"), [(0, "refused"), (3, "warning"), (5, None), (10, None)])
def test_an_end_token_outside_the_mask_is_noticed_though_nothing_was_cut(ends: int, level: str | None) -> None:
    facts = Facts("train", Room(LENGTH), 10)
    facts.length[:], facts.scored[:], facts.kept[:] = 20, 5, True
    facts.ends[:ends] = True
    found = preflight.rows(facts)
    assert [(f.level, f.rule) for f in found] == ([(level, "few_ends" if ends else "no_end")] if level else [])
    assert all("<|im_end|>" in f.what for f in found)


# --- tokens ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A vocabulary from elsewhere that opens every text with <s>, by itself."""
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
def test_no_row_has_a_second_bos_whatever_the_vocabulary_and_the_text(with_bos: Tokenizer, text: str) -> None:
    turns = (user(text), said("It is a colour."))
    found, facts = rows.conversations([Conversation(turns)], with_bos, Room(200), "train")
    assert np.isin(found[0][0], with_bos.bos).sum() == 0
    assert facts.ends.all()
    (prompt, _), *_ = rows.prompts([Prompt(turns[:1], {})], with_bos, Room(200), "train")[0]
    assert with_bos.bos not in prompt
    assert [f.rule for f in preflight.rows(facts)] == ["spelled_tokens"] * ("<s>" in text)


def test_text_that_a_template_was_applied_to_is_named(run: Run) -> None:
    bad = [talk(f"<|im_start|>user\nWhat is {i}?<|im_end|>", "red") for i in range(3)]
    code, lines = run("sft", bad + HEALTHY["sft"], val=HEALTHY["sft"][:5])
    assert code == OK
    told = [w for w in warnings(lines) if "written out in their text" in w]
    assert told[0].startswith("3 of 43 train records have control tokens written out in their text (<|im_start|>)")


@pytest.mark.parametrize(("chosen", "rejected"), [(60, 1), (1, 60), (60, 60)])
def test_each_answer_of_a_pair_is_cut_for_itself(chosen: int, rejected: int) -> None:
    """A short answer keeps its end though the other has to be cut, and neither is ever empty."""
    made = Pair((user("What is red?"),), (said("zq" * chosen),), (said("xv" * rejected),))
    (found,), facts = rows.pairs([made], small.tokenizer(), Room(LENGTH), "train")
    end = small.tokenizer().im_end
    assert [answer[-1] == end for answer in found[1:3]] == [chosen == 1, rejected == 1]
    assert [len(found[0]) + len(answer) == LENGTH for answer in found[1:3]] == [chosen > 1, rejected > 1]
    assert facts.open.all()
    assert facts.ends[0] == (chosen == 1)


# --- pairs and judgements ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["rm", "align-offline"])
def test_equal_answers_are_counted_and_refused_where_all_are_equal(run: Run, stage: str) -> None:
    equal = [pair(f"Why {i}?", "red", "red ") for i in range(5)]
    code, lines = run(stage, equal)
    assert code == USAGE
    assert the(lines, "error: 0 pairs in ")
    code, lines = run(stage, equal + HEALTHY[stage])
    assert code == OK
    assert "dropped 5: chosen equals rejected" in the(lines, "dropped 5")


def test_answers_that_are_equal_once_they_are_cut_are_counted_and_refused_where_all_are(run: Run) -> None:
    equal = [pair(f"Why {i}?", "red " * 80 + "x", "red " * 80 + "y") for i in range(10)]
    code, lines = run("rm", equal)
    assert code == USAGE
    assert ": all have equal answers once they are cut (data.max_length)" in the(lines, "error: none of")
    code, lines = run("rm", equal + HEALTHY["rm"], val=HEALTHY["rm"][:5])
    assert code == OK
    assert "train: 40 records (10 dropped with equal answers)" in lines
    assert any(
        w.startswith("10 of 50 train records have equal answers once they are cut and are dropped")
        for w in warnings(lines)
    )


def test_one_label_has_nothing_to_tell_apart(run: Run) -> None:
    code, lines = run("kto", [judged(f"What is {i}?", "red", True) for i in range(30)])
    assert code == USAGE
    assert "answers have one label: there is nothing to tell apart" in the(lines, "error: all ")


# --- prompts ---------------------------------------------------------------------------------------------------------------------


def test_prompts_that_leave_no_room_are_dropped_with_a_count_and_refused_where_all_do(run: Run) -> None:
    long = [asked(f"{i} {LONG}") for i in range(6)]
    code, lines = run("align-online", long)
    assert code == USAGE
    assert the(lines, "error: none of ")
    code, lines = run("align-online", long + HEALTHY["align-online"], val=HEALTHY["align-online"][:5])
    assert code == OK
    assert "train: 40 records (6 dropped as longer than 64 tokens)" in lines
    assert any(
        w.startswith("6 of 46 train records leave no room for an answer and are dropped (13.0%)")
        for w in warnings(lines)
    )


def test_an_answer_that_takes_the_room_of_all_prompts_is_the_setting_to_change(run: Run) -> None:
    code, lines = run("align-online", HEALTHY["align-online"], "rollout.max_new_tokens=90")
    assert code == USAGE
    assert "(rollout.max_new_tokens)" in the(lines, "error: none of ")
    code, lines = run("align-online", HEALTHY["align-online"], setting(the(lines, "fix: "), "rollout.max_new_tokens"))
    assert code == OK
    assert not [w for w in warnings(lines) if "dropped" in w]


def test_prompts_without_what_the_reward_reads_are_left_out_and_refused_where_none_has_it(run: Run) -> None:
    bare = [{"prompt": f"Who is {i}?"} for i in range(4)]
    code, lines = run("align-online", bare)
    assert code == USAGE
    assert "needs a column 'answer'" in the(lines, "error: ")
    code, lines = run("align-online", bare + HEALTHY["align-online"], val=[*bare[:1], asked("What is red?")])
    assert code == OK
    assert "4 of 44 train prompts have no column 'answer', which the rewards read: left out" in warnings(lines)
    assert "1 of 2 val prompts have no column 'answer', which the rewards read: left out" in warnings(lines)


@pytest.mark.parametrize(
    ("stage", "bad"),
    [
        ("align-online", asked(" ")),
        ("rm", pair(" ", "red", "blue")),
        ("kto", judged("", "red", True)),
        ("sft", talk("", "red")),
    ],
)
def test_empty_prompts_are_counted_with_their_places_and_refused_where_all_are_empty(
    run: Run, stage: str, bad: dict
) -> None:
    code, lines = run(stage, [bad] * 3)
    assert code == USAGE
    assert the(lines, "error: 0 ")
    code, lines = run(stage, [bad] * 3 + HEALTHY[stage])
    assert code == OK
    assert "rows.jsonl:1, " in the(lines, "dropped 3: ")


@pytest.mark.parametrize(
    ("stage", "bad", "word"),
    [
        ("align-online", {"prompt": [user("a"), said("b")]}, "dropped 2: the prompt does not end with a user turn"),
        (
            "rm",
            {"prompt": [user("a"), said("b")], "chosen": "c", "rejected": "d"},
            "dropped 2: the prompt does not end with",
        ),
        ("sft", {"messages": [said("b"), said("c")]}, "dropped 2: no user turn"),
        ("sft", {"messages": [user("a"), user("b")]}, "dropped 2: no assistant turn"),
        (
            "sft",
            {"messages": [said("b"), user("a"), said("c")]},
            "mended 2: assistant turns before the first user turn left out",
        ),
        ("sft", {"messages": [user("a"), user("b"), said("c")]}, "mended 2: turns of one role in a row joined"),
    ],
)
def test_turns_in_a_broken_order_are_counted(run: Run, stage: str, bad: dict, word: str) -> None:
    code, lines = run(stage, [bad] * 2 + HEALTHY[stage])
    assert code == OK
    assert any(line.startswith(word) for line in lines)
    if word.startswith("dropped"):
        code, lines = run(stage, [bad] * 2)
        assert code == USAGE
        assert the(lines, "error: 0 ")


# --- sides -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [*TRAINED, "kto"])
def test_prompts_of_data_val_that_are_trained_on_are_counted(run: Run, stage: str) -> None:
    code, lines = run(stage, HEALTHY[stage], val=HEALTHY[stage][:3] + HEALTHY[stage][10:16])
    assert code == OK
    told = "9 of 9 val records have a prompt that is trained on, so validation looks better than it is"
    assert any(w.startswith(told) for w in warnings(lines))
    code, lines = run(stage, HEALTHY[stage][:30], val=HEALTHY[stage][30:])
    assert code == OK
    assert warnings(lines) == []


@pytest.mark.parametrize("stage", [*TRAINED, "pretrain"])
def test_one_record_cannot_be_trained_on_and_validated_with(run: Run, stage: str) -> None:
    bad = [{"text": "What is red? It is a colour. " * 40}] if stage == "pretrain" else HEALTHY[stage][:1]
    code, lines = run(stage, bad, "data.max_length=32")
    assert code == USAGE
    assert re.match(r"error: 1 \w+ to train on and 0 to validate with \(data\)", the(lines, "error: "))


@pytest.mark.parametrize("stage", [*TRAINED, "kto"])
def test_fewer_records_than_a_batch_are_named(run: Run, stage: str) -> None:
    data = HEALTHY[stage][:12]
    code, lines = run(stage, data, "train.batch_size=32", "train.micro_batch_size=8", val=HEALTHY[stage][20:24])
    assert code == OK
    (told,) = warnings(lines)
    assert re.match(r"train: 12 (records|pairs|judgements|prompts) for (a batch of 32|rollouts of 16): every ", told)


def test_fewer_rows_than_a_batch_are_named_in_pretraining(run: Run) -> None:
    code, lines = run("pretrain", HEALTHY["pretrain"], "train.batch_size=256", "train.micro_batch_size=256")
    assert code == OK
    (told,) = warnings(lines)
    assert re.match(
        r"train: \d+ rows of 64 tokens for a batch of 256: every step sees some of them more than once", told
    )


KINDS = {
    "pairs": lambda prompt, i: Pair(prompt, (said(f"a {i}"),), (said("b"),)),
    "judgements": lambda prompt, i: Judgement(prompt, (said(f"a {i}"),), True),
    "prompts": lambda prompt, i: Prompt(prompt, {"answer": i}),
    "conversations": lambda prompt, i: Conversation((*prompt, said(f"a {i}"), user("and?"), said("b"))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_on_one_side_however_often_it_was_answered(kind: str) -> None:
    found = [KINDS[kind]((user(f"What is {i % 50}?"),), i) for i in range(500)]
    keys = sides.keys(found, sides.opening_of)
    assert len(set(keys.tolist())) == 50
    held = sides.held_out(keys, 0.2)
    assert 0.05 < held.mean() < 0.4
    assert not set(keys[held].tolist()) & set(keys[~held].tolist())
    more = [KINDS[kind]((user(f"Who is {i}?"),), i) for i in range(500)] + found
    assert (sides.held_out(sides.keys(more, sides.opening_of), 0.2)[500:] == held).all()  # new records move no old ones


def test_conversations_that_open_alike_are_on_one_side_and_white_space_does_not_count() -> None:
    opening = (user("What is red?"),)
    one = Conversation((*opening, said("a")))
    two = Conversation((user(" What is red?\n"), said("b"), user("And blue?"), said("c")))
    other = Conversation((user("And blue?"), said("c")))
    keys = sides.keys([one, two, other], sides.opening_of)
    assert keys[0] == keys[1] != keys[2]
    assert sides.keys([one], sides.prompt_of) != sides.keys([two], sides.prompt_of)


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize(
    "keys", [[1, 2**64 - 1], [5, 5, 5, 9], [2**63] * 9 + [2**63 + 1], [2**64 - 1] * 2 + [2**64 - 2]]
)
def test_two_prompts_are_enough_for_two_sides(keys: list[int], fraction: float) -> None:
    held = sides.held_out(np.array(keys, np.uint64), fraction)
    assert held.any()
    assert not held.all()


def test_where_all_prompts_are_one_the_records_are_split_and_it_is_said(run: Run) -> None:
    code, lines = run("sft", [talk("Tell me a number.", f"It is {i}") for i in range(30)])
    assert code == OK
    (told,) = warnings(lines)
    assert told == "all 30 records have the same prompt: they are split by their answers"
    code, lines = run("sft", [talk("Tell me a number.", "7")] * 30)
    assert code == USAGE
    assert the(lines, "error: 30 records to train on and 0 to validate with")


@pytest.mark.parametrize(("val", "said_"), [(70, True), (30, False)])
def test_more_records_held_out_than_trained_on_is_said(val: int, said_: bool) -> None:
    found = preflight.sides(100 - val, val, 0, data=DataConfig(train=("x",)), split=(val, 100))
    assert [f.rule for f in found] == ["much_held_out"] * said_
    half = DataConfig(train=("x",), val_fraction=0.6)
    assert preflight.sides(100 - val, val, 0, data=half, split=(val, 100)) == []


# --- too long --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["sft", "rm", "align-offline", "kto", "align-online"])
@pytest.mark.parametrize("policy", ["truncate", "drop", "error"])
def test_a_record_of_ten_contexts_is_cut_left_out_or_refused_as_asked(run: Run, stage: str, policy: str) -> None:
    monster = "zq" * 480
    bad = {
        "sft": talk("What is red?", monster),
        "kto": judged("What is red?", monster, True),
        "align-online": asked(monster),
    }.get(stage, pair("What is red?", monster, "red"))
    code, lines = run(stage, [bad, *HEALTHY[stage]], f"data.too_long={policy}", val=HEALTHY[stage][:5])
    if policy == "error":
        assert code == USAGE
        assert re.match(
            r"error: 1 of 41 train records are longer than 64 tokens; the longest has \d{3,4}", the(lines, "error: ")
        )
        return
    assert code == OK
    dropped = policy == "drop" or stage == "align-online"
    told = (
        "train: 40 records (1 dropped as longer than 64 tokens)"
        if dropped
        else "train: 41 records (1 cut to 64 tokens)"
    )
    assert told in lines


def test_left_out_are_all_records_or_none_is_refused(run: Run) -> None:
    code, lines = run("sft", [talk("What is red?" + str(i), LONG) for i in range(9)], "data.too_long=drop")
    assert code == USAGE
    assert the(lines, "error: none of ")
