"""Numbers in text, as whole numbers: `1,000` is not 0, `3.5` is not 5, `-3` is not 3, `x2` and `3:30` are none.

Values are exact fractions, so integers above 2^53 are not rounded. Read are thousands (`1,000`, `1 000`, `1'000`, `1,00,000`, `1.000.000`),
decimals (`.5`, `3,5`), fractions (`1/2`, `2 1/2`), powers (`2^10`, `6.02e23`), signs, currencies, percent, thousand to trillion, and the
word that follows as a unit. A text must be in the spelling of `spelling.plain`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

MAX_DIGITS = 2000  # of a number; longer ones are compared as words
MAX_EXPONENT = 999

_CHUNK = re.compile(r"\d+(?:(?:\^-|[.,':/_^-])\d+)*")
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}")
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:([,'_ ])\d{3})(?:\1\d{3})*(?:\.\d+)?|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?")
_EUROPEAN = re.compile(r"[1-9]\d{0,2}(?:[. ]\d{3}){2,}(?:,\d+)?|[1-9]\d{0,2}(?:[. ]\d{3})+,\d+")
_DECIMAL = re.compile(r"\d+(?:\.\d+)?|\d+,\d+")
_GROUP = re.compile(r" (\d{3})(?![\d^/:])(?:[.,]\d{1,2}(?!\d)|[.]\d+)?(?![.,':/_^-]\d)")
_MIXED = re.compile(r" (\d+/\d+)(?![\d.,':/_^-]*\d)")
_SCIENTIFIC = re.compile(r"[eE]([+-]?\d{1,4})(?!\w)| ?[×x*·] ?10\^(-?\d{1,4})(?!\d)")
_SCALES = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3,
    "百": 2, "千": 3, "万": 4, "萬": 4, "亿": 8, "億": 8, "兆": 12, "만": 4, "억": 8,
}  # fmt: skip
_SCALE = re.compile(r" ?(hundred|thousand|million|billion|trillion)\b|k(?![^\W_])|[百千万萬亿億兆만억]", re.IGNORECASE)
_PERCENT = re.compile(r" ?(?:%|percent\b|per cent\b)", re.IGNORECASE)
_CURRENCIES = {
    "$": "$", "us$": "$", "usd": "$", "dollar": "$", "dollars": "$", "€": "€", "eur": "€", "euro": "€", "euros": "€",
    "£": "£", "gbp": "£", "pound": "£", "pounds": "£", "₹": "₹", "inr": "₹", "rs": "₹", "rs.": "₹", "rupees": "₹",
    "¥": "¥", "円": "¥", "元": "¥", "yuan": "¥", "yen": "¥", "rmb": "¥", "cny": "¥", "jpy": "¥", "₩": "₩", "원": "₩", "krw": "₩",
    "₽": "₽", "₿": "₿",
}  # fmt: skip
_PREFIX = re.compile(
    r"([-+]?)((?:US)?[$€£¥₹₩₽₿]|(?<![A-Za-z])(?:USD|EUR|GBP|INR|Rs\.?|RMB|CNY|JPY|KRW)|)( ?)([-+]?)$", re.IGNORECASE
)
_NEGATIVE = re.compile(r"(?:[负負]|\b(?:minus|negative) |= ?- )$", re.IGNORECASE)
_UNIT = re.compile(r" ?([^\W\d_]+(?:/[^\W\d_]+)?|°[CF]?)")
_MEASURES = {
    name: names[0]
    for names in (
        ("mm", "millimeter", "millimetre"), ("cm", "centimeter", "centimetre"), ("m", "meter", "metre", "米"),
        ("km", "kilometer", "kilometre", "公里", "千米"), ("in", "inch", "inches"), ("ft", "foot", "feet"), ("mi", "mile"),
        ("g", "gram", "克"), ("kg", "kilogram", "公斤", "千克"), ("lb", "lbs"), ("l", "liter", "litre", "升"), ("ml", "milliliter"),
        ("s", "sec", "second", "秒"), ("min", "minute", "分钟"), ("h", "hr", "hour", "小时"), ("d", "day", "天"), ("week",),
        ("month",), ("year", "年"),
    )
    for name in (*names, *(f"{n}s" for n in names if n.isascii()))
}  # fmt: skip


@dataclass(frozen=True)
class Quantity:
    """A number in a text, with its sign, currency, percent sign and unit."""

    value: Fraction
    start: int
    """where it begins in the text, with its sign and currency"""
    end: int
    """where it ends, with scale and percent sign, without the unit"""
    currency: str = ""
    percent: bool = False
    unit: str = ""
    """the word after it, in lower case"""
    last: Fraction | None = None
    """its other reading, if it may be several numbers with spaces between them"""

    @property
    def measure(self) -> str:
        """The unit's symbol if it is a common unit of length, weight, volume or time."""
        return _MEASURES.get(self.unit, "")

    def equals(self, other: Quantity) -> bool:
        """Return whether `other`, of a generated text, is this quantity. A missing unit, currency or percent sign fits any."""
        if self.currency and other.currency and self.currency != other.currency:
            return False
        if self.measure and other.measure and self.measure != other.measure:
            return False
        if self.value in (other.value, None if other.currency else other.last):
            return True
        return self.percent != other.percent and self._share() == other._share()

    def _share(self) -> Fraction:
        return self.value / 100 if self.percent else self.value


def quantities(text: str) -> Iterator[Quantity]:
    """Yield the quantities of a text, in order."""
    at = 0
    previous = 0  # the end of the last quantity
    while found := _CHUNK.search(text, at):
        start, end = found.span()
        if _in_a_word(text, start):
            at = end
            continue
        parts, end = _values(text, found)
        at = max(end, found.end())
        for number, (value, where, until) in enumerate(parts):
            last = until == end
            if value is None or (last and text[until : until + 1] in ("π", "√", "^")):
                continue
            found_here = Quantity(value, where, until, last=_last_group(text, where, until))
            quantity = _with_surroundings(text, found_here, previous, first=number == 0)
            previous = at = max(at, quantity.end)
            yield quantity


def _last_group(text: str, start: int, end: int) -> Fraction | None:
    """Return the last number of `440 440`, which may be 440,440 or two numbers; of `1 000` there is only one reading."""
    _, space, last = text[start:end].rpartition(" ")
    return _number(last) if space and "/" not in last and not last.startswith("0") else None


def _in_a_word(text: str, start: int) -> bool:
    """Return whether the digits at `start` belong to a word (`H2O`, `x2`) or stand under a root."""
    before = text[max(0, start - 4) : start]
    if before.endswith(("√", "√{", "√(", "_")):
        return True
    if not before or not in_spaced_script(before[-1]) or before[-1].isdecimal():
        return False
    return _PREFIX.search(before)[2] == ""  # type: ignore[index]  # the pattern matches any text


def _values(text: str, found: re.Match[str]) -> tuple[list[tuple[Fraction | None, int, int]], int]:
    """Return (value, start, end) for each number of a chunk, None for what is no number; and where the last of them ends."""
    chunk, (start, end) = found[0], found.span()
    if _DATE.fullmatch(chunk):
        return [(None, start, end)], end
    if chunk.isdecimal() and len(chunk) <= 3 and not chunk.startswith("0"):
        while group := _GROUP.match(text, end):
            end = group.end()
        if end > found.end():
            return [(_number(text[start:end]), start, end)], end
    if chunk.isdecimal() and (mixed := _MIXED.match(text, end)):
        part = _number(mixed[1])
        if part is not None and 0 < part < 1 and len(chunk) <= MAX_DIGITS:
            return [(int(chunk) + part, start, mixed.end())], mixed.end()
    pieces = _pieces(chunk, start)
    values: list[tuple[Fraction | None, int, int]] = [(_number(piece), at, at + len(piece)) for piece, at in pieces]
    value, at, end = values[-1]
    if at == start and chunk.isdecimal() and _is_decimal_point(text, start - 1):
        value, at = _number("0." + chunk), at - 1
    if value is not None and (power := _SCIENTIFIC.match(text, end)):
        exponent, end = int(power[1] or power[2]), power.end()
        value = value * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None
    return [*values[:-1], (value, at, end)], end


def _is_decimal_point(text: str, at: int) -> bool:
    """Return whether the character before a number is the point of `.5`, not one that ends a word."""
    if at < 0 or text[at] != ".":
        return False
    return not at or (text[at - 1] != "." and not in_spaced_script(text[at - 1]))


def _pieces(chunk: str, start: int) -> Iterator[tuple[str, int]]:
    """Yield the numbers of a chunk and where they begin: `10-5` is two, and so are items of a list (`1,2,3`)."""
    separator = r"(?<!\^)-"
    if chunk.count(",") > 1 and not _THOUSANDS.fullmatch(chunk) and set(chunk) <= set("0123456789,"):
        separator = ","
    at = 0
    for part in re.split(separator, chunk):
        yield part, start + at
        at += len(part) + 1


def _number(text: str) -> Fraction | None:
    """Return the value of digits with separators; None where they are no number, as in `3:30` and `1.2.3`."""
    if len(text) > MAX_DIGITS or ":" in text:
        return None
    if "^" in text:
        return _power(text)
    if "/" in text:
        over, _, under = text.partition("/")
        parts = (_number(over), _number(under)) if "/" not in under else (None, None)
        return parts[0] / parts[1] if parts[0] is not None and parts[1] else None
    if _DECIMAL.fullmatch(text) and not _THOUSANDS.fullmatch(text):
        return Fraction(text.replace(",", "."))
    if _THOUSANDS.fullmatch(text):
        return Fraction(re.sub("[,'_ ]", "", text))
    if _EUROPEAN.fullmatch(text):
        return Fraction(re.sub("[. ]", "", text).replace(",", "."))
    return None


def _power(text: str) -> Fraction | None:
    base, _, exponent = text.partition("^")
    known = _number(base)
    if known is None or not exponent.removeprefix("-").isdecimal() or len(exponent) > 4:
        return None
    if abs(int(exponent)) > MAX_EXPONENT or len(base) > 10 or (known == 0 and exponent.startswith("-")):
        return None
    return known ** int(exponent)


def _with_surroundings(text: str, quantity: Quantity, previous: int, *, first: bool) -> Quantity:
    """Return a quantity with what stands before it (`first` in its chunk: sign and currency) and behind it."""
    value, start, end, currency, percent = quantity.value, quantity.start, quantity.end, "", False
    if first:
        sign, currency, start = _prefix(text, start, previous)
        value = -value if sign == "-" else value
        if text.endswith("百分之", 0, start):
            percent, start = True, start - 3
    if scale := _SCALE.match(text, end):
        value, end = value * 10 ** _SCALES[scale[0].strip().lower()], scale.end()
    if sign_after := _PERCENT.match(text, end):
        percent, end = True, sign_after.end()
    unit = _UNIT.match(text, end)
    name = unit[1].lower() if unit else ""
    if not currency and (found := re.match(r" ?([€£¥₹₩₽₿元円원$])", text[end : end + 2])) and found[1] != "$":
        currency, end = _CURRENCIES[found[1]], end + found.end()
    currency = currency or _CURRENCIES.get(name, "")
    return replace(quantity, value=value, start=start, end=end, currency=currency, percent=percent, unit=name)


def _prefix(text: str, start: int, previous: int) -> tuple[str, str, int]:
    """Return the sign and the currency of the number at `start`, and where they begin."""
    before = text[max(previous, start - 16) : start]
    if word := _NEGATIVE.search(before):
        joins = previous and not before[: word.start()].strip() and len(before) < 16  # "10 minus 3"
        return ("", "", start) if joins else ("-", "", start - len(before) + word.start())
    found = _PREFIX.search(before)
    assert found is not None  # the pattern matches any text
    outer, name, space, inner = found.groups()
    currency = _CURRENCIES.get(name.lower(), "")
    if not currency:
        at = start - 1
        sign = inner or ("" if space else outer)  # "- 3" is an item of a list
    else:
        at, sign = start - len(found[0]), outer or inner
    if sign and _joins(text, at if not currency or outer else start - 1):
        return "", currency, start if not currency else at + 1
    return sign, currency, at if sign or currency else start


def _joins(text: str, at: int) -> bool:
    """Return whether the sign at `at` joins two things (`10-5`, `GPT-4`), and so belongs to neither."""
    return bool(at) and (in_spaced_script(text[at - 1]) or text[at - 1] in ")]}%+-")


def in_spaced_script(c: str) -> bool:
    """Return whether a character is a digit or a letter of a script that puts spaces between words."""
    return c.isalnum() and not is_unspaced(c)


def is_unspaced(c: str) -> bool:
    """Return whether a character is of a script without spaces between words: Chinese, Japanese, Thai, Lao, Burmese, Khmer."""
    return any(low <= c <= high for low, high in _UNSPACED)


_UNSPACED = (
    ("\u0e00", "\u0eff"),  # Thai, Lao
    ("\u1000", "\u109f"),  # Burmese
    ("\u1780", "\u17ff"),  # Khmer
    ("\u3005", "\u3007"),
    ("\u3040", "\u30ff"),  # kana
    ("\u3400", "\u4dbf"),
    ("\u4e00", "\u9fff"),
    ("\uf900", "\ufaff"),
    ("\U00020000", "\U0003ffff"),
)
