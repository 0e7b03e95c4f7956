"""The package never executes what it reads: no pickles, `eval`, shells or remote code. Checked on the syntax tree of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "tinyllm"
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "code",
    "codeop",
    "pty",
}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    *(f"torch.{name}" for name in ("load", "save", "jit.load", "jit.save", "hub.load", "package")),
    *(f"{name}.load" for name in ("np", "numpy", "yaml", "pickle", "joblib")),
    *(f"yaml.{name}" for name in ("load_all", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all")),
    *(f"os.{name}" for name in ("system", "popen", "execv", "execvp", "execl", "spawnv", "posix_spawn")),
    *(f"subprocess.{name}" for name in ("getoutput", "getstatusoutput")),
    "loader.exec_module",
    "runpy.run_path",
    "runpy.run_module",
}
ALLOWED = {
    # (file, what): why
    ("allocator.py", "os.execv"),  # this process again, with its own arguments
    ("io/user_code.py", "loader.exec_module"),  # the user's own rewards and algorithms, named by the user
    ("io/untrusted_files.py", "yaml.load"),  # with a safe loader, see below
    ("diagnostics/runs/record.py", "yaml.load"),
}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def dangers(source: str) -> Iterator[str]:
    """Yield the imports, calls and arguments of a file that can execute data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module for _ in "x" if node.module and node.module.partition(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if (isinstance(node.func, ast.Name) and name in CALLS) or any(
                name == m or name.endswith(f".{m}") for m in METHODS
            ):
                yield name.removeprefix("spec.")
            for keyword in node.keywords:
                on = not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
                if keyword.arg in ("trust_remote_code", "allow_pickle", "shell") and on:
                    yield f"{keyword.arg}="


def test_the_package_never_executes_what_it_reads() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), danger)
        for path in PACKAGE.rglob("*.py")
        for danger in dangers(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED, found ^ ALLOWED
    for file, danger in found:
        assert danger != "yaml.load" or "SafeLoader" in (PACKAGE / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "np.load('x', allow_pickle=True)",
        "yaml.load(text)",
        "subprocess.run('x', shell=True)",
        "eval('1')",
        "exec(text)",
        "os.system('x')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "loader.exec_module(module)",
    ],
)
def test_the_check_finds_what_executes_data(source: str) -> None:
    assert list(dangers(source))


def test_the_check_ignores_comments_and_harmless_methods() -> None:
    source = (
        "# pickle, torch.load, eval(\nmodel.eval()\nblock.compile()\nsubprocess.run(['x'], shell=False)\nkind.load(1)"
    )
    assert not list(dangers(source))
