"""Text to token ids and back: a lossless byte-level BPE of our own, and imported BPE vocabularies.

One class. It holds two encoders of the same vocabulary: the complete one, which is what gets saved, and one for text
from which every control token has been taken out, so that nothing a user writes can become a control token. Decoding is
a table from id to bytes, shared by `decode`, `StreamDecoder` and `byte_lengths`.

Left out: WordPiece, Unigram and BPE without all 256 bytes (they lose text); `special_tokens_map.json`; adding BOS or
EOS (structure is the caller's). Added tokens of an imported vocabulary are all treated as control tokens, also those
not flagged special, so one that keeps runs of spaces as added tokens (GPT-NeoX) encodes them in smaller pieces.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from tinyllm.errors import UserError
from tinyllm.text import importing, vocabulary
from tinyllm.text.chat import CHAT_TEMPLATE
from tinyllm.text.words import Words

ENDOFTEXT = "<|endoftext|>"  # ends a document; trained on
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
PAD = "<|pad|>"  # never equal to an end token: whoever finds padding by id would lose the end of every text
CONTROL_TOKENS = (ENDOFTEXT, IM_START, IM_END, PAD)  # ids 0, 1, 2, 3 of a trained vocabulary

MIN_FREQUENCY = 2  # a pair seen once is not worth a row of the embedding
OTHER_END_TOKENS = ("</s>", "<|end_of_text|>", "<eos>")  # for a tokenizer.json that came without its config


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """A vocabulary with its encoder and decoder. Made by `train`, `load` or `with_chat_tokens`; never changes later."""

    endoftext: int
    im_start: int | None
    im_end: int | None
    pad: int | None
    """None where an imported vocabulary has no padding token of its own: one shared with an end token is not."""
    bos: int | None
    vocab_size: int
    """Rows an embedding needs: the highest id + 1, added tokens included."""
    special_ids: frozenset[int]
    """Every added token: the ids that `encode` never returns."""
    leading_space: bool
    """Sentencepiece style: encoding puts one space in front of a text and decoding takes one away."""
    sha256: str
    """Of the canonical tokenizer.json, the same after any number of saves and loads."""
    _whole: tokenizers.Tokenizer
    _text: tokenizers.Tokenizer
    _bytes_of: Mapping[int, bytes]
    _hidden: frozenset[int]  # flagged special: `decode` leaves them out

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a byte-level BPE vocabulary; the same texts in the same order give the same vocabulary.

        Args:
            texts: documents; consumed once. Control tokens written out in them are learned as ordinary text.
            vocab_size: upper bound, control tokens and 256 bytes included; less where the texts repeat too few pairs.

        Raises:
            UserError: vocab_size below 260, or a text with a lone surrogate.
        """
        least = 256 + len(CONTROL_TOKENS)
        if vocab_size < least:
            raise UserError(
                f"vocabulary of {vocab_size}: 256 bytes and {len(CONTROL_TOKENS)} control tokens already make {least}",
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
            raise _lone_surrogate(error) from error
        return _build(whole, {}, "the trained vocabulary")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a vocabulary: tokenizer.json, the folder it is in, or any other kind that `importing` knows.

        A tokenizer_config.json beside it names end, start and padding.

        Raises:
            UserError: nothing there, or not a BPE vocabulary over all bytes (USAGE); damaged (INTEGRITY).
        """
        found = importing.read(Path(path))
        beside = found.file.with_name("tokenizer_config.json")
        config = found.config | (vocabulary.read_json(beside) if beside.is_file() else {})
        # Both would change ids silently: a text cut short, or filled up.
        spec = found.spec | {"truncation": None, "padding": None}
        try:
            whole = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the library raises nothing narrower
            raise vocabulary.broken(f"not a tokenizer: {error}", str(found.file)) from error
        vocabulary.check_ids(spec, whole, str(found.file))
        tokenizer = _build(whole, vocabulary.named_tokens(config, whole, str(beside)), str(found.file))
        vocabulary.probe(tokenizer._text, spec, str(found.file))
        return tokenizer

    def with_chat_tokens(self) -> Tokenizer:
        """The same vocabulary with `<|im_start|>`, `<|im_end|>` and a padding token; missing ones get the next ids.

        The model needs `vocab_size` rows afterwards. The imported end token stays the end of a document.
        """
        missing = [t for t, i in ((IM_START, self.im_start), (IM_END, self.im_end), (PAD, self.pad)) if i is None]
        if not missing:
            return self
        whole = tokenizers.Tokenizer.from_str(self._whole.to_str())
        whole.add_special_tokens([vocabulary.control(token) for token in missing])
        return _build(whole, self._names(), "the extended vocabulary")

    def for_new_model(self) -> Tokenizer:
        """The same vocabulary for a model that is trained from the start here: with chat tokens, and without BOS.

        What opens a document here is the end of the one before. A BOS that training never shows must not open texts elsewhere, and a
        post-processor would put one there.
        """
        chat = self.with_chat_tokens()
        if chat.bos is None and chat._whole.post_processor is None:
            return chat
        spec = json.loads(chat._whole.to_str()) | {"post_processor": None}
        names = {key: name for key, name in chat._names().items() if key != "bos_token"}
        return _build(tokenizers.Tokenizer.from_str(json.dumps(spec)), names, "the vocabulary for a new model")

    def save(self, directory: str | Path, *, model_max_length: int) -> None:
        """Write what `AutoTokenizer` reads: tokenizer.json, its config and, with chat tokens, chat_template.jinja."""
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
            # In both places: older readers know only the config, newer ones prefer the file.
            config["chat_template"] = CHAT_TEMPLATE
            _write(directory / "chat_template.jinja", CHAT_TEMPLATE)
        _write(directory / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2) + "\n")
        _write(directory / "tokenizer.json", self._whole.to_str(pretty=True) + "\n")

    @property
    def has_chat_tokens(self) -> bool:
        return self.im_start is not None and self.im_end is not None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a generation: `<|im_end|>` where there is one, and the end of a document."""
        return (self.endoftext,) if self.im_end in (None, self.endoftext) else (self.im_end, self.endoftext)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as text: no BOS or EOS, and never a control token. UserError for a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all threads the tokenizers library may use."""
        try:
            return [found.ids for found in self._text.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError:
            for text in texts:  # the library does not say which text it was, nor that a surrogate is the reason
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise _lone_surrogate(error) from error
            raise
        except BaseException as error:
            raise vocabulary.given_up(error, "the tokenizer") from None

    def words(self, dtype: np.dtype) -> Words | None:
        """An encoder of much text, to the same ids; None where the vocabulary cuts text in a way that it does not know."""
        return Words.of(self._text, dtype)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, ids the vocabulary does not have become nothing.

        Tokens flagged special are left out, or written by name with `skip_special=False`.
        """
        hidden = self._hidden if skip_special else frozenset()
        text = b"".join([self._bytes_of.get(i, b"") for i in ids if i not in hidden]).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.leading_space else text

    def text_bytes(self, token_id: int) -> bytes:
        """The bytes one token adds to a decoded text: possibly part of a character, empty for control tokens."""
        return b"" if token_id in self._hidden else self._bytes_of.get(token_id, b"")

    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes of text each token stands for, int64 (vocab_size,); 0 for every added token and for unused ids.

        Summed over `encode(text)` this is `len(text.encode())`. With `leading_space` the space put in front of every
        non-empty text counts as well: the sum is one more.
        """
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token_id, piece in self._bytes_of.items():
            lengths[token_id] = 0 if token_id in self.special_ids else len(piece)
        return lengths

    def _names(self) -> dict[str, str]:
        """The special-token entries of tokenizer_config.json."""
        unknown = self._whole.model.unk_token
        named = {"bos_token": self.bos, "eos_token": self.endoftext, "pad_token": self.pad}
        names = {key: self._whole.id_to_token(i) for key, i in named.items() if i is not None}
        return names if unknown is None else names | {"unk_token": unknown}


class StreamDecoder:
    """Decode one id at a time. All that `push` and `flush` return, joined, is `printable(tokenizer.decode(ids))`."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_next = tokenizer.leading_space

    def push(self, token_id: int) -> str:
        """Text that is complete with this token: whole characters only, nothing a terminal would act on."""
        return self._clean(self._utf8.decode(self._tokenizer.text_bytes(token_id)))

    def flush(self) -> str:
        """What an unfinished last character comes to (U+FFFD or nothing); the decoder is then as new."""
        text = self._clean(self._utf8.decode(b"", final=True))
        self._strip_next = self._tokenizer.leading_space
        return text

    def _clean(self, text: str) -> str:
        if self._strip_next and text:
            self._strip_next = False
            text = text.removeprefix(" ")
        return printable(text)


_UNPRINTABLE = dict.fromkeys(
    [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)


def printable(text: str) -> str:
    """`text` without what a terminal would act on: C0 controls but \\n and \\t, DEL, C1, bidirectional overrides."""
    return text.translate(_UNPRINTABLE)


def _build(whole: tokenizers.Tokenizer, named: Mapping[str, str], where: str) -> Tokenizer:
    """Everything derived from a vocabulary and from the names its config gives to some tokens."""
    # A control token without the flag would show up in decoded text.
    present = [t for t in dict.fromkeys((*CONTROL_TOKENS, *named.values())) if whole.token_to_id(t) is not None]
    whole.add_special_tokens([vocabulary.control(token) for token in present])
    spec = json.loads(whole.to_str())
    bytes_of = vocabulary.bytes_of(spec, where)
    added = whole.get_added_tokens_decoder()
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
        special_ids=frozenset(added),
        leading_space=bool(strip or metaspace),
        sha256=hashlib.sha256(whole.to_str().encode()).hexdigest(),
        _whole=whole,
        _text=vocabulary.text_encoder(spec),
        _bytes_of=bytes_of,
        _hidden=frozenset(i for i, token in added.items() if token.special),
    )


def _end_of_text(added: Mapping[str, int], named: Mapping[str, str], where: str) -> int:
    for token in (ENDOFTEXT, named.get("eos_token", ENDOFTEXT), *OTHER_END_TOKENS):
        if token in added:
            return added[token]
    raise UserError("the vocabulary names no end of a text", where=where, fix="add eos_token to tokenizer_config.json")


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", newline="\n")


def _lone_surrogate(error: UnicodeEncodeError) -> UserError:
    bad = ord(error.object[error.start])
    return UserError(f"lone surrogate U+{bad:04X} at character {error.start}: not text", fix="remove that character")
