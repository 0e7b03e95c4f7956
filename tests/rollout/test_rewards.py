from __future__ import annotations

from pathlib import Path

import pytest

from tinyllm.data import world
from tinyllm.data.config import DataConfig
from tinyllm.data.records.types import Prompt
from tinyllm.errors import UserError
from tinyllm.rollout import checks, rewards


@pytest.mark.parametrize(
    ("answer", "text", "want"),
    [
        ("7", "The answer is 7.", 1.0),
        ("7", "7 or maybe 8", 0.0),  # the last number counts
        ("-1", "It is -1", 1.0),
        ("1200", "so 1,200", 1.0),
        ("She has 3 + 4 = 7 apples.\n#### 7", "7", 1.0),  # GSM8K's form
        ("Paris", " paris.", 1.0),
        ("Paris", "It is Paris", 0.0),
        ("1 2 5 9", "1 2 5 9", 1.0),
        ("1 2 5 9", "9", 0.0),
        ("7", "", 0.0),
    ],
)
def test_exact_answer(answer: str, text: str, want: float) -> None:
    assert rewards.exact_answer({"answer": answer}, text, True) == want


def test_contains_answer() -> None:
    assert rewards.contains_answer({"answer": "Paris"}, "It is Paris, of course.", True) == 1.0
    assert rewards.contains_answer({"answer": "Paris"}, "It is Rome.", True) == 0.0


def test_gold_is_the_reward_of_the_world() -> None:
    row = next(iter(world.prompts(1, split="val")))
    assert rewards.gold(row, row["answer"], True) == 1.0
    assert rewards.gold(row, "qwerty", False) < 0.0


def test_a_user_function(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def short(columns, text, finished):\n    return float(len(text) < 5)\n")
    assert rewards.load_reward(f"{path}:short").function({}, "abc", True) == 1.0
    with pytest.raises(UserError, match="no function 'long'"):
        rewards.load_reward(f"{path}:long")
    with pytest.raises(UserError, match="no reward 'exact'"):
        rewards.load_reward("exact")


def test_missing_columns_are_refused() -> None:
    rows = [Prompt((), {"solution": "7"})]
    with pytest.raises(UserError, match="needs a column 'answer'; the prompts have solution"):
        checks.check({"exact_answer": 1.0}, {"train": rows, "val": rows})
    rows = [Prompt((), {"answer": "7"})]
    assert checks.check({"exact_answer": 1.0, "reward_model": 1.0}, {"train": rows, "val": rows}) == {
        "train": rows,
        "val": rows,
    }


def test_the_column_that_is_missing_is_named_not_one_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def both(prompts, completions, answer, hint, **more):\n    return [1.0] * len(prompts)\n")
    rows = [Prompt((), {"answer": "7"})]
    with pytest.raises(UserError, match="needs a column 'hint'; the prompts have answer") as caught:
        checks.check({f"{path}:both": 1.0}, {"train": rows, "val": rows})
    assert caught.value.fix == "add the column hint"


@pytest.mark.parametrize(
    ("weights", "columns", "rule", "what", "fix"),
    [
        ({"gold": 1.0}, {"answer": "7"}, "warning", "needs a column 'task'", "--set 'rewards={exact_answer: 1.0}'"),
        ({"gold": 1.0}, {"anwser": "7"}, "warning", "did you mean 'anwser'?", "--set data.field.answer=anwser"),
        ({"gold": 1.0}, {}, "warning", "the prompts have none", "add the column answer, or name another reward"),
        ({"exact_answer": 1.0}, {"x": "7"}, "refused", "needs a column 'answer'", "add the column answer"),
    ],
)
def test_inspection_warns_of_the_default_reward_and_refuses_others(weights, columns, rule, what, fix) -> None:
    rows = [Prompt((), columns)]
    (found,) = checks.findings(weights, {"train": rows, "val": rows})
    assert found.level == rule
    assert what in found.what
    assert fix in found.fix
    assert checks.findings({"exact_answer": 1.0}, {"train": [Prompt((), {"answer": "7"})], "val": []}) == []


def test_data_that_are_not_there_yet_are_not_checked(tmp_path: Path) -> None:
    checks.check_first({"exact_answer": 1.0}, DataConfig(train=(str(tmp_path / "later.jsonl"),)), seed=0)
    (tmp_path / "now.jsonl").write_text('{"prompt": "What?", "reply": "7"}\n' * 4)
    with pytest.raises(UserError, match="needs a column 'answer'"):
        checks.check_first({"exact_answer": 1.0}, DataConfig(train=(str(tmp_path / "now.jsonl"),)), seed=0)


def test_a_misspelled_column_parameter_or_function_is_named_in_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def accuracy_reward(prompts, completions, anwser, **more):\n    return [1.0] * len(prompts)\n")
    wrong, right = [Prompt((), {"anwser": "7"})], [Prompt((), {"answer": "7"})]
    use_exact = "use --set 'rewards={exact_answer: 1.0}'"
    for weights, rows, what, fix in (
        ({"exact_answer": 1.0}, wrong, "did you mean 'anwser'?", "name the column: --set data.field.answer=anwser"),
        ({"gold": 1.0}, right, "the prompts have answer", use_exact),
        ({"gold": 1.0, "exact_answer": 1.0}, right, "the prompts have answer", use_exact),
        ({f"{path}:accuracy_reward": 1.0}, right, "did you mean 'answer'?", "rename the parameter anwser to answer"),
        (
            {f"{path}:acuracy_reward": 1.0},
            right,
            "did you mean 'accuracy_reward'?",
            "write accuracy_reward instead of acuracy_reward",
        ),
        ({"exact_anser": 1.0}, right, "did you mean 'exact_answer'?", "write exact_answer instead of exact_anser"),
    ):
        with pytest.raises(UserError) as caught:
            checks.check(weights, {"train": rows, "val": rows})
        assert what in caught.value.what
        assert caught.value.fix == fix
