"""Text to token ids and back: a lossless byte-level BPE, trained here or imported.

A `Tokenizer` holds two encoders of one vocabulary: the complete one, which is saved, and one without control tokens, which encodes all
text, so that nothing a user writes can become a control token. Added tokens that are not control tokens are text, as in transformers.
Decoding is a table from id to bytes, shared by `decode`, `byte_lengths` and `text.streaming`.

A tokenizer that came with a model from elsewhere keeps its special tokens, its chat template and all of its files (`tokenizer_files`).

Left out: WordPiece and Unigram; adding BOS or EOS (the caller's task).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers

from tinyllm.io import strict_json
from tinyllm.io.special_ids import SpecialIds
from tinyllm.text import importing, special_tokens, tokenizer_files, training, unspellable, vocabulary
from tinyllm.text.own_files import TOKENIZER_CLASS, are_own, is_own_template, own_files, own_ids
from tinyllm.text.segments import Encoded, SegmentEncoder, Segments
from tinyllm.text.special_tokens import CONTROL_TOKENS, IM_END, IM_START, PAD, Named
from tinyllm.text.template import CHAT_TEMPLATE
from tinyllm.text.tokenizer_files import TokenizerFiles
from tinyllm.text.words import Words


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """A vocabulary with its encoder and decoder. Made by `train`, `load`, `with_chat_tokens` or `for_new_model`; immutable."""

    eos: int
    """id of the end token that the checkpoint names: the end of a turn in many chat models"""
    endoftext: int
    """id of the token that ends a document"""
    im_start: int | None
    im_end: int | None
    pad: int | None
    """id of the padding token, which may be an end token; None where the vocabulary names none. See `padding_id`"""
    bos: int | None
    """id of the token that opens a text; None where the vocabulary has none. See `document_start`"""
    unk: int | None
    """id of the token for unknown text, which `encode` never returns; None where the vocabulary names none"""
    stop_ids: tuple[int, ...]
    """ids that end a generation: those of generation_config.json or config.json, then `eos`; `eos` and `endoftext` without such files.
    `<|im_end|>` comes first with our chat template"""
    document_start: int
    """id that precedes the first token of a document that stands alone, so that this token can be predicted: BOS where the model's
    texts begin with it, or else the end-of-text token, which precedes every document in training shards"""
    chat_template: str | None
    """the checkpoint's own template in Jinja, not rendered here; None where it has none"""
    new_ids: tuple[int, ...]
    """ids that `with_chat_tokens` added: rows of the embedding that the model has not learned; empty again once loaded"""
    vocab_size: int
    """rows an embedding needs: the highest id plus one, added tokens included"""
    special_ids: frozenset[int]
    """ids of the control tokens: `encode` never returns them, and `decode` leaves them out"""
    leading_space: bool
    """sentencepiece style: encoding puts one space in front of a text, and decoding removes one"""
    sha256: str
    """hash of the canonical tokenizer.json, the same after any number of saves and loads"""
    files: TokenizerFiles | None
    """the files that came with a model from elsewhere; None for a vocabulary of our own, whose files follow from it"""
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
        whole = training.train(texts, vocab_size)
        return _build(whole, Named({}), None, "the trained vocabulary")

    @classmethod
    def load(cls, path: str | Path, base: Path | None = None) -> Tokenizer:
        """Load a vocabulary: tokenizer.json, its folder, or any other kind that `importing` reads.

        A tokenizer_config.json beside it names the end, start and padding tokens.

        Args:
            base: see `tokenizer_files.read`.

        Raises:
            UserError: no vocabulary, or not a BPE vocabulary over all bytes (USAGE); a damaged one (INTEGRITY); an unreadable file
                (RESOURCES).
        """
        found = importing.read(Path(path))
        files = tokenizer_files.read(found.file.parent, found.spec, base)
        where = str(found.file.with_name(tokenizer_files.CONFIG))
        # Both would change ids silently: texts would be cut short or padded.
        spec = found.spec | {"truncation": None, "padding": None}
        try:
            whole = tokenizers.Tokenizer.from_str(strict_json.dumps(spec))
        except Exception as error:  # the library raises nothing narrower
            raise vocabulary.broken(f"not a valid tokenizer: {error}", str(found.file)) from error
        vocabulary.check_ids(spec, whole, str(found.file))
        if found.is_whole:
            special_tokens.add_tokens(files.config, whole, where)
        else:  # what was converted is read by the class that takes tokenizer.json as it is
            files = replace(files, config=files.config and {**files.config, "tokenizer_class": TOKENIZER_CLASS})
        named = special_tokens.named(files, found.config, whole, where)
        tokenizer = _build(whole, named, files, str(found.file))
        vocabulary.probe(tokenizer._text, spec, str(found.file))
        return tokenizer

    def with_chat_tokens(self) -> Tokenizer:
        """Return the same vocabulary with `<|im_start|>` and `<|im_end|>`, and a padding token in a vocabulary of our own.

        Missing tokens get the next ids (`new_ids`): rows that the embedding of a model from elsewhere often has to spare. The model then
        needs `vocab_size` rows. The end token still ends a document.
        """
        wanted = {IM_START: self.im_start, IM_END: self.im_end} | ({} if self.files else {PAD: self.pad})
        missing = [token for token, there in wanted.items() if there is None]
        if not missing:
            return self
        whole = tokenizers.Tokenizer.from_str(self._whole.to_str())
        whole.add_special_tokens([vocabulary.control(token) for token in missing])
        new_ids = tuple(i for token in missing if (i := whole.token_to_id(token)) is not None)
        if min(new_ids) < self.vocab_size:
            raise vocabulary.unsupported("a vocabulary with unused ids has no place for chat tokens", "tokenizer.json")
        files = self.files and self.files.with_tokens(whole, missing)
        extended = _build(whole, self._named(), files, "the extended vocabulary")
        return replace(extended, new_ids=(*self.new_ids, *new_ids))

    def with_chat_template(self, template: str, *, end_of_turn: int | None = None) -> Tokenizer:
        """Return the same vocabulary with another chat template, which `save` writes in place of those that it had.

        Args:
            end_of_turn: id that ends an answer in this template. It comes first in `stop_ids` and in generation_config.json.
        """
        if self.files is None and template == self.chat_template and end_of_turn in (None, *self.stop_ids):
            return self
        files = (self.files or self._own_files()).with_template(template)
        stop = self.stop_ids
        if end_of_turn is not None:
            stop = tuple(dict.fromkeys((end_of_turn, *stop)))
            files = replace(files, ids=files.ids.with_ends(stop))
        return replace(self, files=files, chat_template=template, stop_ids=stop)

    def for_new_model(self) -> Tokenizer:
        """Return the same vocabulary for a model that is pretrained here: with chat tokens, without BOS, and with our chat template.

        In training shards a document follows the end token of the one before it. A BOS token never seen in training must not open
        texts in other programs either, and a post-processor would put one there. Padding gets a token of its own.
        """
        if self.files is None and self.bos is None and self._whole.post_processor is None:
            return self.with_chat_tokens()
        named = self._named()
        shared = self.pad in (self.endoftext, self.im_start, self.im_end, self.bos)
        dropped = {"bos_token", *(["pad_token"] if shared else [])}
        roles = {key: token for key, token in named.roles.items() if key not in dropped}
        roles["eos_token"] = self._name(self.endoftext)
        spec = json.loads(self._whole.to_str()) | {"post_processor": None}
        whole = tokenizers.Tokenizer.from_str(strict_json.dumps(spec))
        return _build(whole, replace(named, roles=roles), None, "the vocabulary for a new model").with_chat_tokens()

    def save(self, directory: str | Path, *, model_max_length: int) -> None:
        """Write the files that `AutoTokenizer` reads: tokenizer.json, tokenizer_config.json and, if there is one, chat_template.jinja.

        The files of a model from elsewhere are written as they came.

        Args:
            directory: created if missing.
            model_max_length: the model's context in tokens, for a vocabulary of our own.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files, whole = self.files or self._own_files(), self._whole
        files.write(directory, model_max_length)
        if files.lengths:
            spec = json.loads(whole.to_str()) | dict(files.lengths)
            whole = tokenizers.Tokenizer.from_str(strict_json.dumps(spec))
        tokenizer_files.write(directory / "tokenizer.json", whole.to_str(pretty=True) + "\n")

    def to_json(self) -> str:
        """Return the vocabulary as in tokenizer.json, without its settings for truncation and padding."""
        return self._whole.to_str()

    @property
    def has_chat_tokens(self) -> bool:
        """True where conversations can be rendered as ChatML."""
        return self.im_start is not None and self.im_end is not None

    @property
    def spells_all(self) -> bool:
        """True where every byte has a token, so that `encode` refuses no valid text."""
        return self._text.model.unk_token is None

    @cached_property
    def missing_bytes(self) -> list[int]:
        """The bytes without a token. A text with one of them may still have a token for the whole character."""
        return [] if self.spells_all else vocabulary.missing_bytes(json.loads(self._text.to_str()))

    @property
    def special(self) -> SpecialIds | None:
        """The special ids that the files of a model from elsewhere have, to be written as they came; None for our own models."""
        return self.files.ids if self.files else None

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

        For data that is checked record by record: as fast as encoding, and not needed where `spells_all`.
        """
        return unspellable.faults(self._text, texts)

    @cached_property
    def _segments(self) -> SegmentEncoder:
        return SegmentEncoder(json.loads(self._whole.to_str()), {i: self._name(i) for i in self.special_ids})

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

    def _name(self, token_id: int) -> str:
        name = self._whole.id_to_token(token_id)
        assert name is not None
        return name

    def _named(self) -> Named:
        """Return the special tokens by name."""
        ids = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad, "unk_token": self.unk}
        roles = {key: self._name(i) for key, i in ids.items() if i is not None}
        return Named(roles, frozenset(map(self._name, self.special_ids)) - set(roles.values()))

    def _own_files(self) -> TokenizerFiles:
        """Return the files of a vocabulary that was made here."""
        files = own_files(self._whole, self._named().roles, has_chat_tokens=self.has_chat_tokens)
        return replace(files, ids=own_ids(self.bos, self.stop_ids, self.pad))


def _build(whole: tokenizers.Tokenizer, named: Named, files: TokenizerFiles | None, where: str) -> Tokenizer:
    """Make a tokenizer of a vocabulary, its special tokens and the files beside it (None: it is our own)."""
    # Control tokens without the flag `special` would appear in decoded text.
    present = [token for token in (*CONTROL_TOKENS, *named.roles.values()) if whole.token_to_id(token) is not None]
    vocabulary.flag_special(whole, dict.fromkeys(present), set(named.roles.values()))
    spec = json.loads(whole.to_str())
    added = whole.get_added_tokens_decoder()
    protected = {
        i: token.content
        for i, token in added.items()
        if token.special or token.content in CONTROL_TOKENS or token.content in named.others
    }
    bytes_of = vocabulary.bytes_of(spec, set(protected.values()), where)
    endoftext = special_tokens.end_of_document(named.roles, {token: i for i, token in protected.items()}, where)
    ids = {key: i for key, token in named.roles.items() if (i := whole.token_to_id(token)) is not None}
    bos, eos = ids.get("bos_token"), ids.get("eos_token", endoftext)
    im_start, im_end = whole.token_to_id(IM_START), whole.token_to_id(IM_END)
    has_chat_tokens = im_start is not None and im_end is not None
    if files is not None and are_own(files, whole, named.roles, has_chat_tokens=has_chat_tokens):
        files = None
    template = files.template if files else CHAT_TEMPLATE if has_chat_tokens else None
    in_chatml = template is not None and is_own_template(template)
    begins = special_tokens.starts_with(named.roles.get("bos_token"), files.config if files else {}, spec)
    return Tokenizer(
        eos=eos,
        endoftext=endoftext,
        im_start=im_start,
        im_end=im_end,
        pad=ids.get("pad_token", whole.token_to_id(PAD)),
        bos=bos,
        unk=ids.get("unk_token"),
        stop_ids=special_tokens.stop_ids(
            files.ids.ends if files else (), eos, endoftext, im_end if in_chatml else None
        ),
        document_start=bos if begins and bos is not None else endoftext,
        chat_template=template,
        new_ids=(),
        vocab_size=max(bytes_of) + 1,
        special_ids=frozenset(protected),
        leading_space=vocabulary.leading_space(spec),
        sha256=hashlib.sha256(whole.to_str().encode()).hexdigest(),
        files=files,
        _whole=whole,
        _text=vocabulary.text_encoder(spec, set(protected.values())),
        _bytes_of=bytes_of,
    )
