"""The command line. run.py runs a command; this module only reaches it.

It imports next to nothing by itself, so that Ctrl-C during the start is answered as everywhere.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, that of the process where no arguments are given; the exit code."""
    try:
        ours = arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if ours:
            # An exception would be raised inside an import, which may turn it into another one.
            # There is nothing to clean up yet.
            signal.signal(signal.SIGINT, _leave)
        from subsecond.cli.run import run

        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run(sys.argv[1:] if arguments is None else arguments)
        if ours:  # what was asked for is done: the interpreter's own end is not to be interrupted
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return code
    except KeyboardInterrupt:
        _say()
        return 130


def _leave(*_: object) -> None:
    _say()
    os._exit(130)


def _say() -> None:
    if sys.stderr is not None:
        sys.stderr.write("subsecond: interrupted\n")
        sys.stderr.flush()
