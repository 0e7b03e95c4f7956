"""Rules for the whole source: no pickle, no settings read with a default, no bare `except`, one place that shifts by a token."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyllm.cli.resolve import STAGES, resolve
from tinyllm.config import Config
from tinyllm.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1] / "tinyllm"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPICKLERS = {
    "torch.load",
    "torch.save",
    "torch.package",
    "np.save",
    "numpy.save",
    "pd.read_pickle",
    "yaml.unsafe_load",
}


def nodes(source: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(source))


def pickles(source: str) -> list[str]:
    """Return everything in a source that can write or read a pickle."""
    found = []
    for node in nodes(source):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in PICKLING]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in PICKLING else []
            found += [f"torch.{a.name}" for a in node.names if node.module == "torch" and a.name in ("load", "save")]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in UNPICKLERS:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
    return found


def silent_failures(source: str) -> list[str]:
    """Return the places where a missing setting, attribute or error would go unnoticed."""
    found = []
    for node in nodes(source):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [ast.unparse(node)] if node.func.id == "getattr" and len(node.args) > 2 else []
            found += [ast.unparse(node)] if node.func.id == "hasattr" else []
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append("except:")
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_no_pickles_and_no_silent_defaults(name: str) -> None:
    source = SOURCES[name].read_text(encoding="utf-8")
    assert pickles(source) == []
    assert silent_failures(source) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.save(x, 'a.pt')",
        "import pickle",
        "from torch import load",
        "np.load(f, allow_pickle=True)",
        "getattr(config, 'lr', 1e-3)",
        "hasattr(config, 'lr')",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_the_check_finds_violations(line: str) -> None:
    assert pickles(line) + silent_failures(line)


def test_log_probs_are_computed_in_one_place() -> None:
    """Only `model/heads.py` shifts by a token and normalizes. `tinyllm verify` compares with an independent version."""
    verifying = {"diagnostics/checks/export.py", "diagnostics/checks/forward.py"}
    allowed = {
        "log_softmax": {"model/heads.py"} | verifying,
        "cross_entropy": set(),
        "nll_loss": set(),
    }
    for word, places in allowed.items():
        found = {
            name
            for name, path in SOURCES.items()
            for node in nodes(path.read_text(encoding="utf-8"))
            if isinstance(node, ast.Attribute) and node.attr == word
        }
        assert found <= places, word


@pytest.mark.parametrize("key", STAGES)
def test_a_typo_in_any_section_is_refused(key: str) -> None:
    """One unknown key in any section of any command is an error that names it."""
    config = resolve(STAGES[key], None, [], {}, {}, fast=False).config
    sections = [name for name, value in config if isinstance(value, Config)]
    for name in ["", *sections]:
        wrong = f"{name}.mistaken_key" if name else "mistaken_key"
        with pytest.raises(UserError, match="mistaken_key"):
            resolve(STAGES[key], None, [f"{wrong}=1"], {}, {}, fast=False)


@pytest.mark.parametrize("key", [key for key, stage in STAGES.items() if "optim" in stage.config.model_fields])
@pytest.mark.parametrize("fast", [False, True])
def test_every_shipped_training_configuration_warms_up(key: str, fast: bool) -> None:
    config = resolve(STAGES[key], None, [], {}, {}, fast=fast).config
    assert 0 < config.optim.warmup_steps <= config.train.steps / 2
