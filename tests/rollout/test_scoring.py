"""Reward functions: names, signatures, what they may return, and errors that name function, line, row and columns."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.rollout.fuzz_rewards import Tally, fuzz_garbage, fuzz_rewards, fuzz_words
from tests.support import small
from tinyllm import signals
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.data.records.types import Prompt
from tinyllm.errors import UserError
from tinyllm.model.decoding import Completion
from tinyllm.rollout import checks, rewards
from tinyllm.rollout.judge import Judge, score_answers
from tinyllm.rollout.rewards import Reward
from tinyllm.rollout.scoring import Answered, TrainerState, score

MINE = """\
import asyncio
def correct(columns, text, finished):
    return 10.0
def form(columns, text, finished):
    return 1.0
def some(columns, text, finished):
    return None if len(text) % 2 else 1.0
def crash(columns, text, finished):
    return 1.0 / (
        len(text) - len(text))
def pops(columns, text, finished):
    return float(len(columns.pop("answer")))
def exact_answer(columns, text, finished):
    return 0.25
def leaves(columns, text, finished):
    exit()
def gives_up(columns, text, finished):
    raise asyncio.CancelledError
def trl(prompts, completions, answer, **kwargs):
    assert kwargs["trainer_state"].global_step == 3 and kwargs["log_metric"]("x", 1.0) is None
    return [float(c[0]["content"] == a) for c, a in zip(completions, answer)]
def lengths(completion_ids, **kwargs):
    return [len(ids) for ids in completion_ids]
def named(prompts, completions, solution):
    return [p == "What?" and c == "text" and s is None for p, c, s in zip(prompts, completions, solution)]
async def later(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [0.5 for _ in prompts]
async def later_row(columns, text, finished):
    return 1.0
def anything(*args, **kwargs):
    return 1.0
def both(prompts, text, finished):
    return 1.0
def one(text):
    return 1.0
class Judge:
    pass
VALUE = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "other.py", "deep/mine.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(MINE)
    return "mine.py"


def row(number: int = 1, text: str = "text", **more: Any) -> Answered:
    columns = {"prompt": [{"role": "user", "content": "What?"}], "answer": str(number)}
    return Answered(columns, text, True, [1] * number, f"data.jsonl:{number}", **more)


# --- names -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "want"),
    [
        (["mine.py:correct", "mine.py:form"], ["correct", "form"]),
        (["mine.py:form", "other.py:form", "gold"], ["mine.form", "other.form", "gold"]),
        (["mine.py:form", "deep/mine.py:form", "mine.py:some"], ["FOLDER/mine.form", "deep/mine.form", "some"]),
        (["mine.py:exact_answer", "exact_answer"], ["mine.exact_answer", "exact_answer"]),
        (["mine.py:gold"], ["mine.gold"]),  # so that no figure of that name is another's
        (["mine.py:reward_model", "reward_model"], ["mine.reward_model", "reward_model"]),
    ],
)
def test_rewards_are_named_by_their_functions_and_told_apart(mine: str, keys: list[str], want: list[str]) -> None:
    assert list(rewards.names(keys).values()) == [name.replace("FOLDER", Path.cwd().name) for name in want]
    assert rewards.names(iter(keys)) == rewards.names(keys)


def test_a_reward_named_twice_is_refused(mine: str) -> None:
    with pytest.raises(UserError, match="named twice"):
        rewards.names(["mine.py:form", "./mine.py:form"])


def test_the_names_of_earlier_versions_are_understood(mine: str) -> None:
    assert rewards.old_names(["mine.py:correct", "gold"]) == {"rewards/mine": "rewards/correct"}
    assert rewards.old_names(["mine.py:correct", "mine.py:form"]) == {}  # it was the last one's


def test_a_batch_function_is_given_columns_but_for_those_that_have_arguments_of_their_own() -> None:
    given: dict[str, Any] = {}
    reward = Reward("mine", lambda **arguments: given.update(arguments) or [0.0], "batch")
    score(reward, [row()])
    assert given.keys() == {
        *("answer", "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
    }
    assert given["answer"] == ["1"]


# --- signatures ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "style"),
    [("correct", "row"), ("trl", "batch"), ("lengths", "batch"), ("named", "batch"), ("later", "batch")],
)
def test_signatures_are_told_apart(mine: str, function: str, style: str) -> None:
    assert rewards.load_reward(f"mine.py:{function}").style == style


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("anything", "cannot be told"),
        ("both", "cannot be told"),
        ("one", "cannot be told"),
        ("later_row", "asynchronous"),
        ("Judge", "is a class"),
        ("VALUE", "a int, not a function"),
        ("zzz", "has no function"),
    ],
)
def test_other_functions_are_refused_with_the_signature_to_write(mine: str, function: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        rewards.load_reward(f"mine.py:{function}")
    assert "def" in caught.value.fix
    assert caught.value.where


def test_a_batch_function_receives_what_trl_passes(mine: str) -> None:
    rows = [row(1, "1"), row(2, "1"), row(3, "3")]
    assert score(rewards.load_reward("mine.py:trl"), rows, TrainerState(3, 9)) == [1.0, 0.0, 1.0]
    assert score(rewards.load_reward("mine.py:lengths"), rows) == [1.0, 2.0, 3.0]
    assert score(rewards.load_reward("mine.py:later"), rows) == [0.5] * 3
    plain = [row(1, plain=True), row(2, "else", plain=True)]
    assert score(rewards.load_reward("mine.py:named"), plain) == [1.0, 0.0]


# --- what goes wrong -------------------------------------------------------------------------------------------------------------


def test_a_reward_that_raises_is_named_with_line_row_and_columns(mine: str) -> None:
    with pytest.raises(UserError) as caught:
        score(rewards.load_reward("mine.py:crash"), [row(4)])
    assert caught.value.what == (
        "the reward crash raised ZeroDivisionError: float division by zero, for data.jsonl:4 ('What?'), "
        "answered 'text'; columns: prompt, answer"
    )
    assert caught.value.where in ("mine.py:9", "mine.py:10")
    with pytest.raises(UserError, match="the reward leaves raised SystemExit"):
        score(rewards.load_reward("mine.py:leaves"), [row()])
    with pytest.raises(UserError, match="the reward gives_up raised CancelledError"):
        score(rewards.load_reward("mine.py:gives_up"), [row()])
    nameless = Answered({"prompt": [{"role": "user", "content": "Say something long. " * 9}]}, "", False)
    with pytest.raises(UserError, match=r"for the prompt 'Say something long\. Say.*…, answered"):
        score(rewards.load_reward("mine.py:crash"), [nameless])


def test_a_batch_function_that_returns_too_few_or_too_many_values_is_told_how_many() -> None:
    def some(number: int) -> Reward:
        return rewards.reward_of(lambda completions, **columns: [1.0] * number, "some", __file__)

    assert score(some(3), [row(1), row(2), row(3)]) == [1.0] * 3
    for number, said in ((0, "0"), (2, "2"), (4, "more than 3")):
        with pytest.raises(UserError, match=f"returned {said} values for 3 answers"):
            score(some(number), [row(1), row(2), row(3)])


def test_what_a_reward_raises_is_escaped_and_cut() -> None:
    """Cut after escaping: one unprintable character becomes several."""

    def red(columns: Any, text: str, finished: bool) -> float:
        raise ValueError("\x1b[31mred" + "\x1b" * 300)

    with pytest.raises(UserError) as caught:
        score(Reward("red", red), [row()])
    assert "\x1b" not in caught.value.what
    assert "[31mred" in caught.value.what
    assert len(caught.value.what) < 350


def test_a_batch_function_that_expects_other_completions_is_told_their_kind() -> None:
    def of_messages(completions: Any, **columns: Any) -> list[float]:
        return [float(len(one[0]["content"])) for one in completions]

    def of_texts(completions: Any, **columns: Any) -> list[float]:
        return [float(len(one.strip())) for one in completions]

    def broken(completions: Any, **columns: Any) -> list[float]:
        raise ValueError("no")

    for function, plain in ((of_messages, True), (of_texts, False)):
        reward = rewards.reward_of(function, function.__name__, __file__)
        assert score(reward, [row(plain=not plain)]) == [4.0]
        with pytest.raises(UserError) as caught:
            score(reward, [row(plain=plain)])
        assert ("these prompts are texts" if plain else "these prompts are lists of messages") in caught.value.fix
        assert "text prompts give text completions, message prompts give lists of messages" in caught.value.fix
    with pytest.raises(UserError) as caught:
        score(rewards.reward_of(broken, "broken", __file__), [row()])
    assert caught.value.fix == "fix the function at this line"


def test_a_signal_during_a_reward_is_no_error_of_the_reward() -> None:
    def stopped(columns: Any, text: str, finished: bool) -> float:
        raise signals.Stop(2)

    with pytest.raises(signals.Stop):
        score(Reward("stopped", stopped, place="mine.py:1"), [row()])


def test_a_reward_cannot_change_the_data(mine: str) -> None:
    one = row(12)
    assert [score(rewards.load_reward("mine.py:pops"), [one]) for _ in range(2)] == [[2.0], [2.0]]


def test_random_rewards_and_answers() -> None:
    tally = Tally()
    for part, number in ((fuzz_rewards, 800), (fuzz_words, 300), (fuzz_garbage, 150)):
        part(number, seed=1, tally=tally)
    assert tally.wrong == []
    assert tally.tried > 1500


# --- the sum ---------------------------------------------------------------------------------------------------------------------


def judged(*rules: tuple[Any, float], n: int = 4) -> tuple[torch.Tensor, dict]:
    named = [(Reward(f"r{i}", function, place="mine.py:1"), weight) for i, (function, weight) in enumerate(rules)]
    judge = Judge(small.tokenizer(), named, None, 0.0, 0.5)
    prompts = [TokenPrompt([5], {"n": i}, f"data.jsonl:{i + 1}") for i in range(n)]
    answers = [Completion(ids=[6, 7], finished=i != 3, log_probs=[0.0, 0.0]) for i in range(n)]
    return score_answers(judge, prompts, answers, torch.device("cpu"))


def test_abstaining_adds_nothing_and_is_counted() -> None:
    total, figures = judged(
        (lambda columns, text, finished: None if columns["n"] % 2 else 3.0, 2.0),
        (lambda columns, text, finished: 1.0, 1.0),
    )
    assert total.tolist() == [7.0, 1.0, 7.0, 0.5]
    assert figures["rewards/r0"].value == 3.0
    assert figures["rewards/r0/applied"].value == 0.5
    assert figures["rewards/r1/applied"].value == 1.0
    with pytest.raises(UserError, match=r"no reward applies to data\.jsonl:2 "):
        judged((lambda columns, text, finished: None if columns["n"] % 2 else 3.0, 1.0), (lambda c, t, f: 1.0, 0.0))


def test_a_reward_of_weight_0_is_measured_and_not_added() -> None:
    huge = 3e38  # times any weight above 1 it is infinite
    total, figures = judged((lambda columns, text, finished: huge, 0.0), (lambda columns, text, finished: 1.0, 1.0))
    assert total.tolist() == [1.0, 1.0, 1.0, 0.5]
    assert math.isfinite(figures["reward"].value)
    with pytest.raises(UserError, match=r"the reward is inf for data\.jsonl:1 .*r0 x 9"):
        judged((lambda columns, text, finished: huge, 9.0))
    with pytest.raises(UserError, match="returned nan, not a finite number"):
        judged((lambda columns, text, finished: math.nan, 0.0), (lambda c, t, f: 1.0, 1.0))


# --- before the first step -------------------------------------------------------------------------------------------------------


def prompts(*answers: Any) -> list[Prompt]:
    turns = ({"role": "user", "content": "What?"},)
    return [Prompt(turns, {"answer": a}, f"data.jsonl:{i + 1}") for i, a in enumerate(answers)]


def test_blank_answers_are_refused_with_their_line_or_skipped() -> None:
    for answer in ("", " ", [], ["a", ""], True):
        with pytest.raises(UserError, match="answer: expected a string or a number") as caught:
            checks.check({"contains_answer": 1.0}, {"train": prompts("a", answer), "val": prompts("a")})
        assert caught.value.where == "data.jsonl:2"
    kept = checks.check({"exact_answer": 1.0}, {"train": prompts("a", "", 3), "val": prompts("a")}, on_bad_line="skip")
    train, val = kept["train"], kept["val"]
    assert [p.columns["answer"] for p in train] == ["a", 3]
    assert len(val) == 1


def test_the_trial_gives_an_answer_an_empty_one_and_a_sentence() -> None:
    seen: list[tuple[str, bool]] = []

    def watching(columns: Any, text: str, finished: bool) -> float:
        seen.append((text, finished))
        return 0.0

    checks._trial([Reward("watching", watching)], prompts("right"))
    assert [text for text, _ in seen] == ["right", "", checks._SENTENCE]
    assert {finished for _, finished in seen} == {True, False}


def test_a_reward_that_takes_long_for_one_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The time is that of one answer, not of all nine or of a call; the clock is the test's own."""
    now = [0.0]
    monkeypatch.setattr(checks.time, "monotonic", lambda: now[0])

    def takes(seconds: float, style: str) -> Reward:
        def row(columns: Any, text: str, finished: bool) -> float:
            now[0] += seconds
            return 0.0

        def batch(completions: Any, **columns: Any) -> list[float]:
            now[0] += seconds * len(completions)
            return [0.0] * len(completions)

        return rewards.reward_of(row if style == "row" else batch, f"{style}-{seconds}", __file__)

    each = [takes(seconds, style) for seconds in (0.15, 0.3) for style in ("row", "batch")]
    checks._trial(each, prompts("a", "b", "c"))
    said = re.findall(r"the reward (\S+) takes about (\S+) s per answer", capsys.readouterr().err)
    assert said == [("row-0.3", "0.3"), ("batch-0.3", "0.3")]


def test_every_reward_is_tried_on_both_splits(mine: str) -> None:
    Path("val.py").write_text("def ratio(columns, text, finished):\n    return 1 / len(columns['answer'])\n")
    both = {"train": prompts("a"), "val": prompts("a")}
    checks.check({"val.py:ratio": 1.0, "mine.py:some": 0.0}, both)
    with pytest.raises(UserError, match=r"ZeroDivisionError.* for data\.jsonl:2 ") as caught:
        checks.check({"val.py:ratio": 0.0, "mine.py:correct": 1.0}, {"train": prompts("a"), "val": prompts("a", "")})
    assert caught.value.where == "val.py:2"
    with pytest.raises(UserError, match="the reward named needs a column 'solution'; the prompts have answer"):
        checks.check({"mine.py:named": 1.0}, both)
