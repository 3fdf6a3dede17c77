"""From words to a command, and from what becomes of it to an exit code.

Owns: one line on stderr for every error, and the exit code: 0 done, 1 failed or refuted, 2 bad
input or use, 3 can't be decided, 130 interrupted, 141 nobody reads the output any more. Does not
know: what the commands do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from subsecond.cli import console, interrupt
from subsecond.errors import SubsecondError

BROKEN_PIPE = 141  # what a shell reports for SIGPIPE


def run(words: Sequence[str]) -> int:
    """Runs a command; the exit code."""
    try:
        console.open_missing()
        return _guarded(words)
    except SubsecondError as error:
        console.note_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.note("subsecond: interrupted")
        return interrupt.INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except OSError as error:  # a full disk behind stdout, say
        console.note_error(f"{error.filename or 'failed'}: {error.strerror or error}")
        return 1
    finally:
        console.silence_broken()


def _guarded(words: Sequence[str]) -> int:
    """Runs a command; errors on purpose and the end of memory are a line and a code."""
    from subsecond.cli import options

    try:
        name, chosen = options.parse(words)
        if name in ("chat", "serve"):  # which have their own way with Ctrl-C
            code = _run(name, chosen)
        else:
            with interrupt.watched(console.note):
                code = _run(name, chosen)
    except SystemExit as end:  # --help and --version
        code = int(end.code or 0)
    except SubsecondError as error:
        console.note_error(str(error))
        return error.exit_code
    except MemoryError:
        console.note_error("not enough memory; use a smaller model, context or prompt")
        return 1
    console.flush()
    return code


def _run(name: str, chosen: Any) -> int:
    """Calls the function of a command, from the module that has it."""
    import warnings
    from importlib import import_module

    module = f"subsecond.cli.{name.replace(' ', '_')}_command"
    command: Callable[[Any], int] = import_module(module).run
    with warnings.catch_warnings():
        warnings.showwarning = console.warn
        return command(chosen)
