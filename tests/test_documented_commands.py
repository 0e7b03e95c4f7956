"""Every command line in the documentation, in --help and among the printed ones: it parses, its configuration resolves, shells read it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer._click.exceptions import MissingParameter, UsageError
from typer.main import get_command

from tests.support import small
from tinyllm import cli
from tinyllm.cli.app import app
from tinyllm.cli.printing import results
from tinyllm.cli.synonyms import _ROWS as COMMANDS
from tinyllm.data.hub.catalog import CATALOG
from tinyllm.errors import OK
from tinyllm.io.shell import join, quote, set_option
from tinyllm.stages.parents import _COMMANDS as PARENTS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PLACEHOLDER = re.compile(
    r"…|\.\.\.|\||\bSTAGE\b|^tinyllm \.|\b[A-Z]+ first$|\[[A-Z]"
)  # not a command line but a form of one
OWN_ALGORITHM = re.search(r'"""my_loss\.py:.*?\n```', (ROOT / "docs/architecture.md").read_text("utf-8"), re.DOTALL)


def fences(text: str) -> Iterator[str]:
    """Yield the lines of code blocks for a shell, joined where they continue; of blocks without a language only those after `$`."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if language in ("bash", "sh", "bat"):
                yield line
            elif line.startswith("$ "):
                yield line[2:]


def spans(text: str) -> Iterator[str]:
    yield from re.findall(
        r"(?<!`)`(tinyllm [^`]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    )


def tree(command: Any = None, way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    command = command or get_command(app)
    yield way, command
    for name, below in getattr(command, "commands", {}).items():
        yield from tree(below, (*way, name))


def documented() -> Iterator[tuple[str, str]]:
    """Yield (place, line) for every command line, without what starts it (torchrun, variables, another command before &&)."""
    for path in DOCUMENTS:
        text = path.read_text("utf-8")
        for line in (*fences(text), *spans(text)):
            found = re.search(r"(?:^|&& |-m |=\S+ )(tinyllm(?: .*)?)$", line.strip())
            if found and not PLACEHOLDER.search(found[1].partition(" #")[0]):
                yield path.name, found[1]
    for way, command in tree():
        texts = [command.help or "", *(vars(p).get("help") or "" for p in command.params)]
        yield from ((f"{' '.join(way)} --help", line) for text in texts for line in spans(text) if "NAME" not in line)
    for line in results._START.splitlines():
        if line.startswith("  tinyllm"):
            yield "tinyllm", re.split(r"  +", line.strip())[0]
    yield from (("next", line) for lines in results._NEXT.values() for line in lines)
    yield from (("parents", line) for line in PARENTS.values())
    yield from (("synonyms", row.command) for row in COMMANDS)
    yield from (("catalog", known.use.format(folder="runs/data/downloads/x y")) for known in CATALOG.values())


EVERY = list(documented())
LINES = list({line: place for place, line in reversed(EVERY)}.items())  # (line, the first place that has it)


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that the first words name, and the rest."""
    command, rest = get_command(app), words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model wherever a documented line names a checkpoint, and with the files that are read before training."""
    place = tmp_path_factory.mktemp("documented")
    saved = small.saved(small.rough(), place / "model")
    shape = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": 512}))  # as the shipped models
    for line, _ in LINES:
        for given in re.findall(r"--checkpoint[= ](\S+)", line):
            if not (place / given).exists():
                shutil.copytree(saved, place / given)
    for folder in place.glob("adapters/*"):
        (folder / "config.json").unlink()
        described = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 2,
            "target_modules": ["q_proj"],
            "task_type": "CAUSAL_LM",
        }
        (folder / "adapter_config.json").write_text(json.dumps(described | {"base_model_name_or_path": "x"}))
    assert OWN_ALGORITHM
    (place / "path/to").mkdir(parents=True)
    source = OWN_ALGORITHM[0].removesuffix("```")
    for path in ("my_loss.py", "path/to/my_loss.py"):
        (place / path).write_text(source.replace("margin: float", "beta: float = 1.0\n    margin: float"), "utf-8")
    (place / "mine.yaml").write_text("name: stories\ndata:\n  train: [stories.jsonl.gz]\ntrain:\n  steps: 5000\n")
    (place / "mine").mkdir()
    (place / "my_rewards.py").write_text("def brevity(columns, text, finished):\n    return 1.0\n")
    return place


def test_there_are_many_of_them() -> None:
    counts = {path.name: sum(place == path.name for place, _ in EVERY) for path in DOCUMENTS}
    assert counts["README.md"] >= 15
    assert counts["lifecycle.md"] >= 60
    assert counts["lifecycle.zh.md"] >= 50


@pytest.mark.parametrize("where", sorted({place for _, place in LINES}))
def test_every_line_parses_and_its_configuration_resolves(
    where: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(workplace)
    wrong = []
    for line in [line for line, place in LINES if place == where]:
        words = shlex.split(line, comments=True)
        words = [words[0], *cli.modern(words[1:])]
        command, rest = command_of(words)
        if {"--version", "--help", "-h"} & set(rest):
            continue
        try:
            command.make_context("tinyllm", list(rest))
        except MissingParameter:
            if rest:  # a line without arguments names the command
                wrong.append(f"{line}: an argument is missing")
            continue
        except UsageError as error:
            wrong.append(f"{line}: {error}")
            continue
        if any("--dry-run" in p.opts for p in command.params):
            code = cli.run([*words[1:], "--dry-run"])
            said = capsys.readouterr().err
            added = "brier" in line or "lion" in line  # recipes that add a file first
            if code != OK and not added and "no such file" not in said:
                wrong.append(f"{line}: {said}")
    assert not wrong, "\n".join(wrong)


def read_by(shell: str, lines: list[str], cwd: Path) -> list[list[str]]:
    """Return the arguments of `tinyllm` as a shell reads them from each line."""
    function = "tinyllm() { printf '%s\\037' \"$@\"; printf '\\036'; }\n"
    text = function + "\n".join(lines)
    done = subprocess.run([shell, "-c", text], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return [line.split("\037")[:-1] for line in done.stdout.split("\036")[:-1]]


SHELLS = [pytest.param(s, marks=pytest.mark.skipif(not shutil.which(s), reason=f"no {s}")) for s in ("bash", "zsh")]
AWKWARD = [
    "a b",
    "it's",
    "x[0]",
    "*.txt",
    "q?",
    "=ls",
    "~user",
    "a=~",
    "$HOME",
    "`id`",
    "!!",
    "a#b",
    "{1,2}",
    "名字",
    '"',
    "\\",
]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_line_can_be_pasted_into_a_shell(shell: str, tmp_path: Path) -> None:
    lines = [line for line, _ in LINES if ">" not in line]
    assert read_by(shell, lines, tmp_path) == [shlex.split(line, comments=True)[1:] or [""] for line in lines]


@pytest.mark.parametrize("shell", SHELLS)
def test_awkward_words_survive_a_shell(shell: str, tmp_path: Path) -> None:
    (tmp_path / "x0").touch()  # what x[0] would match
    lines = [f"tinyllm {quote(word)}" for word in AWKWARD] + [join(["tinyllm", *AWKWARD])]
    assert read_by(shell, lines, tmp_path) == [*([word] for word in AWKWARD), AWKWARD]
    assert quote("plain/name-1.2") == "plain/name-1.2"


@pytest.mark.parametrize("value", ["text", "my text", "true", "1", "a: b", "[x]", "it's", '"', "名字", "#no", " x"])
def test_a_setting_reads_back_as_the_same_text(value: str) -> None:
    from tinyllm.cli.resolve import STAGES, resolve

    option, setting = shlex.split(set_option("data.field.text", value))
    assert option == "--set"
    assert resolve(STAGES["sft"], None, [setting], {}, {}, fast=False).config.data.field == {"text": value}
