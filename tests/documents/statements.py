"""Numbers and values that the documents state, and where the code has them.

A statement is a page, a pattern with one group, and a function that returns the value. The words before and after the group find the
place; a pattern that is found nowhere is an error, so a sentence that is rewritten takes its row along. The Chinese guide has no rows of
its own: `checks.translation_of_the_guide` compares its numbers with the English ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tests.documents.pages import ROOT, Pages

WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen".split()  # noqa: SIM905
LIFECYCLE, DATA, WORLD, RELIABILITY = "docs/lifecycle.md", "docs/data.md", "docs/world.md", "docs/reliability.md"
REAL = "docs/real-models.md"


@dataclass(frozen=True)
class Statement:
    page: str
    pattern: str
    value: Callable[[], Any]
    kind: str = "value"  # default, count or value


def constant(module: str, name: str) -> Callable[[], Any]:
    """Return a function that reads `tinyllm.MODULE`'s NAME, or an entry of it: `_BOMB.1`."""

    def read() -> Any:
        found: Any = import_module(f"tinyllm.{module}")
        for part in name.split("."):
            found = (
                found[int(part) if part.isdigit() else part]
                if isinstance(found, tuple | dict)
                else getattr(found, part)
            )
        return found

    return read


def field(module: str, config: str, key: str) -> Callable[[], Any]:
    """Return a function that reads the default of a field of a settings class."""
    return lambda: constant(module, config)().model_fields[key].get_default(call_default_factory=True)


def option(command: str, name: str, attribute: str = "default") -> Callable[[], Any]:
    """Return a function that reads the default (or another attribute of the type) of an option of a command."""
    from typer.main import get_command

    from tinyllm.cli.app import app

    def read() -> Any:
        found: Any = get_command(app)
        for word in command.split():
            found = found.commands[word]
        parameter = next(p for p in found.params if f"--{name}" in p.opts)
        return parameter.default if attribute == "default" else getattr(parameter, attribute)

    return read


def in_test(file: str, pattern: str) -> Callable[[], Any]:
    """Return a function that reads a number from the source of a test: the bound that it asserts."""

    def read() -> Any:
        found = re.findall(pattern, (ROOT / "tests" / file).read_text("utf-8"))
        assert found, f"tests/{file} has no {pattern}"
        assert len(set(found)) == 1, f"tests/{file} has several {pattern}: {found}"
        return float(found[0])

    return read


def bundled(module: str, name: str) -> Callable[[], int]:
    return lambda: len(constant(f"data.world.{module}", name)())


def _hostile() -> int:
    """Return the number of files of the corpus in whole hundreds."""
    tables = {"checkpoints": "WEIGHTS CONFIGS COMMANDS", "runs_and_configs": "MANIFESTS STATES RUN_JSON LOGS YAML"}
    tables["tokenizers_and_adapters"] = "TOKENIZERS ADAPTERS"
    modules = {name: import_module(f"tests.test_hostile_{name}") for name in tables}
    return sum(len(getattr(modules[name], table)) for name in tables for table in tables[name].split()) // 100 * 100


def _configurations_of_resume() -> int:
    return len(import_module("tests.train.test_resume").STAGES)


def _configurations_of_equality() -> int:
    module = import_module("tests.equality")
    return len(module.PARENTS) + len(module.CASES)


def _fast_steps(pick: Callable[[list[int]], int]) -> Callable[[], int]:
    """Return a function that picks one of the steps of all shipped `fast_dev_run` sections."""
    import yaml

    def read() -> int:
        files = [path for path in (ROOT / "configs").rglob("*.yaml") if "lifecycle" not in path.parts]
        sections = [yaml.safe_load(path.read_text("utf-8")).get("fast_dev_run") or {} for path in files]
        return pick([section["train"]["steps"] for section in sections if "train" in section])

    return read


def _unset(name: str) -> Callable[[], float]:
    """Return a function that reads the seconds the hub's client waits where the variable is not set."""

    def read() -> float:
        kept = os.environ.pop(name, None)
        try:
            return constant("data.hub.api", "_seconds")()(name)
        finally:
            os.environ |= {} if kept is None else {name: kept}

    return read


S = Statement
# fmt: off
STATEMENTS: tuple[Statement, ...] = (
    # --- models from elsewhere
    S(REAL, r"`(\w+)` \(default\) \| what the checkpoint's own", field("text.config", "ChatFormatConfig", "template"), "default"),
    S(REAL, r"of its own with (\d+) MB of memory", lambda: constant("text.foreign.process", "MEMORY")() / 2**20),
    S(REAL, r"(\d+) seconds for a conversation", constant("text.foreign.process", "SECONDS")),
    S(REAL, r"a template of more than ([\d,]+) characters", constant("text.foreign.process", "MOST_CHARACTERS")),
    S(REAL, r"more than (\d+) times the conversation", constant("text.foreign.layouts", "_GROWTH")),
    # --- the guide: defaults
    S(LIFECYCLE, r"`--preset` \| `(\w+)` \(default\)", constant("cli.lifecycle", "PRESET"), "default"),
    S(LIFECYCLE, r"starting at `--seed` \(default (\d+)\)", field("stages.config", "PretrainConfig", "seed"), "default"),
    S(LIFECYCLE, r"Default (\d+), minimum \d+ \|", constant("cli.lifecycle", "QUESTIONS"), "default"),
    S(LIFECYCLE, r"Default \d+, minimum (\d+) \|", option("lifecycle", "questions", "min")),
    S(LIFECYCLE, r"`rows` documents \(default (\d+)\)", field("evals.settings", "EvalSettings", "rows"), "default"),
    S(LIFECYCLE, r"Both fractions are (\d) by default", field("stages.config", "SftConfig", "flawed"), "default"),
    S(LIFECYCLE, r"Both fractions are (\d) by default", field("stages.config", "SftConfig", "wrong"), "default"),
    S(LIFECYCLE, r"With (\d), the default, it is always chosen", field("stages.config", "RmConfig", "noise"), "default"),
    S(LIFECYCLE, r"`best_by` \| held-out metric that selects `ckpt_best`: `(\w+)` \(default\)",
      field("stages.config", "AlignOnlineConfig", "best_by"), "default"),
    # --- the guide: counts and bounds
    S(LIFECYCLE, r"Runs all (\w+) stages as fast-dev-runs", lambda: len(constant("lifecycle.stages", "SMOKE_TEST")()), "count"),
    S(LIFECYCLE, r"Trains (\w+) stages in one process", lambda: len(constant("lifecycle.stages", "STAGES")()), "count"),
    S(LIFECYCLE, r"so all (\w+) must have the key", lambda: len(constant("lifecycle.stages", "STAGES")()), "count"),
    S(LIFECYCLE, r"on at most (\d+) test documents", constant("lifecycle.examination", "DOCUMENTS")),
    S(LIFECYCLE, r"including its end token; the limit is (\d+)",
      lambda: constant("lifecycle.evaluation", "Questions")().__dataclass_fields__["max_new_tokens"].default),
    S(LIFECYCLE, r"the gold reward is at least ([\d.]+) below its best value", constant("lifecycle.overoptimization", "FALL")),
    S(LIFECYCLE, r"A tiny model, (\d+) to \d+ steps", _fast_steps(min)),
    S(LIFECYCLE, r"A tiny model, \d+ to (\d+) steps", _fast_steps(max)),
    S(LIFECYCLE, r"The first rank waits up to (\w+) minute", lambda: constant("distributed.rendezvous", "_COMING")() / 60),
    # --- README
    S("README.md", r"\n(\w+) stages in one process", lambda: len(constant("lifecycle.stages", "STAGES")()), "count"),
    S("README.md", r"each of (\w+) that are common", lambda: len(set(import_module("tests.mutants.kind").MISTAKES)), "count"),
    S("README.md", r"A lifecycle of (\w+) stages is killed", lambda: len(constant("lifecycle.stages", "STAGES")()), "count"),
    S("README.md", r"checks every algorithm to (1e-\d)", in_test("train/test_engine.py", r"approx\(want\[1\], abs=(1e-\d)\)")),
    S("README.md", r"unless dropout is set; it is (\d) by default", field("train.config", "TrainConfig", "dropout"), "default"),
    # --- CONTRIBUTING
    S("CONTRIBUTING.md", r"all logged figures of (\d+) runs", _configurations_of_equality, "count"),
    S("CONTRIBUTING.md", r"complexity at most (\d+)", lambda: _pyproject("lint", "mccabe", "max-complexity")),
    S("CONTRIBUTING.md", r"Lines of at most (\d+) characters", lambda: _pyproject("line-length")),
    S("CONTRIBUTING.md", r"at most (\d+) files in a folder", lambda: import_module("tests.test_floors").MOST_FILES),
    S("docs/architecture.md", r"\nfolder has more than (\d+) files", lambda: import_module("tests.test_floors").MOST_FILES),
    # --- reliability: counts
    S(RELIABILITY, r"stops each of (\d+) configurations", _configurations_of_resume, "count"),
    S(RELIABILITY, r"corpus has more than (\d+) files", _hostile, "count"),
    S(RELIABILITY, r"plants (\d+) bugs", lambda: len(import_module("tests.support.bugs_of_verify").BUGS), "count"),
    S(RELIABILITY, r"\(in seconds, default (\d+)\)", constant("distributed.ranks", "_DEFAULT_TIMEOUT"), "default"),
    S(RELIABILITY, r"Headers above (\d+) MB", lambda: constant("model.tensors", "_MAX_HEADER_BYTES")() >> 20),
    S(RELIABILITY, r"descriptions above (\d+) MB", lambda: constant("io.untrusted_files", "MAX_JSON_BYTES")() >> 20),
    S(RELIABILITY, r"tokenizers above (\d+) MB", lambda: constant("text.vocabulary", "MOST_BYTES")() >> 20),
    S(RELIABILITY, r"configurations above (\d+) MB", lambda: constant("config.yaml12", "MAX_BYTES")() >> 20),
    # --- reliability: bounds that a test asserts, or a constant
    S(RELIABILITY, r"more than (\w+) times the median", constant("train.trainer", "_SPIKE")),
    S(RELIABILITY, r"the median of the last (\d+)", constant("train.trainer", "_NORMS_KEPT")),
    S(RELIABILITY, r"are answered within (\w+) seconds", in_test("test_signals.py", r"\[signal.SIGHUP\], 129, .*, (\d)\.0, True\)")),
    S(RELIABILITY, r"are answered within (\w+) seconds", lambda: import_module("tests.signal_sweep").Phase([]).seconds),
    S(LIFECYCLE, r"compiling\) the command ends within (\w+) seconds", lambda: import_module("tests.signal_sweep").Phase([]).seconds),
    S(RELIABILITY, r"sends signals to (\d+) phases", lambda: len(import_module("tests.signal_sweep").phases()), "count"),
    S(RELIABILITY, r"native code lasts longer than ([\d.]+) seconds", constant("signals", "_GRACE")),
    S(RELIABILITY, r"The tests allow (\d+) seconds", in_test("distributed/test_rank_failures.py", r"done\.seconds < (\d+)")),
    S(RELIABILITY, r"a frozen rank uses (\d+) as", in_test("distributed/test_rank_failures.py", r"STEPS, TIMEOUT = 30, (\d+)")),
    S(RELIABILITY, r"in less than (\d+) seconds of processor time", lambda: import_module("tests.support.hostile").CPU_SECONDS),
    S(RELIABILITY, r"processor time and (\d+) MB", lambda: import_module("tests.support.hostile").MEGABYTES),
    S(RELIABILITY, r"does not join within a (\w+) are", lambda: {60.0: "minute"}[constant("distributed.rendezvous", "_COMING")()]),
    S(RELIABILITY, r"a real file system of (\d+) kB", in_test("train/test_checkpointing.py", r'small_disk\(Path\("disk"\), "(\d+)k"\)'),
      "count"),
    # --- data.md
    S(DATA, r"The first (\d+) million\ncharacters", lambda: constant("stages.data", "TOKENIZER_CHARACTERS")() / 1e6),
    S(DATA, r"on the first (\d+) million characters of", lambda: constant("stages.data", "TOKENIZER_CHARACTERS")() / 1e6, "default"),
    S(DATA, r"measures the first (\d+) million", lambda: constant("stages.tokenizer", "_REPORT_CHARACTERS")() / 1e6),
    S(DATA, r"`data.dedup` \| `(\w+)` \(default\)", field("data.config", "TextConfig", "dedup"), "default"),
    S(DATA, r"`(\w+)` is the default because", field("data.config", "TextConfig", "dedup"), "default"),
    S(DATA, r"uint32 for a vocabulary over ([\d,]+)", lambda: _largest_of_uint16()),
    S(DATA, r"more than 2\^(\d+) tokens is cut", lambda: constant("data.tokens.memmap", "SHARD_TOKENS")().bit_length() - 1),
    S(DATA, r"MinHash over (\d+)-token shingles", constant("data.tokens.dedup", "SHINGLE")),
    S(DATA, r"shingles, (\d+) bands of", constant("data.tokens.dedup", "BANDS")),
    S(DATA, r"bands of (\d+)\.", constant("data.tokens.dedup", "ROWS")),
    S(DATA, r"a single document may have (\d+) MB", lambda: constant("data.sources.files", "MAX_ROW")() >> 20),
    S(DATA, r"an element of an array, has at most (\d+) MiB", lambda: constant("data.sources.files", "MAX_ROW")() >> 20),
    S(DATA, r"expand more than (\d+)-fold", constant("data.sources.streams", "_BOMB_RATIO")),
    S(DATA, r"and ([\d,]+) blank lines in a row", constant("data.sources.files", "MAX_BLANK")),
    S(DATA, r"`--file`, more than (\d+) GB are refused", lambda: constant("stages.download", "_MAX_UNNAMED")() / 1e9),
    S(DATA, r"less than ([\d,]+) bytes per second", constant("data.hub.pace", "_DEFAULT")),
    S(DATA, r"bytes per second for (\d+) seconds", constant("data.hub.pace", "WINDOW")),
    S(DATA, r"after (\w+) in a row the command gives up", lambda: len(constant("data.hub.download", "_RETRY_DELAYS")()) + 1),
    S(DATA, r"seconds without data, (\d+) by default", _unset("HF_HUB_DOWNLOAD_TIMEOUT"), "default"),
    S(DATA, r"seconds without data, (\d+) by default", _unset("HF_HUB_ETAG_TIMEOUT"), "default"),
    S(DATA, r"`--records (\d+)`", option("data inspect", "records"), "default"),
    S(DATA, r"Up to ([\d,]+) records are counted", constant("diagnostics.inspect.sample", "SAMPLE")),
    S(DATA, r"`data.too_long` is `(\w+)` \(default\)", field("data.config", "RecordConfig", "too_long"), "default"),
    S(DATA, r"at the first blank line after ([\d,]+) characters", constant("data.sources.rows", "TEXT_FORMATS.blocks.0")),
    S(DATA, r"or the first line end after ([\d,]+);", constant("data.sources.rows", "TEXT_FORMATS.blocks.1")),
    S(DATA, r"at the first line end after ([\d,]+) characters", constant("data.sources.rows", "TEXT_FORMATS.stretches.1")),
    S(DATA, r"schema the first\n([\d,]+) rows of the file", constant("data.records.nulls", "MAX_ROWS_SURVEYED")),
    S(DATA, r"the command fails within (\w+) seconds", in_test("stages/test_download.py", r"cannot be reached.*seconds < (\d+)")),
    # --- world.md
    S(WORLD, r"\*\*(\d+) people\*\*", bundled("lexicon", "PEOPLE"), "count"),
    S(WORLD, r"\*\*(\d+) towns\*\*", bundled("lexicon", "LANDMARKS"), "count"),
    S(WORLD, r"one landmark each: (\d+) facts", bundled("facts", "FACTS"), "count"),
    S(WORLD, r"questions of (\d+) tasks", bundled("gold", "TASKS"), "count"),
    S(WORLD, r"correct - ([\d.]+) \[not in the requested form", constant("data.world.gold", "BAD_FORM")),
    S(WORLD, r"- ([\d.]+) per padding word", constant("data.world.gold", "PAD_WORD")),
    S(WORLD, r"per padding word \(([\d.]+) at most\)", constant("data.world.gold", "MAX_PADDING")),
    S(WORLD, r"- ([\d.]+) \[did not stop\]", constant("data.world.gold", "NOT_STOPPED")),
    S(WORLD, r"one fact in (\w+) \(in both directions\)", constant("data.world.draw", "HOLD_OUT")),
    S(WORLD, r"stated in (\w+) or more paraphrases", lambda: _fewest_paraphrases(), "count"),
    S(WORLD, r"stories \((\d+) skeletons\)", lambda: _skeletons(), "count"),
    S(WORLD, r"demonstrations with `flawed` ([\d.]+)", lambda: _preset("sft", "flawed")),
    S(WORLD, r"on pairs with `noise` ([\d.]+\d)", lambda: _preset("dpo", "noise")),
    S(WORLD, r"on pairs with `noise` ([\d.]+\d)", lambda: _preset("rm", "noise")),
)
# fmt: on


def _pyproject(*keys: str) -> Any:
    import tomllib

    found: Any = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]
    for key in keys:
        found = found[key]
    return found


def _largest_of_uint16() -> int:
    """Return the largest vocabulary whose shards have two bytes a token, by trying."""
    from types import SimpleNamespace

    import numpy as np

    kind = constant("data.tokens.preparation", "token_type")()
    sizes = [2**16 - 1, 2**16, 2**16 + 1]
    return max(size for size in sizes if kind(SimpleNamespace(vocab_size=size)) == np.dtype("<u2"))


def _fewest_paraphrases() -> int:
    facts = import_module("tinyllm.data.world.facts")
    return min(len(facts.statements(fact)) for fact in facts.FACTS)


def _skeletons() -> int:
    return len(constant("data.world.stories", "skeletons")()())


def _preset(stage: str, key: str) -> Any:
    import yaml

    folder = ROOT / "configs/lifecycle/laptop"
    return yaml.safe_load((folder / f"{stage}.yaml").read_text("utf-8"))[key]


def number(text: str) -> Any:
    """Return a stated value as a number where it is one: `1,000`, `1e-6`, `nine`."""
    plain = text.replace(",", "").lower()
    if plain in WORDS:
        return float(WORDS.index(plain))
    try:
        return float(plain)
    except ValueError:
        return text


def wrong_statements(pages: Pages) -> tuple[list[str], int]:
    """Return the statements that are not those of the code, and how many there are."""
    wrong = []
    for one in STATEMENTS:
        stated = re.findall(one.pattern, pages[one.page])
        if not stated:
            wrong.append(f"{one.page}: nothing says {one.pattern}")
            continue
        value = one.value()
        value = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        wrong += [
            f"{one.page}: {one.pattern} says {text}, the code {value}" for text in stated if number(text) != value
        ]
    return wrong, len(STATEMENTS)


_PLAIN = re.compile(r"\(default\)|[Dd]efault:? `?\d|, default \d|\d`? by default|the default,")


def stated_defaults(pages: Pages) -> tuple[list[str], int]:
    """Return the lines that state a default and are matched by no statement, and how many such lines there are."""
    wrong, count = [], 0
    for page, text in pages.items():
        if page.endswith(".zh.md") or page == "docs/algorithms.md":  # the latter: tests/algorithms
            continue
        rows = [one for one in STATEMENTS if one.page == page and one.kind == "default"]
        places = [match.span() for one in rows for match in re.finditer(one.pattern, text)]
        for match in _PLAIN.finditer(text):
            count += 1
            if not any(start - 40 <= match.start() <= end + 40 for start, end in places):
                wrong.append(f"{page}: no statement has {text[max(0, match.start() - 60) : match.end() + 20]!r}")
    return wrong, count
