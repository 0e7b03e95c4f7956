"""Settings that may change when a run is resumed, and the schedule of a run that is extended: rules and closed forms, without training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tinyllm.errors import UserError
from tinyllm.train.changes import (
    BATCH_SIZE,
    REWARMED,
    SAME,
    STEPS,
    UNDONE,
    Change,
    differences,
    refuse_other_run,
    segments_of,
)
from tinyllm.train.config import OptimConfig
from tinyllm.train.resuming import Extension, extend, plan_continuation
from tinyllm.train.schedules import learning_rate, rate

WSD = OptimConfig(schedule="wsd", warmup_steps=10, learning_rate=1.0)  # decays over the last fifth
COSINE, CONSTANT = (WSD.model_copy(update={"schedule": name}) for name in ("cosine", "constant"))


def more(old: int, new: int, done: list[int], optim: OptimConfig, *, rewarm: bool = False) -> Extension:
    return extend(Change(STEPS, old, new), done, optim, ((0, old),), rewarm=rewarm, folder="x")


def test_an_extended_plateau_has_the_rates_of_the_longer_run() -> None:
    """210 steps of wsd with a warm-up of 10 decay after 170. From any checkpoint up to there nothing distinguishes the two runs."""
    found = more(210, 410, [0, 100, 150, 200, 210], WSD)
    assert (found.start, found.schedule) == (150, SAME)
    assert "continues from its plateau: step 150" in found.text
    assert all(learning_rate(t, 210, WSD) == learning_rate(t, 410, WSD) for t in range(150))
    assert more(210, 410, [100, 170, 210], WSD).start == 170
    assert more(210, 410, [100, 172], WSD).start == 100


def test_a_decay_without_a_checkpoint_before_it_is_undone_aloud() -> None:
    found = more(210, 410, [200, 210], WSD)
    assert (found.start, found.schedule) == (210, UNDONE)
    assert rate(209, ((0, 210),), WSD) == pytest.approx(0.1 + 0.9 * 1 / 40)
    assert "from 0.123 back to 1 at step 211" in found.text
    assert more(210, 410, [0, 5, 210], WSD).start == 210  # a checkpoint of the warm-up is no plateau


def test_a_constant_rate_continues_and_a_decayed_one_does_not() -> None:
    assert more(100, 200, [50, 100], CONSTANT) == Extension(100, SAME, "the constant schedule continues to step 200")
    with pytest.raises(UserError, match=r"100 -> 200, and the cosine schedule has already decayed over 100") as caught:
        more(100, 200, [50, 100], COSINE)
    assert "--rewarm" in caught.value.fix


def test_fewer_steps_than_are_done_are_refused() -> None:
    with pytest.raises(UserError, match=r"train\.steps 50 is not more than the 60 steps that x has done"):
        more(100, 50, [60], CONSTANT)


def test_a_rewarmed_schedule_is_that_of_a_shorter_run() -> None:
    """lr(t) = f(t - s, T - s) from step s on, and f(t, s) before."""
    assert "its warm-up of 10 steps does not end" in more(100, 105, [100], COSINE, rewarm=True).text
    assert "does not end" not in more(100, 111, [100], COSINE, rewarm=True).text
    plan = more(100, 160, [50, 100], COSINE, rewarm=True)
    assert (plan.start, plan.schedule) == (100, REWARMED)
    change = Change(STEPS, 100, 160, REWARMED, at=plan.start).facts(7)
    segments = segments_of([change], 160)
    assert segments == ((0, 100), (100, 160))
    rates = [rate(t, segments, COSINE) for t in range(160)]
    assert rates[:100] == [learning_rate(t, 100, COSINE) for t in range(100)]
    assert rates[100] == pytest.approx(0.1)
    assert rates[110] == 1.0
    assert rates[135] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 25 / 50)))
    again = {"at_step": 150, "key": STEPS, "from": 160, "to": 300, "schedule": REWARMED}
    assert segments_of([change, again], 300) == ((0, 100), (100, 160), (150, 300))
    grown = {**again, "schedule": SAME}
    assert segments_of([change, grown, "nonsense", {"key": STEPS}], 300) == ((0, 100), (100, 300))


def settings(**changes: object) -> dict:
    train = {"steps": 10, "batch_size": 8, "save_every": 5, "eval_rows": 4}
    found = {
        "name": "a",
        "seed": 0,
        "model": {"hidden_size": 8},
        "data": {"max_length": 8},
        "train": train,
        "optim": {"learning_rate": 1e-3},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        found[section] = {**found[section], name: value} if name else value
    return found


def refused(*allowed: str, **changes: object) -> UserError | None:
    try:
        refuse_other_run(differences(settings(), settings(**changes)), frozenset(allowed), 6, "runs/x", "config.yaml")
    except UserError as error:
        return error
    return None


def test_what_no_weight_depends_on_may_change_and_steps_may_grow() -> None:
    assert differences(settings(), settings()) == []
    assert refused(train__save_every=1, name="b", train__steps=20) is None
    for key in ("eval_every", "save_every", "log_every", "keep", "keep_every"):
        assert refused(**{f"train__{key}": 77}) is None, key
    assert refused(train__steps=3) is None, "`extend` refuses fewer than are done with a better reason"


def test_training_settings_need_the_option_which_the_error_names() -> None:
    error = refused(train__batch_size=16, optim__learning_rate=5e-4)
    assert error is not None
    assert "train.batch_size: 8 -> 16; optim.learning_rate: 0.001 -> 0.0005" in error.what
    assert "--change train.batch_size=16 --change optim.learning_rate=0.0005" in error.fix
    assert refused("train.batch_size", "optim.learning_rate", train__batch_size=16, optim__learning_rate=5e-4) is None
    assert refused("train.batch_size", train__batch_size=16, optim__learning_rate=5e-4) is not None
    with pytest.raises(
        UserError, match="different configuration"
    ) as caught:  # of a lifecycle, which has no such option
        refuse_other_run(differences(settings(), settings(train__steps=20)), None, 6, "runs/x", "config.yaml")
    assert "--change" not in caught.value.fix
    fewer = refused(train__steps=8)
    assert fewer is not None
    assert "--change train.steps=8" in fewer.fix


@pytest.mark.parametrize(
    ("changes", "named", "why"),
    [
        ({"model__hidden_size": 16}, "model.hidden_size", "only settings of train and optim can"),
        ({"seed": 1}, "seed", "only settings of train and optim can"),
        ({"train__eval_rows": 8}, "train.eval_rows", "could not be compared"),
        ({"optim__optimizer": "muon"}, "optim.optimizer", "that of the other optimizer"),
        ({"data__max_length": 9}, "data.max_length", "only settings of train and optim can"),
        ({"algorithm": "orpo"}, "algorithm", "only settings of train and optim can"),
    ],
)
def test_other_settings_are_refused_by_name_whatever_is_asked(changes: dict, named: str, why: str) -> None:
    for allowed in ((), (named,)):
        error = refused(*allowed, train__batch_size=16, **changes)
        assert error is not None
        assert f"{named}: " in error.what
        assert (why in error.what) == bool(allowed)
        assert "--change" not in error.fix


def test_the_schedule_of_a_run_follows_from_its_changes_of_steps_alone(tmp_path: Path) -> None:
    longer, batch = Change(STEPS, 4, 8, SAME, at=4).facts(4), Change(BATCH_SIZE, 16, 32).facts(6)
    plan = plan_continuation(tmp_path, [], {"changes": [longer, batch]}, "", rewarm=False)
    assert plan.segments == segments_of([longer], 8) == ((0, 8),)
    assert plan.batch_size_before == 16
