"""Random answers against `exact_answer` and `contains_answer`, and random reward functions against the place that calls them.

    python -m tests.rollout.fuzz_rewards [NUMBER] [SEED]

prints how many were tried and every one that was judged wrongly. The right verdict is known by construction: a number is drawn, then
spelled in one of many ways on either side. `tests/rollout` runs a small part with a fixed seed.
"""

from __future__ import annotations

import decimal
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from tinyllm.errors import UserError
from tinyllm.rollout import rewards
from tinyllm.rollout.scoring import Answered, score


@dataclass
class Tally:
    tried: int = 0
    right_is_1: int = 0
    right_is_0: int = 0
    wrong: list[Any] = field(default_factory=list)

    def count(self, want: float, got: float, case: Any) -> None:
        self.tried += 1
        self.right_is_1 += want == 1
        self.right_is_0 += want == 0
        if want != got:
            self.wrong.append((case, f"right: {want}, found: {got}"))


# --- numbers ---------------------------------------------------------------------------------------------------------------------

_DIGITS = {"arabic": "٠١٢٣٤٥٦٧٨٩", "devanagari": "०१२३४५६७८९", "thai": "๐๑๒๓๔๕๖๗๘๙", "wide": "０１２３４５６７８９"}


def drawn_number(rng: random.Random) -> Fraction:
    kind = rng.choice(("small", "small", "medium", "huge", "decimal", "money", "fraction"))
    if kind == "small":
        value = Fraction(rng.randint(0, 99))
    elif kind == "medium":
        value = Fraction(rng.randint(100, 10_000_000))
    elif kind == "huge":
        value = Fraction(rng.randint(2**53, 10**30))
    elif kind == "decimal":
        value = Fraction(rng.randint(1, 99_999), 10 ** rng.randint(1, 4))
    elif kind == "money":
        value = Fraction(rng.randint(1, 999_999), 100)
    else:
        value = Fraction(rng.randint(1, 40), rng.randint(2, 40))
    return -value if rng.random() < 0.2 else value


def _decimal(value: Fraction) -> str | None:
    """Return a non-negative value as a finite decimal, if it is one."""
    for places in range(9):
        if (value * 10**places).denominator == 1:
            digits = str(value.numerator * 10**places // value.denominator).rjust(places + 1, "0")
            return digits if not places else f"{digits[:-places]}.{digits[-places:]}"
    return None


def _grouped(whole: str, mark: str) -> str:
    head = len(whole) % 3 or 3
    return mark.join([whole[:head], *(whole[i : i + 3] for i in range(head, len(whole), 3))])


def spelled(value: Fraction, rng: random.Random) -> str:
    """Return one of many spellings of a value."""
    size, minus = abs(value), rng.choice(("-", "-", "\u2212", "\uff0d")) if value < 0 else rng.choice(("", "", "", "+"))
    written = _decimal(size)
    if written is None:
        over, under = size.numerator, size.denominator
        forms = [f"{over}/{under}", rf"\frac{{{over}}}{{{under}}}", f"{2 * over}/{2 * under}"]
        if over > under:
            forms.append(f"{over // under} {over % under}/{under}")
        return minus + rng.choice(forms)
    whole, point, rest = written.partition(".")
    forms = [written]
    if len(whole) > 3:
        forms += [_grouped(whole, mark) + point + rest for mark in (",", ",", " ", "\u00a0", "\u202f", "'")]
    if whole == "0" and rest and not minus:
        forms.append("." + rest)
    if rest:
        forms.append(written + "0")
    else:
        forms.append(written + ".00")
    found = rng.choice(forms)
    if rng.random() < 0.2 and "'" not in found:
        script = rng.choice(list(_DIGITS))
        found = found.translate({ord(str(d)): c for d, c in enumerate(_DIGITS[script])})
        if script == "wide":
            found = found.replace(",", "，").replace(".", "．")
    return minus + found


_FRAMES = (
    "{n}",
    "The answer is {n}.",
    "It is {n}.",
    "**{n}**",
    "So she has {n} apples.",
    "There were {o} at first. Now there are {n}.",
    "{o} + {o} = {n}",
    "First {o}, then {o}.\nThe final answer is {n}",
    "#### {n}",
    "We see {o}.\n#### {n}",
    r"\boxed{{{n}}}",
    r"Since $x = {o}$, we get $\boxed{{{n}}}$.",
    r"$x = {n}$",
    "Answer: {n}",
    "答案是{n}。",
    "结果是{n}元",
    "共{n}个",
    "ตอบ {n} บาท",
    "الجواب هو {n}.",
    "उत्तर: {n}।",
    "A4 paper, H2O and x2: {n}!",
    "At 3:30 there were {n}",
    "{n} 👍",
    "`{n}`",
    "“{n}”",
    "$\\text{{total}} = {n}$",
)


def _near(value: Fraction, rng: random.Random) -> Fraction:
    """Return another value that looks similar."""
    text = _decimal(abs(value)) or "1"
    others = [-value, value + 1, value - 1, value * 10, value / 10, value * 1000, value + Fraction(1, 100)]
    if len(text) > 1 and text[1:].strip("."):
        others += [Fraction(text[1:].strip(".")), Fraction(text[:-1].strip(".") or "0")]
    return rng.choice([other for other in others if other != value] or [value + 1])


def fuzz_answers(number: int, seed: int, tally: Tally) -> None:
    """Judge random texts by both rules."""
    rng = random.Random(seed)
    for _ in range(number):
        value = drawn_number(rng)
        said = value if rng.random() < 0.55 else _near(value, rng)
        unit = rng.choice(("", "", "", "$", "%", " apples"))
        answer, shown = spelled(value, rng), spelled(said, rng)
        if unit == "$":
            answer = f"${answer.lstrip('+')}" if value >= 0 else answer
        elif unit:
            answer += unit
        others = iter([spelled(drawn_number(rng), rng) for _ in range(2)])
        frame = rng.choice(_FRAMES)
        while "{o}" in frame:
            frame = frame.replace("{o}", next(others).replace("{", "{{").replace("}", "}}"), 1)
        text = frame.format(n=shown)
        same = said == value or (unit == "%" and said * 100 == value)
        same = same and not (answer.startswith("$") and "元" in text)
        columns = {"answer": answer if rng.random() < 0.8 else ["nothing like it", answer]}
        tally.count(float(same), rewards.exact_answer(columns, text, True), (columns["answer"], text))
        if same:
            tally.count(1.0, rewards.contains_answer(columns, text, True), ("contains", columns["answer"], text))


_WORDS = (
    "Paris",
    "yes",
    "no",
    "red",
    "New York",
    "北京",
    "正确",
    "パン",
    "서울",
    "باريس",
    "दिल्ली",
    "กรุงเทพ",
    "Москва",
    "👍",
    "C++",
    "x+1",
)
_AROUND = (
    "{w}",
    " {w}. ",
    "“{w}”",
    "**{w}**",
    "「{w}」",
    "{w}！",
    "The answer is {w}.",
    "Answer: {w}",
    "#### {w}",
    r"\boxed{{{w}}}",
    "{W}",
)
_APART = ("not{w}x", "{w}{w}{w}", "is it {w} or not", "{w}, or something else", "", "1 {w}")


def fuzz_words(number: int, seed: int, tally: Tally) -> None:
    rng = random.Random(seed)
    for _ in range(number):
        word, same = rng.choice(_WORDS), rng.random() < 0.6
        other = word if same else rng.choice([w for w in _WORDS if w != word])
        frame = rng.choice(_AROUND if same or rng.random() < 0.7 else _APART)
        text = frame.format(w=other, W=other.upper())
        tally.count(float(same), rewards.exact_answer({"answer": word}, text, True), (word, text))
    for _ in range(number // 4):
        word = rng.choice(_WORDS)
        text = rng.choice(_APART).format(w=word)
        tally.count(0.0, rewards.exact_answer({"answer": word}, text, True), (word, text))


def fuzz_garbage(number: int, seed: int, tally: Tally) -> None:
    """Judge texts of random characters: no exception, 0 or 1, and a text is its own answer."""
    rng = random.Random(seed)
    alphabet = (
        "0123456789.,:;/^-+−$€%=#{}\\()[] \n\t'\"*_eExk元万不是北京\u0301\u200d\u202f٣५๓½²∞パ👍abcANSWERis"
        + "\\boxed{"
        + "####"
    )
    for _ in range(number):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 40)))
        answer = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 12)))
        for rule in (rewards.exact_answer, rewards.contains_answer):
            try:
                value = rule({"answer": answer}, text, False)
            except Exception as error:
                value = repr(error)
            tally.count(float(value in (0.0, 1.0)), 1.0, (rule.__name__, answer, text, value))
            if text.strip() and "####" not in text and "boxed" not in text:
                tally.count(1.0, rule({"answer": text}, text, False), ("itself", rule.__name__, text))


# --- rewards ---------------------------------------------------------------------------------------------------------------------


class _Raises:
    def __float__(self) -> float:
        raise RuntimeError("no float")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


VALUES: list[tuple[Callable[[random.Random], Any], Any]] = [  # what a reward returns, and what that means; an error is `UserError`
    (lambda rng: rng.uniform(-9, 9), "float"),
    (lambda rng: rng.randint(-9, 9), "float"),
    (lambda rng: rng.random() < 0.5, "float"),
    (lambda rng: np.float64(rng.random()), "float"),
    (lambda rng: np.float32(rng.random()), "float"),
    (lambda rng: np.int64(3), "float"),
    (lambda rng: np.bool_(True), "float"),
    (lambda rng: np.array(rng.random()), "float"),
    (lambda rng: torch.tensor(rng.random()), "float"),
    (lambda rng: torch.tensor(True), "float"),
    (lambda rng: Fraction(1, 3), "float"),
    (lambda rng: decimal.Decimal("0.25"), "float"),
    (lambda rng: None, None),
    *(
        ((lambda rng, value=value: value), UserError)
        for value in (
            math.nan, math.inf, -math.inf, 1e39, 10**400, "1.0", b"1", "", [], [1.0], (1.0,), {"a": 1}, {1.0}, 1j, object(), int,
            np.float64("nan"), np.array([1.0]), np.array([1.0, 2.0]), np.complex64(1), torch.tensor([1.0]), torch.tensor(math.nan),
            torch.tensor(1j), _Raises(), [[1], [1, 2]], lambda: 1.0, decimal.Decimal("NaN"), np.str_("1"), range(1), bytearray(b"1"),
        )
    ),
]  # fmt: skip
ERRORS: list[type[BaseException]] = [
    ValueError, ZeroDivisionError, KeyError, TypeError, IndexError, AttributeError, RecursionError, AssertionError, StopIteration,
    SystemExit, NotImplementedError, UnicodeError, OSError, MemoryError, UserError,
]  # fmt: skip


def fuzz_rewards(number: int, seed: int, tally: Tally) -> None:
    """Call random reward functions, of one answer or of a batch."""
    rng = random.Random(seed)
    for _ in range(number):
        rows = [
            Answered(
                {"prompt": [{"role": "user", "content": f"question {i}"}], "answer": str(i)},
                "text",
                True,
                [1],
                f"data.jsonl:{i}",
            )
            for i in range(1, rng.randint(2, 5))
        ]
        style = rng.choice(("row", "batch"))
        bad = rng.randrange(len(rows)) + 1  # the row that the value is for
        raises = rng.choice(ERRORS) if rng.random() < 0.3 else None
        make, meaning = rng.choice(VALUES)
        value = make(rng)
        tally.count(
            1.0, _called(style, rows, bad, raises, value, meaning, rng), (style, bad, raises, type(value).__name__)
        )


def _called(
    style: str,
    rows: list[Answered],
    bad: int,
    raises: type[BaseException] | None,
    value: Any,
    meaning: Any,
    rng: random.Random,
) -> float | str:
    def one(columns: dict, text: str, finished: bool) -> Any:
        columns.clear()  # the data must not notice
        return 0.5

    def row(columns: dict, text: str, finished: bool) -> Any:
        mine = columns["answer"] == str(bad)
        if mine and raises:
            raise raises("on purpose")
        return value if mine else one(columns, text, finished)

    shape = (
        rng.choice(("list", "tuple", "generator", "array", "short", "long", "scalar", "none"))
        if style == "batch"
        else ""
    )

    def batch(prompts: list, completions: list, answer: list, **columns: Any) -> Any:
        assert len(prompts) == len(completions) == len(answer) == len(columns["completion_ids"])
        if raises and str(bad) in answer:
            raise raises("on purpose")
        values = [value if a == str(bad) else 0.5 for a in answer]
        answer.clear()
        if shape == "array":
            return np.array([0.5] * len(values))
        wrong = {"short": values[:-1], "long": [*values, 1.0], "scalar": 1.0, "none": None}
        return wrong[shape] if shape in wrong else iter(values) if shape == "generator" else tuple(values)

    function = row if style == "row" else batch
    reward = rewards.reward_of(function, "mine", __file__)
    fails = (
        raises is not None
        or shape in ("short", "long", "scalar", "none")
        or (meaning is UserError and shape != "array")
    )
    try:
        found = score(reward, rows)
    except UserError as error:
        named = (
            "mine" in error.what and "columns: prompt, answer" in error.what and error.where.startswith(f"{__file__}:")
        )
        at_row = f"data.jsonl:{bad} " in error.what or shape in ("short", "long", "scalar", "none")
        return float(fails and named and at_row and bool(error.fix)) or f"{error} {error.where}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    want = [0.5] * len(rows)
    if shape != "array":
        want[bad - 1] = None if meaning is None else float(value) if not fails else math.nan
    unchanged = [r.columns["answer"] for r in rows] == [str(i) for i in range(1, len(rows) + 1)]
    return float(not fails and found == want and unchanged) or f"found {found}, right: {want}"


PARTS: dict[str, tuple[Callable[[int, int, Tally], None], int]] = {
    "numbers against exact_answer and contains_answer": (fuzz_answers, 1),
    "words against exact_answer": (fuzz_words, 1),
    "random characters against both": (fuzz_garbage, 1),
    "reward functions (types, exceptions, shapes, non-finite)": (fuzz_rewards, 1),
}


def main() -> int:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    failed = 0
    for name, (part, share) in PARTS.items():
        tally, started = Tally(), time.monotonic()
        part(number // share, seed, tally)
        print(f"{name}: {tally.tried:,} tried, {len(tally.wrong):,} wrong, {time.monotonic() - started:.1f} s")
        for case, why in tally.wrong[:15]:
            print(f"  {case!r}  {why}")
        failed += len(tally.wrong)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
