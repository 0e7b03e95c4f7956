"""The gold reward: the true quality of an answer, which is known in this world.

    gold = correct - 0.25 [not in the requested form] - 0.05 per padding word (0.5 at most) - 0.5 [did not stop], in [-1, 1]

`correct` is 1 for the right content in any form and 0 for wrong content; in between for sequences (half the fraction of items in the
right position) and for yes/no with a correction (half for each part). So 1.0 means right, complete, in the requested form, without
padding, and stopped; 0.0 is a wrong answer in the right form; an endless wrong answer has -1. A fact may be stated in any of its
paraphrases. Left out: grammar and style of texts that are neither a known statement nor a single word.
"""

from __future__ import annotations

import re
from functools import lru_cache

from tinyllm.data.world.draw import Record, check_choice
from tinyllm.data.world.facts import Fact, statement_index, statements
from tinyllm.data.world.lexicon import CATEGORY_OF, KIND_OF, PERSON, TABLE, VALUES, WORDS
from tinyllm.data.world.tasks import NUMBERS, SEQUENCES
from tinyllm.errors import UserError

TASKS = ("facts", "whose", "yesno", "hops", *SEQUENCES, *NUMBERS, "odd")

BAD_FORM = 0.25
PAD_WORD = 0.05
MAX_PADDING = 0.5
NOT_STOPPED = 0.5

_WORD = re.compile(r"[A-Za-z0-9]+")
_SENTENCE = re.compile(r"[A-Z][^.!?\n]*\.")


def gold(record: Record, completion: str, finished: bool) -> float:
    """Return the gold reward of an answer to a record of `prompts` or `pairs`.

    Args:
        record: needs `task` and `answer`.
        completion: the assistant's text, without control tokens. White space around it is ignored.
        finished: whether the answer ended with an end token, and not at the length limit.

    Returns:
        A number in [-1, 1]; 1.0 only for the record's own answer and equally good ones.

    Raises:
        UserError: the record is not from this world.
    """
    missing = [name for name in ("answer", "task") if name not in record]
    if missing:
        raise UserError(
            f"the gold reward needs {' and '.join(missing)}",
            where=f"record with {', '.join(sorted(record))}",
            fix="use records made by tinyllm.data.world.prompts or pairs",
        )
    task, answer, reply = record["task"], record["answer"], completion.strip()
    check_choice(task, TASKS, "task")
    reward = 1.0 if reply in accepted(task, answer) else _grade(task, answer, reply)
    return max(-1.0, reward - (0.0 if finished else NOT_STOPPED))


@lru_cache(maxsize=4096)
def accepted(task: str, answer: str) -> frozenset[str]:
    """Return all answers as good as the canonical one: of a true sentence, all paraphrases of its fact."""
    return frozenset(
        {answer, *(verdict + text for verdict, one in [_parse(answer)] if one for text in _paraphrases(verdict, one))}
    )


def _parse(answer: str) -> tuple[str, Fact | None]:
    """Split "No, Ada lives in Fernby." into its verdict and the fact it states (None for a single word or number)."""
    verdict = next((start for start in ("Yes, ", "No, ") if answer.startswith(start)), "")
    return verdict, statement_index().get(answer.removeprefix(verdict))


def _paraphrases(verdict: str, one: Fact) -> tuple[str, ...]:
    """Return the paraphrases that can follow a verdict: after its comma only those that begin with a name."""
    return tuple(text for text in statements(one) if not verdict or _WORD.findall(text)[0] in KIND_OF)


def _grade(task: str, answer: str, reply: str) -> float:
    """Return the reward of a reply that is not among the accepted answers."""
    if task in SEQUENCES:
        correct = _sequence_correct(answer, reply)
    elif task in NUMBERS:
        correct = float(set(re.findall(r"[0-9]+", reply)) == {answer})
    elif task == "yesno":
        correct = _yesno_correct(answer, reply)
    else:
        correct = _word_correct(task, answer, reply)
    good_form = correct < 1.0 and _has_form(task, answer, reply)
    longest = max(len(text.split()) for text in accepted(task, answer))
    padding = min(MAX_PADDING, PAD_WORD * max(0, len(reply.split()) - longest))
    return correct - (0.0 if good_form else BAD_FORM) - padding


def _has_form(task: str, answer: str, reply: str) -> bool:
    """Return whether the reply has the requested form: one sentence, one word or number, or items between single spaces."""
    if answer.endswith("."):
        return _SENTENCE.fullmatch(reply) is not None
    if task in SEQUENCES:
        return re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)*", reply) is not None
    return re.fullmatch(r"[0-9]+" if task in NUMBERS else r"[A-Za-z]+", reply) is not None


def _items(answer: str, reply: str) -> list[str]:
    """Return the items of a reply with any separators: its digits, or its longest run of single letters or known words."""
    if answer.replace(" ", "").isdigit():
        return re.findall(r"[0-9]", reply)
    letters = all(len(item) == 1 for item in answer.split())
    runs: list[list[str]] = [[]]
    for word in _WORD.findall(reply):
        if (len(word) == 1 and word.islower()) if letters else word in CATEGORY_OF:
            runs[-1].append(word)
        else:
            runs.append([])
    return max(runs, key=len)


def _sequence_correct(answer: str, reply: str) -> float:
    right, given = answer.split(), _items(answer, reply)
    if right == given:
        return 1.0
    hits = sum(a == b for a, b in zip(right, given, strict=False))
    return 0.5 * hits / max(len(right), len(given))


def _yesno_correct(answer: str, reply: str) -> float:
    """Return the credit for the verdict ("yes and no" is none) and, where the answer states it, for the true value."""
    verdicts = {word.lower() for word in _WORD.findall(reply)} & {"yes", "no"}
    verdict = float(verdicts == {_WORD.findall(answer)[0].lower()})
    _, one = _parse(answer)
    if one is None:
        return verdict
    return 0.5 * verdict + 0.5 * float(_names_only(reply, one.value, _kind(one.value), frozenset({one.subject})))


def _word_correct(task: str, answer: str, reply: str) -> float:
    """Return 1.0 if the right word occurs and no other one of its kind (naming every colour is not an answer), else 0.0."""
    if task == "odd":
        return float(_names_only(reply, answer, WORDS, frozenset()))
    _, one = _parse(answer)
    if one is None:
        friend = {TABLE["friend", answer]} if task == "facts" and answer in PERSON else set()  # the person in question
        return float(_names_only(reply, answer, _kind(answer), frozenset(friend)))
    key = one.subject if task == "whose" else one.value
    return float(_names_only(reply, key, _kind(key), frozenset({one.subject})))


def _kind(value: str) -> tuple[str, ...]:
    """Return all values of the same attribute; an answer that is in no table is the only one of its kind."""
    return VALUES[KIND_OF[value]] if value in KIND_OF else (value,)


def _names_only(reply: str, key: str, kind: tuple[str, ...], besides: frozenset[str]) -> bool:
    """Return whether `key` is named and nothing else of its kind except `besides`, ignoring case."""
    spelled = {word.lower(): word for word in kind}
    named = {spelled[word] for word in _WORD.findall(reply.lower()) if word in spelled}
    return key in named and named <= {key} | besides
