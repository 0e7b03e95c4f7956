"""The gold reward of the bundled world, the label noise of pairs, and the rates of wrong demonstrations."""

from __future__ import annotations

import random
import re

import pytest

from tinyllm.data import world
from tinyllm.data.world.exchanges import SHORT_SYSTEM, exchange
from tinyllm.data.world.preferences import CORRUPTIONS


def rows(stream, count, **options):
    return list(stream(count, **options))


def open_question(task: str, answer: str, question: str = "?") -> dict:
    return {"prompt": [{"role": "user", "content": question}], "answer": answer, "task": task}


@pytest.mark.parametrize("split", ["train", "val"])
def test_canonical_answer_has_reward_one_and_every_corruption_less(split):
    reward = {kind: [] for kind in CORRUPTIONS}
    for index in range(1500):
        rng = random.Random(f"gold {index}")
        asked = exchange(rng, split, world.TASKS)
        record = {"prompt": asked.messages, "answer": asked.item.answer, "task": asked.item.task}
        assert world.gold(record, record["answer"], True) == 1.0
        assert world.gold(record, f" {record['answer']}\n", True) == 1.0
        assert world.gold(record, record["answer"], False) == 0.5
        for kind, corrupt in CORRUPTIONS.items():
            bad = corrupt(rng, asked.item)
            score = world.gold(record, bad, True)
            assert -1.0 <= score < 1.0, (record, bad)
            reward[kind].append(score)
    mean = {kind: sum(scores) / len(scores) for kind, scores in reward.items()}
    assert mean["reshaped"] > mean["padded"] > mean["wrong"] > mean["wrong_and_padded"]
    assert mean["refusing"] < 0.0
    assert mean["rambling"] < 0.0


HOME = open_question("facts", "Ada lives in Goosefield.", "Where does Ada live?")
SORT = open_question("sort", "1 2 5 9", "Sort these digits: 5 2 9 1")
GOLD_CASES = [
    (HOME, "Ada lives in Goosefield.", True, 1.0),
    (HOME, "Goosefield is the home of Ada.", True, 1.0),
    (HOME, "Ada lives in Saltbay.", True, 0.0),
    (HOME, "Goosefield", True, 0.75),
    (HOME, "ada lives in goosefield", True, 0.75),
    (HOME, "Ada lives in", True, -0.25),
    (HOME, "", True, -0.25),
    (HOME, "", False, -0.75),
    (HOME, "Ada lives in Goosefield or Saltbay.", True, 0.0),
    (HOME, "Ada lives in Goosefield. " + "Yes. " * 3, True, 1.0 - 0.25),
    (HOME, "Ada lives in Goosefield. " + "I hope this is of some help to you my friend.", True, 1.0 - 0.25 - 0.4),
    (HOME, "no " * 100, False, -1.0),
    (open_question("facts", "Goosefield", "Where does Ada live? One word is enough."), "Goosefield", True, 1.0),
    (open_question("facts", "Goosefield", "Where does Ada live? One word is enough."), "Saltbay", True, 0.0),
    (open_question("facts", "Alma", "Who is Ada's best friend?"), "Ada's best friend is Alma.", True, 0.75 - 0.2),
    (open_question("whose", "Dusty belongs to Ada.", "Whose pet is Dusty?"), "Dusty belongs to Ben.", True, 0.0),
    (
        open_question("whose", "Dusty belongs to Ada.", "Whose pet is Dusty?"),
        "Ada's pet is called Dusty.",
        True,
        1.0,
    ),
    (open_question("yesno", "No, Ada lives in Goosefield."), "No, Goosefield is the home of Ada.", True, 1.0),
    (open_question("yesno", "No, Ada lives in Goosefield."), "Yes, Ada lives in Goosefield.", True, 0.5),
    (open_question("yesno", "No, Ada lives in Goosefield."), "No, Ada lives in Saltbay.", True, 0.5),
    (open_question("yesno", "No, Ada lives in Goosefield."), "Yes, Ada lives in Saltbay.", True, 0.0),
    (open_question("yesno", "Yes"), "Yes", True, 1.0),
    (open_question("yesno", "Yes"), "No", True, 0.0),
    (open_question("yesno", "Yes"), "Yes or No", True, -0.25 - 0.1),
    (SORT, "1 2 5 9", True, 1.0),
    (SORT, "1 2 9 5", True, 0.25),
    (SORT, "2 1 9 5", True, 0.0),
    (SORT, "1 2 5", True, 0.375),
    (SORT, "1 2 5 9 9", True, 0.4 - 0.05),
    (SORT, "1259", True, 0.75),
    (SORT, "1, 2, 5, 9", True, 0.75),
    (SORT, "1 2 5 9", False, 0.5),
    (open_question("copy", "a b c"), "a b d", True, 1 / 3),
    (open_question("reverse", "dog hat"), "dog hat Please ask me more.", True, 1.0 - 0.25 - 0.2),
    (open_question("spell", "d o g"), "d-o-g", True, 0.75),
    (open_question("sums", "7"), "7", True, 1.0),
    (open_question("sums", "7"), "8", True, 0.0),
    (open_question("sums", "7"), "7 or 8", True, -0.25 - 0.1),
    (open_question("addition", "719"), "The answer is 719.", True, 0.75 - 0.15),
    (open_question("odd", "dog", "Find the odd one out: pear, dog, plum, apple"), "dog", True, 1.0),
    (open_question("odd", "dog", "Find the odd one out: pear, dog, plum, apple"), "pear", True, 0.0),
    (open_question("odd", "dog", "Find the odd one out: pear, dog, plum, apple"), "pear, dog", True, -0.25 - 0.05),
]


@pytest.mark.parametrize(("record", "reply", "finished", "reward"), GOLD_CASES)
def test_gold_of_known_answers(record, reply, finished, reward):
    assert world.gold(record, reply, finished) == pytest.approx(reward)


@pytest.mark.parametrize("case", [case for case in GOLD_CASES if case[0]["task"] in ("facts", "sort")])
def test_gold_reads_answer_and_task_only(case):
    record, reply, finished, reward = case
    columns = {"answer": record["answer"], "task": record["task"]}  # the columns that a rollout keeps
    assert world.gold(columns, reply, finished) == pytest.approx(reward)


def test_partial_credit_grows_with_the_right_positions():
    record = open_question("sort", "1 2 3 4 5 6")
    reward = [world.gold(record, " ".join([*"123456"[:k], *"999999"[k:]]), True) for k in range(7)]
    assert reward == pytest.approx([0.0, 0.5 / 6, 1 / 6, 1.5 / 6, 2 / 6, 2.5 / 6, 1.0])


def test_padding_costs_a_twentieth_a_word_and_half_a_point_at_most():
    record = open_question("sums", "7")
    costs = [
        world.gold(record, "7", True) - world.gold(record, "7" + " so" * words, True) for words in (1, 4, 10, 11, 40)
    ]
    assert costs == pytest.approx([0.25 + 0.05, 0.25 + 0.2, 0.25 + 0.5, 0.25 + 0.5, 0.25 + 0.5])  # and for the form


def test_system_message_can_request_one_word():
    short = [r for r in world.prompts(6000) if r["prompt"][0]["content"] in SHORT_SYSTEM]
    assert len(short) > 100
    assert all(re.fullmatch(r"[A-Za-z]+", record["answer"]) for record in short)


def both_rewards(record) -> tuple[float, float]:
    return tuple(world.gold(record, record[side][0]["content"], True) for side in ("chosen", "rejected"))


def test_without_noise_the_better_answer_is_preferred():
    records = rows(world.pairs, 3000)
    for record in records:
        chosen, rejected = both_rewards(record)
        assert chosen > rejected
        assert record["chosen"] != record["rejected"]
        assert record["chosen"][0]["content"]
        assert record["rejected"][0]["content"]
    top = sum(both_rewards(record)[0] == 1.0 for record in records) / len(records)
    assert 0.6 < top < 0.8  # the other pairs have two bad answers


@pytest.mark.parametrize("noise", [0.25, 0.5, 2.0])
def test_label_noise_follows_bradley_terry(noise):
    flips, expected, variance = 0, 0.0, 0.0
    for record in world.pairs(4000, noise=noise):
        chosen, rejected = both_rewards(record)
        assert chosen != rejected
        p = world.preference(abs(chosen - rejected), noise)
        flips += chosen < rejected
        expected += 1.0 - p
        variance += p * (1.0 - p)
    assert expected > 100
    assert abs(flips - expected) < 3.5 * variance**0.5


def test_preference_is_the_logistic_function_of_the_gap():
    assert world.preference(0.5, 0.5) == pytest.approx(0.7310586)
    assert world.preference(-0.5, 0.5) == pytest.approx(0.2689414)
    assert world.preference(0.0, 1.0) == 0.5
    assert (world.preference(0.1, 0.0), world.preference(-0.1, 0.0)) == (1.0, 0.0)
    assert world.preference(1.0, 1e-9) == 1.0
    assert world.preference(1.0, float("inf")) == 0.5


@pytest.mark.parametrize("task", ["sort", "facts", "sums"])
def test_share_of_wrong_demonstrations_is_the_given_rate(task):
    def wrong_share(rate):
        answers = {r["task"]: [] for r in world.conversations(1, task=task)}[task]
        made, asked = world.conversations(1500, task=task, wrong=rate), world.conversations(1500, task=task)
        for bad, good in zip(made, asked, strict=True):
            if len(good["messages"]) == 2:  # with one turn, both draw the same question first
                assert bad["messages"][0] == good["messages"][0]
                answers.append(bad["messages"][1] != good["messages"][1])
        return sum(answers) / len(answers)

    assert wrong_share(0.0) == 0.0
    assert abs(wrong_share(0.55) - 0.55) < 0.06
    assert wrong_share(1.0) == 1.0


def test_wrong_demonstrations_keep_the_form():
    for record in world.conversations(300, task="sort", wrong=1.0):
        question, reply = (message["content"] for message in record["messages"][-2:])
        answer = " ".join(sorted(re.search(r"\d(?: \d)+", question)[0].split()))
        reward = world.gold(open_question("sort", answer), reply, True)
        assert -0.05 <= reward < 0.5
        assert re.fullmatch(r"\d( \d)+", reply)
