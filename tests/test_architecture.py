"""docs/architecture.md against the code: every file and definition on the path of a training step exists.

python -m tests.test_architecture prints how many lines they have.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
ROW = re.compile(r"^\| (command|stage|loop|step) \| `([^`]+)` \| (.+) \|$", re.MULTILINE)


def path_of_a_step() -> list[tuple[str, str, list[str]]]:
    """Return (part, file, definitions) of every row of the table."""
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    return [(part, file, re.findall(r"`([^`]+)`", names)) for part, file, names in rows]


def lines_of(file: str, name: str) -> int:
    """Return the number of lines of a function, class or method. Raises: LookupError."""
    body: list[ast.stmt] = ast.parse((ROOT / "tinyllm" / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        kinds = (ast.FunctionDef, ast.ClassDef)
        node = next((node for node in body if isinstance(node, kinds) and node.name == part), None)
        if node is None:
            raise LookupError(f"{file} has no {name}")
        body = node.body
    assert node is not None
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def lines() -> dict[str, int]:
    """Return the number of lines of each part."""
    found = dict.fromkeys(("command", "stage", "loop", "step"), 0)
    for part, file, names in path_of_a_step():
        found[part] += sum(lines_of(file, name) for name in names)
    return found


def test_the_path_of_a_step_exists_and_is_short() -> None:
    found = lines()
    assert all(found.values())
    assert sum(found.values()) <= 1260


def test_every_room_is_described() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rooms = {path.stem for path in (ROOT / "tinyllm").iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert {room for room in rooms if f"`{room}`" not in text} == set()


def test_every_file_named_in_the_documents_exists() -> None:
    known, named = {path.relative_to(ROOT / "tinyllm").as_posix() for path in (ROOT / "tinyllm").rglob("*.py")}, 0
    for page in sorted((ROOT / "docs").glob("*.md")):
        for file in re.findall(r"`((?:tinyllm/)?(?:[a-z_]+/)+[a-z_0-9]+\.py)`", page.read_text(encoding="utf-8")):
            inside = file.removeprefix("tinyllm/")
            assert inside in known or (ROOT / file).is_file(), f"{page.name}: {file}"
            named += 1
    assert named > 20


if __name__ == "__main__":
    for part, count in (found := lines()).items():
        print(f"{part:<8} {count:>5}")
    print(f"{'all':<8} {sum(found.values()):>5}")
