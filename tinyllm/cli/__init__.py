"""The command line: parses arguments, prints results, sets exit codes. torch is imported only when a stage starts.

Results go to stdout, everything else to stderr. A user error prints `error:` and `fix:` and exits with a code of `tinyllm.errors`;
tracebacks are shown with --debug only.
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

from tinyllm import distributed as dist
from tinyllm.cli import suggestions
from tinyllm.cli.app import app
from tinyllm.distributed import heartbeat
from tinyllm.errors import FAILED, INTERRUPTED, OK, RESOURCES, TERMINATED, USAGE, UserError

_OLD_NAMES = {"--config-path": "--config", "--checkpoint-path": "--checkpoint"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its exit code."""
    # Idle OpenMP threads spin briefly, then sleep: beside another busy process, endless spinning makes two threads slower than one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    given = modern(sys.argv[1:] if arguments is None else arguments)
    if "RANK" in os.environ and "--debug" not in given:  # torch both logs and raises every lost connection
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    signal.signal(signal.SIGTERM, _terminate)
    heartbeat.start()
    code = run(given)
    sys.stdout.flush()
    joined = dist.stop(clean=code == OK)
    if code == OK:
        heartbeat.report_end()
    elif joined:  # a normal exit of torch waits for the other ranks, which may be gone
        os._exit(code)
    sys.exit(code)


class _TerminatedError(BaseException):
    """SIGTERM outside a training step. Unwinds the stack like KeyboardInterrupt, so that temporary files are removed."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise _TerminatedError


def modern(arguments: Sequence[str]) -> list[str]:
    """Translate old spellings of options: underscores, and names of earlier versions."""
    found = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
            name = _OLD_NAMES.get(name, name)
        found.append(name + equals + value)
    return found


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code. Errors are printed on stderr."""
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
        return _say(suggestions.explained(error), USAGE)
    except ClickException as error:
        return _say(f"error: {error.format_message()}", USAGE)
    except (KeyboardInterrupt, Abort, _TerminatedError) as stop:
        terminated = isinstance(stop, _TerminatedError)
        return _say(*(("error: terminated", TERMINATED) if terminated else ("error: interrupted", INTERRUPTED)))
    except BrokenPipeError:
        return _unread()
    except (Exception, SystemExit) as error:  # only `main` exits
        if debug:
            traceback.print_exc()
        return _unexpected(error)


def _unread() -> int:
    """The reader of our output has closed the pipe, as `head` does: discard the rest."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return OK


def _unexpected(error: BaseException) -> int:
    """Report an exception that is not a UserError: out of memory, a failure of another rank, or a bug."""
    if isinstance(error, SystemExit) and isinstance(
        error.__context__, BrokenPipeError
    ):  # rich and the parser turn it into SystemExit
        return _unread()
    kind = type(error).__name__
    if kind == "OutOfMemoryError" or isinstance(error, MemoryError) or "not enough memory" in str(error):
        return _say("error: out of memory\nfix: lower train.micro_batch_size; results do not change", RESOURCES, error)
    first = str(error).partition("\n")[0][:300]
    fix = (
        "see the errors of the other ranks"
        if heartbeat.is_connection_loss(error)
        else "run the same command with --debug and report what it prints"
    )
    return _say(f"error: {kind}: {first}\nfix: {fix}", FAILED, error)


def _say(text: str, code: int, error: BaseException | None = None) -> int:
    """Print an error once for all ranks. With a launcher, it prints the error of the rank that failed first."""
    if not heartbeat.report_error(text, code, error) and dist.should_print_error(code):
        print(text, file=sys.stderr, flush=True)
    return code
