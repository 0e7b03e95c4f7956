"""The command line: verbs to stages. Parses, prints, sets exit codes; torch is imported only when a stage starts.

Results go to stdout, everything else to stderr. Every mistake a user can make ends in `error:` and `fix:` and an exit code of
`tinyllm.errors`; a traceback is shown with --debug only.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from typer import Abort, Exit
from typer._click.exceptions import ClickException, UsageError

from tinyllm import dist
from tinyllm.cli import mistyped
from tinyllm.cli.app import app
from tinyllm.dist import watch
from tinyllm.errors import FAILED, INTERRUPTED, OK, RESOURCES, TERMINATED, USAGE, UserError

_OLD_NAMES = {"--config-path": "--config", "--checkpoint-path": "--checkpoint"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    # Idle OpenMP threads spin briefly, then sleep: beside another busy process, endless spinning makes two threads slower than one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    given = modern(sys.argv[1:] if arguments is None else arguments)
    if "RANK" in os.environ and "--debug" not in given:  # torch logs every lost connection, and raises it as well
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    signal.signal(signal.SIGTERM, _terminate)
    watch.begin()
    code = run(given)
    sys.stdout.flush()
    joined = dist.stop(well=code == OK)
    if code == OK:
        watch.done()
    elif joined:  # torch's own way out waits for the other ranks, which may be gone
        os._exit(code)
    sys.exit(code)


class _TerminatedError(BaseException):
    """SIGTERM where no step is under way. Unwinds like Ctrl-C, so that drafts are cleared away, but is none to the parser."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise _TerminatedError


def modern(arguments: Sequence[str]) -> list[str]:
    """Options as they are spelled today: underscores and the older names are understood."""
    found = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
            name = _OLD_NAMES.get(name, name)
        found.append(name + equals + value)
    return found


def run(arguments: list[str]) -> int:
    """The exit code of a command; whatever goes wrong has been said on stderr."""
    debug = "--debug" in arguments or bool(os.environ.get("TINYLLM_DEBUG"))
    try:
        return app(arguments, standalone_mode=False, prog_name="tinyllm") or 0
    except UserError as error:
        if debug:
            traceback.print_exc()
        return _say(str(error), error.code, error)
    except Exit as leave:
        return leave.exit_code
    except UsageError as error:
        return _say(mistyped.explained(error), USAGE)
    except ClickException as error:
        return _say(f"error: {error.format_message()}", USAGE)
    except (KeyboardInterrupt, Abort, _TerminatedError) as stop:
        terminated = isinstance(stop, _TerminatedError)
        return _say(*(("error: terminated", TERMINATED) if terminated else ("error: interrupted", INTERRUPTED)))
    except BrokenPipeError:
        return _unread()
    except (Exception, SystemExit) as error:  # the way out is through `main`, from nowhere else
        if debug:
            traceback.print_exc()
        return _unexpected(error)


def _unread() -> int:
    """Whoever read our output has gone, as `head` does; what is left to flush must go somewhere."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return OK


def _unexpected(error: BaseException) -> int:
    """Ours, or the machine's: out of memory is named, anything else is a bug and asks to be reported."""
    if isinstance(error, SystemExit) and isinstance(
        error.__context__, BrokenPipeError
    ):  # as rich and the parser make of it
        return _unread()
    kind = type(error).__name__
    if kind == "OutOfMemoryError" or isinstance(error, MemoryError) or "not enough memory" in str(error):
        return _say("error: out of memory\nfix: lower train.micro_batch_size; results do not change", RESOURCES, error)
    first = str(error).partition("\n")[0][:300]
    fix = (
        "look at what the other ranks say"
        if watch.lost(error)
        else "run the same command with --debug and report what it prints"
    )
    return _say(f"error: {kind}: {first}\nfix: {fix}", FAILED, error)


def _say(text: str, code: int, error: BaseException | None = None) -> int:
    """Once for all ranks: by the launcher, if there is one, which knows whose error matters."""
    if not watch.record(text, code, error) and dist.speaks(code):
        print(text, file=sys.stderr, flush=True)
    return code
