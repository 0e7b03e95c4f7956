"""Who may import whom (docs/architecture.md): downward only, siblings never."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "tinyllm"
FLOORS = {
    "cli": 6,
    "stages": 5,
    "algorithms": 4,
    "rollout": 4,
    "train": 3,
    "data": 3,
    "model": 2,
    "text": 2,
    "config": 1,
    "foreign": 1,
    "dist": 1,
    "mean": 1,
    "errors": 0,
}


def room(module: str) -> str:
    """The room a module of ours lives in: `tinyllm.data.shards` -> `data`; the package itself has none."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, our module) of every import in a file, those inside functions and TYPE_CHECKING blocks included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, a.name) for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "tinyllm":
                found += [(node.lineno, f"tinyllm.{a.name}") for a in node.names]
            else:
                found.append((node.lineno, node.module))
    return [(line, name) for line, name in found if name.split(".")[0] == "tinyllm" and room(name) != "__version__"]


def violations(path: Path, module: str, typing_too: bool = True) -> list[str]:
    here = room(module)
    if not here or here == "__main__":
        return []
    return [
        f"{module}:{line} imports {name}"
        for line, name in imports(path)
        if room(name) != here and FLOORS[room(name)] >= FLOORS[here]
    ]


def test_imports_go_downward_only() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 40
    found = []
    for path in files:
        module = ".".join(("tinyllm", *path.relative_to(PACKAGE).with_suffix("").parts))
        found += violations(path, module)
    assert found == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tinyllm.model.x", "from tinyllm.train import engine"),  # upward
        ("tinyllm.algorithms.x", "import tinyllm.rollout.source"),  # sideways
        ("tinyllm.data.x", "def f():\n    from tinyllm import stages"),  # hidden in a function
        ("tinyllm.errors", "from tinyllm import mean"),
    ],
)
def test_the_check_sees_forbidden_imports(tmp_path: Path, module: str, line: str) -> None:
    path = tmp_path / "x.py"
    path.write_text(line)
    assert violations(path, module)


def test_the_default_path_needs_no_extra() -> None:
    """Every module imports with the base dependencies alone: nothing at module level names an extra."""
    extras = {"transformers", "trl", "peft", "pyarrow", "tensorboard", "starlette", "uvicorn", "huggingface_hub"}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & extras, path
