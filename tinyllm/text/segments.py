"""Ids of a text that a chat template rendered: control tokens are read in what the template wrote, and never in what users wrote.

Where no user spelled a control token, the ids are those of transformers' tokenizer for the whole text (without BOS and EOS added).
Otherwise every control token of the template is replaced by a name that nobody can guess, and the text is read with these names only.
A control token of which a user wrote any part is text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from tinyllm.io import strict_json
from tinyllm.text import vocabulary

Segments = Sequence[tuple[str, bool]]
"""The parts of a rendered text in order, each with True where a user wrote it"""
Encoded = tuple[list[int], list[tuple[int, int]]]
"""Ids, and the characters that each stands for: start and end (exclusive) in the joined text"""


class SegmentEncoder:
    """Encodes rendered texts with one vocabulary.

    Args:
        spec: content of a tokenizer.json.
        protected: id and name of the control tokens that users cannot write.
    """

    def __init__(self, spec: dict[str, Any], protected: Mapping[int, str]):
        model = spec["model"] | {"dropout": None}
        # A post-processor would only cut spaces off the offsets.
        self._spec = spec | {"post_processor": None, "truncation": None, "padding": None, "model": model}
        self._protected = protected

    @cached_property
    def _whole(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(strict_json.dumps(vocabulary.without_unknown(self._spec)))

    @cached_property
    def _renamed(self) -> tuple[tokenizers.Tokenizer, dict[int, str]]:
        spec, names = vocabulary.renamed(self._spec, set(self._protected.values()))
        return tokenizers.Tokenizer.from_str(strict_json.dumps(spec)), {i: names[n] for i, n in self._protected.items()}

    def encode_batch(self, texts: Sequence[Segments]) -> list[Encoded]:
        """Return ids and offsets of each text. The library's errors pass through."""
        joined = ["".join(part for part, _ in segments) for segments in texts]
        found = []
        for text, segments, encoding in zip(
            joined, texts, self._whole.encode_batch(joined, add_special_tokens=False), strict=True
        ):
            users = _user_spans(segments)
            if any(_overlaps(span, users) for span, _ in self._control_tokens(text, encoding)):
                found.append(self._encode_hostile(segments))
            else:
                found.append((encoding.ids, encoding.offsets))
        return found

    def _control_tokens(self, text: str, encoding: tokenizers.Encoding) -> list[tuple[tuple[int, int], int]]:
        """Return the place of each control token's name in `text`, without the spaces that its flags take in, and its id."""
        found = []
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id in self._protected:
                name = self._protected[token_id]
                at = text.find(name, start, end)  # -1: the normalizer changed the name
                found.append(((at, at + len(name)) if at >= 0 else (start, end), token_id))
        return found

    def _encode_hostile(self, segments: Segments) -> Encoded:
        """Encode a text of which users wrote a control token's name."""
        encoder, names = self._renamed
        pieces, edits, at = (
            [],
            [],
            0,
        )  # edits: (place in the new text, its length there, place in the old text, its length there)
        size = 0
        for text, by_user in _joined(segments):
            controls = [] if by_user else self._control_tokens(text, self._whole.encode(text, add_special_tokens=False))
            done = 0
            for (start, end), token_id in controls:
                pieces += [text[done:start], names[token_id]]
                size += start - done
                edits.append((size, len(names[token_id]), at + start, end - start))
                size += len(names[token_id])
                done = end
            pieces.append(text[done:])
            size += len(text) - done
            at += len(text)
        encoding = encoder.encode("".join(pieces), add_special_tokens=False)
        return encoding.ids, _moved_back(encoding.offsets, edits)


def _moved_back(offsets: list[tuple[int, int]], edits: list[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
    """Return offsets in the text with renamed control tokens as offsets in the original; both are ordered."""

    def original(place: int) -> int:
        shift = 0
        for new, new_length, old, old_length in edits:
            if place <= new:
                break
            if place < new + new_length:
                return old
            shift = old + old_length - (new + new_length)
        return place + shift

    return [(original(start), original(end)) for start, end in offsets]


def _joined(segments: Segments) -> list[tuple[str, bool]]:
    """Return the segments with neighbors of one writer joined, since the template may write a control token in parts."""
    found: list[tuple[str, bool]] = []
    for text, by_user in segments:
        if found and found[-1][1] == by_user:
            text = found.pop()[0] + text
        found.append((text, by_user))
    return found


def _user_spans(segments: Segments) -> list[tuple[int, int]]:
    spans, at = [], 0
    for text, by_user in segments:
        if by_user and text:
            spans.append((at, at + len(text)))
        at += len(text)
    return spans


def _overlaps(span: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    return any(start < span[1] and span[0] < end for start, end in spans)
