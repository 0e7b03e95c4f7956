"""torch.compile: the training time that is worth it, and signals while it is at work.

Compiling takes minutes. A signal abandons the step that needs it.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from tinyllm import signals

_WORTH_COMPILING = (
    180.0  # seconds of training left: compiling costs 20 to 40 and gains about a third, beside our own kernels nothing
)


def is_worth_compiling(mode: str, seconds_left: float, *, has_kernels: bool) -> bool:
    """Return whether to compile, for `train.compile` and the training time left. "auto" needs a C++ compiler.

    Args:
        has_kernels: without compiling, the model computes with `model.native.kernels`.
    """
    possible = sys.platform != "win32" and any(map(shutil.which, ("g++", "clang++", "c++")))
    return mode == "on" or (mode == "auto" and possible and not has_kernels and seconds_left > _WORTH_COMPILING)


@contextmanager
def interruptible_compilation(may_abandon: Callable[[], bool]) -> Iterator[None]:
    """Let a signal end a compilation at once, by raising `Stop` out of it.

    Args:
        may_abandon: return True if nothing is lost when the present step is abandoned; otherwise the compilation is finished.
    """
    try:
        from torch._dynamo.callback import callback_handler as handler
    except ImportError:  # not a public module: without it the step is finished
        yield
        return
    section = ExitStack()

    def begin(*_: object) -> None:
        if may_abandon():
            section.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Error detected in")  # torch describes where a backward pass was left
            section.enter_context(signals.interruptible())

    def end(*_: object) -> None:
        section.close()

    handler.register_start_callback(begin)
    handler.register_end_callback(end)
    try:
        yield
    finally:
        section.close()
        for remove, callback in ((handler.remove_start_callback, begin), (handler.remove_end_callback, end)):
            with suppress(ValueError):
                remove(callback)
