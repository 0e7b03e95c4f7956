"""Comparison of a generated text with reference answers: `matches` (the text's final answer) and `contains` (anywhere in it).

A reference that is one quantity (`72`, `$18`, `50%`, `1/2`, `5 apples`) is compared by value with the final quantity of the text. Any other
reference is compared as words. The final answer of a text is, in this order: the last `\\boxed{...}` (as in MATH, arXiv 2103.03874), what
follows `####` in the last line (GSM8K, arXiv 2110.14168), what follows "the answer is" or "Answer:" (Minerva, arXiv 2206.14858), or the
last number (lm-eval's `flexible-extract`), where "72 clips in 2 months" is 72.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tinyllm.rollout.answers import spelling
from tinyllm.rollout.answers.quantities import Quantity, in_spaced_script, is_unspaced, quantities

_MAX_LENGTH = 20_000  # characters of a text that are looked at: its beginning and, mostly, its end
_MAX_QUANTITY = 3_000  # characters of a quantity: its digits, and a unit
_MARK = re.compile(
    r"\banswer(?:\s+is|\s*[:=])|答案(?:\s*[是为為:=])|答\s*[:]|答えは|정답은|الجواب\s*(?:هو|:)|उत्तर\s*[:]",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"')*]|$)|[。！？؟।\n]")
_DECOR = " \t\n:=*_`\"'"
_PREPOSITION = re.compile(r"\b(in|per|for|over|within|during|after|every|each|of|at|by|from|on) ?$", re.IGNORECASE)
_SPAN = re.compile(r"\b(in|per|over|within|during|every|each) ?$", re.IGNORECASE)
_TIMES = {"s", "min", "h", "d", "week", "month", "year"}
_UNIT_TEXT = re.compile(r" ?(?:[^\W\d_]+(?:[/ -][^\W\d_]+){0,2}|°[CF]?)?(?:\^?[23])?")
_NOT_WORDS = ("不", "没", "沒", "未", "非", "无", "無", "别", "別", "ไม่")  # before a word they make its opposite


def references(answer: Any) -> list[str]:
    """Return the right answers of a column `answer`: a text, a number, or a list of them. Of a worked solution, its final answer."""
    return [_reference(str(one)) for one in (answer if isinstance(answer, list | tuple) else [answer])]


def _reference(text: str) -> str:
    final = text.rpartition("####")[2].strip()
    return boxed(final) or final


def matches(answer: Any, text: str) -> bool:
    """Return whether the final answer of a text is one of the right answers."""
    return any(_matches(one, _clipped(text)) for one in references(answer))


def contains(answer: Any, text: str) -> bool:
    """Return whether one of the right answers occurs in a text as whole words or a whole number."""
    return any(_matches(one, _clipped(text)) or _contains(one, _clipped(text)) for one in references(answer))


def _clipped(text: str) -> str:
    """Return the beginning and the end of a text that is too long to be an answer."""
    if len(text) <= _MAX_LENGTH:
        return text
    quarter = _MAX_LENGTH // 4
    return f"{text[:quarter]}\n{text[-3 * quarter :]}"


def _matches(answer: str, text: str) -> bool:
    if len(answer) > _MAX_LENGTH:
        return False
    written, text = text.strip(), spelling.plain(text)
    final = final_answer(text)
    if any(_same_words(answer, part) for part in (written, final)):
        return True
    wanted = whole_quantity(answer)
    if wanted is None:
        return False
    if boxed(text):
        found = whole_quantity(final)
    else:
        found = final_quantity(final, wanted) or final_quantity(text, wanted)
    return found is not None and wanted.equals(found)


def _same_words(answer: str, text: str) -> bool:
    wanted = spelling.words(answer)
    if wanted == spelling.words(text):
        return True
    formula = any(c in answer for c in "\\^{}=+/")
    return formula and spelling.squeezed(answer) == spelling.squeezed(text)


# --- the final answer ------------------------------------------------------------------------------------------------------------


def final_answer(text: str) -> str:
    """Return the part of a text that is marked as its answer; the whole text if none is."""
    if found := boxed(text):
        return found
    *_, last = ["", *text.rstrip().rsplit("\n", 1)]
    _, mark, behind = last.rpartition("####")
    if mark and behind.strip():
        return behind.strip()
    marks = list(_MARK.finditer(text))
    if not marks:
        return text
    start = marks[-1].end()
    while start < len(text) and text[start] in _DECOR:
        start += 1
    end = _SENTENCE_END.search(text, start)
    return text[start : end.start() if end else len(text)].strip() or text


def boxed(text: str) -> str:
    r"""Return the content of the last `\boxed{...}` or `\fbox{...}`; empty if there is none, or its braces do not close."""
    at = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    start = text.find("{", at) if at >= 0 else -1
    if start < 0 or text[at:start].strip() not in ("\\boxed", "\\fbox"):
        return ""
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return text[start + 1 : start + brace.start()].strip()
    return ""


@lru_cache(maxsize=4096)
def whole_quantity(text: str) -> Quantity | None:
    """Return the quantity that a text is, with no other words than a unit; None if it is anything else."""
    if len(text) > _MAX_QUANTITY:
        return None
    text = spelling.trimmed(spelling.plain(text).rpartition("=")[2])
    found = list(quantities(text))
    if len(found) == 1 and not text[: found[0].start].strip("~≈ "):
        unit = text[found[0].end :]
        return found[0] if _UNIT_TEXT.fullmatch(unit.rstrip()) and _is_unit(unit) else None
    return _leading(text, found) if len(found) > 1 and len(text.split()) <= 8 else None


def _is_unit(text: str) -> bool:
    """Return whether the words after a number can be its unit. Names are none: "4 Privet Drive" is no quantity."""
    words = text.split()
    return not any(word[0].isupper() and len(word) > 3 for word in words)


def final_quantity(text: str, wanted: Quantity) -> Quantity | None:
    """Return the quantity that a text ends in. One with the currency or percent sign that is asked for comes first."""
    found = list(quantities(text))
    if not found:
        return None
    if wanted.currency or wanted.percent:
        same = [
            q for q in found if (wanted.currency and q.currency == wanted.currency) or (wanted.percent and q.percent)
        ]
        if same:
            return same[-1]
    if leading := _leading(text, found):
        return leading
    if (
        len(found) > 1
        and found[-1].measure in _TIMES
        and _SPAN.search(text, max(0, found[-1].start - 12), found[-1].start)
    ):
        between = text[found[-2].end : found[-1].start]
        return found[-1] if _SENTENCE_END.search(between) else found[-2]  # "sold 72 clips in 2 months"
    return found[-1]


def _leading(text: str, found: Sequence[Quantity]) -> Quantity | None:
    """Return the quantity that a text begins with, if all others only qualify it: 72 of "72 clips in 2 months"."""
    if len(found) < 2 or text[: found[0].start].strip(_DECOR + "~≈"):
        return None
    qualify = (_PREPOSITION.search(text, max(0, q.start - 12), q.start) for q in found[1:])
    return found[0] if all(qualify) else None


# --- anywhere in the text --------------------------------------------------------------------------------------------------------


def _contains(answer: str, text: str) -> bool:
    wanted = whole_quantity(answer)
    if wanted is not None:
        return any(wanted.equals(found) for found in quantities(spelling.plain(text)))
    word, within = spelling.words(answer), spelling.words(text)
    at = within.find(word) if word else -1
    while at >= 0:
        if _is_whole(within, at, at + len(word)):
            return True
        at = within.find(word, at + 1)
    return False


def _is_whole(text: str, start: int, end: int) -> bool:
    """Return whether text[start:end] is a whole word, as far as its script tells.

    Where words are separated, no letter, digit or mark touches it. Chinese, Japanese and Thai do not separate them: there a part counts
    unless it is a single character, follows a word that negates it (不对), or cuts a run of katakana.
    """
    before, after = text[start - 1 : start], text[end : end + 1]
    if after and (
        unicodedata.combining(after) or unicodedata.category(after) in ("Mc", "Mn", "Sk") or after == "\u200d"
    ):
        return False
    if before == "\u200d" or text[end : end + 2] in ("'t",) or (after.isdecimal() and text[end - 1].isdecimal()):
        return False
    if re.match(r"[.,]\d", text[end : end + 2]) and text[end - 1].isdecimal():
        return False
    return _free(before, text[start], text[max(0, start - 3) : start], end - start) and _free_behind(
        after, text[end - 1], end - start
    )


def _free(before: str, first: str, prefix: str, length: int) -> bool:
    if not before or before.isspace():
        return True
    if is_unspaced(first):
        if _is_katakana(first) and _is_katakana(before):
            return False
        return not (prefix.endswith(_NOT_WORDS) or (length == 1 and is_unspaced(before)))
    return not (in_spaced_script(first) and (in_spaced_script(before) or before == "_"))


def _free_behind(after: str, last: str, length: int) -> bool:
    if not after or after.isspace():
        return True
    if is_unspaced(last):
        return not ((_is_katakana(last) and _is_katakana(after)) or (length == 1 and is_unspaced(after)))
    if _is_hangul(last) and _is_hangul(after):
        return True  # particles follow without a space
    return not (in_spaced_script(last) and (in_spaced_script(after) or after == "_"))


def _is_katakana(c: str) -> bool:
    return "\u30a1" <= c <= "\u30ff"


def _is_hangul(c: str) -> bool:
    return "\uac00" <= c <= "\ud7a3"


def unusable(answer: Any) -> str:
    """Return what is wrong with a column `answer` that texts are compared with; empty if nothing is."""
    several = answer if isinstance(answer, list | tuple) else [answer]
    if any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in several):
        return "expected a string or a number, or a list of them"
    if any(isinstance(one, float) and one - one != 0 for one in several):
        return "expected a finite number"
    blank = not several or not all(spelling.plain(one).strip() for one in references(several))
    return "expected a string or a number that is not blank" if blank else ""
