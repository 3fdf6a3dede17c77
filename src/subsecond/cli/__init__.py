"""The command line. run.py runs a command; this module only reaches it.

It imports nothing by itself, so that Ctrl-C during the start is answered as everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, that of the process where no arguments are given; the exit code."""
    try:
        from subsecond.cli.run import run

        return run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("subsecond: interrupted\n")
        return 130
