"""Tiny tokenizers of the kinds that models from elsewhere bring: their splits, normalizers, added tokens and files."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tinyllm.text.tokenizer import Tokenizer as OurTokenizer

TEXTS = [
    "Once upon a time, there was a little girl named Lily. She didn't like 2024 or 1999.\n\nThe end.\r\n",
    "def f(x):\n    return x + 1  # café, naïve\t\tдобрый день 你好，世界",
    "user\nassistant\nsystem\ntool\n think tool_call word",
] * 20
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
Kind = tuple[Tokenizer, dict[str, Any], dict[str, Any]]  # tokenizer, tokenizer_config.json, other files


def _special(token: str, **flags: bool) -> AddedToken:
    return AddedToken(token, special=True, normalized=False, **flags)


def _text(token: str, **flags: bool) -> AddedToken:
    return AddedToken(token, special=False, **{"normalized": False, **flags})


def _byte_level(split: Any, first: list[AddedToken], **model: Any) -> Tokenizer:
    """Return a byte-level vocabulary of 330 tokens; `first` have the lowest ids."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = split
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(model.pop("without", "")))
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=330, special_tokens=first, initial_alphabet=alphabet, show_progress=False)
    )
    spec = json.loads(made.to_str())
    spec["model"] |= model
    return Tokenizer.from_str(json.dumps(spec))


def _bos(token: str, made: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, made.token_to_id(token))]
    )


def _regex(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2() -> Kind:
    made = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), [])
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=True)])
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    end = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False}
    end |= {"single_word": False}
    names = {"bos_token": end, "eos_token": end, "unk_token": end}
    return made, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": 1024, **names}, {}


def llama3() -> Kind:
    made = _byte_level(_regex(_LLAMA3), [], ignore_merges=True)
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
    made.add_special_tokens([_special(f"<|{name}|>") for name in names])
    start = _bos("<|begin_of_text|>", made)
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), start])
    ids = [made.token_to_id(f"<|{name}|>") for name in ("end_of_text", "eom_id", "eot_id")]
    config = {
        "bos_token": "<|begin_of_text|>",
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|eot_id|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = {"bos_token_id": 0, "do_sample": True, "eos_token_id": ids, "temperature": 0.6, "top_p": 0.9}
    return made, config, {"generation_config.json": generation}


def qwen3() -> Kind:
    made = _byte_level(_regex(_QWEN2), [])
    made.normalizer = normalizers.NFC()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.add_special_tokens([_special(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|box_start|>")])
    made.add_tokens([_text(t) for t in ("<tool_call>", "</tool_call>")])
    made.add_special_tokens([_special("<|fim_prefix|>")])
    made.add_tokens([_text(t) for t in ("<think>", "</think>")])
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = {
        str(i): {flag: getattr(token, flag) for flag in flags}
        for i, token in sorted(made.get_added_tokens_decoder().items())
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|box_start|>"],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    ids = [made.token_to_id("<|im_end|>"), made.token_to_id("<|endoftext|>")]
    generation = {"eos_token_id": ids, "pad_token_id": ids[1], "temperature": 0.6, "top_k": 20}
    return made, config, {"chat_template.jinja": TEMPLATE, "generation_config.json": generation}


def smollm2() -> Kind:
    """Without the bytes of some control characters, and with an end token that is the padding, too.

    transformers 5 reads this class with GPT-2's split in place of that in tokenizer.json, if config.json has no model type that it knows
    better.
    """
    digits = pre_tokenizers.Digits(individual_digits=True)
    split = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    first = [_special(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>")]
    made = _byte_level(split, first, without="ĄĆē")  # bytes 04, 06, 13
    config = {
        "bos_token": "<|im_start|>",
        "chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "tools"}],
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>",
        "vocab_size": 330,
    }
    return made, config, {"generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}}


def olmo2() -> Kind:
    made = _byte_level(_regex(_LLAMA3), [])
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.add_tokens([_text("|||IP_ADDRESS|||"), _text("|||EMAIL|||")])
    made.add_special_tokens([_special("<|endoftext|>"), _special("<|pad|>")])
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    config |= {"unk_token": "<|endoftext|>", "tokenizer_class": "GPT2Tokenizer", "model_max_length": 4096}
    return made, config, {"config.json": {"model_type": "olmo2", "eos_token_id": 332, "pad_token_id": 333}}


def granite() -> Kind:
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    first = [_special(t) for t in ("<|end_of_text|>", "<fim_prefix>", "<|start_of_role|>", "<|end_of_role|>")]
    made = _byte_level(split, first)
    end = {"content": "<|end_of_text|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 8192, "padding_side": "left"}
    special = {"bos_token": end, "eos_token": end, "pad_token": end, "unk_token": end}
    special |= {"additional_special_tokens": ["<|start_of_role|>", "<|end_of_role|>"]}
    return made, config, {"special_tokens_map.json": special, "config.json": {"model_type": "granite"}}


def neox() -> Kind:
    """Runs of spaces are added tokens, matched after normalization."""
    made = _byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False), [_special("<|endoftext|>"), _special("<|padding|>")]
    )
    made.normalizer = normalizers.NFC()
    made.add_tokens([_text(" " * n, normalized=True) for n in range(8, 1, -1)])
    made.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    names = {key: "<|endoftext|>" for key in ("bos_token", "eos_token", "unk_token")}
    return made, {"tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": False, **names}, {}


def flags() -> Kind:
    """Every flag of an added token, in text and among control tokens."""
    made = _byte_level(_regex(_QWEN2), [_special("<eos>")])
    made.normalizer = normalizers.NFKC()
    made.add_tokens([_text("<left>", lstrip=True), _text("<right>", rstrip=True), _text("word", single_word=True)])
    made.add_tokens([_text("<both>", lstrip=True, rstrip=True), _text("ﬁn", normalized=True), _text("\n\n")])
    made.add_special_tokens(
        [_special("<|l|>", lstrip=True), _special("<|r|>", rstrip=True), _special("<x", single_word=True)]
    )
    return made, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "mask_token": "<|l|>"}, {}


def _sentencepiece(normalizer: Any, pre_tokenizer: Any, decoder: list[Any], names: list[str]) -> Tokenizer:
    """Return a sentencepiece-style vocabulary with tokens for bytes."""
    plain = Tokenizer(models.BPE())
    plain.normalizer = normalizers.Replace(" ", "▁")
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁\n]+|▁+|\n+"), behavior="isolated")
    plain.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=[], show_progress=False))
    trained = json.loads(plain.to_str())["model"]
    tokens = [*names, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate([*tokens, *(t for t in trained["vocab"] if t not in tokens)])}
    made = Tokenizer(
        models.BPE(vocab, [tuple(m) for m in trained["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    made.decoder = decoders.Sequence([*decoder, decoders.ByteFallback(), decoders.Fuse()])
    return made


def gemma() -> Kind:
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<table>"]
    space = normalizers.Replace(" ", "▁")
    split = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    made = _sentencepiece(space, split, [decoders.Replace("▁", " ")], names)
    made.add_special_tokens([_special(t) for t in names[:7]])
    made.add_tokens([_text("<table>"), _text("\n\n"), _text("▁▁")])
    made.post_processor = _bos("<bos>", made)
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config |= {
        "add_bos_token": True,
        "add_eos_token": False,
        "tokenizer_class": "GemmaTokenizer",
        "sp_model_kwargs": {},
    }
    config |= {"model_max_length": 10**30, "boi_token": "<start_of_turn>"}
    return made, config, {"generation_config.json": {"bos_token_id": 2, "eos_token_id": [1, 6], "pad_token_id": 0}}


def _llama2(prepend: bool) -> Tokenizer:
    names = ["<unk>", "<s>", "</s>"]
    space = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]) if prepend else None
    split = None if prepend else pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made = _sentencepiece(space, split, [decoders.Replace("▁", " ")], names)
    spec = json.loads(made.to_str())
    spec["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    made = Tokenizer.from_str(json.dumps(spec))
    made.add_special_tokens([_special(t) for t in names])
    made.post_processor = _bos("<s>", made)
    return made


_LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 4096}


def llama2() -> Kind:
    config = {**_LLAMA_NAMES, "add_bos_token": True, "add_eos_token": False, "legacy": True}
    return _llama2(prepend=True), {**config, "tokenizer_class": "PreTrainedTokenizerFast"}, {}


def mistral() -> Kind:
    config = {**_LLAMA_NAMES, "legacy": False, "pad_token": None, "tokenizer_class": "PreTrainedTokenizerFast"}
    return (
        _llama2(prepend=False),
        config,
        {"additional_chat_templates": {"rag": "documents"}, "chat_template.jinja": TEMPLATE},
    )


def phi3() -> Kind:
    made = _llama2(prepend=True)
    made.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    names = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    made.add_special_tokens([_special(t, rstrip=t != "<|endoftext|>") for t in names])
    config = {**_LLAMA_NAMES, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    return made, {**config, "tokenizer_class": "PreTrainedTokenizerFast"}, {}


KINDS: dict[str, Callable[[], Kind]] = {
    one.__name__: one
    for one in (gpt2, llama3, qwen3, smollm2, olmo2, granite, neox, flags, gemma, llama2, mistral, phi3)
}


def write(kind: str, folder: Path) -> Path:
    """Write the files of a tokenizer as its model's authors publish them."""
    made, config, files = KINDS[kind]()
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    for name, content in {"tokenizer_config.json": config, **files}.items():
        if name == "additional_chat_templates":
            (folder / name).mkdir()
            for template, text in content.items():
                (folder / name / f"{template}.jinja").write_text(text, encoding="utf-8")
        else:
            text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
    return folder


@functools.cache
def loaded(folder: Path) -> OurTokenizer:
    """Return our tokenizer of a folder, read once."""
    return OurTokenizer.load(folder)


def names_of(tokenizer: OurTokenizer) -> list[str]:
    """Return the names of the control tokens."""
    return [tokenizer.decode([i], skip_special=False) for i in sorted(tokenizer.special_ids)]


def texts_for(tokenizer: OurTokenizer, *, control: bool = False) -> st.SearchStrategy[str]:
    """Return texts with added tokens and what their flags look at: spaces and words beside them; with control tokens if asked for."""
    names = names_of(tokenizer)
    spec = json.loads(tokenizer._whole.to_str())
    added = [token["content"] for token in spec["added_tokens"] if token["content"] not in names]
    parts = [
        *added,
        "a",
        " ",
        "  ",
        "\n",
        "word",
        " words",
        "é",
        "e\u0301",
        "ﬁn",
        "2024",
        "'s",
        "你好",
        "😀",
        "\t",
        "<",
        "|>",
    ]
    plain = st.text(st.characters(codec="utf-8", exclude_characters="\x04\x06\x13"), max_size=5)
    piece = st.sampled_from(parts + names * control) | plain
    found = st.lists(piece, max_size=8).map("".join)
    return found if control else found.filter(lambda text: not any(name in text for name in names))
