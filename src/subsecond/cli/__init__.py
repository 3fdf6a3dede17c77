"""The command line.

Owns: one line on stderr for every error, and the exit code: 0 done, 1 failed, 2 bad input or use,
130 interrupted. Does not know: what the commands do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

INTERRUPTED = 130
BROKEN_PIPE = 141  # what a shell reports for SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit code."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        _say("subsecond: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads any more
        _silence_stdout()
        return BROKEN_PIPE
    except OSError as error:  # a full disk behind stdout, say
        _silence_stdout()
        _say(f"subsecond: error: {_one_line(str(error))}")
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    import warnings

    from subsecond.cli import options
    from subsecond.errors import SubsecondError

    warnings.showwarning = _warn

    words = sys.argv[1:] if arguments is None else arguments
    namespace = options.parser([word for word in words[:1] if word in options.COMMANDS]).parse_args(
        words
    )
    try:
        code = _command(namespace.command)(options.read(namespace))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except SubsecondError as error:
        _say(f"subsecond: error: {_one_line(str(error))}")
        return error.exit_code
    except MemoryError:
        _say("subsecond: error: not enough memory; use a smaller model, context or prompt")
        return 1


def _silence_stdout() -> None:
    """The interpreter flushes stdout at its end, which must not fail a second time, aloud."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command(name: str) -> Callable[[Any], int]:
    """The function of a command, from the module that has it."""
    from importlib import import_module

    run: Callable[[Any], int] = import_module(f"subsecond.cli.{name}_command").run
    return run


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Warnings are lines for people, without the place in the code."""
    _say(f"subsecond: warning: {_one_line(str(message))}")


def _one_line(text: str) -> str:
    return " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())


def _say(line: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # stdout may be full or closed
        sys.stdout.flush()
    print(line, file=sys.stderr)
