"""Val and test of the bundled world: the same held-out content, and every question and document in one of them only."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from tinyllm.data import world
from tinyllm.data.world.draw import belongs, in_half
from tinyllm.data.world.exchanges import GREETINGS, LEAD_INS, WEIGHTS
from tinyllm.data.world.fact_wordings import ASK, ASK_INVERSE, CHECK, SHORT
from tinyllm.data.world.facts import INVERSE, STATEMENTS, lower_first, phrase
from tinyllm.data.world.lexicon import VALUES, WORDS
from tinyllm.data.world.questions import _fill, askable, chains
from tinyllm.data.world.task_wordings import WORDINGS
from tinyllm.data.world.tasks import DRAW, rule_task

HALVES = ("val", "test")
LEAD_IN = re.compile("^(?:" + "|".join(re.escape(text) for text in LEAD_INS if text) + ")")
GREETED = {hello for hello, _ in GREETINGS}


def asked(record: dict) -> list[str]:
    """Return the questions of a record without their lead-ins; greetings are none."""
    messages = record.get("messages") or record["prompt"]
    texts = [message["content"] for message in messages if message["role"] == "user"]
    return [LEAD_IN.sub("", text) for text in texts if text not in GREETED]


def of_facts(task: str) -> Iterator[str]:
    """Yield every held-out question of a task about facts, without a request for one word."""
    if task == "facts":
        yield from (_fill(text, one.subject) for one in askable("val") for text in ASK[one.attribute]["val"])
    if task == "whose":
        wordings = ((text, one) for one in askable("val", INVERSE) for text in ASK_INVERSE[one.attribute]["val"])
        yield from (text.format(v=one.value) for text, one in wordings)
    if task == "hops":
        for described, link, one in chains("val"):
            texts = [text for text in ASK[one.attribute]["val"] if link != "pet_name" or "{n}'s" not in text]
            yield from (_fill(text, described) for text in texts)
    if task == "yesno":
        for one in askable("val"):
            for value in VALUES[one.attribute]:
                claim = lower_first(phrase(STATEMENTS[one.attribute][0], one.subject, value))
                yield from (text.format(s=claim) for text in CHECK["val"])


def of_rules(task: str) -> Iterator[str]:
    """Yield held-out questions of a task: all of the small ones, 2,000 of the large ones."""
    if task == "spell":
        held = [word for word in WORDS if belongs(f"spell|{word}", "val")]
        yield from (text.format(x=word) for word in held for text in WORDINGS["spell"].val)
    else:
        yield from (rule_task(random.Random(i), task, "val").question for i in range(2000))


LEAST = {  # distinct questions in the smaller half
    **{"facts": 66, "whose": 10, "yesno": 500, "hops": 97},
    **{"sort": 900, "copy": 900, "reverse": 900, "spell": 22, "count": 900},
    **{"sums": 25, "addition": 900, "compare": 800, "odd": 900},
}


@pytest.mark.parametrize("task", world.TASKS)
def test_every_task_has_enough_questions_in_both_halves(task: str) -> None:
    known = set(of_rules(task) if task in DRAW else of_facts(task))
    halves = [{text for text in known if in_half(text, split)} for split in HALVES]
    assert sum(map(len, halves)) == len(known)  # every question is in one of them
    assert min(map(len, halves)) >= LEAST[task], list(map(len, halves))
    assert set(LEAST) == set(WEIGHTS)
    if task not in DRAW:  # also where one word is requested
        for request in SHORT["val"]:
            short = [sum(in_half(f"{text} {request}", split) for text in known) for split in HALVES]
            assert min(short) >= 10, short


def test_no_question_is_in_two_splits_for_any_seed_and_kind() -> None:
    found: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for split, texts in found.items():
        for seed in range(3):
            for make in (world.conversations, world.pairs, world.prompts):
                texts.update(text for record in make(700, seed=seed, split=split) for text in asked(record))
    assert {split: len(texts) > 2500 for split, texts in found.items()} == dict.fromkeys(found, True)
    assert not found["val"] & found["test"]
    assert not found["train"] & (found["val"] | found["test"])
    assert all(in_half(text, split) for split in HALVES for text in found[split])


def test_no_document_is_in_val_and_test() -> None:
    val, test = ({r["text"] for seed in (0, 1) for r in world.documents(300, seed=seed, split=s)} for s in HALVES)
    assert min(len(val), len(test)) > 500
    assert not val & test
    assert all(belongs(text, "val") and in_half(text, "test") for text in test)


def test_test_has_a_stream_of_its_own() -> None:
    """The text of val's record i does not decide that of test's record i: of equal streams, records outside of val would differ alone."""
    alike = [a == b for a, b in zip(*(list(world.prompts(400, split=split)) for split in HALVES), strict=True)]
    tasks = [[r["task"] for r in world.prompts(400, split=split)] for split in HALVES]
    assert not any(alike)
    assert sum(a == b for a, b in zip(*tasks, strict=True)) < 100  # of equal streams, nearly all


def test_val_and_test_ask_alike() -> None:
    """Both halves have all tasks, in about the same shares."""
    shares = []
    for split in HALVES:
        tasks = [record["task"] for record in world.prompts(3000, split=split)]
        shares.append({task: tasks.count(task) / len(tasks) for task in world.TASKS})
    for task in world.TASKS:
        assert min(share[task] for share in shares) > 0.01
        assert abs(shares[0][task] - shares[1][task]) < 0.03, task
