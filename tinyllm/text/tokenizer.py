"""Text to token ids and back: a lossless byte-level BPE, trained here or imported.

A `Tokenizer` holds two encoders of one vocabulary: the complete one, which is saved, and one without control tokens, which encodes all
text, so that nothing a user writes can become a control token. Decoding is a table from id to bytes, shared by `decode`,
`byte_lengths` and `text.streaming`.

Left out: WordPiece, Unigram and BPE without all 256 bytes (they lose text); `special_tokens_map.json`; adding BOS or EOS (the caller's
task). All added tokens of an imported vocabulary are treated as control tokens, also those not flagged special, so a vocabulary that
keeps runs of spaces as added tokens (GPT-NeoX) encodes them in smaller pieces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from tinyllm.errors import UserError
from tinyllm.io import strict_json
from tinyllm.text import importing, unspellable, vocabulary
from tinyllm.text.segments import Encoded, SegmentEncoder, Segments
from tinyllm.text.template import CHAT_TEMPLATE
from tinyllm.text.words import Words

ENDOFTEXT = "<|endoftext|>"  # ends a document; trained on
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
PAD = "<|pad|>"  # never an end token: programs that recognize padding by its id would lose the end of every text
CONTROL_TOKENS = (ENDOFTEXT, IM_START, IM_END, PAD)  # ids 0, 1, 2, 3 of a trained vocabulary

MIN_FREQUENCY = 2  # a pair seen once is not worth a row of the embedding
OTHER_END_TOKENS = ("</s>", "<|end_of_text|>", "<eos>")  # for a tokenizer.json without a tokenizer_config.json


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """A vocabulary with its encoder and decoder. Made by `train`, `load`, `with_chat_tokens` or `for_new_model`; immutable."""

    endoftext: int
    """id of the token that ends a document"""
    im_start: int | None
    im_end: int | None
    pad: int | None
    """id of the padding token; None where the vocabulary has none, or shares it with an end token. See `padding_id`"""
    bos: int | None
    """id of the token that opens a text; None where the vocabulary has none. See `document_start`"""
    vocab_size: int
    """rows an embedding needs: the highest id plus one, added tokens included"""
    special_ids: frozenset[int]
    """ids of the control tokens: `encode` never returns them, and `decode` leaves them out"""
    leading_space: bool
    """sentencepiece style: encoding puts one space in front of a text, and decoding removes one"""
    sha256: str
    """hash of the canonical tokenizer.json, the same after any number of saves and loads"""
    _whole: tokenizers.Tokenizer
    _text: tokenizers.Tokenizer
    _bytes_of: Mapping[int, bytes]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a byte-level BPE vocabulary. The same texts in the same order give the same vocabulary.

        Args:
            texts: documents, consumed once. Control tokens spelled out in them are learned as ordinary text.
            vocab_size: upper bound, control tokens and 256 bytes included; fewer where the texts repeat too few pairs.

        Raises:
            UserError: vocab_size below 260, or a text with a lone surrogate.
        """
        least = 256 + len(CONTROL_TOKENS)
        if vocab_size < least:
            raise UserError(
                f"vocab_size {vocab_size} is too small: 256 bytes and {len(CONTROL_TOKENS)} control tokens need {least}",
                where="vocab_size",
                fix=f"set vocab_size to {least} or more",
            )
        whole = tokenizers.Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(vocabulary.SPLIT), behavior="isolated", invert=False)
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
        whole.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
        whole.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=MIN_FREQUENCY,
            special_tokens=[vocabulary.control(token) for token in CONTROL_TOKENS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        try:
            whole.train_from_iterator(texts, trainer)
        except UnicodeEncodeError as error:
            raise unspellable.lone_surrogate(error) from error
        return _build(whole, {}, "the trained vocabulary")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load a vocabulary: tokenizer.json, its folder, or any other kind that `importing` reads.

        A tokenizer_config.json beside it names the end, start and padding tokens.

        Raises:
            UserError: no vocabulary, or not a BPE vocabulary over all bytes (USAGE); a damaged one (INTEGRITY); an unreadable file
                (RESOURCES).
        """
        found = importing.read(Path(path))
        beside = found.file.with_name("tokenizer_config.json")
        config = found.config | (vocabulary.read_json(beside) if beside.is_file() else {})
        # Both would change ids silently: texts would be cut short or padded.
        spec = found.spec | {"truncation": None, "padding": None}
        try:
            whole = tokenizers.Tokenizer.from_str(strict_json.dumps(spec))
        except Exception as error:  # the library raises nothing narrower
            raise vocabulary.broken(f"not a valid tokenizer: {error}", str(found.file)) from error
        vocabulary.check_ids(spec, whole, str(found.file))
        tokenizer = _build(whole, vocabulary.named_tokens(config, whole, str(beside)), str(found.file))
        vocabulary.probe(tokenizer._text, spec, str(found.file))
        return tokenizer

    def with_chat_tokens(self) -> Tokenizer:
        """Return the same vocabulary with `<|im_start|>`, `<|im_end|>` and a padding token; missing ones get the next ids.

        The model's embedding then needs `vocab_size` rows. The imported end token still ends a document.
        """
        missing = [t for t, i in ((IM_START, self.im_start), (IM_END, self.im_end), (PAD, self.pad)) if i is None]
        if not missing:
            return self
        whole = tokenizers.Tokenizer.from_str(self._whole.to_str())
        whole.add_special_tokens([vocabulary.control(token) for token in missing])
        return _build(whole, self._names(), "the extended vocabulary")

    def for_new_model(self) -> Tokenizer:
        """Return the same vocabulary for a model that is pretrained here: with chat tokens, and without BOS.

        In training shards a document follows the end token of the one before it. A BOS token never seen in training must not open
        texts in other programs either, and a post-processor would put one there.
        """
        chat = self.with_chat_tokens()
        if chat.bos is None and chat._whole.post_processor is None:
            return chat
        spec = json.loads(chat._whole.to_str()) | {"post_processor": None}
        names = {key: name for key, name in chat._names().items() if key != "bos_token"}
        return _build(tokenizers.Tokenizer.from_str(strict_json.dumps(spec)), names, "the vocabulary for a new model")

    def save(self, directory: str | Path, *, model_max_length: int) -> None:
        """Write the files that `AutoTokenizer` reads: tokenizer.json, tokenizer_config.json and, with chat tokens, chat_template.jinja.

        Args:
            directory: created if missing.
            model_max_length: the model's context, in tokens.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        added = {str(i): vocabulary.flags(token) for i, token in sorted(self._whole.get_added_tokens_decoder().items())}
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self._names(),
            "model_max_length": model_max_length,
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": added,
        }
        if self.has_chat_tokens:
            # In both files: older readers know only the config, newer ones prefer chat_template.jinja.
            config["chat_template"] = CHAT_TEMPLATE
            _write(directory / "chat_template.jinja", CHAT_TEMPLATE)
        _write(directory / "tokenizer_config.json", strict_json.dumps(config, ensure_ascii=False, indent=2) + "\n")
        _write(directory / "tokenizer.json", self._whole.to_str(pretty=True) + "\n")

    @property
    def has_chat_tokens(self) -> bool:
        """True where conversations can be rendered."""
        return self.im_start is not None and self.im_end is not None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a generation: `<|im_end|>` where there is one, then the end of a document."""
        return (self.endoftext,) if self.im_end in (None, self.endoftext) else (self.im_end, self.endoftext)

    @property
    def document_start(self) -> int:
        """The id that precedes the first token of a document that stands alone, so that this token can be predicted: BOS, or else the
        end-of-text token, which precedes every document in training shards."""
        return self.endoftext if self.bos is None else self.bos

    @property
    def padding_id(self) -> int:
        """The id that fills rows up to a common length: the padding token, or else the end-of-text token. Masks hide it either way."""
        return self.endoftext if self.pad is None else self.pad

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`: no BOS or EOS, and never a control token.

        Raises:
            UserError: a lone surrogate, or a character that the vocabulary cannot spell (see `unspellable`); text on which the
                vocabulary's regular expression fails (INTEGRITY).
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return `encode` of each text, on all threads that the tokenizers library may use."""
        try:
            return [found.ids for found in self._text.encode_batch_fast(texts, add_special_tokens=False)]
        except BaseException as error:
            raise unspellable.reason(error, self._text, texts) from error

    def encode_template(self, segments: Segments) -> Encoded:
        """Return ids and character offsets of a text that a chat template rendered; see `encode_templates`."""
        return self.encode_templates([segments])[0]

    def encode_templates(self, texts: Sequence[Segments]) -> list[Encoded]:
        """Return ids and character offsets of texts that a chat template rendered: control tokens are read where the template wrote
        them, and never where a user did.

        Args:
            texts: each the parts of a rendered text in order, as (part, whether a user wrote it).

        Returns:
            for each text its ids, and as many pairs (start, end) of the characters in the joined text that each id stands for.
            Ids are those of transformers for the joined text with `add_special_tokens=False`, unless a user spelled a control token.
            Several ids of one character have the same pair; a control token that takes in spaces beside it includes them.

        Raises:
            UserError: see `encode`.
        """
        try:
            return self._segments.encode_batch(texts)
        except BaseException as error:
            joined = ["".join(part for part, _ in segments) for segments in texts]
            raise unspellable.reason(error, self._text, joined) from error

    def unspellable(self, texts: Sequence[str]) -> list[str | None]:
        """Return for each text why `encode` refuses it, naming a character and its place, or None where it does not.

        For data that is checked record by record: the check is as fast as encoding. Almost all vocabularies spell all of Unicode.
        """
        return unspellable.faults(self._text, texts)

    @cached_property
    def _segments(self) -> SegmentEncoder:
        names = {i: self._whole.id_to_token(i) for i in self.special_ids}
        return SegmentEncoder(json.loads(self._whole.to_str()), {i: n for i, n in names.items() if n is not None})

    def words(self, dtype: np.dtype) -> Words | None:
        """Return a faster encoder to the same ids, as `dtype`, for large amounts of text; None where the vocabulary splits text
        differently from those trained here."""
        return Words.of(self._text, dtype)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of `ids`. Bytes that are not UTF-8 become U+FFFD, and ids outside the vocabulary are dropped.

        Args:
            skip_special: leave out tokens flagged special; otherwise they are written by name.
        """
        hidden = self.special_ids if skip_special else frozenset()
        text = b"".join([self._bytes_of.get(i, b"") for i in ids if i not in hidden]).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.leading_space else text

    def text_bytes(self, token_id: int) -> bytes:
        """Return the bytes one token adds to a decoded text: possibly part of a character, empty for tokens flagged special."""
        return b"" if token_id in self.special_ids else self._bytes_of.get(token_id, b"")

    def byte_lengths(self) -> np.ndarray:
        """Return the UTF-8 bytes that each token stands for, int64 (vocab_size,); 0 for control tokens and unused ids.

        With `leading_space` the space in front of a text counts, too, so use `text_sizes` for the bytes of texts.
        """
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token_id, piece in self._bytes_of.items():
            lengths[token_id] = 0 if token_id in self.special_ids else len(piece)
        return lengths

    def text_sizes(self, documents: Iterable[Sequence[int] | np.ndarray]) -> list[int]:
        """Return the UTF-8 bytes of the text that each document's ids stand for: `len(text.encode())` for `encode(text)`.

        Control tokens count nothing, nor does the space that encoding puts in front of a text with `leading_space`.
        """
        lengths, found = self.byte_lengths(), []
        for document in documents:
            ids = np.asarray(document, dtype=np.int64)
            first = ids[np.flatnonzero(lengths[ids])[:1]].tolist() if self.leading_space else []
            in_front = sum(self._bytes_of[i].startswith(b" ") for i in first)
            found.append(int(lengths[ids].sum()) - in_front)
        return found

    def _names(self) -> dict[str, str]:
        """Return the special-token entries of tokenizer_config.json."""
        ids = {"bos_token": self.bos, "eos_token": self.endoftext, "pad_token": self.pad}
        names = {key: self._whole.id_to_token(i) for key, i in ids.items() if i is not None}
        names["unk_token"] = self._whole.model.unk_token
        return {key: name for key, name in names.items() if name is not None}


def _build(whole: tokenizers.Tokenizer, named: Mapping[str, str], where: str) -> Tokenizer:
    """Make a tokenizer of a vocabulary and of the names that tokenizer_config.json gives to some of its tokens."""
    # Control tokens without the flag `special` would appear in decoded text.
    present = [t for t in dict.fromkeys((*CONTROL_TOKENS, *named.values())) if whole.token_to_id(t) is not None]
    vocabulary.flag_special(whole, present, set(named.values()))
    spec = json.loads(whole.to_str())
    added = whole.get_added_tokens_decoder()
    protected = {i: token.content for i, token in added.items() if token.special or token.content in CONTROL_TOKENS}
    bytes_of = vocabulary.bytes_of(spec, set(protected.values()), where)
    endoftext = _end_of_text({token.content: i for i, token in added.items()}, named, where)
    im_start, im_end = whole.token_to_id(IM_START), whole.token_to_id(IM_END)
    bos = whole.token_to_id(named["bos_token"]) if "bos_token" in named else None
    pad = whole.token_to_id(PAD if PAD in present else named.get("pad_token", PAD))
    strip = vocabulary.parts(spec["decoder"], "Strip")
    metaspace = [part for part in vocabulary.parts(spec["decoder"], "Metaspace") if part["prepend_scheme"] != "never"]
    return Tokenizer(
        endoftext=endoftext,
        im_start=im_start,
        im_end=im_end,
        pad=None if pad in (endoftext, im_start, im_end, bos) else pad,
        bos=bos,
        vocab_size=max(bytes_of) + 1,
        special_ids=frozenset(protected),
        leading_space=bool(strip or metaspace),
        sha256=hashlib.sha256(whole.to_str().encode()).hexdigest(),
        _whole=whole,
        _text=vocabulary.text_encoder(spec, set(protected.values())),
        _bytes_of=bytes_of,
    )


def _end_of_text(added: Mapping[str, int], named: Mapping[str, str], where: str) -> int:
    for token in (ENDOFTEXT, named.get("eos_token", ENDOFTEXT), *OTHER_END_TOKENS):
        if token in added:
            return added[token]
    raise UserError(
        "the vocabulary has no known end-of-text token", where=where, fix="add eos_token to tokenizer_config.json"
    )


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", newline="\n")

