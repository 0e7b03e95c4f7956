"""Answers of the bundled world, derived again from the question: from the table or by rule."""

from __future__ import annotations

import re

import pytest

from tinyllm.data import world
from tinyllm.data.world.draw import held_out
from tinyllm.data.world.fact_wordings import ASK, ASK_INVERSE, CHECK, SHORT
from tinyllm.data.world.facts import STATEMENTS, phrase, statement_index
from tinyllm.data.world.lexicon import CATEGORIES, LANDMARKS, NAMES, OWNER, PERSON, TABLE, TOWN_OF, plural
from tinyllm.data.world.task_wordings import WORDINGS

CATEGORY = {word: name for name, words in CATEGORIES.items() for word in words}
LEAD_IN = r"^(?:Please help me|I have a question|A question for you)\. "


def last(record: dict) -> str:
    return re.sub(LEAD_IN, "", record["prompt"][-1]["content"])


def without_form(question: str, split: str) -> tuple[str, bool]:
    """Return the question without "Answer with one word.", and whether it had that."""
    for text in SHORT[split]:
        if question.endswith(" " + text):
            return question.removesuffix(" " + text), True
    return question, False


def fit(template: str, text: str) -> str | None:
    """Return the value of the only placeholder of a template, if the text fits it."""
    place = re.search(r"\{\w+\}", template)[0]
    head, tail = template.split(place)
    head = head[:1].upper() + head[1:]
    return text[len(head) : len(text) - len(tail)] if text.startswith(head) and text.endswith(tail) else None


def readings(wordings: dict, question: str, split: str) -> set[tuple[str, str]]:
    """Return (attribute, subject or value) for all wordings of the split that the question fits."""
    found = ((a, fit(template, question)) for a, kinds in wordings.items() for template in kinds[split])
    return {(attribute, text) for attribute, text in found if text}


def by_rule(task: str, question: str) -> str:
    """Return the answer of a rule-based task."""
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    if task == "sort":
        return " ".join(sorted(re.findall(r"\d", question)))
    if task in ("sums", "addition"):
        return str(numbers[0] + numbers[1] if "plus" in question else numbers[0] - numbers[1])
    if task == "compare":
        return str(max(numbers) if re.search("bigger|more", question) else min(numbers))
    if task == "odd":
        listed = re.search(r"\w+, \w+, \w+, \w+", question)[0].split(", ")
        kinds = [CATEGORY[word] for word in listed]
        return next(word for word, kind in zip(listed, kinds, strict=True) if kinds.count(kind) == 1)
    target, items = re.search(r"(\w+): ([a-z ]+)", question).groups()
    return str(sum(target in (item, plural(item)) for item in items.split()))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("task", ["sort", "sums", "addition", "compare", "odd", "count"])
def test_answers_follow_by_rule(task, split):
    for record in world.prompts(300, split=split, task=task):
        assert record["answer"] == by_rule(task, last(record)), last(record)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("task", ["copy", "reverse", "spell"])
def test_answers_of_copy_reverse_and_spell_follow_from_the_question(task, split):
    for record in world.prompts(300, split=split, task=task):
        question, answer = last(record), record["answer"]
        given = {"copy": answer, "reverse": " ".join(answer.split()[::-1]), "spell": answer.replace(" ", "")}[task]
        templates = WORDINGS[task].train if split == "train" else WORDINGS[task].val
        assert question in {template.format(x=given) for template in templates}


@pytest.mark.parametrize("split", ["train", "val"])
def test_rule_tasks_use_the_wordings_of_their_split(split):
    for task in ("sort", "sums", "addition", "compare", "odd", "count"):
        kinds = [wording for name, wording in WORDINGS.items() if name.split("/")[0] == task]
        templates = [text for kind in kinds for text in (kind.train if split == "train" else kind.val)]
        for record in world.prompts(100, split=split, task=task):
            assert any(fit(template, last(record)) for template in templates), last(record)


def test_answers_of_fact_questions_are_those_of_the_table():
    for split in ("train", "val"):
        for record in world.prompts(1500, split=split, task=("facts", "whose")):
            if last(record).startswith("And "):
                continue
            question, short = without_form(last(record), split)
            if record["task"] == "facts":
                known = {(a, s): TABLE[a, s] for a, s in readings(ASK, question, split) if (a, s) in TABLE}
                (attribute, subject), value = next(iter(known.items()))
                told = (phrase(STATEMENTS[attribute][0], subject, value), value)
            else:
                owners = {**OWNER, **TOWN_OF}
                ((attribute, value),) = {(a, v) for a, v in readings(ASK_INVERSE, question, split) if v in owners}
                subject = owners[value]
                told = (phrase(STATEMENTS[attribute][1], subject, value), subject)
                known = {(attribute, subject): value}
            assert len(known) == 1, question
            asked_short = short or record["prompt"][0]["role"] == "system"
            assert record["answer"] == told[1] if short else record["answer"] in told[: 1 + asked_short]
            if attribute != "friend":
                assert held_out(f"{attribute}|{subject}") == (split == "val")


def test_follow_up_questions_use_the_right_pronoun():
    seen = 0
    for record in world.conversations(6000, task="facts"):
        asked, told = record["messages"][-2]["content"], record["messages"][-1]["content"]
        if asked.startswith("And ") and told in statement_index():
            pronouns = set(re.findall(r"\b(?:he|she|his|her)\b", asked))
            assert pronouns == {PERSON[statement_index()[told].subject].he} or pronouns == {
                PERSON[statement_index()[told].subject].his
            }, asked
            seen += 1
    assert seen > 300


def test_answers_of_two_hop_questions_are_those_of_the_table():
    for split in ("train", "val"):
        for record in world.prompts(500, split=split, task="hops"):
            question, _ = without_form(last(record), split)
            ends = {}
            for name in NAMES:
                ends[f"{name}'s best friend"] = PERSON[name].friend
                ends[f"the home town of {name}"] = PERSON[name].home
                ends[f"the owner of {PERSON[name].pet_name}"] = name
            (subject,) = {
                end
                for text, end in ends.items()
                if re.search(rf"\b(?i:{text[0]}){text[1:]}\b(?!'s best friend)", question)
            }
            wanted = "landmark" if subject in LANDMARKS else None
            value = record["answer"].removesuffix(".").split()[-1]
            true = {value for (a, s), value in TABLE.items() if s == subject and (wanted is None or a == wanted)}
            if record["answer"].endswith("."):
                assert statement_index()[record["answer"]].subject == subject, question
            else:
                assert value in true, question


def test_answers_of_yes_no_questions_are_right():
    seen = {"Yes": 0, "No": 0}
    truths = {sentence.removesuffix(".").lower() for sentence in statement_index()}
    for split in ("train", "val"):
        for record in world.prompts(800, split=split, task="yesno"):
            question, _ = without_form(last(record), split)
            (claim,) = {text for template in CHECK[split] if (text := fit(template, question))}
            verdict = record["answer"].split(",")[0]
            assert (claim.lower() in truths) == (verdict == "Yes"), question
            assert "," not in record["answer"] or record["answer"].split(", ")[1] in statement_index()
            seen[verdict] += 1
    assert min(seen.values()) > 700


def test_val_conversations_ask_about_val_facts():
    told = {m["content"] for r in world.conversations(500, split="val", task="facts") for m in r["messages"][1:]}
    facts = [statement_index()[text] for text in told if text in statement_index()]
    assert len(facts) > 30
    assert all(held_out(one.key) for one in facts)
