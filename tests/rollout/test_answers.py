"""Answers against references: a table of spellings with the right values, and hostile input."""

from __future__ import annotations

import json
import time

import pytest

from tests.rollout.fuzz_rewards import Tally, fuzz_answers
from tinyllm.rollout import answers, rewards
from tinyllm.rollout.answers import spelling

EXACT: dict[str, list[tuple[str | list, str, int]]] = {
    "plain numbers": [
        ("7", "7", 1),
        ("7", "The answer is 7.", 1),
        ("7", "7!", 1),
        ("7", "", 0),
        ("7", "seven apples", 0),
        ("7", "7 or maybe 8", 0),
        ("8", "7 or maybe 8", 1),
        ("5", "15", 0),
        ("15", "5", 0),
        ("5", "3.5", 0),
        ("5", "5.0", 1),
        ("18", "18.00", 1),
        ("18.00", "18", 1),
        ("18", "18.", 1),
        (".5", "0.5", 1),
        ("0.5", "It is .5", 1),
        ("+5", "5", 1),
        ("5", "+5", 1),
        ("007", "7", 1),
        ("0", "-0", 1),
        ("3.14", "3.1", 0),
        ("0.1", "0.10000000000000001", 0),
        ("9007199254740993", "9007199254740993", 1),
        ("9007199254740993", "9007199254740992", 0),
        ("123456789012345678901234567890", "It is 123,456,789,012,345,678,901,234,567,890.", 1),
        ("123456789012345678901234567890", "123456789012345678901234567891", 0),
    ],
    "signs": [
        ("-1", "It is -1", 1),
        ("-5", "\u22125", 1),
        ("-5", "\u20135", 1),
        ("-5", "minus 5", 1),
        ("5", "-5", 0),
        ("-5", "5", 0),
        ("5", "10-5=5", 1),
        ("-5", "10-5", 0),
        ("5", "10 - 5", 1),
        ("-5", "10-5=5", 0),
        ("10-5=5", "5", 1),
        ("-3", "x = - 3", 1),
        ("3", "- 3", 1),  # an item of a list
        ("4", "GPT-4", 1),
        ("10", "5-10", 1),
        ("-7.25", "so -7.25.", 1),
        ("-5", "$-5", 1),
        ("-5", "-$5", 1),
    ],
    "thousands and decimals of the world": [
        ("1200", "so 1,200", 1),
        ("1,000", "1000", 1),
        ("1000", "1 000", 1),
        ("1 000", "1000", 1),
        ("1000", "1\u202f000", 1),
        ("1000", "1\u00a0000", 1),
        ("1000", "1\u2009000 km", 1),
        ("1234567", "1 234 567", 1),
        ("1000", "1'000", 1),
        ("1000", "1\u2019000", 1),
        ("1000000", "1_000_000", 1),
        ("100000", "1,00,000", 1),
        ("1000000", "1.000.000", 1),
        ("1234.56", "1.234,56", 1),
        ("1234.56", "1,234.56", 1),
        ("3.5", "3,5", 1),
        ("0", "1,000", 0),
        ("0", "1 000", 0),
        ("1", "1,000", 0),
        ("1000", "1", 0),
        ("200", "1,200", 0),
        ("3", "1,2,3", 1),
        ("440", "440 440 440", 1),  # 440,440,440 or three numbers
        ("440440440", "440 440 440", 1),
        ("440", "440\u202f440", 0),
        ("440 440", "440", 0),
    ],
    "currency, percent, units": [
        ("$18", "$18", 1),
        ("$18", "She makes $18 every day.", 1),
        ("$18", "18", 1),
        ("18", "$18.00", 1),
        ("18", r"\$18", 1),
        (r"\$18", "18 dollars", 1),
        ("$18", "It costs $18 for 3 pens", 1),
        ("$18", "\u20ac18", 0),
        ("$18", "18 euros", 0),
        ("\u20ac18", "18 \u20ac", 1),
        ("$1,000", "1000 USD", 1),
        ("$5", "US$5", 1),
        ("500", "Rs. 500", 1),
        ("$2", "I paid $3", 0),
        ("$5 million", "$5,000,000", 1),
        ("5", "5 million", 0),
        ("10000", "10k", 1),
        ("50%", "50%", 1),
        ("50%", "about 50 percent", 1),
        ("50%", "50", 1),
        ("50", "50%", 1),
        ("50%", "0.5", 1),
        ("0.5", "50%", 1),
        ("50%", "5%", 0),
        ("25%", "25 % of 80 people", 1),
        ("5 apples", "I have 5 apples.", 1),
        ("5 apples", "5", 1),
        ("5", "5 apples", 1),
        ("5 apples", "6 apples", 0),
        ("5 km", "5 kilometers", 1),
        ("5 km", "5 m", 0),
        ("5 km", "5", 1),
        ("20 m^2", "20 m\u00b2", 1),
        ("72", "72 clips in 2 months", 1),
        ("2", "72 clips in 2 months", 0),
        ("72", "She sold 72 clips in 2 months.", 1),
        ("72 clips in 2 months", "72", 1),
        ("3", "3rd", 1),
        ("4 Privet Drive", "4 houses", 0),
        ("4 Privet Drive", "4 privet drive.", 1),
    ],
    "fractions and powers": [
        ("1/2", "1/2", 1),
        ("1/2", "0.5", 1),
        ("0.5", "1/2", 1),
        ("1/2", "\u00bd", 1),
        ("2.5", "2\u00bd", 1),
        ("2.5", "2 1/2", 1),
        ("2 1/2", "5/2", 1),
        ("1/2", "2/4", 1),
        ("1/2", "1", 0),
        ("2", "1/2", 0),
        ("1/3", "0.333", 0),
        ("1/3", "2/6", 1),
        ("1/2", "50%", 1),
        ("3", "1/0 = 3", 1),
        ("1024", "2^10", 1),
        ("25", "5^2", 1),
        ("2", "5\u00b2", 0),
        ("52", "5\u00b2", 0),
        ("100000", "1e5", 1),
        ("6.02e23", "6.02 \u00d7 10^23", 1),
        ("0.001", "10^-3", 1),
        ("5", "1e5", 0),
    ],
    "marks of an answer": [
        ("72", "#### 72", 1),
        ("72", "48/2 = 24\n48+24 = 72\n#### 72", 1),
        ("She has 3 + 4 = 7 apples.\n#### 7", "7", 1),
        ("7", "#### 3. Conclusion\nIt is 7", 1),
        ("72", r"\boxed{72}", 1),
        ("72", r"so $\boxed{72}$ of 100.", 1),
        ("72", r"\boxed{71} no, \boxed{72}", 1),
        ("71", r"\boxed{71} no, \boxed{72}", 0),
        ("72", r"\boxed{x = 72}", 1),
        ("3", r"\boxed{2\sqrt{3}}", 0),
        (r"2\sqrt{3}", r"The value is $\boxed{2\sqrt{3}}$", 1),
        ("2", r"\boxed{(1, 2)}", 0),
        ("(1, 2)", r"\boxed{(1,2)}", 0),
        (r"\frac{1}{2}", r"\boxed{\dfrac{1}{2}}", 1),
        ("1/2", r"\boxed{\frac12}", 1),
        ("0.5", r"$\tfrac{1}{2}$", 1),
        ("2.5", r"2\frac{1}{2}", 1),
        (r"\frac{x}{2}", r"\boxed{\frac{x}{2}}", 1),
        (r"\frac{x}{2}", r"\boxed{\frac{x}{3}}", 0),
        ("5 cm", r"\boxed{5\text{ cm}}", 1),
        ("10000", r"\boxed{10{,}000}", 1),
        ("10000", r"10\,000", 1),
        ("50", r"\boxed{50\%}", 1),
        ("90", r"\boxed{90^\circ}", 1),
        ("7", "\\boxed{7", 1),  # cut off
        ("72", "**72**", 1),
        ("72", "The total is **72**.", 1),
        ("72", "`72`", 1),
        ("72", "Answer: 72", 1),
        ("72", "Answer:\n72", 1),
        ("72", "The final answer is 72. I hope it is correct, at least 90%.", 1),
        ("72", "The answer is 72 clips in 2 months.", 1),
        ("Paris", "The answer is Paris.", 1),
        ("Paris", "The answer is: **Paris**", 1),
        ("Paris", "The answer is not Paris.", 0),
    ],
    "no numbers": [
        ("5", "H2O5x", 0),
        ("2", "H2O", 0),
        ("30", "3:30", 0),
        ("3", "1.2.3", 0),
        ("15", "2020-01-15", 0),
        ("3", "\u221a3", 0),
        ("3:30", "3:30", 1),
        ("2020-01-15", "2020-01-15", 1),
        ("1 2 5 9", "1 2 5 9", 1),
        ("1 2 5 9", "9", 0),
    ],
    "words": [
        ("Paris", " paris.", 1),
        ("Paris", "It is Paris", 0),
        ("Paris", "\u201cParis\u201d", 1),
        ("Paris", "*Paris*", 1),
        ("Paris.", "Paris", 1),
        ("New  York", "new york", 1),
        ("stra\u00dfe", "STRASSE", 1),
        ("caf\u00e9", "cafe\u0301", 1),
        ("A", "(A)", 1),
        ("A", "B", 0),
        ("no", "know", 0),
        ("don't", "don\u2019t", 1),
        ("?", "?", 1),
        ("?", "!", 0),
        ("[1, 2]", "(1, 2)", 0),
        ("x+1", "$x + 1$", 1),
        ("x+1", "x-1", 0),
        ("ABC", "\uff21\uff22\uff23", 1),
        ("\U0001f44d", "\U0001f44d", 1),
        ("\U0001f44d", "\U0001f44e", 0),
        ("\u2764\ufe0f", "\u2764", 1),
    ],
    "scripts": [
        ("\u5317\u4eac", "\u5317\u4eac\u3002", 1),
        ("\u5317\u4eac", "\u300c\u5317\u4eac\u300d", 1),
        ("\u5317\u4eac", "\u7b54\u6848\u662f\u5317\u4eac\u3002", 1),
        ("\u5317\u4eac", "\u4e0a\u6d77", 0),
        ("\u662f", "\u4e0d\u662f", 0),
        ("\u5bf9", "\u4e0d\u5bf9", 0),
        ("1,000", "\uff11\uff0c\uff10\uff10\uff10\u5143", 1),
        ("-3", "\u7ed3\u679c\u662f\uff0d3", 1),
        ("-3", "\u7ed3\u679c\u662f\u8d1f3", 1),
        ("3", "\u7ed3\u679c\u662f\uff0d3", 0),
        ("0", "\u51711\uff0c000\u5143", 0),
        ("5", "\u7ea6\uff13\uff0e\uff15\u7c73", 0),
        ("30000", "3\u4e07\u5143", 1),
        ("3", "3\u4e07", 0),
        ("50%", "\u767e\u5206\u4e4b50", 1),
        ("18", "\u0661\u0668", 1),
        ("1234.5", "\u0661\u066c\u0662\u0663\u0664\u066b\u0665", 1),
        ("18", "\u0627\u0644\u062c\u0648\u0627\u0628 \u0647\u0648 \u0661\u0668.", 1),
        ("\u0628\u0627\u0631\u064a\u0633", "\u0628\u0627\u0631\u064a\u0633\u061f", 1),
        ("-18", "\u200e-\u0661\u0668", 1),
        ("18", "\u0967\u096e", 1),
        ("\u0926\u093f\u0932\u094d\u0932\u0940", "\u0926\u093f\u0932\u094d\u0932\u0940\u0964", 1),
        ("18", "\u0e51\u0e58 \u0e1a\u0e32\u0e17", 1),
        ("18", "\u0e15\u0e2d\u0e1a\u0e51\u0e58\u0e1a\u0e32\u0e17", 1),
        ("\u0e43\u0e0a\u0e48", "\u0e44\u0e21\u0e48\u0e43\u0e0a\u0e48", 0),
        ("5", "\u0661\u0665", 0),
    ],
    "several right answers": [
        (["a", "b"], "b", 1),
        (["a", "b"], "c", 0),
        (["Paris", "City of Light"], "city of light.", 1),
        (["7", 8], "The answer is 8.", 1),
        (["7", 8], "9", 0),
    ],
}
CONTAINS: list[tuple[str | list, str, int]] = [
    ("Paris", "It is Paris, of course.", 1),
    ("Paris", "It is Rome.", 0),
    ("5", "15", 0),
    ("5", "3.5 or 50", 0),
    ("5", "5 apples and 6 pears", 1),
    ("-5", "10-5", 0),
    ("0", "1,000", 0),
    ("no", "I know", 0),
    ("no", "No, I do not.", 1),
    ("can", "I can't", 0),
    ("can", "I can.", 1),
    ("art", "start", 0),
    ("red", "a_red", 0),
    ("Paris", "Paris's streets", 1),
    ("World War 2", "after World War 2.", 1),
    ("World War 2", "after World War 20", 0),
    (["Rome", "Paris"], "in Paris", 1),
    ("\u662f", "\u4e0d\u662f", 0),
    ("\u662f", "\u662f\u3002", 1),
    ("\u5317\u4eac", "\u6211\u4f4f\u5728\u5317\u4eac\u5e02", 1),
    ("\u6b63\u786e", "\u4e0d\u6b63\u786e", 0),
    ("\u6b63\u786e", "\u662f\u6b63\u786e\u7684", 1),
    ("\u30d1\u30f3", "\u30b8\u30e3\u30d1\u30f3", 0),
    ("\u30d1\u30f3", "\u30d1\u30f3\u3067\u3059", 1),
    ("\u0e43\u0e0a\u0e48", "\u0e44\u0e21\u0e48\u0e43\u0e0a\u0e48", 0),
    ("\u0e44\u0e21", "\u0e44\u0e21\u0e49", 0),
    ("\uc11c\uc6b8", "\uc11c\uc6b8\uc785\ub2c8\ub2e4", 1),
    ("\U0001f44d", "ok \U0001f44d", 1),
    ("\U0001f44d", "ok \U0001f44d\U0001f3fd", 0),
    ("\u043d\u0435", "\u043d\u0435\u0442", 0),
    ("\u0662", "\u0661\u0662", 0),
]


@pytest.mark.parametrize("kind", EXACT)
def test_exact_answer(kind: str) -> None:
    wrong = [row for row in EXACT[kind] if rewards.exact_answer({"answer": row[0]}, row[1], True) != row[2]]
    assert wrong == []


def test_contains_answer() -> None:
    wrong = [row for row in CONTAINS if rewards.contains_answer({"answer": row[0]}, row[1], True) != row[2]]
    assert wrong == []


def test_a_part_of_a_word_without_spaces_counts_unless_it_is_one_character() -> None:
    assert rewards.contains_answer({"answer": "好"}, "我 好的", True) == 0.0
    assert rewards.contains_answer({"answer": "好的"}, "我 好的呀", True) == 1.0
    assert not answers.contains("", "x y")  # an empty answer is nowhere


def test_the_final_answer_is_stripped() -> None:
    assert answers.final_answer("The answer is 42 . Done") == "42"


def test_thirty_marks_in_a_row_are_kept() -> None:
    """Unicode's stream-safe limit, counted anew behind every character that is not a mark."""
    thirty, more = "a" + "\u0301" * 30, "a" + "\u0301" * 31
    assert spelling._without_long_runs(thirty * 2) == thirty * 2
    assert spelling._without_long_runs(more * 2) == thirty * 2


def test_the_tables_are_as_long_as_they_say_and_hold_both_verdicts() -> None:
    rows = [row for kind in EXACT.values() for row in kind]
    assert len(rows) >= 200
    assert 50 < sum(not right for *_, right in rows) < 150
    assert len({(json.dumps(answer), text) for answer, text, _ in rows}) == len(rows)


@pytest.mark.parametrize(
    "answer", ["", " ", "\u200b", [], [""], ["a", " "], True, None, {"a": 1}, float("nan"), "solution\n####"]
)
def test_answers_that_nothing_can_be_compared_with(answer: object) -> None:
    assert answers.unusable(answer)


@pytest.mark.parametrize("answer", ["a", "?", 0, 0.0, -1.5, ["a", 2], "#### 7"])
def test_answers_to_compare_with(answer: object) -> None:
    assert not answers.unusable(answer)


HOSTILE = {
    "digits": "1" * 1_000_000,
    "numbers": "1 " * 500_000,
    "groups": "1" + ",000" * 250_000,
    "powers": "2^" * 500_000 + "2",
    "open boxes": "\\boxed{" * 140_000,
    "open fractions": "\\frac{" * 160_000,
    "marks": "answer is " * 100_000,
    "spaces": "answer" + " " * 1_000_000,
    "combining": "\u0315\u0300" * 500_000,
    "ligatures": "\ufdfa" * 300_000,
    "parentheses": "(" * 500_000 + ")" * 500_000,
    "negations": "\u4e0d\u662f" * 500_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_of_anything_is_judged_in_seconds(name: str) -> None:
    started = time.monotonic()
    for answer in ("5", "\u662f"):
        rewards.exact_answer({"answer": answer}, HOSTILE[name], False)
        rewards.contains_answer({"answer": answer}, HOSTILE[name], False)
    assert rewards.exact_answer({"answer": HOSTILE[name]}, "5", False) == 0
    assert time.monotonic() - started < 15  # quadratic time would be hours


def test_random_spellings_of_random_numbers() -> None:
    tally = Tally()
    fuzz_answers(1_500, seed=0, tally=tally)
    assert tally.wrong == []
    assert tally.right_is_1 > 400
    assert tally.right_is_0 > 400
