"""Chat templates that do not end, fill the memory, write without end, raise or reach out: one error, quickly, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tinyllm.errors import UserError
from tinyllm.text.foreign.process import MEMORY, MOST_CHARACTERS, TemplateProcess

NAMES, CONTROL = {"eos_token": "</s>"}, ["</s>", "<s>"]
GOOD = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}]
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

HOSTILE = {
    "endless": (LOOPS, "did not render"),
    "power": ("{{ (10**8)**(10**8) }}", "did not render|memory"),
    "padded": ("{{ '%9999999999d' | format(1) }}", "memory|did not render"),
    "center": ("{{ 'x' | center(10**10) }}", "memory|did not render"),
    "repeated": ("{{ 'x' * 10**11 }}", "memory|did not render"),
    "doubled": (
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "memory|did not",
    ),
    "long": ("{% for i in range(99999) %}{{ 'xxxxxxxxxxxxxxxx' * 100 }}{% endfor %}", "more than 1,0.* characters"),
    "itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself|ended|did not render"),
    "raises": ("{{ raise_exception('only dialogues of three') }}", "only dialogues of three"),
    "undefined": ("{{ nobody.home }}", "'nobody' is undefined"),
    "divides": ("{{ 1 / 0 }}", "division by zero"),
    "syntax": ("{% for m in messages %}", "cannot be compiled: Unexpected end of template"),
    "class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe|undefined"),
    "format": ("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", "unsafe|undefined|cannot|attribute"),
    "namespace": ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "underscore|attribute|unsafe"),
    "includes": ("{% include '/etc/passwd' %}", "no loader"),
    "changes": ("{{ messages.append(1) }}", "unsafe|not safely callable"),
}


@pytest.fixture
def started() -> Iterator[list[TemplateProcess]]:
    processes: list[TemplateProcess] = []
    yield processes
    for process in processes:
        process.close()


def request(messages: list[dict[str, Any]], *, answers: bool = True) -> dict[str, Any]:
    return {"messages": messages, "tools": None, "prompt": False, "answers": answers}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_template_is_one_error_before_it_is_used(name: str):
    template, what = HOSTILE[name]
    began = time.monotonic()
    with pytest.raises(UserError, match=what) as caught:
        TemplateProcess(template, NAMES, CONTROL, seconds=1)
    assert time.monotonic() - began < 20
    assert caught.value.fix.endswith("--set chat.template=chatml")


@pytest.mark.parametrize(
    ("attack", "what"),
    [
        (LOOPS, "did not render"),
        ("{{ 'x' * 10**11 }}", "memory"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than"),
        ("{{ raise_exception('not you') }}", "not you"),
    ],
)
def test_a_template_that_is_hostile_to_one_conversation_is_stopped_there(
    attack: str, what: str, started: list[TemplateProcess]
):
    template = "{% if messages[0].content == 'boom' %}" + attack + "{% endif %}" + GOOD
    process = TemplateProcess(template, NAMES, CONTROL, seconds=1)
    started.append(process)
    boom = [{"role": "user", "content": "boom"}, TALK[1]]
    found = process.layouts([request(TALK), request(boom), request(TALK)])
    assert next(found)["text"] == "user: Hi</s>assistant: yes</s>"
    if "did not" in what:
        with pytest.raises(UserError, match=what):
            next(found)
        assert not process.usable
    else:
        assert what in str(next(found))
        assert next(found)["text"] == "user: Hi</s>assistant: yes</s>"


def test_a_template_of_a_novels_size_is_not_even_started():
    with pytest.raises(UserError, match=f"at most {MOST_CHARACTERS:,}"):
        TemplateProcess(GOOD + "{#" + "x" * MOST_CHARACTERS + "#}", NAMES, CONTROL)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_the_process_is_limited_and_ends_with_its_owner(started: list[TemplateProcess]):
    process = TemplateProcess(GOOD, NAMES, CONTROL)
    started.append(process)
    assert next(process.layouts([request(TALK)]))["text"]
    with open(f"/proc/{process._process.pid}/limits", encoding="utf-8") as file:
        limits = {line[:25].strip(): line[25:].split()[0] for line in file}
    assert (limits["Max address space"], limits["Max file size"], limits["Max core file size"]) == (
        str(MEMORY),
        "0",
        "0",
    )
    assert process._process.stdin is not None
    process._process.stdin.close()
    assert process._process.wait(timeout=5) == 0


def test_many_conversations_pass_in_order(started: list[TemplateProcess]):
    """More than fit into the pipes at once."""
    process = TemplateProcess(GOOD, NAMES, CONTROL)
    started.append(process)
    talks = [[{"role": "user", "content": f"{i} " + "x" * 2000}, TALK[1]] for i in range(1500)]
    found = [layout["text"].partition(" x")[0] for layout in process.layouts(map(request, talks))]
    assert found == [f"user: {i}" for i in range(1500)]


def test_the_process_waits_for_the_first_conversation_as_long_as_it_takes() -> None:
    """A model may be loaded in between."""
    process = TemplateProcess("{{ messages[0]['content'] }}", NAMES, CONTROL, seconds=0.5)
    time.sleep(1.0)
    assert process.usable
    request = {"messages": [{"role": "user", "content": "a"}], "tools": None, "prompt": False, "answers": False}
    assert next(process.layouts([request]))["text"] == "a"
    process.close()


def test_an_error_of_the_process_itself_is_not_told_as_a_limit() -> None:
    process = TemplateProcess("{{ messages[0]['content'] }}", NAMES, CONTROL)
    with pytest.raises(UserError, match="ended with exit status 1; please report it"):
        next(process.layouts([{"messages": 7}]))
