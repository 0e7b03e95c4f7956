"""Import rules of docs/architecture.md: downward only, never between rooms of one floor, and no circle anywhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "tinyllm"
FLOORS = {
    "cli": 8,
    "lifecycle": 7,
    "evals": 6,
    "diagnostics": 6,
    "stages": 5,
    "algorithms": 4,
    "rollout": 4,
    "html": 4,
    "train": 3,
    "data": 3,
    "model": 2,
    "text": 2,
    "console": 2,
    "config": 1,
    "distributed": 1,
    "io": 1,
    "mean": 1,
    "streams": 1,
    "allocator": 0,
    "errors": 0,
    "signals": 0,
}
MOST_FILES = 20


def room(module: str) -> str:
    """Return the room of one of our modules: `tinyllm.data.tokens.shards` -> `data`; the package itself has none."""
    return module.split(".")[1] if "." in module else ""


def name_of(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, our module) of every import in a file, those inside functions and TYPE_CHECKING blocks included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, a.name) for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] != "tinyllm":
                continue
            folder = PACKAGE.parent.joinpath(*node.module.split("."))
            for a in node.names:  # a submodule, or a name of the module itself
                is_module = (folder / f"{a.name}.py").is_file() or (folder / a.name).is_dir()
                found.append((node.lineno, f"{node.module}.{a.name}" if is_module else node.module))
    return [(line, name) for line, name in found if name.startswith("tinyllm.")]


def violations(path: Path, module: str) -> list[str]:
    """Return the imports of a file that its floor does not allow."""
    here = room(module)
    if not here or here == "__main__":
        return []
    return [
        f"{module}:{line} imports {name}"
        for line, name in imports(path)
        if room(name) != here and FLOORS[room(name)] >= FLOORS[here]
    ]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan), and modules that import themselves."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1 or node in graph.get(node, ()):
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def graph_of(files: list[Path]) -> dict[str, set[str]]:
    """Return module -> our modules that it imports."""
    return {name_of(path): {name for _, name in imports(path)} for path in files}


FILES = sorted(PACKAGE.rglob("*.py"))


def test_imports_go_downward_only() -> None:
    assert len(FILES) > 150
    assert [line for path in FILES for line in violations(path, name_of(path))] == []


def test_no_module_imports_itself_through_others() -> None:
    assert circles(graph_of(FILES)) == []


def test_no_folder_has_more_files_than_one_reads_in_ls() -> None:
    counts = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in FILES}}
    assert {folder.name: count for folder, count in counts.items() if count > MOST_FILES} == {}


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


def test_the_check_sees_circles() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"a"}}) == [["a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_default_path_needs_no_extra() -> None:
    """Every module imports with the base dependencies alone: nothing at module level names an extra."""
    extras = {"transformers", "trl", "peft", "pyarrow", "tensorboard", "starlette", "uvicorn", "huggingface_hub"}
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & extras, path
