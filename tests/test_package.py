"""What the whole source promises: no pickle, no setting read with a default, nothing swallowed, one place that shifts by a token."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyllm.cli.stages import STAGES, resolve
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
    """Everything in a source by which a pickle could be written or read."""
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


def silent(source: str) -> list[str]:
    """Where a missing setting, attribute or error would go unnoticed."""
    found = []
    for node in nodes(source):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [ast.unparse(node)] if node.func.id == "getattr" and len(node.args) > 2 else []
            found += [ast.unparse(node)] if node.func.id == "hasattr" else []
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append("except:")
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_pickled_and_nothing_defaults_in_silence(name: str) -> None:
    source = SOURCES[name].read_text(encoding="utf-8")
    assert pickles(source) == []
    assert silent(source) == []


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
def test_the_check_sees_it(line: str) -> None:
    assert pickles(line) + silent(line)


def test_the_shift_by_a_token_is_in_one_place() -> None:
    """Log-probabilities come from `model/heads.py`; whoever shifts or normalises on his own will some day do it otherwise.

    `tinyllm verify` compares with the whole distribution, written out on purpose.
    """
    verifying = {"stages/checks/files.py", "stages/checks/forward.py"}
    allowed = {
        "log_softmax": {"model/heads.py", "model/generate.py"} | verifying,
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
    """Every section of every command: one wrong key among right ones is an error that names it."""
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
