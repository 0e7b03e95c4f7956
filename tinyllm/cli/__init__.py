"""The command line: verbs to stages. Parses, prints, sets exit codes; torch is imported only when a stage starts.

Results go to stdout, everything else to stderr. Every mistake a user can make ends in `error:` and `fix:` and an exit code of
`tinyllm.errors`; a traceback is shown with --debug only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from typer import Abort, Exit
from typer._click.exceptions import ClickException, UsageError

from tinyllm import dist
from tinyllm.cli.app import app
from tinyllm.errors import FAILED, INTERRUPTED, RESOURCES, USAGE, UserError

_OLD_NAMES = {"--config-path": "--config", "--checkpoint-path": "--checkpoint"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    # Idle OpenMP threads spin briefly, then sleep: beside another busy process, endless spinning makes two threads slower than one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    given = modern(sys.argv[1:] if arguments is None else arguments)
    code = run(given)
    dist.stop()
    sys.stdout.flush()
    sys.exit(code)


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
            raise
        return _say(str(error), error.code)
    except Exit as leave:
        return leave.exit_code
    except UsageError as error:
        place = error.ctx.command_path if error.ctx else "tinyllm"
        return _say(f"error: {error.format_message().rstrip('.')}\nfix: `{place} --help` lists what there is", USAGE)
    except ClickException as error:
        return _say(f"error: {error.format_message()}", USAGE)
    except (KeyboardInterrupt, Abort):
        return _say("error: interrupted", INTERRUPTED)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the reader has gone; what is left to flush must go somewhere
        return 0
    except Exception as error:
        if debug:
            raise
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """Ours, or the machine's: out of memory is named, anything else is a bug and asks to be reported."""
    kind = type(error).__name__
    if kind == "OutOfMemoryError" or isinstance(error, MemoryError) or "not enough memory" in str(error):
        return _say("error: out of memory\nfix: lower train.micro_batch_size; results do not change", RESOURCES)
    first = str(error).partition("\n")[0][:300]
    return _say(f"error: {kind}: {first}\nfix: run the same command with --debug and report what it prints", FAILED)


def _say(text: str, code: int) -> int:
    if dist.is_main() or code == FAILED:
        print(text, file=sys.stderr, flush=True)
    return code
