from __future__ import annotations

from pathlib import Path

import pytest

from tinyllm.data import world
from tinyllm.errors import UserError
from tinyllm.rollout import rewards


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
    assert rewards.load_reward(f"{path}:short")({}, "abc", True) == 1.0
    with pytest.raises(UserError, match="no function 'long'"):
        rewards.load_reward(f"{path}:long")
    with pytest.raises(UserError, match="no reward 'exact'"):
        rewards.load_reward("exact")


def test_missing_columns_are_refused() -> None:
    with pytest.raises(UserError, match="needs a column 'answer'"):
        rewards.check_columns({"exact_answer": 1.0}, {"prompt": [], "solution": "7"}, "rewards")
    rewards.check_columns({"exact_answer": 1.0, "mine.py:f": 1.0, "reward_model": 1.0}, {"answer": "7"}, "rewards")
