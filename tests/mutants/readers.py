"""What files may hold (docs/data.md), and the list and lineage of runs (docs/reliability.md): each promise broken once."""

from __future__ import annotations

from mutants.kind import Mutant

LINEAGE, LIST, SHOW = (f"diagnostics/test_runs_{name}.py" for name in ("lineage", "list", "show"))
TOOLS, FORMATS, RECORDS = "data/test_tool_calls.py", "data/test_formats.py", "data/test_records.py"
FILES, ENCODINGS, TABLES, LOADING = (
    f"data/test_{name}.py" for name in ("source_files", "encodings", "tables", "loading")
)

ROWS = f"{FILES} data/test_rows.py"
PIECES, IMPORT, IMPORTING = "text/sentencepiece.py", "text/importing.py", "text/test_importing.py"
INVALID = "data/test_fuzz.py::test_bytes_invalid_in_the_named_encoding_are_a_bad_row"


def plant(name: str, plants: str, file: str, old: str, new: str, targets: str, keeps: str) -> Mutant:
    return Mutant(name, "extra", plants, file, old, new, targets, keeps=keeps)


HASHES, TREE = "diagnostics/runs/hashes.py", "diagnostics/runs/lineage.py"

# fmt: off
MUTANTS = [
    # --- lineage hashes ----------------------------------------------------------------------------------------------------------
    plant("hash-with-name", "the name of a run is part of its hash", HASHES, '"": ("name", "device",', '"": ("device",', LINEAGE,
          "reliability: runs of other names and places have the same lineage hash"),
    plant("hash-without-rate", "all settings of the optimizer are ignored", HASHES,
          "    if \"algorithm\" in kept:\n", "    kept.pop(\"optim\", None)\n    if \"algorithm\" in kept:\n", LINEAGE,
          "reliability: a setting that affects the result is part of the hash"),
    plant("hash-with-paths", "the path of a data file is part of the hash", HASHES,
          '[_without_path(s) for s in of_type(data.get(split), list, [])]', "of_type(data.get(split), list, [])", LINEAGE,
          "reliability: a file counts by its content"),
    plant("hash-without-seed", "the seed is not part of the hash", HASHES, '        "seed": seed,\n', "", LINEAGE,
          "reliability: a lineage hash has the seed"),
    plant("hash-without-parent", "the parent is not part of the hash", HASHES, '        "parent": parent,\n', "", LINEAGE,
          "reliability: a lineage hash has the parent"),
    plant("hash-without-step", "which checkpoint of the parent was used does not count", TREE,
          'return node | {"stands_for": [node["lineage"], step]}', 'return node | {"stands_for": [node["lineage"]]}', LINEAGE,
          "reliability: a lineage hash has the step of the parent's checkpoint"),
    plant("hash-without-changes", "settings changed at a resume do not count", HASHES,
          'found | ({"changes": list(changes)} if changes else {})', "found", "train/test_going_on.py",
          "reliability: changed settings are part of the hash"),
    plant("hash-of-logging", "how often a run logs is part of the hash", HASHES,
          '"activation_checkpointing", "log_every",', '"activation_checkpointing",', LINEAGE,
          "reliability: what is logged and kept is not part of the hash"),
    # --- lineage statuses --------------------------------------------------------------------------------------------------------
    plant("moved-is-gone", "a parent under another path is not looked up", TREE,
          "status = MOVED if elsewhere else CHANGED if places else GONE", "status = CHANGED if places else GONE", LINEAGE,
          "reliability: lineage status moved"),
    plant("changed-is-ok", "another checkpoint at the recorded path is taken for the parent", TREE,
          "same = next((place for place, found in hashes.items() if found == sha256), None)",
          "same = next((place for place, found in hashes.items() if found), None)", LINEAGE, "reliability: lineage status changed"),
    plant("data-changed-is-ok", "a data file that changed is the recorded one", TREE,
          "OK if now == recorded else CHANGED", "OK if now else CHANGED", LINEAGE, "reliability: lineage status changed, data"),
    plant("own-ancestor", "a run that is its own ancestor is followed for ever", TREE,
          "if key in self.descendants or len(self.descendants) >= _MAX_GENERATIONS:",
          "if len(self.descendants) >= _MAX_GENERATIONS:", LINEAGE, "reliability: a run that is its own ancestor is told"),
    # --- list and show -----------------------------------------------------------------------------------------------------------
    plant("list-by-name", "the newest run is not the last", "diagnostics/runs/listing.py",
          "key=lambda r: (r.ended, r.last_written, r.name)", "key=lambda r: r.name", LIST, "reliability: the newest run is the last"),
    plant("moved-of-val", "what moved is a figure of val, though there are test figures", "diagnostics/runs/listing.py",
          'if is_number(record.test("best").get(name)):', "if False:", f"{LIST} {SHOW}", "reliability: what moved is a test figure"),
    plant("whole-unseen", "a checkpoint with a missing file is whole", "diagnostics/runs/listing.py",
          '"whole": fault is None,', '"whole": True,', SHOW, "reliability: show names checkpoints that are not whole"),
    # --- tools and tool calls ----------------------------------------------------------------------------------------------------
    plant("call-fields-lost", "of a call only name and arguments are kept", "data/records/calls.py",
          'if value is not None and key not in ("name", *left_out)}', 'if key == "arguments"}', TOOLS,
          "data: a tool call is one line of JSON"),
    plant("arguments-twice", "arguments that are JSON as a text are quoted again", "data/records/calls.py",
          'if text[:1] not in ("{", "["):', "if True:", TOOLS, "data: arguments written as JSON go through as they are"),
    plant("arguments-unparsed", "arguments that are no JSON are accepted", "data/records/calls.py",
          "        parse(text)\n    except BadRow as bad:", "        text = str(text)\n    except BadRow as bad:", TOOLS,
          "data: arguments that are not JSON are a bad row"),
    plant("nulls-in-tools", "null entries that Arrow adds are shown to the model", "data/records/calls.py",
          "written = without_nulls(tools)", "written = tools", TOOLS, "data: nulls are left out of tools"),
    plant("results-order-untold", "tool results in another order are no note", "data/records/calls.py",
          "if calls.index(named) != 0:", "if False:", TOOLS, "data: results in another order are told"),
    # --- formats -----------------------------------------------------------------------------------------------------------------
    plant("labels-as-prompts", "labelled answers are prompts", "data/records/detect.py",
          'if labeled and kind != "unpaired" and isinstance(row["label"], bool):', "if False:", f"{FORMATS} {RECORDS}",
          "data: data of another kind are refused with the command for them"),
    plant("answers-as-talk", "a prompt with a short answer is a conversation", "data/records/detect.py",
          'return "prompts" if short else kind', "return kind", TABLES,
          "data: a question with an answer is a prompt"),
    plant("field-overrules-nothing", "data.field is read and not used", "data/records/detect.py",
          "found = {name: row[actual] for name, actual in columns.items()}", "found = dict[str, Any]()", f"{FORMATS} {RECORDS}",
          "data: data.field names columns"),
    # --- limits and encodings ----------------------------------------------------------------------------------------------------
    plant("line-unlimited", "a line of any length is read into memory", "data/sources/files.py",
          'if length > MAX_ROW and not raw.endswith(b"\\n"):', "if False:", ROWS, "data: a line of at most 32 MiB"),
    plant("blank-unlimited", "blank lines in a row are read for ever", "data/sources/files.py",
          "elif number - last_text > MAX_BLANK:", "elif False:", ROWS, "data: at most 100,000 blank lines in a row"),
    plant("invalid-bytes-replaced", "bytes that are not of the encoding become a question mark", "data/sources/streams.py",
          'return "\\udcff", error.end', 'return "?", error.end', INVALID,
          "data: bytes without a character in the encoding are a bad row"),
    plant("utf16-as-is", "UTF-16 without a byte order mark is not seen", "data/sources/encodings.py",
          '        return ""\n    return "utf-16-le" if odd > even else "utf-16-be"', '        return ""\n    return ""',
          f"{ENCODINGS} data/test_fuzz.py", "data: UTF-16 without a byte order mark is read"),
    # --- vocabularies of other programs ------------------------------------------------------------------------------------------
    plant("vocabulary-low-scores-first", "the pair with the lowest score is merged first", PIECES, "(-score, -at,", "(score, -at,",
          IMPORTING, "data: ids are those of the original program, sentencepiece"),
    plant("vocabulary-spaces-from-the-right", "a run of spaces is merged from the right", PIECES, "(-score, -at,", "(-score, at,",
          IMPORTING, "data: ids are those of the original program, sentencepiece"),
    plant("vocabulary-without-space-in-front", "a text does not begin with a space", PIECES,
          '[{"type": "Prepend", "prepend": SPACE}] * leading_space', "[]", IMPORTING,
          "data: ids are those of the original program, sentencepiece"),
    plant("vocabulary-symbols-as-text", "user-defined symbols are pieces like others", PIECES,
          "if piece.type in (UNKNOWN, CONTROL, USER_DEFINED)", "if piece.type in (UNKNOWN, CONTROL)", IMPORTING,
          "data: user-defined symbols of sentencepiece are control tokens"),
    plant("vocabulary-qwen-as-gpt2", "Qwen2's text is split and normalized as GPT-2's", IMPORT,
          '({"type": "NFC"}, vocabulary.SPLIT)', "(None, None)", IMPORTING,
          "data: ids are those of the original program, Qwen2"),
    plant("vocabulary-class-ignored", "the class in tokenizer_config.json does not matter", IMPORT,
          'str(config.get("tokenizer_class", "GPT2Tokenizer"))', '"GPT2Tokenizer"', IMPORTING,
          "data: tokenizer_class decides how vocab.json is read"),
    plant("vocabulary-gpt2-pieces", "GPT-2's text is not split before the merges", IMPORT, '"use_regex": split is None',
          '"use_regex": False', IMPORTING, "data: ids are those of the original program, GPT-2"),
    plant("vocabulary-llama2c-spaces", "spaces of llama2.c's pieces stay spaces", IMPORT,
          'text.replace(" ", sentencepiece.SPACE)', "text", IMPORTING, "data: ids are those of the original program, llama2.c"),
    plant("vocabulary-llama2c-order", "llama2.c's vocabulary is read in any order", IMPORT,
          "if names != control + byte_names:", "if not names:", IMPORTING, "data: llama2.c's order is Llama's"),
    plant("vocabulary-unspelled-bytes", "a vocabulary without all bytes is read", "text/vocabulary.py",
          'if not byte_level and (names_a_byte or not model["byte_fallback"]):', "if False:", "text/test_vocabulary.py",
          "data: BPE over bytes, or with byte fallback"),
    plant("vocabulary-drops-bytes", "a byte without a token is left out", "text/vocabulary.py",
          "None if not missing_bytes(spec) else", "None if True else",
          "text/test_foreign_tokenizers.py::test_a_text_that_cannot_be_spelled_is_refused_with_its_place",
          "data: no text is lost in silence"),
    plant("vocabulary-keeps-bos", "the beginning-of-text token stays in the vocabulary of a new model", "text/tokenizer.py",
          'dropped = {"bos_token", ', "dropped = {", IMPORTING, "data: the beginning-of-text token of an import is not used"),
    plant("vocabulary-two-of-one-id", "two tokens may share an id", "text/vocabulary.py",
          "if len(set(vocab.values())) < len(vocab):", "if False:", "text/test_vocabulary.py", "data: ids are those of the file"),
    plant("vocabulary-other-id", "an added token may get another id than in the file", "text/vocabulary.py",
          'if whole.token_to_id(added["content"]) != added["id"]:', "if False:", "text/test_vocabulary.py",
          "data: ids are those of the file"),
]
# fmt: on
