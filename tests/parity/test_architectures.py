"""Every architecture against transformers: logits, padding, cached decoding, gradients and files, and config.json in other spellings.

The truth is transformers' on the same tiny random checkpoint, in float32. Every comparison is seen to fail: a checkpoint with a feature
switched off is at least `FAR` away. `python -m tests.parity.architectures` prints the figures.
"""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("transformers")
from tests.parity import keys, spellings
from tests.parity.architectures import CHECKS, FAR, TOLERANCE, breaks
from tests.parity.checkpoints import MODELS, REFUSED, folder, new_folder, theirs, write
from tinyllm.errors import UserError
from tinyllm.model import hub
from tinyllm.model.architectures import ARCHITECTURES

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
BY_CHECK = [(name, check) for name in MODELS for check in CHECKS]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_every_architecture_is_compared() -> None:
    assert {model.kind for model in MODELS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize(("name", "check"), BY_CHECK)
def test_equals_transformers(name: str, check: str) -> None:
    found = CHECKS[check](folder(name), theirs(name))
    assert found is None or found is True or found < TOLERANCE


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.breaks])
def test_a_feature_switched_off_is_noticed(name: str) -> None:
    far = breaks(name, theirs(name))
    assert {what: gap for what, gap in far.items() if not gap > FAR} == {}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_refused_by_name(name: str) -> None:
    model, words = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        hub.load_causal_lm(write(model, new_folder()))
    assert caught.value.fix


@pytest.mark.parametrize("name", spellings.SPELLINGS)
def test_other_spellings_are_read_as_transformers_reads_them(name: str) -> None:
    found, mistake = spellings.compare(name)
    assert found < TOLERANCE
    assert mistake > FAR, "the wrong reading would not be noticed"


@pytest.mark.parametrize("kind", spellings.LEAN)
def test_keys_that_are_missing_have_the_defaults_of_the_class(kind: str) -> None:
    assert spellings.compare_lean(kind) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_changed_key_is_read_as_transformers_reads_it_or_refused(name: str) -> None:
    counts, wrong = keys.sweep(name)
    assert wrong == []
    assert counts["equal"] > 10
    assert counts.get("refused", 0) + counts.get("equal, and changed", 0) > 10
