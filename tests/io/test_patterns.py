"""Patterns of others: what matches, and that none takes longer than the limit."""

from __future__ import annotations

import re
import signal
import threading
import time

import pytest

from tinyllm.io import patterns

NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.10.mlp.up_proj", "lm_head")


@pytest.mark.parametrize("pattern", [r".*q_proj", r".*\.(0|1)\..*", r"lm_head|.*up_proj", r"q_proj", "", r"(?!lm).*"])
def test_a_pattern_matches_whole_names_as_in_re(pattern: str) -> None:
    want = frozenset(name for name in NAMES if re.fullmatch(pattern, name))
    assert patterns.fullmatches((pattern, "x"), NAMES) == {pattern: want, "x": frozenset()}


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "(?<=a+)b", "x" * 20_001])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"not a regular expression|characters"):
        patterns.fullmatches((pattern,), NAMES)


@pytest.mark.parametrize("pattern", [r"(\w+[.]?)+X", r"(a|ab|[a-z._0-9]+)*X", r"(.*)*(.*)*X"])
def test_a_pattern_that_would_take_years_is_ended(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    handler, began = signal.getsignal(signal.SIGVTALRM), time.process_time()
    with pytest.raises(ValueError, match="within"):
        patterns.fullmatches((pattern,), NAMES)
    assert time.process_time() - began < 2
    assert signal.getsignal(signal.SIGVTALRM) == handler
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0


def test_in_another_thread_patterns_are_judged_by_their_form() -> None:
    found: list[object] = []

    def work() -> None:
        for pattern in (r".*k_proj", r"(\w+\.?)+Y", "a*b*c*d*e*f*g*"):
            try:
                found.append(patterns.fullmatches((pattern,), NAMES))
            except ValueError as error:
                found.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] == {r".*k_proj": frozenset()}
    assert all("too long" in str(error) for error in found[1:])
