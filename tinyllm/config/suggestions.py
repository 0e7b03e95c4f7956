"""Suggestions for misspelled names: the known name that is nearest to a given one.

Distances are computed on spelling alone; `synonyms` has the names that other tools use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from difflib import SequenceMatcher

_MAX_LENGTH = 100  # of a word that suggestions are made for


def suggest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that `word` most probably stands for, or None if no name is near.

    Names may be dotted. In order of preference: one edit away (a letter missing, inserted or swapped with the next before a letter
    changed); the same last part in another section; a few edits away; an abbreviation by initials (`lr`), a high ratio of common
    letters, or a subset of the words.
    """
    return next(iter(nearest(word, known)), None)


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """Return all known names that are equally near by one edit, in their order; otherwise the result of `suggest` alone."""
    if len(word) > _MAX_LENGTH:
        return []
    word, known = _normalize(word), list(known)
    ranks = [(edit_distance(word, name, 1), _has_substitution(word, name)) for name in map(_normalize, known)]
    if ranks and min(ranks)[0] <= 1:
        return [name for name, rank in zip(known, ranks, strict=True) if rank == min(ranks)]
    ranked = [(rank, order, name) for order, name in enumerate(known) if (rank := _rank(word, _normalize(name)))]
    return [min(ranked)[2]] if ranked else []


def is_typo(word: str, name: str) -> bool:
    """Return whether `word` is at most one edit away from `name`."""
    return edit_distance(_normalize(word), _normalize(name), 1) <= 1


def _normalize(name: str) -> str:
    return name.lower().replace("-", "_")


def _has_substitution(word: str, name: str) -> bool:
    """Return whether a letter was replaced, a rarer typing mistake than one omitted, doubled or swapped."""
    return len(word) == len(name) and Counter(word) != Counter(name)


def _rank(word: str, name: str) -> tuple[int, int, float] | None:
    """Rank a name that is more than one edit away: smaller is nearer, None is too far."""
    section, _, leaf = word.rpartition(".")
    other_section, _, other = name.rpartition(".")
    same_section = section == other_section
    max_distance = max(1, len(leaf) // 3)
    distance = edit_distance(leaf, other, max_distance)
    similarity = SequenceMatcher(None, leaf, other, autojunk=False).ratio() if _may_be_similar(leaf, other) else 0.0
    is_abbreviation = len(leaf) > 1 and leaf == "".join(part[:1] for part in other.split("_"))
    parts, other_parts = set(leaf.split("_")), set(other.split("_"))
    tiers = (
        distance == 0,
        same_section and distance <= max_distance,
        distance <= 1 and len(leaf) >= 4,
        same_section and (is_abbreviation or similarity >= 0.6),
        is_abbreviation or similarity >= 0.75,
        parts <= other_parts or parts >= other_parts,
    )
    return (tiers.index(True), distance, -similarity) if True in tiers else None


def _may_be_similar(a: str, b: str) -> bool:
    """Return whether more than half of the letters are common to both, in any order: an upper bound of the similarity."""
    return 2 * sum((Counter(a) & Counter(b)).values()) > 0.5 * (len(a) + len(b))


def edit_distance(a: str, b: str, limit: int) -> int:
    """Return the optimal string alignment distance, or any larger number if it exceeds `limit`.

    Counts insertions, deletions, substitutions and swaps of neighbors; no letter is edited twice.
    """
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before, row = [0] * (len(b) + 1), list(range(len(b) + 1))
    for i, x in enumerate(a):
        last, before, row = before, row, [i + 1]
        for j, y in enumerate(b):
            cost = min(before[j + 1] + 1, row[j] + 1, before[j] + (x != y))
            if i and j and x == b[j - 1] and y == a[i - 1]:
                cost = min(cost, last[j - 1] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return row[-1]
