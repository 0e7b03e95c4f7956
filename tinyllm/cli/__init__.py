"""The command line: parses arguments, prints results, sets exit codes. torch is imported only when a stage starts.

Results go to stdout, everything else to stderr. A user error prints `error:` and `fix:` and exits with a code of `tinyllm.errors`;
tracebacks are shown with --debug only.
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

from typer import Abort, Exit
from typer._click.exceptions import ClickException, UsageError

from tinyllm import distributed as dist
from tinyllm import signals, streams
from tinyllm.cli import suggestions
from tinyllm.cli.app import app
from tinyllm.console import write_line
from tinyllm.distributed import heartbeat
from tinyllm.errors import FAILED, INTERRUPTED, OK, RESOURCES, STOPS, USAGE, UserError, escape_unprintable

_OLD_NAMES = {"--config-path": "--config", "--checkpoint-path": "--checkpoint"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its exit code."""
    streams.open_streams()
    signals.install()
    signals.announce_by(_say_stopped)
    # Idle OpenMP threads spin briefly, then sleep: beside another busy process, endless spinning makes two threads slower than one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    given = modern(sys.argv[1:] if arguments is None else arguments)
    if dist.has_ranks() and "--debug" not in given:  # torch both logs and raises every lost connection
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    heartbeat.start()
    code = run(given)
    with suppress(UserError):  # after another error; at the end of Python it would change the exit code
        streams.close_results()
    joined = dist.stop(clean=code == OK)
    if code == OK:
        heartbeat.report_end()
    elif (
        joined or code in STOPS
    ):  # a normal exit of torch waits for the other ranks, which may be gone, and for its threads
        os._exit(code)
    sys.exit(code)


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
        _check_locale(arguments)
        code = _command(arguments)
        streams.close_results()
        return code
    except UserError as error:
        if debug:
            traceback.print_exc()
        return _say(str(error) if error.what else "", error.code, error)
    except UsageError as error:
        return _say(suggestions.explained(error, arguments), USAGE)
    except ClickException as error:
        return _say(f"error: {error.format_message()}", USAGE)
    except (KeyboardInterrupt, Abort):  # in a process whose signals are not handled by `signals`
        return _say_stopped("stopped by SIGINT", INTERRUPTED)
    except signals.Stop as stop:
        signals.end(stop.number, stop.hint)
    except (Exception, SystemExit) as error:  # only `main` exits
        if debug:
            traceback.print_exc()
        return _unexpected(error)


def _check_locale(arguments: Sequence[str]) -> None:
    """Raises: UserError for arguments that a locale without UTF-8 cannot represent; the text of a prompt is decoded later."""
    if sys.getfilesystemencoding() == "utf-8":
        return
    for before, argument in itertools.pairwise(["", *arguments]):
        if not argument.isascii() and before not in ("-p", "--prompt") and not argument.startswith(("-p", "--prompt=")):
            what = f"this locale ({sys.getfilesystemencoding()}) cannot represent {argument!r}"
            raise UserError(what, fix="put PYTHONUTF8=1 in front of the command")


def _command(arguments: list[str]) -> int:
    try:
        return app(arguments, standalone_mode=False, prog_name="tinyllm") or OK
    except Exit as leave:
        return leave.exit_code


def _unexpected(error: BaseException) -> int:
    """Report an exception that is not a UserError: out of memory, a failure of another rank, or a bug."""
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = escape_unprintable(str(error.filename))
        return _say(f"error: file name too long: {name[:60]}...\nfix: give a shorter name or path", USAGE, error)
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
    if not heartbeat.report_error(text, code, error) and text and dist.should_print_error(code):
        write_line(text)
    return code


def _say_stopped(line: str, code: int) -> int:
    """Print the line of a signal. Every rank has received it, so rank 0 prints, without asking the others."""
    if not heartbeat.report_error(line, code) and dist.is_main():
        signals.write(line)
    return code
