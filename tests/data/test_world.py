"""The bundled world: nothing it tells is false, nothing val asks was asked in train, gold ranks answers as it says."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter

import pytest

from tinyllm.data import world
from tinyllm.data.world.asking import ASK, ASK_INVERSE, CHECK, SHORT
from tinyllm.data.world.chat import SHORT_SYSTEM, exchange
from tinyllm.data.world.documents import GROUPS
from tinyllm.data.world.draw import held_out
from tinyllm.data.world.facts import FACTS, STATEMENTS, canonical, fact, phrase, statements
from tinyllm.data.world.lexicon import CATEGORIES, LANDMARKS, NAMES, PEOPLE, PERSON, TABLE, VALUES, article, plural
from tinyllm.data.world.preferences import CORRUPTIONS
from tinyllm.data.world.stories import expand, skeletons
from tinyllm.data.world.wordings import WORDINGS
from tinyllm.errors import UserError

STREAMS = (world.documents, world.conversations, world.pairs, world.prompts)


def rows(stream, count, **options):
    return list(stream(count, **options))


def digest(records) -> str:
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()[:12]


def questions(records) -> list[str]:
    found = []
    for record in records:
        messages = record["messages"] if "messages" in record else record["prompt"]
        found += [message["content"] for message in messages if message["role"] == "user"]
    return found


def open_question(task: str, answer: str, question: str = "?") -> dict:
    return {"prompt": [{"role": "user", "content": question}], "answer": answer, "task": task}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [record["text"] for record in world.documents(6000)]


@pytest.fixture(scope="module")
def train() -> list[dict]:
    return rows(world.conversations, 6000) + rows(world.prompts, 3000, seed=1)


@pytest.fixture(scope="module")
def val() -> list[dict]:
    return rows(world.prompts, 3000, split="val")


# ---- streams ----


@pytest.mark.parametrize("stream", STREAMS)
def test_record_i_depends_on_seed_split_and_i_only(stream):
    first = rows(stream, 40, seed=3)
    assert rows(stream, 40, seed=3) == first
    assert list(itertools.islice(stream(10_000_000, seed=3), 12)) == first[:12]
    assert rows(stream, 40, seed=4) != first
    assert rows(stream, 40, seed=3, split="val") != first


def test_the_same_seed_gives_the_same_bytes_on_every_machine():
    # Pinned on CPython 3.11, Linux. A change of any wording changes these: then pin them anew.
    got = {stream.__name__: digest(rows(stream, 50, seed=0)) for stream in STREAMS}
    assert got == PINNED


PINNED = {}


def test_records_have_the_public_formats():
    for record in rows(world.documents, 20):
        assert set(record) == {"text"}
    for record in rows(world.conversations, 300):
        assert set(record) == {"messages", "task"}
        roles = [message["role"] for message in record["messages"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert record["task"] in world.TASKS
    for record in rows(world.pairs, 100):
        assert set(record) == {"prompt", "chosen", "rejected", "answer", "task"}
        assert [message["role"] for message in record["chosen"] + record["rejected"]] == ["assistant"] * 2
    for record in rows(world.prompts, 100):
        assert set(record) == {"prompt", "answer", "task"}
        assert record["prompt"][-1]["role"] == "user"


def test_conversations_have_several_turns_systems_and_follow_ups(train):
    chats = [record["messages"] for record in train if "messages" in record]
    turns = Counter(sum(message["role"] == "user" for message in chat) for chat in chats)
    assert turns[1] / len(chats) > 0.6
    assert turns[2] / len(chats) > 0.15
    assert turns[3] / len(chats) > 0.05
    assert 0.05 < sum(chat[0]["role"] == "system" for chat in chats) / len(chats) < 0.11
    assert sum(bool(re.match(r"And .*\b(he|she|his|her)\b", question)) for question in questions(train)) > 50


def test_all_tasks_occur_and_a_task_can_be_chosen():
    seen = Counter(record["task"] for record in world.prompts(2000))
    assert set(seen) == set(world.TASKS)
    assert min(seen.values()) >= 30
    for make in (world.prompts, world.conversations, world.pairs):
        assert {record["task"] for record in make(30, task="sort")} == {"sort"}
        assert {record["task"] for record in make(60, task=("copy", "odd"))} == {"copy", "odd"}


def test_documents_are_fast_and_of_a_sane_size():
    start = time.process_time()
    lengths = [len(record["text"]) for record in world.documents(4000, seed=9)]
    seconds = time.process_time() - start
    assert sum(lengths) / seconds > 1e6  # 9e6 bytes a second on a quiet core; a slow CI machine gets leeway
    assert 250 < sum(lengths) / len(lengths) < 420
    assert min(lengths) > 60
    assert max(lengths) < 1500


def test_the_world_does_not_import_torch():
    code = "import sys, tinyllm.data.world; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- the table and its texts ----


def test_the_table_is_closed_and_unambiguous():
    assert len(PEOPLE) == 36
    assert len(FACTS) == len(TABLE) == 333
    words = [value for values in VALUES.values() for value in values]
    assert len(words) == len(set(words))
    assert all(re.fullmatch(r"[A-Za-z]+", word) for word in words)
    members = [word for category in CATEGORIES.values() for word in category]
    assert len(members) == len(set(members)) == 80
    for person in PEOPLE:
        friend = PERSON[person.friend]
        assert friend.friend == person.name != friend.name
        assert all(TABLE[a, person.name] != TABLE[a, friend.name] for a in ("home", "pet", "food", "colour", "hobby"))


@pytest.mark.parametrize("attribute", ["home", "job", "pet", "food", "colour", "hobby", "month"])
def test_no_value_is_commoner_than_another(attribute):
    counts = Counter(TABLE[attribute, name] for name in NAMES)
    assert len(set(counts.values())) == 1


def sentences(texts: list[str]) -> Counter:
    """Each plain sentence or clause of the texts, without its stop, and how often it stands there."""
    return Counter(part for text in texts for part in re.split(r'[.!?"] *|, (?:but|and) (?=[A-Z])', text) if part)


@pytest.mark.parametrize("attribute", list(STATEMENTS))
def test_documents_state_every_fact_often_and_never_a_false_one(attribute, texts):
    subjects = LANDMARKS if attribute == "landmark" else NAMES
    meaning = {
        phrase(template, subject, value).removesuffix("."): (template, subject, value)
        for template in STATEMENTS[attribute]
        for subject in subjects
        for value in VALUES[attribute]
    }
    told, used = Counter(), set()
    for sentence, count in sentences(texts).items():
        if sentence in meaning:
            template, subject, value = meaning[sentence]
            assert TABLE[attribute, subject] == value, sentence
            told[subject] += count
            used.add(template)
    assert used == set(STATEMENTS[attribute])
    assert min(told[subject] for subject in subjects) >= 20


NAME = rf"(?:{'|'.join(NAMES)})"
IN_STORIES = {  # attribute -> how a story words it in passing, with name (n) and value (v)
    "home": r"(?P<n>NAME),? (?:from|comes from|lives in) (?P<v>VALUE)|(?P<v2>VALUE), where (?P<n2>NAME) lives",
    "job": r"(?P<n>NAME)(?:,? who)? (?:works as|is) an? (?P<v>VALUE)",
    "pet": r"(?P<n>NAME)'s (?P<v>VALUE)\b|(?P<v2>VALUE) of (?P<n2>NAME)\b|(?P<n3>NAME) has an? (?P<v3>VALUE)",
    "pet_name": r"(?P<v>VALUE), (?P<n>NAME)'s (?:PET)\b|(?P<n2>NAME) has an? \w+ called (?P<v2>VALUE)",
    "food": r"(?P<n>NAME) (?:loves|loves to eat|could eat) (?P<v>VALUE)\b|(?P<v2>VALUE) for (?P<n2>NAME)\b",
    "colour": r"(?P<n>NAME) (?:likes|often wears|wore) (?P<v>VALUE)\b",
    "hobby": r"(?P<n>NAME) (?:enjoys|is fond of) (?P<v>VALUE)",
    "month": r"(?P<n>NAME) was born in (?P<v>VALUE)",
    "friend": r"(?P<n>NAME), the best friend of (?P<v>VALUE)\b|(?P<v2>VALUE) and (?P<n2>NAME) are best friends",
}


@pytest.mark.parametrize("attribute", list(IN_STORIES))
def test_what_stories_say_in_passing_is_true(attribute, texts):
    words = {"NAME": NAME, "PET": "|".join(VALUES["pet"]), "VALUE": rf"(?:{'|'.join(VALUES[attribute])})"}
    pattern = re.compile(re.sub("NAME|PET|VALUE", lambda match: words[match[0]], IN_STORIES[attribute]))
    checked = 0
    for text in texts[:2500]:
        for match in pattern.finditer(text):
            groups = match.groupdict()
            name, value = (next(groups[g] for g in groups if g[0] == kind and groups[g]) for kind in "nv")
            assert TABLE[attribute, name] == value, match[0]
            checked += 1
    assert checked > 40


def test_lists_of_people_are_true(texts):
    lists, checked = rf"((?:{NAME}, )*{NAME} and {NAME})", 0
    many = [sentence for sentence in sentences(texts) if re.search(rf"{NAME} and {NAME}", sentence)]
    for attribute, templates in GROUPS.items():
        for value, template in itertools.product(VALUES[attribute], templates):
            words = {"v": value, "av": f"{article(value)} {value}", "vs": plural(value), "who": "@"}
            head, tail = template.format(**words).removesuffix(".").split("@")
            for sentence in (s for s in many if s.startswith(head) and s.endswith(tail)):
                if match := re.fullmatch(re.escape(head) + lists + re.escape(tail), sentence):
                    people = re.findall(r"\w+", match[1].replace(" and ", " "))
                    assert {name for name in NAMES if TABLE[attribute, name] == value} == set(people)
                    checked += 1
    assert checked > 500


def test_worked_examples_in_documents_are_right(texts):
    whole = "\n".join(texts)
    sorts = re.findall(r"Sorted from small to big, ([\d ]+) gives ([\d ]+)\.", whole)
    sums = re.findall(r"(\d+) (plus|minus) (\d+) is (\d+)\.", whole)
    backwards = re.findall(r"Backwards, ([a-z ]+) is ([a-z ]+)\.", whole)
    assert min(len(sorts), len(sums), len(backwards)) > 50
    assert all(sorted(given.split()) == got.split() for given, got in sorts)
    assert all((int(a) + int(b) if sign == "plus" else int(a) - int(b)) == int(got) for a, sign, b, got in sums)
    assert all(given.split()[::-1] == got.split() for given, got in backwards)


def test_texts_are_plain_grammatical_ascii(texts, train, val):
    everything = texts + questions(train) + questions(val) + [record["answer"] for record in val]
    for text in everything:
        assert text.isascii()
        assert not re.search(r"[{}\[\]|@]|  |^ | $|\.\.|,\.|\?\.| [.,?]", text), text
        assert not re.search(r"\w\w [Aa] (?!is\b|and\b)[aeiou][a-z]+|\b[Aa]n [^aeiou\W]", text), text
    for text in texts:
        assert text[0].isupper() or text[0] == '"', text
        assert text[-1] in '."', text
        assert text.count('"') % 2 == 0, text


def test_vocabulary_is_small(texts):
    words = Counter(re.findall(r"[A-Za-z]+", " ".join(texts)))
    assert 600 < len(words) < 1100


def test_stories_have_enough_skeletons_beats_and_readings():
    assert len(skeletons()) == 17
    assert min(len(beats) for beats in skeletons()) >= 6
    assert expand("a [b|c] d [e|f]") == ("a b d e", "a b d f", "a c d e", "a c d f")
    stories = {text for text in (record["text"] for record in world.documents(3000, seed=2)) if len(text) > 300}
    assert len(stories) > 1000


# ---- train and val ----


def test_wordings_are_many_and_val_has_its_own():
    kinds = [*ASK.values(), *ASK_INVERSE.values(), CHECK, SHORT]
    kinds += [{"train": wording.train, "val": wording.val} for wording in WORDINGS.values()]
    for kind in kinds:
        assert len(set(kind["train"])) >= 8
        assert len(set(kind["val"])) >= 2
        assert not set(kind["train"]) & set(kind["val"])
    assert all(len(set(templates)) >= 8 for templates in STATEMENTS.values())


def test_a_fifth_of_every_attribute_is_held_out():
    share = Counter(one.attribute for one in FACTS if held_out(one.key))
    assert sum(share.values()) == 64
    assert all(share[attribute] >= 2 for attribute in STATEMENTS)
    assert all(fact("friend", p.name).key == fact("friend", p.friend).key for p in PEOPLE)


def test_no_train_text_asks_for_a_held_out_fact(train, texts):
    pairs = rows(world.pairs, 2000)
    asked = "\n".join(questions(train) + questions(pairs) + texts)
    answered = {message["content"] for r in train if "messages" in r for message in r["messages"]}
    for one in (one for one in FACTS if held_out(one.key)):
        assert canonical(one) not in answered
        assert not {f"Yes, {canonical(one)}", f"No, {canonical(one)}"} & answered
        wordings = [t.format(n=one.subject) for split in ("train", "val") for t in ASK[one.attribute][split]]
        if one.attribute in ASK_INVERSE:
            wordings += [t.format(v=one.value) for split in ("train", "val") for t in ASK_INVERSE[one.attribute][split]]
        for wording in wordings:
            assert wording not in asked, wording


def test_held_out_facts_are_told_in_train_documents(texts):
    told = " ".join(texts)
    for one in (one for one in FACTS if held_out(one.key)):
        assert sum(told.count(sentence) for sentence in statements(one)) >= 10, one


def test_val_asks_held_out_facts_in_held_out_words(val):
    single = [record for record in val if record["task"] == "facts"]
    for record in single:
        if record["answer"].endswith("."):
            one = next(one for one in FACTS if canonical(one) == record["answer"])
            assert held_out(one.key)
    assert len({record["answer"] for record in single}) > 60


def test_questions_of_train_and_val_are_disjoint(train, val):
    def bare(question):
        return re.sub(r"^(Please help me|I have a question|A question for you)\. ", "", question)

    small_talk = {"Hello!", "Hi!", "Who are you?"}
    ours, theirs = ({bare(question) for question in questions(records)} for records in (train, val))
    common = ours & theirs
    assert not {question for question in common if re.search(r"\d|:", question)}
    assert all(not re.search(rf"\b(?:{'|'.join([*NAMES, *LANDMARKS])})\b", question) for question in common)
    assert small_talk <= common


def instance(task: str, question: str, answer: str):
    """What must not occur in both splits, read from the question alone."""
    if task in ("sort", "copy"):
        return tuple(sorted(answer)) if task == "sort" else answer
    if task == "reverse":
        return frozenset((answer, " ".join(answer.split()[::-1])))
    if task == "spell":
        return answer
    if task == "sums":
        return re.search(r"\d (plus|minus) \d", question)[0]
    if task in ("addition", "compare"):
        return frozenset(re.findall(r"\d+", question))
    if task == "odd":
        words = {word for category in CATEGORIES.values() for word in category}
        return frozenset(word for word in re.findall(r"[a-z]+", question) if word in words)
    return tuple(sorted(question.partition(": ")[2].split(".")[0].split()))


TASKS_BY_RULE = ("sort", "copy", "reverse", "spell", "sums", "addition", "compare", "odd")


@pytest.mark.parametrize("task", TASKS_BY_RULE)
def test_task_instances_are_disjoint(task):
    def instances(split):
        records = [record for seed in (0, 5) for record in world.prompts(1200, seed=seed, split=split, task=task)]
        return {instance(task, record["prompt"][-1]["content"], record["answer"]) for record in records}

    ours, theirs = instances("train"), instances("val")
    assert len(ours) > 15
    assert len(theirs) > 5
    assert not ours & theirs


def test_counted_lists_are_disjoint():
    def instances(split):
        records = world.prompts(1500, split=split, task="count")
        asked = [record["prompt"][-1]["content"] for record in records]
        return {(m[1], tuple(sorted(m[2].split()))) for q in asked if (m := re.search(r"(\w+): ([a-z ]+)", q))}

    assert len(instances("val")) > 300
    assert not instances("train") & instances("val")


def test_train_documents_hold_no_val_instance(texts):
    val_sorts = {tuple(sorted(r["answer"])) for r in world.prompts(1500, split="val", task="sort")}
    shown = {tuple(sorted(run)) for run in re.findall(r"\b\d(?: \d){3,5}\b", "\n".join(texts))}
    assert len(shown) > 300
    assert not shown & val_sorts


def test_documents_of_the_two_splits_are_disjoint(texts):
    ours = set(texts) | {record["text"] for record in world.documents(3000, seed=8)}
    assert not ours & {record["text"] for record in world.documents(1500, split="val")}


# ---- gold ----


@pytest.mark.parametrize("split", ["train", "val"])
def test_own_answer_is_worth_one_and_every_corruption_less(split):
    worth = {kind: [] for kind in CORRUPTIONS}
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
            worth[kind].append(score)
    mean = {kind: sum(scores) / len(scores) for kind, scores in worth.items()}
    assert mean["reshaped"] > mean["padded"] > mean["wrong"] > mean["wrong_and_padded"]
    assert mean["refusing"] < 0.0
    assert mean["rambling"] < 0.0


HOME = open_question("facts", "Ada lives in Fernby.", "Where does Ada live?")
SORT = open_question("sort", "1 2 5 9", "Sort these digits: 5 2 9 1")
GOLD_CASES = [
    (HOME, "Ada lives in Fernby.", True, 1.0),
    (HOME, "Fernby is the home of Ada.", True, 1.0),
    (HOME, "Ada lives in Saltbay.", True, 0.0),
    (HOME, "Fernby", True, 0.75),
    (HOME, "ada lives in fernby", True, 0.75),
    (HOME, "Ada lives in", True, -0.25),
    (HOME, "", True, -0.25),
    (HOME, "", False, -0.75),
    (HOME, "Ada lives in Fernby or Saltbay.", True, 0.0),
    (HOME, "Ada lives in Fernby. " + "Yes. " * 3, True, 1.0 - 0.25),
    (HOME, "Ada lives in Fernby. " + "I hope this is of some help to you my friend.", True, 1.0 - 0.25 - 0.4),
    (HOME, "no " * 100, False, -1.0),
    (open_question("facts", "Fernby", "Where does Ada live? One word is enough."), "Fernby", True, 1.0),
    (open_question("facts", "Fernby", "Where does Ada live? One word is enough."), "Saltbay", True, 0.0),
    (open_question("facts", "Noah", "Who is Ada's best friend?"), "Ada's best friend is Noah.", True, 0.75 - 0.2),
    (open_question("whose", "Domino belongs to Ada.", "Whose pet is Domino?"), "Domino belongs to Ben.", True, 0.0),
    (
        open_question("whose", "Domino belongs to Ada.", "Whose pet is Domino?"),
        "Ada's pet is called Domino.",
        True,
        1.0,
    ),
    (open_question("yesno", "No, Ada lives in Fernby."), "No, Fernby is the home of Ada.", True, 1.0),
    (open_question("yesno", "No, Ada lives in Fernby."), "Yes, Ada lives in Fernby.", True, 0.5),
    (open_question("yesno", "No, Ada lives in Fernby."), "No, Ada lives in Saltbay.", True, 0.5),
    (open_question("yesno", "No, Ada lives in Fernby."), "Yes, Ada lives in Saltbay.", True, 0.0),
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


@pytest.mark.parametrize(("record", "reply", "finished", "worth"), GOLD_CASES)
def test_gold_of_known_answers(record, reply, finished, worth):
    assert world.gold(record, reply, finished) == pytest.approx(worth)


def test_partial_credit_grows_with_every_position_right():
    record = open_question("sort", "1 2 3 4 5 6")
    worth = [world.gold(record, " ".join([*"123456"[:k], *"999999"[k:]]), True) for k in range(7)]
    assert worth == pytest.approx([0.0, 0.5 / 6, 1 / 6, 1.5 / 6, 2 / 6, 2.5 / 6, 1.0])


def test_a_system_message_can_ask_for_one_word():
    short = [r for r in world.prompts(6000) if r["prompt"][0]["content"] in SHORT_SYSTEM]
    assert len(short) > 100
    assert all(re.fullmatch(r"[A-Za-z]+", record["answer"]) for record in short)


# ---- pairs and demonstrations ----


def both_worths(record) -> tuple[float, float]:
    return tuple(world.gold(record, record[side][0]["content"], True) for side in ("chosen", "rejected"))


def test_without_noise_the_better_answer_is_chosen():
    records = rows(world.pairs, 3000)
    for record in records:
        chosen, rejected = both_worths(record)
        assert chosen > rejected
        assert record["chosen"] != record["rejected"]
        assert record["chosen"][0]["content"]
        assert record["rejected"][0]["content"]
    top = sum(both_worths(record)[0] == 1.0 for record in records) / len(records)
    assert 0.6 < top < 0.8  # the others teach the order among bad answers


@pytest.mark.parametrize("noise", [0.25, 0.5, 2.0])
def test_noise_flips_as_bradley_terry_says(noise):
    flips, expected, variance = 0, 0.0, 0.0
    for record in world.pairs(4000, noise=noise):
        chosen, rejected = both_worths(record)
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
def test_wrong_demonstrations_come_at_the_stated_rate(task):
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
        worth = world.gold(open_question("sort", answer), reply, True)
        assert -0.05 <= worth < 0.5
        assert re.fullmatch(r"\d( \d)+", reply)


# ---- bad input ----


@pytest.mark.parametrize(
    ("call", "fix"),
    [
        (lambda: world.documents(-1), "ask for 0 or more"),
        (lambda: world.documents(1, split="valid"), "did you mean val?"),
        (lambda: world.prompts(1, task="sorted"), "did you mean sort?"),
        (lambda: world.prompts(1, task=()), "use one of facts"),
        (lambda: world.pairs(1, noise=-0.5), "a number from 0"),
        (lambda: world.pairs(1, noise=float("nan")), "a number from 0"),
        (lambda: world.conversations(1, wrong=1.5), "a number from 0 to 1"),
        (lambda: world.gold({"prompt": []}, "x", True), "use records made by"),
        (lambda: world.gold(open_question("chess", "e4"), "e4", True), "use one of facts"),
    ],
)
def test_bad_input_is_refused_at_once(call, fix):
    with pytest.raises(UserError) as caught:
        call()
    assert fix in caught.value.fix
    assert caught.value.code == 2


def test_count_zero_gives_nothing():
    assert [rows(stream, 0) for stream in STREAMS] == [[], [], [], []]
