"""The registry of algorithms: built-in files, a user's file, and errors about files that cannot be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.algorithms import cases
from tinyllm import algorithms
from tinyllm.cli.resolve import configs_folder
from tinyllm.errors import UserError
from tinyllm.stages.config import AlignOfflineConfig, align_offline_config, align_online_config

GUIDE = Path(__file__).parents[2] / "docs" / "algorithms.md"
MINE = """
from pydantic import Field

from tinyllm.algorithms.grpo import compute_advantages
from tinyllm.config import Config
from tinyllm.mean import over

FAMILY = "online"


class Settings(Config):
    power: float = Field(2.0, gt=0)


def loss(settings, model, batch, temperature=1.0):
    return over(batch.advantages ** settings.power), {}
"""


def written(folder: Path, text: str, name: str = "my_loss.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_entries_are_in_the_order_of_the_guide_and_have_their_configuration() -> None:
    offline, online = algorithms.entries("offline"), algorithms.entries("online")
    assert [entry.name for entry in offline] == ["dpo", "orpo", "simpo", "kto"]
    assert [entry.name for entry in online] == ["ppo", "gspo", "grpo", "dapo", "rloo", "cispo", "dr_grpo"]
    assert [e.name for e in (*offline, *online) if e.in_lifecycle] == ["dpo", "orpo", "ppo", "gspo", "grpo"]
    assert [e.name for e in (*offline, *online) if e.config is None] == ["cispo", "dr_grpo"]
    assert all((configs_folder() / e.config).is_file() for e in (*offline, *online) if e.config)
    assert {e.name: e.data for e in offline} == {"dpo": "pairs", "orpo": "pairs", "simpo": "pairs", "kto": "unpaired"}
    assert [e.name for e in online if e.needs_critic] == ["ppo"]
    assert all(e.compute_advantages is not None for e in online)


def test_registry_does_not_import_torch() -> None:
    code = "from tinyllm import algorithms; algorithms.entries('online'); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_user_file_is_an_algorithm_with_a_section(tmp_path: Path) -> None:
    path = written(tmp_path, MINE)
    entry = algorithms.load(path, "online")
    assert (entry.name, entry.family, entry.data, entry.config, entry.in_lifecycle) == (
        "my_loss",
        "online",
        "prompts",
        None,
        False,
    )
    assert not entry.uses_reference(entry.settings())
    assert algorithms.load(path, "online").settings is entry.settings  # imported once
    config = align_online_config(path)
    assert config(algorithm=path).settings() == entry.settings()
    assert config.model_validate({"algorithm": path, "my_loss": {"power": 3.0}}).settings() == entry.settings(power=3.0)
    assert {"grpo", "my_loss"} <= config.model_fields.keys()
    batch = cases.of("online", "grpo").batch
    loss, _ = entry.loss(entry.settings(power=2.0), cases.rough(0), batch)
    torch.testing.assert_close(loss.total, batch.advantages.square().sum())


def test_the_example_of_the_guide_has_the_invariants(tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8").split("Offline, a loss on preferences:")[1]
    path = written(tmp_path, text.split("```python\n")[1].split("```")[0])
    case = cases.of("offline", path)
    cut = case.split((0, 1, 2), (3, 4, 5))
    torch.testing.assert_close(cut, case.loss(), atol=1e-9, rtol=0)
    gradient = torch.autograd.grad(case.loss(), case.model.lm_head.weight)[0]
    _, before = case.algorithm.loss(case.settings, case.model, case.batch)
    with torch.no_grad():
        case.model.lm_head.weight -= 1e-3 * gradient / gradient.norm()
    _, after = case.algorithm.loss(case.settings, case.model, case.batch)
    assert after["rewards/margins"].value > before["rewards/margins"].value
    assert align_offline_config(path)(algorithm=path).settings() == case.settings


def test_settings_are_the_section_of_the_algorithm() -> None:
    config = AlignOfflineConfig.model_validate({"algorithm": "simpo", "simpo": {"beta": 3.0}})
    assert config.settings() == algorithms.load("simpo", "offline").settings(beta=3.0)
    assert align_offline_config("simpo") is AlignOfflineConfig
    with pytest.raises(UserError, match="there is no offline algorithm 'dpoo'"):
        AlignOfflineConfig(algorithm="dpoo").settings()


@pytest.mark.parametrize(
    ("text", "what", "where", "fix"),
    [
        ("def loss(:\n", "not valid Python: invalid syntax", "my_loss.py:1", "fix the file at this location"),
        ("import nothing_at_all\n", "ModuleNotFoundError: No module named 'nothing_at_all'", "my_loss.py:1", ""),
        ("x = 1\ny = x / 0\n", "ZeroDivisionError: division by zero", "my_loss.py:2", "fix the file at this location"),
        ("", "FAMILY is missing", "my_loss.py", "set FAMILY to one of supervised, reward, offline, online"),
        ("FAMILY = 'rl'\n", "FAMILY is 'rl'", "my_loss.py", "set FAMILY"),
        (
            "FAMILY = 'offline'\n",
            "FAMILY is 'offline', where 'online' is needed",
            "my_loss.py",
            "tinyllm align-offline",
        ),
        (
            "FAMILY = 'online'\n",
            "does not define Settings, loss, compute_advantages",
            "my_loss.py",
            "docs/algorithms.md",
        ),
        (
            MINE.replace("(Config)", ""),
            "Settings is not a tinyllm.config.Config",
            "my_loss.py",
            "class Settings(Config)",
        ),
        (MINE + "\nloss = 3\n", "loss is not a function", "my_loss.py", "write def loss(settings, ...)"),
    ],
)
def test_errors_in_a_user_file_name_their_location(tmp_path: Path, text: str, what: str, where: str, fix: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        algorithms.load(path, "online")
    assert what in caught.value.what
    assert caught.value.where.endswith(where)
    assert fix in caught.value.fix


def test_offline_files_declare_their_data(tmp_path: Path) -> None:
    text = MINE.replace('"online"', '"offline"').replace("from tinyllm.algorithms.grpo import compute_advantages\n", "")
    with pytest.raises(UserError, match="DATA is missing"):
        algorithms.load(written(tmp_path, text), "offline")
    with pytest.raises(UserError, match="DATA is 'texts'"):
        algorithms.load(written(tmp_path, text + "\nDATA = 'texts'\n"), "offline")
    for kind in ("unpaired", "judgements"):  # the second was its name until 0.1
        assert algorithms.load(written(tmp_path, text + f"\nDATA = '{kind}'\n"), "offline").data == "unpaired"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("grpo.py", "grpo is the name of a built-in algorithm"),
        ("rm.py", "rm is the name of a built-in algorithm or stage"),
        ("pretrain.py", "pretrain is the name of a built-in algorithm or stage"),
        ("next_token.py", "next_token is the name of a built-in algorithm"),
        ("my-loss.py", "'my-loss' cannot name a section"),
        ("train.py", "train is a section of the configuration"),
    ],
)
def test_unusable_file_names_are_refused(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        align_online_config(written(tmp_path, MINE, name))


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match=r"no file nowhere/my_loss\.py \(--algorithm\)"):
        algorithms.load("nowhere/my_loss.py", "online")
