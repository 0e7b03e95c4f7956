"""One spelling for texts that mean the same: Unicode forms, digits of any script, LaTeX, quotation marks, punctuation at the ends.

All functions take time linear in the length of the text, whatever it holds: generated text is hostile input.
"""

from __future__ import annotations

import re
import unicodedata

_MAX_MARKS = (
    30  # combining marks in a row; normalization sorts a run of them in quadratic time (Unicode's stream-safe limit)
)
_JOINER = "\u200d"  # makes one emoji of several
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"), "-")
_SIGNS = _DASHES | {
    0x2044: "/",
    0x2215: "/",
    0x066A: "%",
    0x066B: ".",
    0x066C: ",",
    0x2018: "'",
    0x2019: "'",
    0x02BC: "'",
    0x201C: '"',
    0x201D: '"',
    0x201E: '"',
}
_FRACTIONS = {ord(c): " " + unicodedata.normalize("NFKC", c).replace("\u2044", "/") for c in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞↉"}
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SPACES = re.compile(r"\s+")
_LOOSE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")

_DIGIT_SPACES = re.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3}(?!\d))")  # written to keep thousands together

_LATEX_WORDS = {
    "\\%": "%",
    "\\$": "$",
    "{,}": ",",
    "\\!": "",
    "\\left": "",
    "\\right": "",
    "\\cdot": "×",
    "\\times": "×",
    "\\pi": "π",
    "^{\\circ}": "°",
    "^\\circ": "°",
    "\\circ": "°",
    "\\sqrt": "√",
    "\\approx": "≈",
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "\\cfrac": "\\frac",
    **dict.fromkeys(("\\,", "\\;", "\\:", "\\ ", "\\quad", "\\(", "\\)", "\\[", "\\]", "\\\\"), " "),
}
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname) ?\{([^{}]*)\}")
_LATEX_FRACTION = re.compile(r"\\frac ?\{([^{}]*)\} ?\{([^{}]*)\}")
_LATEX_SHORT_FRACTION = re.compile(r"\\frac ?(\d)(\d)")
_LATEX_POWER = re.compile(r"\^ ?\{ ?(-?\d+) ?\}")

_QUOTES = "\"'`*_“”‘’「」『』《》〈〉«»‹›"
_STOPS = ".,!?;:…。！？，、；：｡､؟،؛।॥¿¡"
_BULLET = re.compile(r"[-*•·] +")


def plain(text: str) -> str:
    """Return a text in NFKC, with ASCII digits and signs, without invisible characters; LaTeX fractions and signs as plain text."""
    if not text.isascii():
        text = _unicode(text)
    return _latex(text) if "\\" in text or "{" in text else text


def _unicode(text: str) -> str:
    text = _DIGIT_SPACES.sub("_", text)
    characters = set(text)
    if any(map(unicodedata.combining, characters)):
        text = _without_long_runs(text)
    text = _SUPERSCRIPT.sub(lambda found: "^" + unicodedata.normalize("NFKC", found[0]), text.translate(_FRACTIONS))
    text = unicodedata.normalize("NFKC", text)
    table: dict[int, str | None] = dict(_SIGNS)
    for c in set(text):
        if c.isascii():
            continue
        if c.isdecimal():
            table[ord(c)] = str(unicodedata.decimal(c))
        elif (unicodedata.category(c) == "Cf" and c != _JOINER) or "\ufe00" <= c <= "\ufe0f":
            table[ord(c)] = None  # direction marks, soft hyphens, variation selectors
    return text.translate(table)


def _without_long_runs(text: str) -> str:
    kept, run = [], 0
    for c in text:
        run = run + 1 if unicodedata.combining(c) else 0
        if run <= _MAX_MARKS:
            kept.append(c)
    return "".join(kept)


def _latex(text: str) -> str:
    for command, meaning in _LATEX_WORDS.items():
        text = text.replace(command, meaning)
    for _ in range(2):  # a text inside a fraction, a fraction inside a text
        text = _LATEX_TEXT.sub(r"\1", text)
        text = _LATEX_FRACTION.sub(_fraction, text)
    return _LATEX_POWER.sub(r"^\1", _LATEX_SHORT_FRACTION.sub(_fraction, text))


def _fraction(found: re.Match[str]) -> str:
    over, under = found[1].strip(), found[2].strip()
    if over.isdecimal() and under.isdecimal():
        mixed = found.string[max(0, found.start() - 1) : found.start()].isdecimal()  # 2\\frac{1}{2}
        return f"{' ' * mixed}{over}/{under}"
    return f"({over})/({under})"


def words(text: str) -> str:
    """Return a text for comparison of words: without case, runs of white space, quotation marks and punctuation at both ends."""
    folded = unicodedata.normalize("NFKC", plain(text).casefold())
    whole = _SPACES.sub(" ", folded).strip()
    return trimmed(whole) or whole


def trimmed(text: str) -> str:
    """Return a text without white space, quotation marks, Markdown and punctuation at its ends. A sign of a number stays."""
    start, end = 0, len(text)
    while start < end:
        before = start, end
        start, end = _ends(text, start, end)
        if before == (start, end):
            break
    return text[start:end]


def _ends(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the part of text[start:end] without one layer of what does not count at its ends."""
    if bullet := _BULLET.match(text, start, end):
        start = bullet.end()
    while start < end and (text[start].isspace() or text[start] in _QUOTES or _is_stop(text, start, end)):
        start += 1
    while start < end and (text[end - 1].isspace() or text[end - 1] in _QUOTES or text[end - 1] in _STOPS):
        end -= 1
    pair = text[start : start + 1] + text[end - 1 : end]
    if end - start > 2 and (pair == "$$" or (pair == "()" and not any(c in "()," for c in text[start + 1 : end - 1]))):
        return start + 1, end - 1
    return start, end


def _is_stop(text: str, at: int, end: int) -> bool:
    """Return whether there is punctuation at the beginning; the point of `.5` is none."""
    return text[at] in _STOPS and not (text[at] == "." and at + 1 < end and text[at + 1].isdecimal())


def squeezed(text: str) -> str:
    """Return `words` without white space, except between digits: the form in which formulas are compared."""
    return _LOOSE.sub("", words(text)).replace("$", "")
