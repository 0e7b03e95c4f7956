"""Comparisons of the documents with the code. Each returns what is wrong, and how many things it looked at.

A check takes the pages as a mapping, so that a test can hand it pages with a planted error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from typer.main import get_command

from tests.documents import pages as read
from tests.documents.pages import ROOT, Pages
from tinyllm.cli.app import app
from tinyllm.cli.resolve import STAGES
from tinyllm.config.schemas import subschema, union_members


class Seen(NamedTuple):
    wrong: list[str]
    count: int


Check = Callable[[Pages], Seen]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
OF_OTHERS = {  # options of other programs
    *["--nproc_per_node", "--nnodes", "--node-rank", "--rdzv-id", "--rdzv-backend", "--rdzv-endpoint"],  # torchrun
    *["--kill-on-bad-exit", "--ntasks", "--ntasks-per-node", "--nodes", "--cpus-per-task", "--gpus-per-task"],  # srun
    *["--dist", "--no-loadscope-reorder"],  # pytest
}


# --- options ----------------------------------------------------------------------------------------------------------------------


def cli_options(command: Any = None) -> Iterator[str]:
    """Yield every option of every command, and its spelling with underscores."""
    command = command or get_command(app)
    for parameter in command.params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            yield from (option, "--" + option.removeprefix("--").replace("-", "_"))
    for below in getattr(command, "commands", {}).values():
        yield from cli_options(below)


def options_of_scripts() -> set[str]:
    """Return the options in the sources of our own scripts."""
    scripts = [
        *(ROOT / "benchmarks").glob("*.py"),
        *(ROOT / "tests").glob("*.py"),
        *(ROOT / "tests/parity").glob("*.py"),
    ]
    scripts += [*(ROOT / "tests/evidence").glob("*.py"), *(ROOT / "tests/lifecycle").glob("*sweep.py")]
    return {option for path in scripts for option in re.findall(r'"(--[a-z][a-z0-9-]*)"', path.read_text("utf-8"))}


def options(pages: Pages) -> Seen:
    """Every option in a code span or a code block is one of the command line, of our scripts, or of a program named here."""
    ours = {"--help", "--version", "--config_path", "--checkpoint_path", *cli_options()} | options_of_scripts()
    known, wrong, count = ours | OF_OTHERS, [], 0
    for name, text in pages.items():
        for place in (*read.spans(text), *read.fences(text, "sh", "bash", "bat", "")):
            for option in OPTION.findall(place):
                count += 1
                if option not in known:
                    wrong.append(f"{name}: {option} (in {place.strip()[:80]})")
    return Seen(wrong, count)


# --- configuration keys -----------------------------------------------------------------------------------------------------------


def schemas() -> list[dict[str, Any]]:
    classes = {stage.config for stage in STAGES.values()}
    return [config.model_json_schema() for config in sorted(classes, key=lambda c: c.__name__)]


def exists(key: str, schema: dict[str, Any]) -> bool:
    """Whether the dotted key leads to a field of the schema, or into a section of free names."""
    here: Any = schema
    for part in key.split("."):
        if any(option == {} for option in union_members(here, schema.get("$defs", {}))):
            return True
        here = subschema(here, schema.get("$defs", {}), part)
        if not here:
            return False
    return True


KEY = re.compile(r"^([a-z_0-9]+(?:\.[a-z_0-9]+)+)(?:=.*|: .*)?$")
SETTING = re.compile(r"--(?:set|change)[ =]'?\"?(?:[a-z-]+:)?([a-z_][a-z_0-9@]*(?:\.[a-z_0-9]+)*)=")
OWN = {"my_loss", "brier", "lion", "brevity"}  # of the examples that add a file
NOT_KEYS = re.compile(r"\.(py|json|jsonl|yaml|md|txt|bin|html|csv|tsv|xlsx|gz|safetensors|jinja|log|model|bpe)$")


def sections_of_configuration() -> set[str]:
    """Return the names of sections: a dotted name that begins with one must be a key."""
    return {
        name
        for schema in schemas()
        for name, field in schema["properties"].items()
        if any("properties" in option for option in union_members(field, schema.get("$defs", {})))
    } - {"rewards"}  # metrics begin with it as well


def keys(pages: Pages) -> Seen:
    """Every key of --set and --change, and every dotted name that begins with a section, is a field of some configuration."""
    known, sections, wrong, count = schemas(), sections_of_configuration(), [], 0
    for name, text in pages.items():
        lines = [*read.spans(text), *read.fences(text, "sh", "bash", "bat", "")]
        found = [key for line in lines for key in SETTING.findall(line)]
        spelled = [
            match[1] for span in read.spans(text) if (match := KEY.match(span)) and not NOT_KEYS.search(match[1])
        ]
        if name != "docs/architecture.md":  # where names with dots are modules
            found += [key for key in spelled if key.partition(".")[0] in sections]
        for key in found:
            if key.partition(".")[0] in OWN or (key.startswith("optim.") and OWN & set(key.split("."))):
                continue
            count += 1
            if not any(exists(key, schema) for schema in known):
                wrong.append(f"{name}: no configuration has {key}")
    return Seen(wrong, count)


def key_tables(pages: Pages) -> Seen:
    """Every row of a table of keys (`| key | meaning |`) of the guide and of data.md names fields, but those of metrics.jsonl."""
    known, wrong, count = schemas(), [], 0
    for name in ("docs/lifecycle.md", "docs/lifecycle.zh.md", "docs/data.md"):
        for number, section in read.sections(pages[name]).items():
            if number == "2.6":  # keys of a log line
                continue
            for table in re.findall(r"^\| (?:key|键|配置项) \|.*\n\|[-|: ]+\n((?:\|.*\n)+)", section, re.MULTILINE):
                for cell in (row.split("|")[1] for row in table.splitlines()):
                    for key in re.findall(r"`([a-z_.0-9]+)(?:: [^`]*)?`", cell):
                        count += 1
                        if not any(exists(key, schema) for schema in known):
                            wrong.append(f"{name}, {number}: no configuration has {key}")
    return Seen(wrong, count)


# --- files, links, translations ---------------------------------------------------------------------------------------------------


FILE = re.compile(r"(?<![\w/~-])((?:tests|benchmarks|configs|docs|tinyllm)/[\w/.\-]+\.(?:py|yaml|md))(?![\w/])")


def files(pages: Pages) -> Seen:
    """Every file of the repository that is named exists; so do tests (`test_x.py`, with `::NAME`) and modules (`-m tests.x`)."""
    wrong, count = [], 0
    tests = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    for name, text in pages.items():
        named = [(path, (ROOT / path).is_file()) for path in FILE.findall(text)]
        named += [(file, file in tests) for file in re.findall(r"`(test_\w+\.py)`", text)]
        for module in re.findall(r"-m (tests(?:\.\w+)+)", text):
            path = ROOT / module.replace(".", "/")
            named.append((module, path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()))
        for file, test in re.findall(r"`(?:tests/)?(?:\w+/)*(test_\w+\.py)::(\w+)", text):
            named.append((f"{file}::{test}", file in tests and f"def {test}(" in tests[file].read_text("utf-8")))
        count += len(named)
        wrong += [
            f"{name}: {what} does not exist"
            for what, there in named
            if not there and not what.startswith("tinyllm/algorithms/my_")
        ]
    return Seen(wrong, count)


def links(pages: Pages) -> Seen:
    """Every link leads to a file that exists, and to a heading of it."""
    wrong, count = [], 0
    texts = pages | {name: (ROOT / name).read_text("utf-8") for name in (*read.WRITTEN, "CHANGELOG.md")}
    for name, text in pages.items():
        for target in read.links(text):
            count += 1
            path, _, anchor = target.partition("#")
            there = ((ROOT / name).parent / path).resolve() if path else ROOT / name
            if not there.exists():
                wrong.append(f"{name}: {target}: no such file")
                continue
            known = there.relative_to(ROOT).as_posix() if there.is_relative_to(ROOT) else ""
            if anchor and anchor not in {read.slug(h) for h in read.headings(texts.get(known, ""))}:
                wrong.append(f"{name}: {target}: no such heading")
    return Seen(wrong, count)


NUMBER = re.compile(r"(?<![\w.,/-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w/])")


def numbers(text: str) -> set[str]:
    """Return the numbers of a text as they are written, without those of links and code blocks of output."""
    shown = re.sub(r"\]\([^)]*\)", "]", read.prose(text)) + "\n".join(read.commands(text))
    return {number.replace(",", "") for number in NUMBER.findall(shown)}


def translation_of_the_guide(pages: Pages) -> Seen:
    """The Chinese guide has the sections, the commands and, section by section, the numbers of the English one."""
    english, chinese = pages["docs/lifecycle.md"], pages["docs/lifecycle.zh.md"]
    wrong = [f"a command in one language: {line}" for line in read.commands(english) ^ read.commands(chinese)]
    ours, theirs = read.sections(english), read.sections(chinese)
    wrong += [f"a section in one language: {number}" for number in ours.keys() ^ theirs.keys()]
    count = len(read.commands(english))
    for number in ours.keys() & theirs.keys() - {""}:
        left, right = numbers(ours[number]), numbers(theirs[number])
        count += len(left)
        wrong += [f"{number}: only in English: {n}" for n in left - right]
        wrong += [f"{number}: only in Chinese: {n}" for n in right - left]
    return Seen(wrong, count)


def translation_of_the_readme(pages: Pages) -> Seen:
    """Both READMEs have the same commands; `&&` joins and -q makes no difference."""

    def all_of(text: str) -> set[str]:
        return {part.replace(" -q ", " ") for line in read.commands(text) for part in line.split(" && ")}

    english, chinese = all_of(pages["README.md"]), all_of(pages["README.zh.md"])
    return Seen([f"a command in one README: {line}" for line in english ^ chinese], len(english))
