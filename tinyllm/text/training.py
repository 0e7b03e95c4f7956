"""Training a byte-level BPE vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from tinyllm.errors import UserError
from tinyllm.text import unspellable, vocabulary
from tinyllm.text.special_tokens import CONTROL_TOKENS

MIN_FREQUENCY = 2  # a pair seen once is not worth a row of the embedding


def train(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Return the library's tokenizer with a vocabulary trained on texts; see `Tokenizer.train`."""
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
    return whole
