"""The documents as text: their code blocks, code spans, sections and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Pages = dict[str, str]  # path from the root -> text
GUIDES = ("README.md", "README.zh.md", "CONTRIBUTING.md")
WRITTEN = ("docs/evidence.md",)  # by a command: its figures are those of a run
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def load() -> Pages:
    """Return every document but the changelog, which tells of the past, and those that a command writes."""
    paths = [*(ROOT / name for name in GUIDES), *sorted((ROOT / "docs").glob("*.md"))]
    found = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths if path.is_file()}
    return {name: text for name, text in found.items() if name not in WRITTEN}


def fences(text: str, *languages: str) -> Iterator[str]:
    """Yield the lines of code blocks of these languages (all, without any), joined where they continue."""
    for language, block in _FENCE.findall(text):
        if not languages or language in languages:
            yield from block.replace("\\\n", " ").splitlines()


def prose(text: str) -> str:
    """Return the text without its code blocks."""
    return _FENCE.sub("", text)


def spans(text: str) -> list[str]:
    """Return the inline code of the text."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))]


def commands(text: str) -> set[str]:
    """Return the lines of shell blocks without comments, with single spaces."""
    lines = (re.sub(r"\s+", " ", line.partition(" #")[0]).strip() for line in fences(text, "sh", "bash", "bat"))
    return {line for line in lines if line and not line.startswith("#")}


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)


def sections(text: str) -> dict[str, str]:
    """Return the numbered sections (`3.12`) without their subsections."""
    found, number = {"": ""}, ""
    inside = False
    for line in text.splitlines():
        inside ^= line.startswith("```")
        heading = None if inside else re.match(r"#+ (?:(\d+(?:\.\d+)*)\.? )?", line)
        if heading:
            number = heading[1] or ""
        found[number] = found.get(number, "") + line + "\n"
    return found


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower())
    return kept.replace(" ", "-")


def links(text: str) -> list[str]:
    """Return the targets of links to files and anchors, not to other hosts."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]
