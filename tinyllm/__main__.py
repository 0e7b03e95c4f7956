"""The command `tinyllm`, also as `python -m tinyllm`: what torchrun starts.

Streams and signal handlers come before every other import, so that Ctrl-C during the imports prints no traceback either.
"""

import os
import sys

try:
    from tinyllm import allocator, signals, streams
except KeyboardInterrupt:
    os.write(2, b"stopped by SIGINT\n")
    os._exit(130)


_WITHOUT_TENSORS = {"data", "runs", "explain", "--help", "--version", "-V"}  # these need no allocator for tensors


def main() -> None:
    """Run the command line."""
    try:
        if sys.argv[1:] and sys.argv[1] not in _WITHOUT_TENSORS:
            allocator.restart()
        streams.open_streams()
        signals.install()
        from tinyllm import cli

        cli.main()
    except signals.Stop as stop:  # during the imports, or while the command was ending
        signals.end(stop.number)


if __name__ == "__main__":
    main()
