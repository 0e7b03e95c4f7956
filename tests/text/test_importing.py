"""Imported vocabularies give the ids of the programs they come from and are lossless; others are refused by name."""

from __future__ import annotations

import base64
import gzip
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.small import TEXTS
from tests.support.vocabularies import SIZE, SPACE, bin_of, model, pair, pieces_of
from tinyllm.data import world
from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.text import importing, sentencepiece
from tinyllm.text.sentencepiece import CONTROL, NORMAL, UNUSED, USER_DEFINED, Piece
from tinyllm.text.tokenizer import Tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared"
WORLD = [record["text"] for record in world.documents(400)]
ALPHABET = "ab cde  \t\n\r\u00a0\u3000\u2028éñ猫狗😀👍🏽\u200d\u0301\x00\x07<>s/|0123456789 ﬁÅ①\ufeff\U0010ffff"


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Text in several scripts, runs of spaces of every length, and random characters of all of Unicode; real text where there is some."""
    draw = random.Random(0)
    texts = [record["text"] for record in world.documents(300)] + list(TEXTS)
    if SHARED.is_dir():
        texts += (SHARED / "data/pretrain/tinyshakespeare.txt").read_text(encoding="utf-8").split("\n\n")[:800]
        with gzip.open(SHARED / "data/pretrain/zh_tang9k.jsonl.gz", "rt", encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for line, _ in zip(file, range(300), strict=False)]
    texts += (
        [" " * n for n in range(1, 70)] + ["a" + " " * n + "the" for n in range(70)] + ["aba" * n for n in range(9)]
    )
    texts += ["".join(draw.choices(ALPHABET, k=draw.randint(0, 60))) for _ in range(1000)]
    points = [p for p in draw.sample(range(0x110000), 15_000) if not 0xD800 <= p < 0xE000 and chr(p) != SPACE]
    texts += ["".join(map(chr, points[i : i + 20])) for i in range(0, len(points), 20)]
    return [*texts, "<s>", "</s> <unk>", "<0x0A>", "a<0x41>b", "<|endoftext|>", "\r\n\r\n", ""]


# --- compared with other programs -------------------------------------------------------------------------------------------------


REAL = ("tokenizers/mistral_v1/tokenizer.model", "models/stories260k/tok512.model")


@pytest.fixture(scope="session")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sentencepiece model of 512 tokens, made of the bundled world."""
    return written(tmp_path_factory.mktemp("own") / "tokenizer.model", model(pieces_of(WORLD)))


@pytest.mark.parity
@pytest.mark.parametrize("file", ["own", "by sentencepiece", *REAL])
def test_sentencepiece_gives_the_same_ids(
    file: str, own_model: Path, corpus: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    library = pytest.importorskip("sentencepiece")
    path = request.getfixturevalue("shared") / file if file in REAL else own_model
    if file == "by sentencepiece":
        path = tmp_path / "trained.model"
        options = {
            "model_type": "bpe",
            "byte_fallback": True,
            "vocab_size": 600,
            "minloglevel": 2,
            "split_digits": True,
        }
        options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(WORLD), model_prefix=str(tmp_path / "trained"), **options
        )
    theirs = library.SentencePieceProcessor(str(path))
    tokenizer = Tokenizer.load(path)
    ids = tokenizer.encode_batch(corpus)
    assert [t for t, ours in zip(corpus, ids, strict=True) if ours != theirs.encode(t)] == []
    assert [t for t, ours in zip(corpus, ids, strict=True) if tokenizer.decode(ours) != t] == []
    ends = (theirs.bos_id(), theirs.eos_id(), theirs.vocab_size())
    assert (tokenizer.bos, tokenizer.endoftext, tokenizer.vocab_size) == ends


@pytest.mark.parity
def test_a_pair_of_files_gives_the_ids_of_gpt2(trained: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = pair(trained, tmp_path)
    theirs = transformers.GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    texts = [text for text in corpus if "<|" not in text]
    assert Tokenizer.load(folder).encode_batch(texts) == theirs(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parity
def test_gpt2_gives_the_same_ids(shared: Path, corpus: list[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = shared / "tokenizers/gpt2"
    shutil.copyfile(folder / "encoder.json", tmp_path / "vocab.json")
    shutil.copyfile(folder / "vocab.bpe", tmp_path / "merges.txt")
    theirs = transformers.GPT2Tokenizer(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    tokenizer = Tokenizer.load(folder)
    texts = [text for text in corpus if "<|" not in text]  # transformers reads control tokens in texts
    ids = tokenizer.encode_batch(texts)
    assert ids == theirs(texts, add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode(i) for i in ids] == texts
    assert (tokenizer.vocab_size, tokenizer.endoftext, tokenizer.bos, tokenizer.pad) == (50257, 50256, None, None)
    assert Tokenizer.load(tmp_path).sha256 == tokenizer.sha256  # both names of the files
    assert Tokenizer.load(tmp_path / "merges.txt").sha256 == tokenizer.sha256  # either of the two


@pytest.mark.parity
def test_qwen2_gives_the_same_ids(trained: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = pair(trained, tmp_path, {"tokenizer_class": "Qwen2Tokenizer"})
    theirs = transformers.Qwen2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    texts = [text for text in corpus if "<|" not in text]
    assert Tokenizer.load(folder).encode_batch(texts) == theirs(texts, add_special_tokens=False)["input_ids"]


def test_every_shared_vocabulary_is_imported_and_lossless(shared: Path, corpus: list[str], tmp_path: Path) -> None:
    folders = sorted(path for path in (shared / "tokenizers").iterdir() if path.is_dir())
    assert folders
    for folder in folders:
        tokenizer = Tokenizer.load(folder).for_new_model()
        assert [text for text in corpus if tokenizer.decode(tokenizer.encode(text)) != text] == []
        tokenizer.save(tmp_path / folder.name, model_max_length=128)
        again = Tokenizer.load(tmp_path / folder.name)
        assert again.sha256 == tokenizer.sha256
        assert again.encode_batch(corpus) == tokenizer.encode_batch(corpus)


def test_every_own_vocabulary_is_lossless_and_is_saved(
    trained: Tokenizer, own_model: Path, corpus: list[str], tmp_path: Path
) -> None:
    for path in (own_model, pair(trained, tmp_path)):
        tokenizer = Tokenizer.load(path).for_new_model()
        assert [text for text in corpus if tokenizer.decode(tokenizer.encode(text)) != text] == []
        tokenizer.save(tmp_path / "again", model_max_length=128)
        again = Tokenizer.load(tmp_path / "again")
        assert again.sha256 == tokenizer.sha256
        assert again.encode_batch(corpus) == tokenizer.encode_batch(corpus)


def test_three_forms_of_an_own_vocabulary_agree(own_model: Path, corpus: list[str], tmp_path: Path) -> None:
    from_model = Tokenizer.load(own_model)
    from_bin = Tokenizer.load(written(tmp_path / "tokenizer.bin", bin_of(pieces_of(WORLD))))
    from_model.save(tmp_path / "hf", model_max_length=64)
    whole = Tokenizer.load(tmp_path / "hf")
    assert from_bin.sha256 == from_model.sha256
    assert from_model.encode_batch(corpus) == whole.encode_batch(corpus) == from_bin.encode_batch(corpus)
    assert (from_bin.bos, from_bin.endoftext) == (whole.bos, whole.endoftext) == (1, 2)
    assert from_model.vocab_size == SIZE
    assert len(from_model.encode(WORLD[0])) < 0.6 * len(WORLD[0])  # it merges


def test_the_three_forms_of_one_vocabulary_agree(shared: Path, corpus: list[str]) -> None:
    folder = shared / "models/stories260k"
    whole, from_bin, from_model = (Tokenizer.load(folder / n) for n in ("hf", "tok512.bin", "tok512.model"))
    assert from_bin.sha256 == from_model.sha256
    assert from_model.encode_batch(corpus) == whole.encode_batch(corpus)
    assert (from_bin.bos, from_bin.endoftext) == (whole.bos, whole.endoftext) == (1, 2)


# --- without other programs ---------------------------------------------------------------------------------------------------


PIECES = [(SPACE, -9.0, NORMAL), ("a", -9.0, NORMAL), ("b", -9.0, NORMAL), ("ab", -1.0, NORMAL), ("ba", -2.0, NORMAL)]
PIECES += [(SPACE * 2, -1e9, NORMAL), (SPACE * 3, -1e9, NORMAL), (SPACE + "a", -3.0, NORMAL)]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_higher_scores_are_merged_first(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(written(tmp_path / "tokenizer.model", model(PIECES)))
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(piece for piece, _, _ in PIECES)]

    def pieces(text: str) -> list[str]:
        return [names[i] for i in tokenizer.encode(text)]

    assert pieces("aba") == [SPACE, "ab", "a"]  # ab before ba, and before the space with a
    assert pieces("ba") == [SPACE, "ba"]
    assert pieces("a") == [SPACE + "a"]
    assert pieces(" " * 6) == [SPACE * 3, SPACE * 3, SPACE]  # one more in front; runs are eaten from the left
    assert pieces("é") == [SPACE, "<0xC3>", "<0xA9>"]
    assert pieces("<0x41>") == [SPACE, *(f"<0x{ord(c):02X}>" for c in "<0x41>")]
    assert pieces("</s>") == [SPACE, *(f"<0x{ord(c):02X}>" for c in "</s>")]
    assert (tokenizer.bos, tokenizer.endoftext, tokenizer.pad, tokenizer.leading_space) == (1, 2, None, True)
    spec = sentencepiece.to_spec(
        [Piece("a", 0, NORMAL), Piece("b", 0, NORMAL), Piece("ab", 0, CONTROL)], "", leading_space=False
    )
    assert spec["model"]["merges"] == []  # no text becomes a control token in other programs either
    plain = Tokenizer.load(written(tmp_path / "plain.model", model(PIECES, normalizer={3: 0})))
    assert [names[i] for i in plain.encode("a b")] == ["a", SPACE, "b"]
    assert plain.decode(plain.encode(" a")) == " a"


def test_start_end_and_padding_tokens_are_found_by_name_or_id(tmp_path: Path) -> None:
    pieces = [("<end>", 0.0, CONTROL), ("<fill>", 0.0, CONTROL), ("<table>", 0.0, USER_DEFINED), *PIECES]
    data = model(pieces, {41: -1, 42: 259, 43: 260})
    tokenizer = Tokenizer.load(written(tmp_path / "tokenizer.model", data))
    assert (tokenizer.bos, tokenizer.endoftext, tokenizer.pad) == (None, 259, 260)
    assert tokenizer.special_ids.isdisjoint({261})  # a user-defined piece is text
    assert tokenizer.encode("<table>")[-1] == 261
    assert tokenizer.decode(tokenizer.encode("<table>")) == "<table>"
    assert Tokenizer.load(written(tmp_path / "tokenizer.model", model(pieces, {47: b"<end>"}))).endoftext == 259
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<fill>", "bos_token": null}')
    assert Tokenizer.load(tmp_path).endoftext == 260  # the config beside it takes precedence


@pytest.mark.parametrize(
    ("data", "word", "code"),
    [
        (model(PIECES, {3: 1}), "Unigram", USAGE),
        (model(PIECES, {3: 4}), "character", USAGE),
        (model(PIECES, {24: 1}), "after the words", USAGE),
        (model(PIECES, None, {4: 1}), "repeated spaces", USAGE),
        (model(PIECES, None, {5: 0}), "leaves spaces", USAGE),
        (model(PIECES, None, {2: b"\1\2"}), "changes the text", USAGE),
        (model([*PIECES, ("c", 0.0, UNUSED)]), "unused", USAGE),
        (model([*PIECES, ("a", 0.0, NORMAL)]), "two pieces are the same", INTEGRITY),
        (model(PIECES)[:4000], "ends too early", INTEGRITY),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "64 bits", INTEGRITY),
        (b"\x0a\x03\x0a\x01\xff" + model(PIECES), "not a sentencepiece model", INTEGRITY),
    ],
)
def test_unsupported_or_damaged_sentencepiece_models_are_refused(
    data: bytes, word: str, code: int, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=word) as caught:
        Tokenizer.load(written(tmp_path / "tokenizer.model", data))
    assert caught.value.code == code
    assert "tokenizer.model" in caught.value.where
    assert caught.value.fix


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    whole, draw = model(PIECES), random.Random(1)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            sentencepiece.read(bytes(damaged[: draw.randint(1, len(damaged))]), "x")
            outcomes.add("read")
        except UserError as error:
            outcomes.add(error.code)
    assert INTEGRITY in outcomes
    assert outcomes <= {"read", USAGE, INTEGRITY}


def test_llama2c_vocabulary_equals_its_sentencepiece_model(tmp_path: Path) -> None:
    from_bin = Tokenizer.load(written(tmp_path / "tokenizer.bin", bin_of(PIECES)))
    from_model = Tokenizer.load(written(tmp_path / "tokenizer.model", model(PIECES)))
    assert from_bin.sha256 == from_model.sha256
    with pytest.raises(UserError, match="ends too early") as caught:
        Tokenizer.load(written(tmp_path / "tokenizer.bin", bin_of(PIECES)[:-1]))
    assert caught.value.code == INTEGRITY
    with pytest.raises(UserError, match="an order other than Llama's"):
        Tokenizer.load(written(tmp_path / "tokenizer.bin", bin_of(PIECES).replace(b"</s>", b"<s/>")))


def test_vocab_and_merges_are_read_with_the_split_of_their_class(trained: Tokenizer, tmp_path: Path) -> None:
    tokens = {
        str(i): {"content": name} for i, name in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"))
    }
    folder = pair(trained, tmp_path, {"tokenizer_class": "Qwen2TokenizerFast", "added_tokens_decoder": tokens})
    found = Tokenizer.load(folder)
    assert (found.endoftext, found.im_start, found.im_end, found.pad) == (0, 1, 2, 3)
    text = "Once upon a time, she didn't like 2024.\n\n你好 <|im_end|>"
    assert found.encode(text) == trained.encode(text)
    plain = Tokenizer.load(pair(trained, tmp_path))  # GPT-2's split; its control tokens are known by their names
    assert (plain.endoftext, plain.special_ids, plain.decode(plain.encode(text))) == (0, {0, 1, 2, 3}, text)
    assert importing.read(tmp_path).spec["pre_tokenizer"]["use_regex"] is True
    assert importing.read(tmp_path).kind == "vocab.json and merges.txt (GPT2)"


def test_unsupported_or_damaged_pairs_of_files_are_refused(trained: Tokenizer, tmp_path: Path) -> None:
    def refused(word: str, code: int) -> None:
        with pytest.raises(UserError, match=word) as caught:
            Tokenizer.load(tmp_path)
        assert (caught.value.code, bool(caught.value.fix)) == (code, True)

    pair(trained, tmp_path, {"tokenizer_class": "RobertaTokenizer"})
    refused("RobertaTokenizer cannot be read", USAGE)
    pair(trained, tmp_path, {"add_prefix_space": True})
    refused("cannot be read on their own", USAGE)
    pair(trained, tmp_path, {"added_tokens_decoder": {"x": 3}})
    refused("added_tokens_decoder", INTEGRITY)
    pair(trained, tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    refused("expected two tokens", INTEGRITY)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nq nowhere\n")
    refused("not a valid tokenizer", INTEGRITY)
    (tmp_path / "merges.txt").unlink()
    refused("without its merges", USAGE)


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("tokenizer.model", base64.b64encode(b"the") + b" 0\n" + base64.b64encode(b" a") + b" 1\n", "tiktoken"),
        ("o200k.tiktoken", base64.b64encode(b"the") + b" 0\n", "tiktoken"),
        ("model.gguf", b"GGUF\3\0\0\0", "GGUF"),
        ("vocab.txt", b"[PAD]\n[UNK]\nthe\n##ing\n", "WordPiece"),
        ("merges.txt", b"#version: 0.2\na b\n", "without their vocabulary"),
        ("weights.bin", bytes(range(7, 90)), "known kind"),
    ],
)
def test_unsupported_kinds_are_refused_by_name(name: str, data: bytes, word: str, tmp_path: Path) -> None:
    for place in (written(tmp_path / name, data), tmp_path):
        if name in ("merges.txt", "weights.bin") and place.is_dir():
            continue  # a folder is not searched for those
        with pytest.raises(UserError, match=word) as caught:
            Tokenizer.load(place)
        assert (caught.value.code, name in caught.value.where) == (USAGE, True)
        assert caught.value.fix


def test_json_after_blank_lines_is_recognized(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path, model_max_length=8)
    file = tmp_path / "tokenizer.json"
    file.write_text("\n\n " + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert Tokenizer.load(tmp_path).sha256 == trained.sha256


def test_vocabulary_for_a_new_model_has_no_bos(tmp_path: Path, trained: Tokenizer) -> None:
    """In training a document follows the end token of the one before; a BOS never seen in training must not open one elsewhere."""
    plain = Tokenizer.load(written(tmp_path / "tokenizer.model", model(PIECES)))
    spec = json.loads(plain._whole.to_str())
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": template,
        "pair": template,
        "special_tokens": special,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    found = Tokenizer.load(tmp_path)
    assert (found.bos, found._whole.encode("a").ids[0]) == (1, 1)
    new = found.for_new_model()
    assert (new.bos, new.endoftext, new.im_start, new.pad) == (None, 2, 267, 269)
    assert new.for_new_model() is new
    new.save(tmp_path / "new", model_max_length=8)
    again = Tokenizer.load(tmp_path / "new")
    assert (again.bos, again.sha256) == (None, new.sha256)
    assert again._whole.encode("a").ids == again.encode("a") == found.encode("a")
    assert trained.for_new_model() is trained


@pytest.mark.parametrize(("name", "extra"), [("pair", 0), ("own_model", 1), ("gpt2", 0), ("mistral_v1", 1)])
def test_byte_lengths_of_an_imported_vocabulary_sum_to_the_text(
    name: str,
    extra: int,
    trained: Tokenizer,
    own_model: Path,
    corpus: list[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    paths = {"pair": lambda: pair(trained, tmp_path), "own_model": lambda: own_model}
    tokenizer = Tokenizer.load(
        paths[name]() if name in paths else request.getfixturevalue("shared") / "tokenizers" / name
    )
    lengths = tokenizer.byte_lengths()
    for text in corpus[:500]:
        if text:
            assert lengths[tokenizer.encode(text)].sum() == len(text.encode()) + extra
    assert lengths.dtype == np.int64
